"""Sources -> rows -> examples in splits -> tokenized examples on disk -> batches."""
