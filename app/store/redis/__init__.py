"""What redis-py lacks, on its connections: bounded round trips, circuit breakers, failures per cluster node."""
