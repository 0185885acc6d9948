"""The recipe: YAML file + overrides -> `load` -> frozen `Recipe` -> `plan` (derived numbers)."""
