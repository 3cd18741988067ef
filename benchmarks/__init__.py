"""Measurements that take too long, or depend too much on the machine, for a test. Each module documents its command."""
