"""Plans: what becomes of every channel of every coupled group, as plain data (JSON).

A plan is ``{"step": "plan", "groups": {...}, "members": {...}}``. ``groups`` holds one destination a channel: its new
index (channels with the same one are merged), or -1 for a channel that is removed. ``members`` lets ``apply_plan`` work
without tracing: by group that changes, the slices of tensors that are its channels, and what they count for in numbers
that modules hold (role "size": the number is set to what is left of its slices).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from redlab.channels.groups import Group

ROLES = ("producer", "consumer", "padding", "size")
WIDEST = 10**8  # slices of a tensor: beyond it, an index of them alone would fill the memory


def make_plan(groups: Sequence[Group], destinations: Mapping[str, Sequence[int]]) -> dict:
    """The plan that gives the channels of ``groups`` these ``destinations``; other groups stay as they are.

    Arguments:
        groups: what ``couple`` found in the network that the plan is for.
        destinations: by the name of a group, one number a channel. 0 or more is its new index, and channels with the
            same one are merged; -1 removes the channel. The new indices are 0 .. k - 1. A merged channel lies where
            the first of its members lay, so the plan numbers them in the order in which they first appear.

    Raises:
        ValueError: an unknown or frozen group, a wrong number of channels, a gap in the indices, or none left.
    """
    known = {group.name: group for group in groups}
    if unknown := [name for name in destinations if name not in known]:
        raise ValueError(f"no group is called {unknown[0]!r}; the groups are {', '.join(known)}")
    plan: dict[str, Any] = {"step": "plan", "groups": {}, "members": {}}
    for name, wanted in destinations.items():
        destination = [int(index) for index in wanted]
        _check_destination(known[name], destination)
        plan["groups"][name] = _renumbered(destination)
        if plan["groups"][name] != list(range(known[name].size)):
            plan["members"][name] = _members(known[name])
    return plan


def representatives(destination: Sequence[int]) -> list[int]:
    """For every channel the first one with the same destination, whose place the merged channel takes; -1: removed."""
    first: dict[int, int] = {}
    return [-1 if new < 0 else first.setdefault(new, old) for old, new in enumerate(destination)]


def decode_index(code: dict, size: int) -> Tensor:
    """The int64 (size, m) index that ``members`` holds as ``{"arange": [...]}`` or ``{"rows": [...]}``."""
    if "rows" in code:
        return torch.tensor(code["rows"], dtype=torch.int64)
    start, step, inner, count = code["arange"]
    return start + step * torch.arange(size)[:, None] + inner * torch.arange(count)


def _encode_index(index: Tensor) -> dict:
    rows = index.tolist()
    step = rows[1][0] - rows[0][0] if len(rows) > 1 else 1
    inner = rows[0][1] - rows[0][0] if len(rows[0]) > 1 else 1
    code = {"arange": [rows[0][0], step, inner, len(rows[0])]}
    return code if torch.equal(decode_index(code, len(rows)), index) else {"rows": rows}


def _members(group: Group) -> list[dict]:
    """Members with the same slices share an item: a layer's weight, its bias and the norm after it, for example."""
    items: dict[str, dict] = {}
    for role, members in zip(ROLES, (group.producers, group.consumers, group.paddings, group.sizes), strict=True):
        for member in members:
            item = {"role": role, "width": member.width, "size": group.size, "index": _encode_index(member.index)}
            item["tensors"] = []
            items.setdefault(str(item), item)["tensors"].append([member.tensor, member.dim])
    return list(items.values())


def _check_destination(group: Group, destination: list[int]) -> None:
    where = f"group {group.name!r}"
    if group.frozen:
        raise ValueError(f"{where} is frozen: {group.frozen}. Leave it out of the plan")
    if len(destination) != group.size:
        raise ValueError(f"{where} has {group.size} channels and needs as many destinations, not {len(destination)}")
    _check_indices(where, destination)


