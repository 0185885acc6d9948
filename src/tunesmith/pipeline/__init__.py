"""Runs: find a run's folder, run its stages here or as Slurm jobs, and show its status."""
