"""Browse masks that learn, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import log
from numbers import Integral
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from redlab.dpp.draws import largest
from redlab.dpp.masks import sparsity_of
from redlab.dpp.training import TrainedMasks
from redlab.lab.explore import choices
from redlab.lab.explore.explorer import Choice, Explorer
from redlab.studies.plots.masks import draw_epoch

BEFORE, START = "the epoch before", "epoch 0"


def browse_masks(
    trained: TrainedMasks | Mapping[str, Tensor],
    k: int | Mapping[str, int] | None = None,
    layer: str | None = None,
    epoch: int | None = None,
    since: str = BEFORE,
) -> Explorer:
    """Slide through the epochs, and see the logits of a layer, its mask, and which of its entries have changed.

    Arguments:
        trained: what ``train_masks(..., watch=[...])`` returned; or logits by layer, (epochs + 1, rows, n).
        k: how many entries of a row stay, one number or by layer. Not needed with what ``train_masks`` returned.
        layer, epoch: where to begin; by default the first layer that was watched, after its last epoch.
        since: what the mask is compared with, "the epoch before" or "epoch 0".

    Raises:
        ValueError: no layer was watched, logits without k or of another shape, k out of range; an unknown layer or
            epoch.
        TypeError: ``trained`` is something else.

    Example:
        >>> logits = torch.stack([torch.eye(4), torch.eye(4).flip(0)])
        >>> browser = browse_masks({"classifier": logits}, k=1)
        >>> browser.values
        {'layer': 'classifier', 'since': 'the epoch before', 'epoch': 1}
        >>> len(browser.figure().axes)
        4
    """
    logits, counts = _watched(trained, k)
    epochs = lambda at: {str(epoch): epoch for epoch in range(len(logits[at["layer"]]))}  # noqa: E731
    start = {"layer": layer, "since": since, "epoch": epoch}
    offered = [
        choices.menu("layer", "layer", logits),
        choices.menu("since", "changes since", (BEFORE, START)),
        Choice("epoch", "epoch", epochs, slider=True, prefer=lambda at: len(logits[at["layer"]]) - 1),
    ]
    return Explorer("Masks that learn", offered, partial(_see_epoch, logits, counts), start, size=(9, 3))


def _watched(
    trained: TrainedMasks | Mapping[str, Tensor], k: int | Mapping[str, int] | None
) -> tuple[Mapping[str, Tensor], dict[str, int]]:
    """The logits by layer, and k."""
    logits = trained.logits if isinstance(trained, TrainedMasks) else trained
    if not isinstance(logits, Mapping):
        raise TypeError(f"trained must come from train_masks, or be logits by layer, not {type(logits).__name__}")
    if not logits:
        raise ValueError("no layer was watched: train_masks(..., watch=[...]) keeps the logits of those named")
    if isinstance(trained, TrainedMasks):
        masks = sparsity_of(trained.network).masks
        k = {name: masks[name].k for name in logits}
    if k is None:
        raise ValueError("logits alone do not say how many of a row stay: give k")
    counts: dict[str, Any] = {name: k.get(name) if isinstance(k, Mapping) else k for name in logits}
    for name, own in logits.items():
        _check_logits(name, own, counts[name])
    return logits, counts


def _check_logits(name: str, logits: Tensor, k: Any) -> None:
    if not isinstance(logits, Tensor) or logits.ndim != 3 or 0 in logits.shape:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"the logits of {name} must be a tensor of (epochs + 1, rows, n), not {found}")
    if isinstance(k, bool) or not isinstance(k, Integral) or not 1 <= int(k) <= logits.shape[2]:
        raise ValueError(f"k must lie in 1 ... {logits.shape[2]} for {name}, not be {k!r}")


def _see_epoch(
    logits: Mapping[str, Tensor], counts: Mapping[str, int], figure: Figure, layer: str, since: str, epoch: int
) -> str:
    other = 0 if since == START else max(epoch - 1, 0)
    own, before, k = logits[layer][epoch], logits[layer][other], counts[layer]
    draw_epoch(own, before, k, f"changed since epoch {other}", figure)
    choices.hold_colours(figure.axes[0], logits[layer] - logits[layer].topk(k).values[..., -1:], 98)
    figure.suptitle(f"{layer}, epoch {epoch}", fontsize=10)
    came = int((largest(own, k) & ~largest(before, k)).sum())
    entropy, n = float(torch.special.entr(own.double().softmax(1)).sum(1).mean()), own.shape[1]
    sure = f"entropy {entropy:.2f} nats (log n = {log(n):.2f}, log k = {log(k):.2f})"
    return f"{sure}; {2 * came:,} of {own.numel():,} entries of the mask changed since epoch {other}, as many in as out"
