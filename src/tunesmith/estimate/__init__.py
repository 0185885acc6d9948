"""What training needs on which hardware: memory, communication and speed. Arithmetic; no torch."""
