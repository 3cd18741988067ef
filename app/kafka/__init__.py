"""`willbuy consume`: events from a Kafka topic into the service's own scorer; answers and dead letters to topics."""
