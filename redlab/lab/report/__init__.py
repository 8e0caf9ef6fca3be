"""The HTML report of a run of all notebooks. Start with `page`."""
