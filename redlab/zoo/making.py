"""A network by any of the names that ``load_network`` takes, with its recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from redlab.files.checkpoint import load_weights, read_checkpoint
from redlab.network.example import Example, remember_example
from redlab.network.recipe import Recipe, recipe_of
from redlab.zoo import code_networks, networks
from redlab.zoo.code import code_of, sha256_of_code
from redlab.zoo.names import HF, TIMM, absolute_name, folder_of, kind_of_name

# What says how a saved network is built: a name, a class or function without arguments, or a network.
Build: TypeAlias = "str | Callable[[], Any] | nn.Module"

_NAMED: dict[
    str, str
] = {}  # the names of code and files that the user gave in this process, and each as an absolute one


def make(name: str, weights: str | Path | None = "default") -> nn.Module:
    """The network of a name, in eval mode, with its recipe set; a folder is no name.

    Arguments:
        weights: as ``load_network`` takes them.

    Raises:
        ValueError, ConnectionError, FileNotFoundError, ModuleNotFoundError: as ``load_network``.
    """
    kind = kind_of_name(name)
    if kind is None or kind == "folder":
        folder_of(name)  # says what is wrong with a name
        raise ValueError(f"{name} is a saved network: name the code that builds one")
    if kind in ("file", "module", "hf"):
        _NAMED[name] = absolute_name(name)
    given = weights if weights in ("default", None) else None
    network = _MAKERS[kind](name, given is not None).eval()
    if weights not in ("default", None):
        load_weights(network, read_checkpoint(weights), str(weights))
    return network


def made(build: Build) -> nn.Module:
    """The network that ``build`` says, its values of no account; the caller's random numbers stay as they were."""
    with torch.random.fork_rng(devices=[]):
        if isinstance(build, str):
            return make(build, None)
        network, example = code_networks.made_of(build, "build")
        return _stamped(network, None, example).eval()


def opens_itself(architecture: str | None) -> bool:
    """Whether a folder may name this architecture: its own code can do no harm."""
    return architecture is not None and kind_of_name(architecture) in ("own", "torchvision", "timm")


def named_here(architecture: str | None) -> str | None:
    """The absolute name of code, or of a folder of Hugging Face, that the user named so in this process; else None."""
    return _NAMED.get(architecture) if architecture is not None else None


def _known(name: str, trained: bool) -> nn.Module:
    network = networks.build(name)
    if trained:
        load_weights(network, networks.default_weights(name), f"the weights of {name}")
    shape, mean, images = networks.input_shape(name), networks.input_mean(name), networks.images(name)
    network.redlab = Recipe(name, shape, input_mean=mean, images=images)
    return network


def _timm(name: str, trained: bool) -> nn.Module:
    from redlab.zoo.timm_networks import build, describe  # it needs timm

    network = build(name.removeprefix(TIMM), trained)
    network.redlab = Recipe(name, **describe(network))
    return network


def _hf(name: str, trained: bool) -> nn.Module:
    from redlab.zoo.hf_networks import build  # it needs transformers

    network, facts = build(name.removeprefix(HF), trained)
    network.redlab = Recipe(name, **facts)
    return network


def _code(name: str, trained: bool) -> nn.Module:
    network, example = code_networks.build(name)
    code = code_of(name)
    return _stamped(network, name, example, sha256_of_code(code) if code else None)


def _stamped(network: nn.Module, name: str | None, example: Example | None, source: dict | None = None) -> nn.Module:
    """``network`` with a recipe of no steps: those taken in the code itself are taken there again."""
    own = recipe_of(network) or Recipe()
    network.redlab = replace(own, architecture=name, steps=(), source=source)
    if example is not None:
        network.redlab = replace(network.redlab, input_shape=None, example=None)
        remember_example(network, example)
    return network


_MAKERS: dict[str, Callable[[str, bool], nn.Module]] = {
    "own": _known,
    "torchvision": _known,
    "timm": _timm,
    "hf": _hf,
    "file": _code,
    "module": _code,
}
