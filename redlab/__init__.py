"""redlab: see, measure and use the redundancy inside trained networks.

Every public name below is importable from here and loaded on first use, so that ``import redlab`` stays instant.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import Any

_HOME = {
    "Density": "density",
    "Evaluation": "evaluation",
    "Hashed": "hashing",
    "Latency": "latency",
    "Recipe": "recipe",
    "Result": "result",
    "Run": "runs",
    "Scores": "scores",
    "apply_plan": "pruning",
    "as_dense": "splitting",
    "compare_criteria": "pruning_studies",
    "compare_hashes": "studies",
    "compare_latency": "latency",
    "compare_masks": "mask_studies",
    "compare_merges": "studies",
    "compare_splits": "split_studies",
    "compare_weights": "pruning_studies",
    "correct_biases": "bias",
    "correlations": "pruning_studies",
    "default_dataset": "datasets",
    "distinct_products": "split_studies",
    "draw_steps": "split_figures",
    "draw_units": "split_figures",
    "error_bound": "guarantees",
    "estimate_density": "density",
    "evaluate": "evaluation",
    "example_input": "networks",
    "expected_unique": "expected",
    "filter_distances": "studies",
    "fold_batchnorm": "folding",
    "harden": "dpp",
    "hash_network": "hashing",
    "hash_weights": "hashing",
    "inner_groups": "pruning_studies",
    "iterative_prune": "iterative",
    "list_networks": "networks",
    "load_dataset": "datasets",
    "load_network": "storage",
    "mask_entropy": "dpp",
    "mask_metrics": "dpp",
    "measure_cost": "cost",
    "measure_latency": "latency",
    "merge_each": "merging",
    "merge_neurons": "merging",
    "merge_trees": "merging",
    "merged_filters": "studies",
    "oracle_agreement": "pruning_studies",
    "plot_agreement": "pruning_figures",
    "plot_alphas": "merge_figures",
    "plot_bits": "split_figures",
    "plot_bound": "bound_figures",
    "plot_codebooks": "figures",
    "plot_collapse": "figures",
    "plot_correlations": "pruning_figures",
    "plot_density": "figures",
    "plot_distances": "merge_figures",
    "plot_diversity": "mask_figures",
    "plot_error": "figures",
    "plot_expected": "split_figures",
    "plot_filters": "merge_figures",
    "plot_frontier": "figures",
    "plot_mask_entropy": "mask_figures",
    "plot_masks": "mask_figures",
    "plot_merges": "merge_figures",
    "plot_modes": "figures",
    "plot_relevance": "pruning_figures",
    "plot_savings": "pruning_figures",
    "plot_scores": "pruning_figures",
    "plot_sensitivity": "pruning_figures",
    "plot_split": "split_figures",
    "plot_splits": "split_figures",
    "plot_times": "split_figures",
    "plot_tradeoff": "pruning_figures",
    "prune_by_masks": "mask_training",
    "prune_channels": "channel_pruning",
    "prune_weights": "weight_pruning",
    "read_benchmark": "split_studies",
    "record": "runs",
    "red": "pipeline",
    "red_plus_plus": "pipeline",
    "red_plus_plus_steps": "pipeline",
    "red_steps": "pipeline",
    "run_notebook": "runs",
    "save_figure": "figures",
    "save_network": "storage",
    "score_channels": "scoring",
    "score_weights": "scoring",
    "sensitivity": "pruning_studies",
    "separate_kernels": "splitting",
    "share_error": "budget",
    "sizes_at": "pruning_studies",
    "small_multiples": "figures",
    "sparse_bytes": "weight_pruning",
    "sparsify": "dpp",
    "split_differences": "split_studies",
    "split_inputs": "splitting",
    "step_by_step": "split_studies",
    "stored_bits": "storage",
    "train_masks": "mask_training",
    "unit_map": "split_studies",
    "weight_layers": "layers",
    "with_latency": "pruning_studies",
    "with_times": "split_studies",
}
__all__ = sorted(_HOME)
__version__ = version("redlab")


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"redlab.{_HOME[name]}"), name)
    raise AttributeError(f"module 'redlab' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
