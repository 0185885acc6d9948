"""The result of a run for people: one self-contained HTML file, and the same text in a terminal."""
