"""redlab: see, measure and use the redundancy inside trained networks.

Every public name below is importable from here and loaded on first use, so that ``import redlab`` stays instant.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any


def _home_of(names: dict[str, str]) -> dict[str, str]:
    """The file of each name, out of the names of each file."""
    return {name: file for file, listed in names.items() for name in listed.split()}


_HOME = _home_of(
    {
        "channels.apply": "apply_plan",
        "compression.bias": "correct_biases",
        "compression.equalising": "equalise",
        "compression.folding": "fold_batchnorm",
        "compression.guarantees": "error_bound",
        "compression.merging": "merge_neurons merge_trees",
        "compression.pipeline": "red red_plus_plus",
        "compression.preparing": "prepare",
        "compression.splitting": "as_dense separate_kernels split_inputs",
        "dpp.hardening": "harden",
        "dpp.metrics": "mask_entropy mask_metrics",
        "dpp.sparsifying": "sparsify",
        "dpp.training": "train_masks",
        "export.coreml": "export_coreml",
        "export.onnx": "Export export_onnx",
        "export.runtimes": "compare_runtimes",
        "hashing.chance": "expected_unique",
        "hashing.density": "Density estimate_density",
        "hashing.networks": "compare_with_random hash_network",
        "hashing.weights": "Hashed hash_weights",
        "lab.explore.filters": "browse_filters",
        "lab.explore.masks": "browse_masks",
        "lab.explore.runs": "compare_runs",
        "lab.explore.sliders": "explore_density explore_hashing explore_merging explore_splitting",
        "lab.results": "load_runs",
        "lab.runs": "Run record run_notebook",
        "lab.sweeps": "sweep",
        "network.cost": "measure_cost",
        "network.evaluation": "Evaluation evaluate",
        "network.example": "example_input",
        "network.latency": "Latency measure_latency",
        "network.layers": "weight_layers",
        "network.recipe": "Recipe",
        "network.result": "Result",
        "pruning.channels": "prune_channels",
        "pruning.iterative": "iterative_prune",
        "pruning.scores": "Scores score_channels score_weights",
        "pruning.weights": "prune_weights",
        "studies.hashing": "compare_hashes",
        "studies.images": "training_images",
        "studies.inspection": "inspect_checkpoint",
        "studies.merging": "compare_merges",
        "studies.plots.hashing": "plot_collapse plot_density plot_frontier",
        "studies.plots.masks": "plot_mask_entropy",
        "studies.plots.merging": "plot_merges",
        "studies.plots.save": "save_figure",
        "studies.plots.splitting": "plot_split",
        "studies.plots.style": "small_multiples",
        "studies.pruning": "sensitivity",
        "studies.redundancy": "measure_redundancy",
        "studies.titles": "short_name",
        "zoo.datasets": "default_dataset load_dataset",
        "zoo.names": "list_networks",
        "zoo.saving": "load_network save_network",
    }
)
# Names of rarer use, by the file that holds them: they are taken from there. Figures are in redlab.plots.
_ELSEWHERE = _home_of(
    {
        "compression.budget": "share_error",
        "compression.merging": "merge_each",
        "compression.pipeline": "red_plus_plus_steps red_steps",
        "dpp.training": "prune_by_masks",
        "network.latency": "compare_latency",
        "pruning.weights": "sparse_bytes",
        "studies.accuracy": "compare_accuracy",
        "studies.atlas": (
            "compare_atlas compared_layers join_atlas measure_atlas measure_noise missing_networks modes_of_noise "
            "read_atlas summarise_atlas twin_layers"
        ),
        "studies.benchmarks": "read_benchmark with_latency with_times",
        "studies.masks": "compare_masks known_masks",
        "studies.merging": "filter_distances filter_pairs merged_filters",
        "studies.predictors": "explain_atlas explain_redundancy",
        "studies.pruning": "compare_criteria compare_weights correlations inner_groups oracle_agreement sizes_at",
        "studies.real": (
            "beside_stored beyond_chance left_out measure_left published_figures read_real summarise_real table_real"
        ),
        "studies.runtimes": "fastest read_runtimes sharing_limits",
        "studies.sizes": "compare_sizes",
        "studies.splitting": (
            "channel_products compare_splits distinct_products layer_to_draw split_differences step_by_step unit_map"
        ),
        "zoo.saving": "stored_bits",
    }
)
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
