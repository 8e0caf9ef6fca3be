"""Which tensors of a pickled checkpoint are the network's, and which an optimizer's or another network's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from redlab.files.entries import BESIDE, NESTED, WEIGHT, Entry
from redlab.files.unpickler import Maker, StandIn

# Where trainers put the network among other things.
_WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "net_state_dict", "network", "module", "weights")
# What they put beside it, by the key of a dict; and the names of what optimizers remember of a parameter.
_TRAINING = re.compile(
    r"(?i)(.+_)?(optim\w*|(opt|(lr_?)?sched(uler)?s?|(grad_?)?scaler|rng)(_?(states?|state_?dict))?(_\w|_?\d+)?)"
)
_MOMENTS = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "grad_avg", "acc_delta"}
_DEEPEST = 1000


class Item(NamedTuple):
    """A tensor (an ``Entry``) or an odd object (anything else), by the keys that lead to it, joined by dots."""

    name: str
    value: Any
    role: str = NESTED  # as an ``Entry`` has it


def network_of(content: Any) -> tuple[Any, str]:
    """The network's part of a checkpoint, and the keys that lead to it: those of ``_WRAPPERS``, or the only one.

    An optimizer's tensors are no network.
    """
    path: list[str] = []
    while isinstance(content, dict):
        known = [key for key in _WRAPPERS if _holds_weights(content.get(key))]
        key = known[0] if known else "" if path else _only_one(content)
        if not key:
            break
        content = content[key]
        path.append(key)
    return content, ".".join(path)


def _holds_weights(value: Any) -> bool:
    """Whether a dict holds weights, however deep."""
    return isinstance(value, dict) and any(isinstance(i.value, Entry) and i.role != BESIDE for i in walk(value))


def _only_one(inside: dict) -> str:
    """The only key under which there are weights; "" where others hold some as well, or where they have no names."""
    if _is_optimizer(inside):
        return ""
    holding = [key for key, value in inside.items() if _holds_weights({key: value})]
    alone = len(holding) == 1 and isinstance(holding[0], str)
    return holding[0] if alone and _holds_weights(inside[holding[0]]) else ""


def _is_optimizer(inside: dict) -> bool:
    return {"state", "param_groups"} <= inside.keys()


def is_training(name: str) -> bool:
    """Whether the name of a tensor, or the keys that lead to it, say that it is an optimizer's."""
    words = name.split(".")
    return words[0] in ("optimizer", "optim", "optimizer_state") or words[-1] in _MOMENTS


def walk(content: Any, besides: Any = None) -> Iterator[Item]:
    """The tensors and odd objects in nested dicts and lists; nothing in ``besides``."""
    # A pickle of a few bytes can hold a list in itself, or ten times a list of ten times a list: each is opened once.
    seen, left = {id(besides)}, [(Item("", content), 0)]
    while left:
        item, depth = left.pop()
        if isinstance(item.value, Entry | Maker | type) or (isinstance(item.value, StandIn) and not item.value):
            yield item
        elif isinstance(item.value, dict | list | tuple) and id(item.value) not in seen:
            seen.add(id(item.value))
            if depth > _DEEPEST:
                raise ValueError(f"it holds dicts or lists nested more than {_DEEPEST} deep")
            left += [(inner, depth + 1) for inner in _inside(item, depth)][::-1]


def _inside(item: Item, depth: int) -> Iterator[Item]:
    named = isinstance(item.value, dict)
    beside = item.role == BESIDE or (named and _is_optimizer(item.value))
    for key, value in item.value.items() if named else enumerate(item.value):
        name = f"{item.name}.{key}" if item.name else str(key)
        trained = not isinstance(value, Entry) and _TRAINING.fullmatch(str(key)[:100]) is not None
        own = WEIGHT if not depth and named and isinstance(key, str) else NESTED
        yield Item(name, value, BESIDE if beside or trained or is_training(name) else own)
