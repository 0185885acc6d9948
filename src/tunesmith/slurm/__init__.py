"""Slurm: its commands, the batch scripts of jobs, and the record of which jobs a run was submitted as."""
