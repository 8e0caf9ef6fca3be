"""Notebooks executed, swept, explored and reported. Start with `runs`."""

from redlab.names import needs

needs("lab", "yaml", "nbformat", "papermill", "pyarrow")
