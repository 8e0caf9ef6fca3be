"""Figures: a tidy frame in, matplotlib Axes out. Start with `hashing`.

Every figure is importable from here, also as ``redlab.plots.plot_density``, and loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from redlab.names import needs

needs("lab", "matplotlib", "seaborn")

_HOME = {
    "draw_idea": "idea",
    "draw_epoch": "masks",
    "draw_pairs": "merging",
    "draw_real": "real",
    "draw_splits": "splitting",
    "draw_steps": "splitting",
    "draw_twins": "atlas",
    "draw_units": "units",
    "plot_agreement": "pruning",
    "plot_alphas": "merging",
    "plot_atlas_filters": "atlas",
    "plot_atlas_kinds": "atlas",
    "plot_atlas_products": "atlas",
    "plot_atlas_values": "atlas",
    "plot_bits": "splitting",
    "plot_bound": "bounds",
    "plot_channels": "splitting",
    "plot_codebooks": "hashing",
    "plot_collapse": "hashing",
    "plot_correlations": "pruning",
    "plot_density": "hashing",
    "plot_distances": "merging",
    "plot_diversity": "masks",
    "plot_error": "hashing",
    "plot_expected": "splitting",
    "plot_filters": "merging",
    "plot_frontier": "hashing",
    "plot_inclusion": "masks",
    "plot_kernels": "kernels",
    "plot_latency": "pruning",
    "plot_mask_entropy": "masks",
    "plot_masks": "masks",
    "plot_merges": "merging",
    "plot_modes": "hashing",
    "plot_predictors": "atlas",
    "plot_relevance": "pruning",
    "plot_savings": "pruning",
    "plot_scores": "pruning",
    "plot_sensitivity": "pruning",
    "plot_split": "splitting",
    "plot_splits": "splitting",
    "plot_sweep": "sweeps",
    "plot_tensor_entropy": "inspection",
    "plot_tensor_error": "inspection",
    "plot_tensor_products": "inspection",
    "plot_tensor_values": "inspection",
    "plot_times": "splitting",
    "plot_tradeoff": "pruning",
    "plot_unit": "units",
    "plot_values": "hashing",
    "show_compact": "real",
    "small_multiples": "style",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"redlab.studies.plots.{_HOME[name]}"), name)
    raise AttributeError(f"module 'redlab.plots' has no attribute {name!r}; it has {', '.join(__all__)}")
