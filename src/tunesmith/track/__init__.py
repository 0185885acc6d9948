"""A run told to trackers of others: trackio, MLflow, TensorBoard, wandb. Each in its own process, so none can stop it.

`train/metrics.jsonl` stays the truth. A tracker is fed from it, from outside: what it does to its process (threads,
random numbers, a network that hangs, a crash) does nothing to training.
"""
