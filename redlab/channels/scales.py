"""Which scales of a network can be moved: a row divided by t, and the columns that read it times t, change nothing.

That holds where all between is positively homogeneous, f(t x) = t f(x) for t > 0, channel by channel: ReLU, pooling,
zero padding, sums of what is scaled alike. It doesn't hold through ReLU6, GELU, a softmax or a norm (Nagel et al., ICCV
2019, arXiv 1906.04721, section 4.1). The graph decides, by the rules of ``rules_scales``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor, nn

from redlab.channels.rules_scales import Scales
from redlab.network.example import Example
from redlab.network.layers import unwrap
from redlab.network.trace import Graph, retrace


@dataclass(frozen=True, eq=False)
class ScaleGroup:
    """Channels whose scales move between the same layers. Unlike a ``Group``, it ends at every depthwise layer.

    Attributes:
        name: the layer that makes them first; " (2)" and so on where it makes those of several groups.
        size: how many channels; each can have a scale of its own.
        rows: by the name of each layer that makes them, (n_out,) int64: the channel of each row, -1 for none of them.
        columns: by the name of each layer that reads them, (n_in,) int64: the same for its inputs.
        frozen: why their scales must stay, or "".
    """

    name: str
    size: int
    rows: dict[str, Tensor]
    columns: dict[str, Tensor]
    frozen: str = ""


def scalable_groups(network: nn.Module, example: Example | None = None, graph: Graph | None = None) -> list[ScaleGroup]:
    """Every output channel of every conv and linear layer that the graph calls, in the order in which they run.

    The scales of a network's input and output stay. So do those of layers that share a weight, and of channels that a
    batch norm reads: fold it first.

    Arguments:
        example: a tensor, tuple or dict that the network takes, batch first; by default ``example_input(network)``.
        graph: its graph, or that of the same network with other values: then nothing is traced.

    Raises:
        ValueError: the network can't be traced.

    Example:
        >>> network = fold_batchnorm(load_network("digits/mlp")).network
        >>> from redlab.channels.scales import scalable_groups
        >>> [(group.name, group.size, group.frozen) for group in scalable_groups(network)]
        [('hidden.0.linear', 256, ''), ('hidden.1.linear', 128, ''), ('classifier', 10, 'network output')]
    """
    network = unwrap(network)
    scales = Scales(retrace(network, example, graph))
    return list(_named(_groups(scales)))


def _groups(scales: Scales) -> Iterator[ScaleGroup]:
    reasons = scales.labels.reasons()
    rows = [scales.labels.together(end.rows).numpy() for end in scales.ends]
    columns = [scales.labels.together(end.columns).numpy() for end in scales.ends]
    makers, readers = _by_label(rows), _by_label(columns)
    alike: dict[tuple, list[int]] = {}
    for label, made in makers.items():
        read = readers.get(label, ())
        alike.setdefault((reasons.get(label, "" if read else "no layer reads it"), made, read), []).append(label)
    for (reason, made, read), labels in sorted(alike.items(), key=lambda item: (item[0][1], item[1][0])):
        of = lambda own, places, labels=labels: {  # noqa: E731
            scales.ends[place].layer.name: _places(labels, own[place]) for place in places
        }
        yield ScaleGroup(scales.ends[made[0]].layer.name, len(labels), of(rows, made), of(columns, read), reason)


def _by_label(ends: list[ndarray]) -> dict[int, tuple[int, ...]]:
    """By label, the places of the ends that hold it, in order."""
    found: dict[int, list[int]] = {}
    for place, labels in enumerate(ends):
        for label in dict.fromkeys(labels.tolist()):
            if label >= 0:
                found.setdefault(label, []).append(place)
    return {label: tuple(places) for label, places in found.items()}


def _places(known: list[int], labels: ndarray) -> Tensor:
    """For each of ``labels`` its place among those ``known``, or -1.

    Example: of 4 6 9, the labels 6 5 9 6 have the places 1 -1 2 1.
    """
    order = np.argsort(known)
    sorted_known = np.asarray(known)[order]
    at = np.searchsorted(sorted_known, labels).clip(max=len(known) - 1)
    return torch.from_numpy(np.where(sorted_known[at] == labels, order[at], -1))


def _named(groups: Iterable[ScaleGroup]) -> Iterator[ScaleGroup]:
    """The second group of a layer gets " (2)" after its name."""
    seen: Counter[str] = Counter()
    for group in groups:
        seen[group.name] += 1
        yield replace(group, name=f"{group.name} ({seen[group.name]})") if seen[group.name] > 1 else group
