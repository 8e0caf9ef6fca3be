"""Sliders and browsers in JupyterLab. Start with `explorer`."""

from redlab.names import needs

needs("lab", "ipywidgets", "matplotlib")
