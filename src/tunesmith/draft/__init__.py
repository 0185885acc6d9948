"""A first recipe for a data file: its format, and the settings that fit its rows."""
