"""Sweeps: run a recipe for every combination of some keys' values, and find the smallest that is good enough."""
