"""The general set: held-out rows that come with tunesmith, to notice what a tuned model has forgotten."""

from tunesmith.general.rows import rows

__all__ = ["rows"]
