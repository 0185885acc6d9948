"""The registry: versions of models, the aliases that point at them, and the gate before an alias moves."""
