"""Figures of papers and tools that may be quoted beside measured ones; where one isn't here, none could be confirmed.

Shares are in [0, 1], accuracies in percent, top-1. A network that no row is measured on stands here all the same, so
that all that may be quoted is in one place.
"""

from __future__ import annotations

from typing import Any

_MOLCHANOV = "Molchanov et al., CVPR 2019, arXiv 1906.10771"
_DEPGRAPH = "Fang et al., CVPR 2023 (DepGraph), arXiv 2301.12900"
_HE = "He et al., CVPR 2016, arXiv 1512.03385"
_KIM = "Kim et al., NeurIPS 2020 (neuron merging)"
_DISTILLER = "Distiller, examples/agp-pruning/resnet20_filters.schedule_agp.yaml"

_WHOLE = "another network: their training; not pruned"
_LONG = "another network (93.53 %); trained for 100 epochs, here 0.4; a selection of its own"
_BEFORE = "another network (93.53 %); a selection of its own"
_AGP = "another network (91.78 %); pruned while it trains for 180 epochs, single weights too, best epoch"
_IMAGENET = "another network and data set; pruned while it trains, fine-tuned"


def _figure(
    network: str,
    needs: str,
    method: str,
    before: float,
    accuracy: float,
    left: float | None,
    source: str,
    protocol: str,
) -> dict[str, Any]:
    """``left``: of the macs, padding included, as papers count; None where the source doesn't say."""
    row = {"network": network, "needs": needs, "method": method, "before": before, "accuracy": accuracy}
    row |= {"setting": "", "products": left, "macs": left}
    return row | {"parameters": None, "source": source, "protocol": protocol}


PUBLISHED = (
    _figure("cifar10/resnet20", "", "unpruned, He et al.", 91.25, 91.25, 1.0, _HE, _WHOLE),
    _figure("cifar10/resnet20", "fine-tuning", "Distiller", 91.78, 91.34, 1 / 1.33, _DISTILLER, _AGP),
    _figure("cifar10/resnet56", "", "unpruned, He et al.", 93.03, 93.03, 1.0, _HE, _WHOLE),
    _figure("cifar10/resnet56", "nothing", "L1, DepGraph's", 93.53, 28.08, 1 / 2.12, _DEPGRAPH, _BEFORE),
    _figure("cifar10/resnet56", "fine-tuning", "L1, DepGraph's", 93.53, 92.93, 1 / 2.12, _DEPGRAPH, _LONG),
    _figure("cifar10/resnet56", "fine-tuning", "DepGraph", 93.53, 93.77, 1 / 2.13, _DEPGRAPH, _LONG),
    _figure("cifar10/resnet56", "fine-tuning", "DepGraph", 93.53, 93.64, 1 / 2.57, _DEPGRAPH, _LONG),
    _figure("VGG-16, CIFAR-10", "nothing", "neuron merging", 93.70, 93.16, None, _KIM, "another network"),
    _figure("VGG-16, CIFAR-10", "nothing", "pruning alone, Kim et al.", 93.70, 88.70, None, _KIM, "another network"),
    _figure("ResNet-101, ImageNet", "fine-tuning", "Taylor", 77.37, 77.35, 0.6, _MOLCHANOV, _IMAGENET)
    | {"parameters": 0.7},
    _figure("ResNet-50, ImageNet", "fine-tuning", "Taylor", 76.18, 74.50, 0.55, _MOLCHANOV, _IMAGENET)
    | {"parameters": 0.555},
    _figure("ResNet-50, ImageNet", "fine-tuning", "Taylor", 76.18, 75.48, 0.65, _MOLCHANOV, _IMAGENET)
    | {"parameters": 0.699},
)
