"""Stage `promote` and the registry's commands: make the tuned model of a run a version, and move aliases."""
