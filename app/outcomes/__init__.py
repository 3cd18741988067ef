"""What became of sessions: closing those that idle out, and telling of every one that is closed.

Commits of a purchase close their session themselves; see `app.store.outcomes` for the way from there.
"""
