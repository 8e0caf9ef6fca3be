"""The plain data beside a saved network's tensors: its recipe, versions, and what the tensors must be."""

from __future__ import annotations

import json
import math
import platform
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from redlab.compression.replay import replayable, take_step
from redlab.network.description import example_from, sizes
from redlab.network.example import Inputs
from redlab.network.recipe import Recipe, recipe_of
from redlab.zoo import networks
from redlab.zoo.making import Build, made, opens_itself
from redlab.zoo.names import kind_of_name, list_networks, unknown_network
from redlab.zoo.packing import Packed

# 1 held the codes of hashed weights uncompressed; 2 knew only networks with a name; 3 knew no scales of rows and would
# take codes for weights. All still open.
FORMAT = 4
_MOST_INPUTS = 10**8  # values of one input: beyond it, an example alone would fill the memory
_MOST_STEPS = 1000  # each plan copies the network and the steps before it
_SCHEMA = Path(__file__).with_suffix(".schema.json")


def write_facts(path: Path, recipe: Recipe, *, sha256: str, dtype: torch.dtype, packed: Packed) -> None:
    """Write ``redlab.json``.

    Arguments:
        sha256: of the file of tensors.
        dtype: of the network's floating tensors.
        packed: as ``packing.pack`` returns it.

    Raises:
        ValueError: the recipe holds more than plain data (JSON).
    """
    facts = {
        "format": FORMAT,
        "recipe": vars(recipe),
        "versions": {"redlab": version("redlab"), "torch": torch.__version__, "python": platform.python_version()},
        "sha256": sha256,
        "dtype": str(dtype).removeprefix("torch."),
        "tied": packed.tied,
        "packed": packed.packed,
        "scales": packed.scales,
    }
    try:  # one line a fact: indented, long lists would take a line a number
        lines = ",\n".join(f'"{key}": {json.dumps(value, allow_nan=False)}' for key, value in facts.items())
    except (TypeError, ValueError) as error:
        raise ValueError(f"the recipe holds more than plain data (JSON): {error}") from error
    path.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def read_facts(path: Path) -> tuple[dict[str, Any], Recipe]:
    """What ``write_facts`` wrote, checked, its dtype as torch's, and the recipe in it.

    Raises:
        ValueError: the file is damaged, from another program or newer. The message names it and says what to do.
    """
    try:
        facts = json.loads(path.read_bytes(), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON, it is truncated or not ours ({error}): save the network again") from error
    if isinstance(facts, dict) and type(facts.get("format")) is int and facts["format"] > FORMAT:
        _refuse(path, f"a newer redlab wrote it (format {facts['format']}, this one reads {FORMAT}): upgrade redlab")
    if why := _why_foreign(facts):
        _refuse(path, f"save_network did not write it, or it was changed ({why}): save the network again")
    facts["dtype"] = getattr(torch, facts["dtype"])
    return facts, _read_recipe(facts["recipe"], path)


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no number of JSON")


def _why_foreign(facts: Any) -> str:
    """Where ``facts`` break the schema, and how; "" for nowhere."""
    from jsonschema import Draft202012Validator as Validator  # slow to import: only where a folder is opened
    from jsonschema.exceptions import best_match
    from jsonschema.validators import extend

    types = Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)  # by default 8.0 is one
    schema = json.loads(_SCHEMA.read_bytes())
    try:
        error = best_match(extend(Validator, type_checker=types)(schema).iter_errors(facts))
        where = error.json_path.removeprefix("$").removeprefix(".") if error else ""
        return f"{where}: {error.message[:200]}".removeprefix(": ") if error else ""
    except RecursionError:  # the message would hold a value nested too deeply
        return "it is nested too deeply"


def _read_recipe(content: dict[str, Any], path: Path) -> Recipe:
    """The recipe, after the checks that no schema can make."""
    name, shape, mean = content["architecture"], content["input_shape"], content.get("input_mean")
    _check_size(content, path)
    _check_images(content.get("images"), path)
    if unknown := [step["step"] for step in content["steps"] if step["step"] not in replayable()]:
        _refuse(path, f"the recipe's 'steps' hold {unknown[0][:60]!r}; known steps: {', '.join(replayable())}")
    if mean is not None and shape is not None and len(mean) not in (1, *shape[:1]):
        _refuse(path, "the recipe's 'input_mean' must be null or a number for each channel of its input")
    images, known = content.get("images"), name in list_networks()
    if known and mean is None:  # older files hold neither; ``rebuild`` reports an unknown name
        mean = networks.input_mean(name)
    if known and "images" not in content:
        images = networks.images(name)
    return Recipe(
        name,
        None if shape is None else tuple(shape),
        tuple(content["steps"]),
        None if mean is None else tuple(map(float, mean)),
        content.get("example"),
        images,
        content.get("source"),
    )


