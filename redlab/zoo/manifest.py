"""The plain data beside a saved network's tensors: its recipe, versions, and what the tensors must be."""

from __future__ import annotations

import json
import math
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from redlab.compression.replay import replayable, take_step
from redlab.network.recipe import Recipe
from redlab.zoo import networks

FORMAT = 2  # 1 held the codes of hashed weights uncompressed, and still opens
# What the file holds, and as what.
_KINDS = {"format": int, "recipe": dict, "versions": dict, "sha256": str, "dtype": str, "tied": dict, "packed": list}
_DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}
_LARGEST = 1e30  # mean of an input: a float32 holds it and its products
_MOST_INPUTS = 10**8  # values of one input: beyond it, an example alone would fill the memory


def write_facts(
    path: Path, recipe: Recipe, *, sha256: str, dtype: torch.dtype, tied: dict[str, str], packed: list[str]
) -> None:
    """Write ``redlab.json``.

    Arguments:
        sha256: of the file of tensors.
        dtype: of the network's floating tensors.
        tied, packed: as ``packing.pack`` returns them.

    Raises:
        ValueError: the recipe holds something else than plain data.
    """
    facts = {
        "format": FORMAT,
        "recipe": {
            "architecture": recipe.architecture,
            "input_shape": list(recipe.input_shape),
            "steps": list(recipe.steps),
            "input_mean": None if recipe.input_mean is None else list(recipe.input_mean),
        },
        "versions": {"redlab": version("redlab"), "torch": torch.__version__, "python": platform.python_version()},
        "sha256": sha256,
        "dtype": str(dtype).removeprefix("torch."),
        "tied": tied,
        "packed": packed,
    }
    try:  # one line a fact: indented, long lists would take a line a number
        lines = ",\n".join(f'"{key}": {json.dumps(value, allow_nan=False)}' for key, value in facts.items())
    except (TypeError, ValueError) as error:
        raise ValueError(f"the recipe holds something else than plain data: {error}") from error
    path.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def read_facts(path: Path) -> tuple[dict[str, Any], Recipe]:
    """What ``write_facts`` wrote, checked, its dtype as torch's, and the recipe in it.

    Raises:
        ValueError: it is damaged, foreign or newer; the message names the file and what would be right.
    """
    try:
        facts = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON, it is truncated or not ours ({error}): save the network again") from error
    if not isinstance(facts, dict) or type(facts.get("format")) is not int:
        _refuse(path, "it has no whole number 'format', so that save_network did not write it")
    if facts["format"] > FORMAT:
        _refuse(path, f"a newer redlab wrote it (format {facts['format']}, this one reads {FORMAT}): upgrade redlab")
    for key, kind in _KINDS.items():
        if type(facts.get(key)) is not kind:
            _refuse(path, f"'{key}' must be a JSON {kind.__name__}, not {str(facts.get(key))[:60]!r}")
    if facts["format"] < 1 or facts["dtype"] not in _DTYPES:
        _refuse(path, f"'format' must be 1 to {FORMAT} and 'dtype' one of {', '.join(_DTYPES)}")
    facts["dtype"] = _DTYPES[facts["dtype"]]
    return facts, _read_recipe(facts["recipe"], path)


def _read_recipe(content: dict[str, Any], path: Path) -> Recipe:
    read: list[Any] = [content.get(key) for key in ("architecture", "input_shape", "steps")]
    name, shape, steps = read
    if not isinstance(name, str):
        _refuse(path, "the recipe's 'architecture' must be a name that load_network knows")
    whole = isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape)
    if not whole or math.prod(shape) > _MOST_INPUTS:
        _refuse(path, f"the recipe's 'input_shape' must be whole numbers, {_MOST_INPUTS:,} values at most")
    kinds = [step.get("step") if isinstance(step, dict) else None for step in steps] if isinstance(steps, list) else [0]
    if unknown := [kind for kind in kinds if not isinstance(kind, str) or kind not in replayable()]:
        _refuse(path, f"the recipe's 'steps' hold {str(unknown[0])[:60]!r}; known steps: {', '.join(replayable())}")
    mean = _read_mean(content.get("input_mean"), shape, path)
    return Recipe(name, tuple(shape), tuple(steps), _own_mean(name) if mean is None else mean)


def _own_mean(name: str) -> tuple[float, ...] | None:
    """The mean of a known network's input: older files don't hold it."""
    try:
        return networks.input_mean(name)
    except ValueError:  # no network has that name, which ``rebuild`` reports
        return None


def _read_mean(mean: Any, shape: list[int], path: Path) -> tuple[float, ...] | None:
    """The mean input; older files don't hold it."""
    if mean is None:
        return None
    numbers = isinstance(mean, list) and all(type(m) in (int, float) and abs(m) < _LARGEST for m in mean)
    if not numbers or len(mean) not in (1, *shape[:1]):
        _refuse(path, "the recipe's 'input_mean' must be null or a finite number for each channel of its input")
    return tuple(map(float, mean))


def _refuse(path: Path, why: str) -> NoReturn:
    raise ValueError(f"{path}: {why}")


def rebuild(recipe: Recipe, dtype: torch.dtype, source: Path) -> nn.Module:
    """The network that ``recipe`` describes, in eval mode and unstamped; its values mean nothing yet.

    It lies on the meta device, which takes no memory, where its architecture can be built there.

    Arguments:
        dtype: of its floating tensors.
        source: where the recipe stands, for the errors.

    Raises:
        ValueError: an unknown architecture, or a step that doesn't fit it.
    """
    try:
        network = _blank(recipe.architecture)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    for number, step in enumerate(recipe.steps, 1):
        try:
            network = take_step(network, step)
        except Exception as error:  # a plan that was tampered with may break anything: a name, a shape, an index
            what = f"step {number} of its recipe, {step['step']!r}, does not fit {recipe.architecture}"
            raise ValueError(f"{source}: {what} ({type(error).__name__}: {error})") from error
    return network.to(dtype).eval()


def _blank(architecture: str) -> nn.Module:
    try:
        with torch.device("meta"):
            network = networks.build(architecture)
    except NotImplementedError:  # RegNet asks for values while it is built
        network = None
    # Buffers outside the state dict get their values from the constructor alone.
    if network is not None and not any(module._non_persistent_buffers_set for module in network.modules()):
        return network
    with torch.random.fork_rng(devices=[]):  # opening a file draws no random numbers that the caller would miss
        return networks.build(architecture)
