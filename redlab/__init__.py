"""redlab: see, measure and use the redundancy inside trained networks.

Every public name below is importable from here and loaded on first use, so that ``import redlab`` stays instant.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

_HOME = {
    "Density": "hashing.density",
    "Evaluation": "network.evaluation",
    "Hashed": "hashing.weights",
    "Latency": "network.latency",
    "Recipe": "network.recipe",
    "Result": "network.result",
    "Run": "lab.runs",
    "Scores": "pruning.scores",
    "apply_plan": "channels.apply",
    "as_dense": "compression.splitting",
    "browse_filters": "lab.explore.filters",
    "browse_masks": "lab.explore.masks",
    "compare_hashes": "studies.hashing",
    "compare_merges": "studies.merging",
    "compare_runs": "lab.explore.runs",
    "compare_with_random": "hashing.networks",
    "correct_biases": "compression.bias",
    "default_dataset": "zoo.datasets",
    "error_bound": "compression.guarantees",
    "estimate_density": "hashing.density",
    "evaluate": "network.evaluation",
    "example_input": "network.example",
    "expected_unique": "hashing.chance",
    "explore_density": "lab.explore.sliders",
    "explore_hashing": "lab.explore.sliders",
    "explore_merging": "lab.explore.sliders",
    "explore_splitting": "lab.explore.sliders",
    "fold_batchnorm": "compression.folding",
    "harden": "dpp.hardening",
    "hash_network": "hashing.networks",
    "hash_weights": "hashing.weights",
    "inspect_checkpoint": "studies.inspection",
    "iterative_prune": "pruning.iterative",
    "list_networks": "zoo.networks",
    "load_dataset": "zoo.datasets",
    "load_network": "zoo.saving",
    "load_runs": "lab.results",
    "mask_entropy": "dpp.metrics",
    "mask_metrics": "dpp.metrics",
    "measure_cost": "network.cost",
    "measure_latency": "network.latency",
    "measure_redundancy": "studies.redundancy",
    "merge_neurons": "compression.merging",
    "merge_trees": "compression.merging",
    "plot_collapse": "studies.plots.hashing",
    "plot_density": "studies.plots.hashing",
    "plot_frontier": "studies.plots.hashing",
    "plot_mask_entropy": "studies.plots.masks",
    "plot_merges": "studies.plots.merging",
    "plot_split": "studies.plots.splitting",
    "prune_channels": "pruning.channels",
    "prune_weights": "pruning.weights",
    "record": "lab.runs",
    "red": "compression.pipeline",
    "red_plus_plus": "compression.pipeline",
    "run_notebook": "lab.runs",
    "save_figure": "studies.plots.save",
    "save_network": "zoo.saving",
    "score_channels": "pruning.scoring",
    "score_weights": "pruning.scoring",
    "sensitivity": "studies.pruning",
    "separate_kernels": "compression.splitting",
    "small_multiples": "studies.plots.style",
    "sparsify": "dpp.sparsifying",
    "split_inputs": "compression.splitting",
    "sweep": "lab.sweeps",
    "train_masks": "dpp.training",
    "weight_layers": "network.layers",
}
# Names of rarer use, by the file that holds them: they are taken from there. Figures are in redlab.plots.
_ELSEWHERE = {
    "beside_stored": "studies.real",
    "beyond_chance": "studies.real",
    "channel_products": "studies.splitting",
    "compare_accuracy": "studies.accuracy",
    "compare_atlas": "studies.atlas",
    "compare_criteria": "studies.pruning",
    "compare_latency": "network.latency",
    "compare_masks": "studies.masks",
    "compare_splits": "studies.splitting",
    "compare_weights": "studies.pruning",
    "compared_layers": "studies.atlas",
    "correlations": "studies.pruning",
    "distinct_products": "studies.splitting",
    "explain_atlas": "studies.predictors",
    "explain_redundancy": "studies.predictors",
    "filter_distances": "studies.merging",
    "filter_pairs": "studies.merging",
    "inner_groups": "studies.pruning",
    "join_atlas": "studies.atlas",
    "known_masks": "studies.masks",
    "left_out": "studies.real",
    "measure_atlas": "studies.atlas",
    "measure_left": "studies.real",
    "measure_noise": "studies.atlas",
    "merge_each": "compression.merging",
    "merged_filters": "studies.merging",
    "missing_networks": "studies.atlas",
    "modes_of_noise": "studies.atlas",
    "oracle_agreement": "studies.pruning",
    "prune_by_masks": "dpp.training",
    "published_figures": "studies.real",
    "read_atlas": "studies.atlas",
    "read_benchmark": "studies.benchmarks",
    "read_real": "studies.real",
    "red_plus_plus_steps": "compression.pipeline",
    "red_steps": "compression.pipeline",
    "share_error": "compression.budget",
    "sizes_at": "studies.pruning",
    "sparse_bytes": "pruning.weights",
    "split_differences": "studies.splitting",
    "step_by_step": "studies.splitting",
    "stored_bits": "zoo.saving",
    "summarise_atlas": "studies.atlas",
    "summarise_real": "studies.real",
    "table_real": "studies.real",
    "twin_layers": "studies.atlas",
    "unit_map": "studies.splitting",
    "with_latency": "studies.benchmarks",
    "with_times": "studies.benchmarks",
}
_ROOMS = tuple(sorted(path.parent.name for path in Path(__file__).parent.glob("*/__init__.py")))
__all__ = sorted(_HOME)
__version__ = version("redlab")


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"redlab.{_HOME[name]}"), name)
    if name == "plots":
        return import_module("redlab.studies.plots")
    if name in _ROOMS:
        return import_module(f"redlab.{name}")
    if name in _ELSEWHERE or name.startswith(("plot_", "draw_")):
        home = _ELSEWHERE.get(name, "plots")
        raise AttributeError(f"module 'redlab' has no attribute {name!r}: it is in redlab.{home}")
    raise AttributeError(f"module 'redlab' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return [*__all__, *_ROOMS, "plots"]
