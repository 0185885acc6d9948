"""What a run would do and need, known before it starts."""
