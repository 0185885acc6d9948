"""What a base is, read from its configuration and weight headers alone: shapes, limits, whether it is causal."""
