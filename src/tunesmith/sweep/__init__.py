"""Run a recipe in several sizes: `axes` list the trials, `run` runs them, `collect` compares, `page` draws."""
