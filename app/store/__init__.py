"""Where sessions are kept: the protocol, and a store for Redis and one for tests."""
