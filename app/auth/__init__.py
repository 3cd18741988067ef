"""Who may ask for what: API keys, their scopes, and how often each may ask. `docs/security.md` says how it is run."""
