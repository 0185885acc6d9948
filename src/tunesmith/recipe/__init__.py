"""The recipe: YAML file + overrides -> `load` -> frozen `Recipe` -> `schedule` (derived numbers)."""
