"""Rows of a split -> prompts -> one model's answers -> scores: the same for the verdict and for validation."""
