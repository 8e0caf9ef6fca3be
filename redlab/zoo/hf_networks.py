"""Networks of Hugging Face: a folder, or an ID of the hub. Only safetensors are read; no code of a repository runs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from torch import nn

from redlab.names import needs
from redlab.zoo import hf_inputs
from redlab.zoo.names import hub_name
from redlab.zoo.torchvision_networks import mean_normalised


def build(place: str, trained: bool) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a folder or an ID, in eval mode, and the fields of its recipe.

    Its class is the one that its config names in transformers, else that of ``AutoModel``.

    Arguments:
        trained: with the weights that are there, in safetensors; else random ones.

    Raises:
        ValueError: it is no folder or ID with a config that transformers knows; its weights lack tensors, or are not in
            safetensors; it asks for code of its own.
        ModuleNotFoundError: transformers is missing; the message says how to install it.
    """
    needs("hf", "transformers")
    import transformers

    where = hub_name(place) or place
    try:
        config = transformers.AutoConfig.from_pretrained(where, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        what = "" if Path(where).is_dir() else f"there is no folder {place!r}, and as an ID of the hub: "
        raise ValueError(f"hf/{place}: {what}{_first_lines(error)}") from error
    _check_kernels(config, place)
    config.use_cache = False  # it would answer with the memory of a decoder too
    network = _trained(where, config) if trained else _random(config)
    images = hf_inputs.images_of(where)
    mean = mean_normalised(images["mean"], images["std"]) if images and len(images["mean"]) == 3 else None
    return network.eval(), {"example": hf_inputs.example(network, images), "images": images, "input_mean": mean}


def _class_of(config: Any) -> Any:
    """The class that the config names, if it is one of transformers' networks."""
    import transformers

    for name in config.architectures or ():
        found = getattr(transformers, name, None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    return transformers.AutoModel


def _random(config: Any) -> nn.Module:
    import transformers

    found = _class_of(config)
    if found is transformers.AutoModel:
        return found.from_config(config, trust_remote_code=False)
    return found._from_config(config)


def _trained(where: str, config: Any) -> nn.Module:
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        network, found = _class_of(config).from_pretrained(
            where, config=config, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"hf/{where}: {_only_pickled(where) or _first_lines(error)}") from error
    finally:
        if bars:
            logging.enable_progress_bar()
    _check_loaded(where, found)
    return network


def _only_pickled(where: str) -> str:
    """How to load weights that are there as a pickle alone; "" for any other folder."""
    pickled = Path(where, "pytorch_model.bin")
    if not pickled.is_file() or any(Path(where).glob("*.safetensors")):
        return ""
    return f"it holds no weights as safetensors: weights={str(pickled)!r} takes its tensors, and runs no code in it"


def _check_loaded(where: str, found: dict[str, Any]) -> None:
    """transformers fills what the file lacks with random numbers: refused here."""
    lacking = [*found["missing_keys"], *found["mismatched_keys"]]
    if lacking:
        named = ", ".join(sorted(map(_key, lacking))[:5])
        what = f"{len(lacking)} tensors of the network, or hold them in other shapes: {named}"
        raise ValueError(f"hf/{where}: its weights lack {what}")
    if unread := sorted(found["unexpected_keys"]):
        warnings.warn(f"hf/{where}: {len(unread)} tensors are not read: {', '.join(unread[:5])}", stacklevel=5)


def _key(key: Any) -> str:
    return str(key[0] if isinstance(key, tuple) else key)


def _check_kernels(config: Any, place: str) -> None:
    """A config may name a hub's repository of compiled code as its attention."""
    parts = [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", ()))]
    for part in parts:
        named = getattr(part, "_attn_implementation", None)
        if isinstance(named, str) and "/" in named:
            raise ValueError(f"hf/{place}: its config asks for code of {named!r} as attention, which is never fetched")


def _first_lines(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:  # transformers advises to set it
        return "it asks for code of its own, which redlab never runs"
    return text[:400]
