"""Everything about a run that can be known before it starts: checks, estimates, and its rows as the model sees them."""
