"""The runtime of a service: reads its partitions, calls its handlers, publishes its events."""
