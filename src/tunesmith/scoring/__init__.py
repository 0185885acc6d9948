"""Scores and verdicts over any system's outputs: plain functions that need no model."""
