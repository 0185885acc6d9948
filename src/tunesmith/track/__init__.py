"""Trackers: show a run's metrics in trackio, MLflow, TensorBoard or wandb.

`train/metrics.jsonl` is the record of a run. Each tracker is fed from it in a separate process, so that a tracker's
threads, use of random numbers, hanging network calls and crashes cannot affect training.
"""
