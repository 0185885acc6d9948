"""A model's shapes, limits and causality, read from its configuration and weight headers alone."""
