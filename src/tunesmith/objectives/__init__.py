"""What is learned from an example: its loss, what that is divided by, and what validation measures."""
