"""How alpha is shared out among the groups of a network: one number a group, in the order of their first layers."""

from __future__ import annotations

from collections.abc import Callable

from redlab.channels.coupling import Group


def block_of(group: Group) -> str:
    """The block that a group is born in: the first two parts of the path to its first layer, ``layer1.0`` say."""
    path = group.producers[0].tensor.split(".")[:-2]  # without the tensor's own name and its module's
    return ".".join(path[:2])


def _ascending(groups: list[Group], alpha: float) -> list[float]:
    return [alpha * (k + 1) / len(groups) for k in range(len(groups))]


def _block(groups: list[Group], alpha: float) -> list[float]:
    blocks = list(dict.fromkeys(map(block_of, groups)))
    return [alpha * (blocks.index(block_of(group)) + 1) / len(blocks) for group in groups]


STRATEGIES: dict[str, Callable[[list[Group], float], list[float]]] = {
    "constant": lambda groups, alpha: [alpha] * len(groups),
    "ascending": _ascending,
    "descending": lambda groups, alpha: _ascending(groups, alpha)[::-1],
    "block": _block,
}
