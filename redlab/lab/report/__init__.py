"""The HTML report of a run of all notebooks. Start with `page`."""

from redlab.names import needs

needs("lab", "nbconvert", "latex2mathml")
