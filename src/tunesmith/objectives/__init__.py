"""Objectives: the loss of an example, the divisor of a step's losses, and the values that validation measures."""
