"""Metrics, and the paired verdict, on the outputs of any system: plain functions that need no model."""
