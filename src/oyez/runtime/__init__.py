"""Runs one service: reads its partitions, calls its handlers, publishes what they announce."""
