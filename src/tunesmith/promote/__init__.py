"""A model with its verdict -> a version in the registry."""
