"""Access control: API keys, their scopes, and their rate limits (docs/security.md)."""
