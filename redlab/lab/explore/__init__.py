"""Sliders and browsers in JupyterLab. Start with `explorer`."""
