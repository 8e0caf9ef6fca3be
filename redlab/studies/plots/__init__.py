"""Figures: a tidy frame in, matplotlib Axes out. Start with `hashing`.

Every figure is importable from here, also as ``redlab.plots.plot_density``, and loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from redlab.names import needs

needs("lab", "matplotlib", "seaborn")

_FIGURES = {
    "atlas": "draw_twins plot_atlas_filters plot_atlas_kinds plot_atlas_products plot_atlas_values plot_predictors",
    "hashing": "plot_bound plot_codebooks plot_collapse plot_density plot_error plot_frontier plot_modes plot_values",
    "inspection": "plot_tensor_entropy plot_tensor_error plot_tensor_products plot_tensor_values",
    "kernels": "draw_units plot_kernels plot_unit",
    "masks": "draw_epoch plot_diversity plot_inclusion plot_mask_entropy plot_masks",
    "merging": "draw_pairs plot_alphas plot_distances plot_filters plot_merges",
    "pruning": "plot_agreement plot_correlations plot_latency plot_relevance plot_savings plot_scores "
    "plot_sensitivity plot_tradeoff",
    "real": "draw_idea draw_real show_compact",
    "runtimes": "draw_engines draw_gains draw_latency draw_roofline",
    "splitting": "draw_splits draw_steps plot_bits plot_channels plot_expected plot_split plot_splits plot_times",
    "style": "small_multiples",
    "sweeps": "plot_sweep",
}
_HOME = {name: file for file, names in _FIGURES.items() for name in names.split()}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"redlab.studies.plots.{_HOME[name]}"), name)
    raise AttributeError(f"module 'redlab.plots' has no attribute {name!r}; it has {', '.join(__all__)}")
