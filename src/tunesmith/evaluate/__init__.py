"""Checkpoints -> answers and likelihoods of base and tuned -> scores -> verdict."""
