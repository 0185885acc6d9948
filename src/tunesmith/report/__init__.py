"""What a run came to, for people: one self-contained HTML file, and the same in a terminal."""
