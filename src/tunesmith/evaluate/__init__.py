"""Stage `evaluate`: answers and likelihoods of base and tuned, their scores, and the verdict."""