def _check_size(content: dict[str, Any], path: Path) -> None:
    """Refuse an input that would fill the memory, and an example that cannot be made."""
    example = content.get("example")
    if (count := len(content["steps"])) > _MOST_STEPS:
        _refuse(path, f"the recipe's 'steps' are {count:,}, more than {_MOST_STEPS:,}")
    for key, size in (("input_shape", math.prod(content["input_shape"] or ())), ("example", sizes(example or {}))):
        if size > _MOST_INPUTS:
            _refuse(path, f"the recipe's {key!r} holds more than {_MOST_INPUTS:,} values")
    if example is not None:
        try:
            Inputs.of(example_from(example))
        except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            _refuse(path, f"the recipe's 'example' describes no input ({type(error).__name__}: {error})")


def _check_images(images: dict[str, Any] | None, path: Path) -> None:
    """Refuse numbers by which no image can be normalised."""
    if images is not None and len(images["mean"]) != len(images["std"]):
        _refuse(path, "the 'mean' and 'std' of the recipe's 'images' must have as many numbers")
    if images is not None and min(images["std"]) <= 0:
        _refuse(path, "the 'std' of the recipe's 'images' must be above 0")


def _refuse(path: Path, why: str) -> NoReturn:
    raise ValueError(f"{path}: {why}")


def rebuild(
    recipe: Recipe,
    dtype: torch.dtype,
    source: Path,
    build: Build | None = None,
    check: Callable[[nn.Module], None] | None = None,
) -> tuple[nn.Module, Recipe]:
    """The network that ``recipe`` describes, in eval mode and without a recipe set; its values mean nothing yet.

    It is on the meta device, which takes no memory, if its architecture can be built there.

    Arguments:
        dtype: of its floating tensors.
        source: the file of the recipe, for the errors.
        build: what the caller says of how the architecture is built.
        check: refuses the network on the meta device, before an architecture that the folder names is built in memory.

    Returns:
        The network, and its recipe: with ``build`` its architecture is what the caller named.

    Raises:
        ValueError: an architecture that only the caller may name, or an unknown one; a step that doesn't fit it.
    """
    if build is None:
        network = _blank(recipe, source, check)
    else:
        network = made(build)
        recipe = _as_named(recipe, recipe_of(network) or Recipe(), source)
    return _stepped(network, recipe, source).to(dtype).eval(), recipe


def _stepped(network: nn.Module, recipe: Recipe, source: Path) -> nn.Module:
    for number, step in enumerate(recipe.steps, 1):
        try:
            network = take_step(network, step)
        except Exception as error:  # a changed plan may break anything: a name, a shape, an index
            name = recipe.architecture or type(network).__name__
            what = f"step {number} of its recipe, {step['step']!r}, does not fit {name}"
            raise ValueError(f"{source}: {what} ({type(error).__name__}: {error})") from error
    return network


def _as_named(recipe: Recipe, built: Recipe, source: Path) -> Recipe:
    """``recipe`` of the architecture that the caller named; a warning if its file is another than it was."""
    if recipe.source and built.source and recipe.source.get("sha256") != built.source["sha256"]:
        was, now = recipe.source.get("file"), built.source["file"]
        what = f"{now} has changed since" if was == now else f"it was built by {was}, and {now} differs"
        warnings.warn(f"{source.parent}: {what}: look whether it still computes the same", stacklevel=5)
    return replace(recipe, architecture=built.architecture, source=built.source)


def _blank(recipe: Recipe, source: Path, check: Callable[[nn.Module], None] | None) -> nn.Module:
    """The architecture that a folder names, if it may, and if its tensors are those of the folder."""
    architecture = recipe.architecture
    if architecture is None or not opens_itself(architecture):
        _refuse(source, _ask_for_build(architecture, source.parent))
    try:
        outline = _without_memory(architecture)
        if outline is not None and not _holds_constants(outline):
            return outline
    except ValueError as error:  # of a name that timm does not know
        raise ValueError(f"{source}: {error}") from error
    if outline is not None and check is not None:  # a name takes no room, and its network may fill the memory
        check(_stepped(outline, recipe, source))
    return made(architecture)


def _without_memory(architecture: str) -> nn.Module | None:
    """The network on the meta device; None if it cannot be built there."""
    with suppress(NotImplementedError), torch.device("meta"):  # RegNet asks for values while it is built
        return made(architecture)
    return None


def _holds_constants(network: nn.Module) -> bool:
    """Whether it has buffers outside the state dict: they get their values from the constructor alone."""
    return any(module._non_persistent_buffers_set for module in network.modules())


def _ask_for_build(architecture: str | None, folder: Path) -> str:
    """What to call: a folder never says which code runs."""
    if architecture is None:
        call = f"load_network({str(folder)!r}, build=...)"
        return f"it names no architecture. Say how it is built: {call}, a function or 'FILE.py:NAME'"
    if kind_of_name(architecture) in ("file", "module", "hf"):
        call = f"load_network({str(folder)!r}, build={architecture!r})"
        return f"its code runs only if you name it. If you trust it, call {call}"
    return unknown_network(architecture[:200])
