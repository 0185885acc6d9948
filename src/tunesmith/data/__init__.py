"""source -> rows -> Examples -> splits -> Tokens on disk -> batches."""
