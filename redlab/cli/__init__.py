"""The commands. Start with `main`."""
