"""Generate answers: prompts of rows, decoding and sampling, and the answers of one model. Validation uses it too."""
