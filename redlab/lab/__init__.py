"""Notebooks executed, swept, explored and reported. Start with `runs`."""
