"""Opening networks, by name or from a folder that ``save_network`` wrote, and saving them.

A folder holds ``weights.safetensors`` and ``redlab.json``. Nothing in it can run code. To open it, redlab builds the
architecture anew, repeats the recorded steps and assigns the tensors.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from redlab.compression.replay import finish
from redlab.compression.splitting import as_dense
from redlab.files.atomic import open_to_others, replaced_folder
from redlab.files.checkpoint import load_weights, read_checkpoint
from redlab.files.download import sha256_of
from redlab.files.file_kinds import foreign_kind
from redlab.network.example import place_of
from redlab.network.layers import unwrap
from redlab.network.recipe import Recipe, recipe_of
from redlab.network.result import Result
from redlab.zoo import networks
from redlab.zoo.manifest import read_facts, rebuild, write_facts
from redlab.zoo.names import FACTS, WEIGHTS, check_target, folder_of
from redlab.zoo.packing import measure, pack, unpack


def load_network(name_or_path: str | Path, weights: str | None = "default") -> nn.Module:
    """A network by name, or from a folder that ``save_network`` wrote; in eval mode, with its recipe set.

    ``digits/*`` ship with redlab; the others are fetched into the data root once and checked by SHA-256. Nothing in a
    file of weights or a saved folder is ever executed.

    Arguments:
        name_or_path: a name of ``list_networks()``, such as "digits/resnet" or "torchvision/resnet50", else the path
            of a folder; where a folder is called as a network is, "./digits/resnet" means the folder.
        weights: "default" for the trained weights, None for random ones (drawn from torch's global generator).

    Raises:
        ValueError: an unknown name (the message lists the known ones), other ``weights``, a damaged or wrong file; a
            folder that was truncated, tampered with, written by something else or by a newer redlab.
        ConnectionError, FileNotFoundError: the weights are missing; the message says what to put where.

    Example:
        >>> network = load_network("digits/resnet")
        >>> network.training, network.redlab.input_shape
        (False, (1, 8, 8))
    """
    if weights not in ("default", None):
        raise ValueError(f"weights must be 'default' or None, not {weights!r}")
    if (folder := folder_of(name_or_path)) is not None:
        if weights is None:
            raise ValueError(f"{folder} is a saved network and has weights of its own: leave weights='default'")
        return _open(folder)
    name = str(name_or_path)
    network = networks.build(name)
    if weights == "default":
        load_weights(network, networks.default_weights(name), f"the weights of {name}")
    network.redlab = Recipe(name, networks.input_shape(name), input_mean=networks.input_mean(name))
    return network


def save_network(result_or_network: Result | nn.Module, folder: str | Path) -> Path:
    """Write a network into ``folder``, from which ``load_network`` opens it: bit for bit the same tensors and dtypes.

    Tied tensors are stored once. Split layers are stored as the ordinary ones that they replace. Weights of a hashed
    network are stored as a codebook and entropy-coded codes if that is smaller. Everything is written and opened again
    beside ``folder``, and moved there last. A killed save leaves the old network or the new one whole, and at worst a
    hidden folder ``.NAME.*.part`` to delete.

    Arguments:
        folder: made with its parents. An empty folder or a saved network is replaced; anything else is refused.

    Returns:
        The absolute path of the folder.

    Raises:
        ValueError: the network has no recipe, its recipe doesn't rebuild it, or ``folder`` is something else.
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
        _check_alike(network, part)
    return folder


def stored_bits(folder: str | Path) -> pd.DataFrame:
    """The disk space of the hashed weights in a folder, beside the least that an entropy coder could reach.

    The folder is opened and checked as ``load_network`` does.

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
    return pd.DataFrame(measure(*_read(found)), columns=columns)


def _recipe_of(network: nn.Module) -> Recipe:
    if hasattr(network, "dpp"):
        raise ValueError("Cannot save masks that learn: save harden(network) instead.")
    if (recipe := recipe_of(network)) is None:
        raise ValueError(
            f"Cannot save: this {type(network).__name__} has no recipe. Set it before the first step, with a name that "
            'load_network knows: network.redlab = Recipe("torchvision/resnet18", (3, 224, 224))'
        )
    return recipe


def _write(network: nn.Module, recipe: Recipe, part: Path) -> None:
    hashed = any(step.get("step") == "hash" for step in recipe.steps)
    tensors, tied, packed = pack(as_dense(network), hashed)
    try:
        save_file(tensors, part / WEIGHTS)
    except SafetensorError as error:  # what it says of a full disk
        raise OSError(str(error)) from error
    open_to_others(part / WEIGHTS)
    dtype = place_of(network).get("dtype", torch.float32)
    write_facts(part / FACTS, recipe, sha256=sha256_of(part / WEIGHTS), dtype=dtype, tied=tied, packed=packed)


def _check_alike(network: nn.Module, part: Path) -> None:
    """Open what was written, so that a recipe that doesn't rebuild the network is reported now."""
    try:
        opened = _open(part)
    except ValueError as error:
        what = str(error).replace(f"{part}{os.sep}", "")  # the folder is removed before anybody reads the message
        raise ValueError(f"the recipe does not rebuild this network: {what}") from error
    for mine, rebuilt in zip(_outline(network), _outline(opened), strict=False):
        if mine != rebuilt:
            raise ValueError(f"the recipe does not rebuild this network: it has {mine} where {rebuilt} comes back")


def _outline(network: nn.Module) -> list[str]:
    """One line a module, as it prints itself. ``inplace`` is dropped: it changes no value."""
    return [line.strip() for line in re.sub(r"(, )?inplace=(True|False)", "", str(network)).splitlines()]


def _open(folder: Path) -> nn.Module:
    network, _, _ = _read(folder)
    return finish(network, folder / FACTS)


def _read(folder: Path) -> tuple[nn.Module, dict[str, Tensor], list[str]]:
    """The network in ordinary layers, the tensors of its file, and the names that are packed there."""
    facts, recipe = read_facts(folder / FACTS)
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise ValueError(f"{weights} is missing: the folder is incomplete, save the network again")
    if (found := sha256_of(weights)) != facts["sha256"]:
        what = f"{foreign}; it " if (foreign := foreign_kind(weights)) else ""
        raise ValueError(
            f"{weights} {what}was truncated or changed: its SHA-256 is {found}, and {folder / FACTS} says "
            f"{facts['sha256']}"
        )
    network = rebuild(recipe, facts["dtype"], folder / FACTS)
    tensors = read_checkpoint(weights)
    unpack(network, tensors, facts["tied"], facts["packed"], folder)
    network.redlab = recipe
    return network.eval(), tensors, facts["packed"]


def bytes_of(place: nn.Module | Path) -> int:
    """The bytes of a network's tensors, tied ones once; or of a folder's files."""
    if isinstance(place, Path):
        return sum(path.stat().st_size for path in place.iterdir())
    tensors = {id(tensor): tensor for tensor in place.state_dict(keep_vars=True).values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
