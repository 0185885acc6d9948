"""Faster forward and backward passes, each checked against the plain one before it is used."""
