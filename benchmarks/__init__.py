"""Measurements that are too long, or too dependent on the machine, for a test. Each says how it is run."""
