"""Numbers that modules hold and that follow the channels: ``num_groups`` of a group norm, ``width`` of a Res2Net block.

A size has a dotted name: ``layer1.0.width``, or ``conv.splits.0`` for one number of a list or tuple.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

_GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "output_padding", "training")


def numbers_of(module: nn.Module) -> Iterator[tuple[str, int]]:
    """The whole numbers above 0 that a module holds, alone or in a list or tuple, by their names in it."""
    for name, value in vars(module).items():
        if name.startswith("_") or name in _GEOMETRY:
            continue
        if type(value) is int and value > 0:
            yield name, value
        elif isinstance(value, list | tuple) and value and all(type(one) is int and one > 0 for one in value):
            yield from ((f"{name}.{place}", one) for place, one in enumerate(value))


def read_size(network: nn.Module, name: str) -> int:
    """The number of that dotted name, 0 if ``network`` has none."""
    try:
        module, attribute, place = _find(network, name)
    except AttributeError:
        return 0
    value = vars(module).get(attribute)
    if place is not None:
        value = value[place] if isinstance(value, list | tuple) and place < len(value) else None
    return value if type(value) is int else 0


def write_size(network: nn.Module, name: str, value: int) -> None:
    """Set the number of that dotted name, in place."""
    module, attribute, place = _find(network, name)
    if place is None:
        setattr(module, attribute, value)
        return
    held: Any = vars(module)[attribute]
    changed = [value if position == place else one for position, one in enumerate(held)]
    setattr(module, attribute, type(held)(changed) if type(held) in (list, tuple) else changed)


def _find(network: nn.Module, name: str) -> tuple[nn.Module, str, int | None]:
    """The module, its attribute, and the place in it of one of several numbers."""
    path, _, attribute = name.rpartition(".")
    place = None
    if attribute.isdigit():
        place = int(attribute)
        path, _, attribute = path.rpartition(".")
    return network.get_submodule(path), attribute, place
