"""Prepared tokens + model -> checkpoints: `loop` yields facts, `train` logs, saves and stops."""
