"""Outcomes of sessions: idle sessions are closed, closed sessions are published.

The commit of a purchase closes its session by itself (`app.store.outcomes`).
"""
