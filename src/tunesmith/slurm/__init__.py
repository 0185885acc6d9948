"""A stage as a Slurm job: its script, and Slurm's commands."""
