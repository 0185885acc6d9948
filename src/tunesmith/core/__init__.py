"""What every layer may use: errors, records, files, the run folder. Standard library only."""
