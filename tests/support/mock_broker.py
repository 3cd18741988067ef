"""`python -m support.mock_broker PARTITIONS TOPIC...`: librdkafka's mock cluster of one broker as a process.

Prints HOST:PORT, and ends with its standard input.
"""

import sys

from support.kafka import MockCluster

if __name__ == "__main__":
    cluster = MockCluster(1)
    cluster.create(*sys.argv[2:], partitions=int(sys.argv[1]))
    print(cluster.brokers, flush=True)
    sys.stdin.read()