def _check_indices(where: str, destination: list[int]) -> None:
    new = sorted({index for index in destination if index >= 0})
    if min(destination) < -1:
        raise ValueError(f"{where}: a destination is a new index or -1 (removed), not {min(destination)}")
    if not new:
        raise ValueError(f"{where} would be left without channels: keep at least one")
    if new != list(range(len(new))):
        raise ValueError(f"{where}: the new indices must be 0 .. {len(new) - 1} without a gap, and one is {new[-1]}")


def _renumbered(destination: list[int]) -> list[int]:
    order: dict[int, int] = {}
    return [-1 if new < 0 else order.setdefault(new, len(order)) for new in destination]


def check_plan(plan: Any) -> dict:
    """``plan`` itself, if it is a plan as ``make_plan`` makes it. For a plan that comes from a file.

    Raises:
        ValueError: it isn't; the message says where.
    """
    _require(isinstance(plan, dict) and plan.get("step") == "plan", 'it must be a dict with "step": "plan"')
    groups, members = plan.get("groups"), plan.get("members")
    _require(isinstance(groups, dict) and isinstance(members, dict), 'it must hold the dicts "groups" and "members"')
    for name, destination in groups.items():
        _require(_are_ints(destination) and destination, f"the destinations of {name!r} must be a list of integers")
        _check_indices(f"group {name!r}", destination)
        _require(destination == _renumbered(destination), f"the new indices of {name!r} must be in order of appearance")
        changed = destination != list(range(len(destination)))
        _require(changed == (name in members), f"{name!r} needs members if it changes, and none if it doesn't")
    for name, items in members.items():
        _require(name in groups and isinstance(items, list) and items, f"{name!r} has members and no group, or none")
        for item in items:
            _check_item(f"a member of {name!r}", item, len(groups[name]))
    return plan


def _check_item(where: str, item: Any, size: int) -> None:
    _require(
        isinstance(item, dict) and item.get("role") in ROLES, f"{where}: its role must be one of {', '.join(ROLES)}"
    )
    tensors, width, code = item.get("tensors"), item.get("width"), item.get("index")
    named = isinstance(tensors, list) and all(
        isinstance(t, list) and len(t) == 2 and isinstance(t[0], str) and _is_int(t[1], 0) for t in tensors
    )
    _require(named and tensors, f"{where}: its tensors must be pairs of a name and a dim")
    _require(_is_int(width, 1) and width <= WIDEST, f"{where}: its width must be an integer from 1 to {WIDEST:,}")
    _require(_is_int(item.get("size"), 1) and item["size"] == size, f"{where}: its size must be {size}")
    _require(isinstance(code, dict) and len(code) == 1, f"{where}: its index must be an arange or rows")
    _require(_fits(code, size, width), f"{where}: its index must have {size} rows of distinct slices below {width}")


def _fits(code: dict, size: int, width: int) -> bool:
    """Judged before anything of the size that a file names is made."""
    if "arange" in code:
        numbers = code["arange"]
        if not (_are_ints(numbers) and len(numbers) == 4 and numbers[3] > 0 and size * numbers[3] <= width):
            return False
        if max(map(abs, numbers)) > width:  # a step that is never taken may have any number of digits
            return False
    elif not _are_rows(code.get("rows"), size, width):
        return False
    index = decode_index(code, size)
    return bool((index >= 0).all() and (index < width).all() and len(torch.unique(index)) == index.numel())


def _are_rows(rows: Any, size: int, width: int) -> bool:
    if not (isinstance(rows, list) and len(rows) == size and all(map(_are_ints, rows)) and rows[0]):
        return False
    return len({len(row) for row in rows}) == 1 and all(0 <= slice_ < width for row in rows for slice_ in row)


def _are_ints(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(number) is int for number in numbers)


def _is_int(number: Any, least: int) -> bool:
    return type(number) is int and number >= least


def _require(holds: Any, what: str) -> None:
    if not holds:
        raise ValueError(f"not a plan: {what}")
