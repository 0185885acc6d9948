"""Rows of a split -> questions -> one model's answers -> scores: the same for the verdict and for validation."""
