"""Estimate the memory, communication and throughput of training by arithmetic, without torch."""
