"""The lowest layer: errors, records, files, the run folder. Standard library only."""
