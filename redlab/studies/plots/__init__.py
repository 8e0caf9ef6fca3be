"""Figures: a tidy frame in, matplotlib Axes out. Start with `hashing`."""
