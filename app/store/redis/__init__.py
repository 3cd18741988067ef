"""Connections to Redis: one server, a primary behind sentinels, or a cluster."""
