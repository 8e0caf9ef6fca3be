"""What a network with masks knows about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from redlab.channels.groups import Group
from redlab.dpp.masks import Mask


@dataclass(frozen=True, eq=False)
class Sparsity:
    """What ``sparsify`` did to a network, which carries it as ``network.dpp``.

    Attributes:
        options: what was asked for, as plain data.
        masks: by the name of the layer, or of the coupled group (granularity "filter").
        skipped: by the name of the layer or group, why it has no mask.
        layers: the names of those whose weight is masked.
        groups: the coupled groups of the network (granularity "filter").
        example: what the network takes, where ``sparsify`` was told.
    """

    options: dict[str, Any]
    masks: dict[str, Mask]
    skipped: dict[str, str]
    layers: tuple[str, ...]
    groups: tuple[Group, ...] = ()
    example: Any = None

    @property
    def of_channels(self) -> bool:
        """Whether whole channels go."""
        return self.options["granularity"] == "filter"

    def count(self, layer: str) -> tuple[int, int]:
        """k and n of a row of the layer's own mask; 0 and 0 where it has none."""
        mask = None if self.of_channels else self.masks.get(layer)
        return (0, 0) if mask is None else (mask.k, mask.logits.shape[1])


def sparsity_of(network: nn.Module) -> Sparsity:
    """What ``network`` carries.

    Raises:
        ValueError: it has no masks.
        FloatingPointError: one of them has logits that are NaN or inf (on a GPU, drawing does not look).
    """
    if not isinstance(sparsity := getattr(network, "dpp", None), Sparsity):
        raise ValueError(f"this {type(network).__name__} has no masks: make it with sparsify(network, keep)")
    if bad := [name for name, mask in sparsity.masks.items() if not mask.logits.isfinite().all()]:
        raise FloatingPointError(f"the logits of the mask of {bad[0]} are NaN or inf: try a lower learning rate")
    return sparsity
