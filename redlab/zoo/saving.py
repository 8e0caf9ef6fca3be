"""Opening networks, by name or from a folder that ``save_network`` wrote, and saving them.

A folder holds ``weights.safetensors`` and ``redlab.json``. Nothing in it can run code, or decide which code runs. To
open it, redlab builds the architecture anew, repeats the recorded steps and assigns the tensors.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from redlab.compression.replay import finish
from redlab.compression.splitting import as_dense
from redlab.files.atomic import open_to_others, replaced_folder
from redlab.files.checkpoint import read_checkpoint
from redlab.files.download import sha256_of
from redlab.files.file_kinds import foreign_kind
from redlab.network.example import place_of
from redlab.network.layers import copy_network, unwrap
from redlab.network.recipe import Recipe, recipe_of
from redlab.network.result import Result
from redlab.zoo.making import Build, make, named_here, opens_itself
from redlab.zoo.manifest import read_facts, rebuild, write_facts
from redlab.zoo.names import FACTS, WEIGHTS, check_target, folder_of, kind_of_name, unknown_network
from redlab.zoo.packing import measure, pack, unpack


def load_network(
    name_or_path: str | Path, weights: str | Path | None = "default", build: Build | None = None
) -> nn.Module:
    """A network by name, or from a folder that ``save_network`` wrote; in eval mode, with its recipe set.

    Names are those of ``list_networks()``, and

    - ``timm/NAME``: a network of timm (``pip install 'redlab[timm]'``), by a name of ``timm.list_models()``;
    - ``hf/FOLDER_OR_ID``: one of Hugging Face (``pip install 'redlab[hf]'``), from safetensors, its own code never run;
    - ``FILE.py:NAME``, ``package.module:NAME``: a class or function without arguments, or a network, in code of yours;
      it may give (network, example). The file is run. A network object is copied.

    ``digits/*`` ship with redlab; torchvision's and the others of redlab are fetched into the data root once and
    checked by SHA-256. Nothing in a file of weights or a saved folder is ever executed: code runs only if it is named
    here.

    Arguments:
        name_or_path: a name, or the path of a folder; where a folder is called as a network is, "./digits/resnet" means
            the folder.
        weights: "default" for the trained weights, None for random ones (drawn from torch's global generator); both
            are what NAME returns, where code is named. Or the path of a file of weights (safetensors or a state dict
            of torch.save), which must fit exactly.
        build: for a folder: how the architecture is built, by a name as above, or a class or function without
            arguments, or a network. A folder of redlab's own, torchvision's or timm's networks needs none.

    Raises:
        ValueError: an unknown name (the message lists the known ones and says what was tried); weights that do not fit,
            each named; a folder that needs ``build``, was truncated, tampered with, written by something else or by a
            newer redlab; whatever code of yours raises, with its file in front.
        ConnectionError, FileNotFoundError: the weights are missing; the message says what to put where.
        ModuleNotFoundError: timm or transformers is missing; the message says how to install it.

    Example:
        >>> network = load_network("digits/resnet")
        >>> network.training, network.redlab.input_shape
        (False, (1, 8, 8))
        >>> load_network("torchvision.models:squeezenet1_1").redlab.architecture
        'torchvision.models:squeezenet1_1'
    """
    if not isinstance(name_or_path, str | Path):
        what = f"load_network takes a name or the path of a folder, not {_article(name_or_path)}"
        raise ValueError(f"{what}; a network is used as it is" if isinstance(name_or_path, nn.Module) else what)
    if weights not in ("default", None) and not Path(weights).expanduser().exists():
        raise ValueError(f"weights must be 'default' or None, not {weights!r}, or a file: there is none of that name")
    if (folder := folder_of(name_or_path)) is None:
        if build is not None:
            raise ValueError(f"build is for the folder of a saved network, and {name_or_path} is a name")
        return make(str(name_or_path), weights)
    if weights != "default":
        raise ValueError(f"{folder} is a saved network and has weights of its own: leave weights='default'")
    return _open(folder, build)


def _article(given: Any) -> str:
    return "None" if given is None else f"an object of type {type(given).__name__}"


def save_network(result_or_network: Result | nn.Module, folder: str | Path) -> Path:
    """Write any network into ``folder``, from which ``load_network`` opens it: bit for bit the same tensors and dtypes.

    A network that was handed in as an object has no name: ``load_network(folder, build=...)`` says how to build it.

    Tied tensors are stored once. Split layers are stored as the ordinary ones that they replace. Weights of a hashed
    network are stored as a codebook and entropy-coded codes if that is smaller, the scales of their rows beside them.
    Everything is written and opened again
    beside ``folder``, and moved there last. A killed save leaves the old network or the new one whole, and at worst a
    hidden folder ``.NAME.*.part`` to delete.

    What was written is checked: the network is built again and compared, module by module, if its name is redlab's,
    torchvision's or timm's, or was given to ``load_network`` in this process. Otherwise only the tensors are compared.

    Arguments:
        folder: made with its parents. An empty folder or a saved network is replaced; anything else is refused.

    Returns:
        The absolute path of the folder.

    Raises:
        ValueError: the network's recipe doesn't rebuild it (the message says how to save it without its name), or
            ``folder`` is something else.
        OSError: it could not be written (a full disk, say); what was there is unchanged.

    Example:
        >>> import tempfile
        >>> result = hash_network(load_network("digits/mlp"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = load_network(save_network(result, folder))
        >>> torch.equal(again.classifier.weight, result.network.classifier.weight)
        True
    """
    network = unwrap(result_or_network.network if isinstance(result_or_network, Result) else result_or_network)
    folder = Path(folder).resolve()
    check_target(folder)
    recipe = _recipe_of(network)
    with replaced_folder(folder) as part:
        _write(network, recipe, part)
        _check_alike(network, recipe, part)
    return folder


def stored_bits(folder: str | Path, build: Build | None = None) -> pd.DataFrame:
    """The disk space of the hashed weights in a folder, beside the least that an entropy coder could reach.

    The folder is opened and checked as ``load_network(folder, build=build)`` does.

    Returns:
        One row per weight that is stored as codes: ``layer``, ``weights`` (how many), ``distinct`` (values of its
        codebook), ``bits`` (stored bits a weight, codes and codebook), ``entropy`` (Shannon's, of the layer's values
        taken as independent, in bits a weight; the codebook is not in it).

    Raises:
        ValueError: it is no folder that ``save_network`` wrote, or a damaged one.

    Example:
        >>> import tempfile
        >>> hashed = hash_network(load_network("digits/mlp"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     stored_bits(save_network(hashed, folder))[["layer", "weights", "distinct"]]
                     layer  weights  distinct
        0  hidden.0.linear    16384        88
        1  hidden.1.linear    32768       100
        2       classifier     1280        39
    """
    if (found := folder_of(Path(folder))) is None:
        raise ValueError(f"{folder} is the name of a network and no folder: save the network first")
    columns = ["layer", "weights", "distinct", "bits", "entropy"]
    return pd.DataFrame(measure(*_read(found, build)), columns=columns)


def _recipe_of(network: nn.Module) -> Recipe:
    if hasattr(network, "dpp"):
        raise ValueError("Cannot save masks that learn: save harden(network) instead.")
    recipe = recipe_of(network) or Recipe()
    if recipe.architecture is not None and kind_of_name(recipe.architecture) in (None, "folder"):
        raise ValueError(f"Cannot save: {unknown_network(recipe.architecture)}. {_UNNAMED}")
    return recipe


def _write(network: nn.Module, recipe: Recipe, part: Path) -> None:
    hashed = any(step.get("step") == "hash" for step in recipe.steps)
    packed = pack(as_dense(network), hashed)
    try:
        save_file(packed.tensors, part / WEIGHTS)
    except SafetensorError as error:  # what it says of a full disk
        raise OSError(str(error)) from error
    open_to_others(part / WEIGHTS)
    dtype = place_of(network).get("dtype", torch.float32)
    write_facts(part / FACTS, recipe, sha256=sha256_of(part / WEIGHTS), dtype=dtype, packed=packed)


def _check_alike(network: nn.Module, recipe: Recipe, part: Path) -> None:
    """Open what was written, so that a recipe that doesn't rebuild the network is reported now."""
    build = named_here(recipe.architecture)
    if build is None and not opens_itself(recipe.architecture):
        _check_tensors(network, part)
        return
    try:
        opened = _open(part, build)
    except ValueError as error:
        what = str(error).replace(f"{part}{os.sep}", "")  # the folder is removed before anybody reads the message
        raise ValueError(f"{_NO_REBUILD}: {what}. {_UNNAMED}") from error
    for mine, rebuilt in zip(_outline(network), _outline(opened), strict=False):
        if mine != rebuilt:
            raise ValueError(f"{_NO_REBUILD}: it has {mine} where {rebuilt} comes back. {_UNNAMED}")


_NO_REBUILD = "the recipe does not rebuild this network"
_UNNAMED = (
    "To save it without its name, network.redlab = dataclasses.replace(network.redlab, architecture=None); "
    "load_network(folder, build=...) opens it then"
)


def _check_tensors(network: nn.Module, part: Path) -> None:
    facts, _ = read_facts(part / FACTS)
    dense = as_dense(network)
    again = copy_network(dense)
    unpack(again, read_checkpoint(part / WEIGHTS), facts, part)
    written = again.state_dict()
    for name, tensor in dense.state_dict().items():
        if not torch.equal(_bytes(tensor), _bytes(written[name])):
            raise ValueError(f"{name} was not written as it is")


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().reshape(-1).view(torch.uint8)


def _outline(network: nn.Module) -> list[str]:
    """One line a module, as it prints itself. ``inplace`` is dropped: it changes no value."""
    return [line.strip() for line in re.sub(r"(, )?inplace=(True|False)", "", str(network)).splitlines()]


def _open(folder: Path, build: Build | None) -> nn.Module:
    network, _, _ = _read(folder, build)
    return finish(network, folder / FACTS)


def _read(folder: Path, build: Build | None) -> tuple[nn.Module, dict[str, Tensor], dict[str, Any]]:
    """The network in ordinary layers, the tensors of its file, and the facts beside them."""
    facts, recipe = read_facts(folder / FACTS)
    tensors = _sealed(folder, facts["sha256"])

    def fill(network: nn.Module) -> None:
        unpack(network, tensors, facts, folder)

    network, recipe = rebuild(recipe, facts["dtype"], folder / FACTS, build, check=fill)
    fill(network)
    network.redlab = recipe
    return network.eval(), tensors, facts


def _sealed(folder: Path, sha256: str) -> dict[str, Tensor]:
    """The tensors of a folder, if its file is the one that was written."""
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise ValueError(f"{weights} is missing: the folder is incomplete, save the network again")
    if (found := sha256_of(weights)) != sha256:
        what = f"{foreign}; it " if (foreign := foreign_kind(weights)) else ""
        raise ValueError(
            f"{weights} {what}was truncated or changed: its SHA-256 is {found}, and {folder / FACTS} says {sha256}"
        )
    return read_checkpoint(weights)


def bytes_of(place: nn.Module | Path) -> int:
    """The bytes of a network's tensors, tied ones once; or of a folder's files."""
    if isinstance(place, Path):
        return sum(path.stat().st_size for path in place.iterdir())
    tensors = {id(tensor): tensor for tensor in place.state_dict(keep_vars=True).values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
