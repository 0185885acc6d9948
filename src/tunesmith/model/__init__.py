"""Weights -> adapters -> token loss and generation: the only forward passes of the project."""
