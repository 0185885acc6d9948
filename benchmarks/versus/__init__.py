"""Benchmarks of tunesmith against other trainers, in alternation on one machine: `./scripts/benchmark`."""
