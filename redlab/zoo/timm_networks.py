"""Networks of timm (PyTorch Image Models), by the names of ``timm.list_models()``."""

from __future__ import annotations

import difflib
import re
from typing import Any

from torch import nn

from redlab.names import needs
from redlab.zoo.torchvision_networks import mean_normalised

# A base name, perhaps with a tag of weights. Colons and slashes, by which timm means hubs and folders, are refused.
_NAME = re.compile(r"(?P<base>[A-Za-z0-9_]+)(\.[A-Za-z0-9_]+)?")


def build(name: str, trained: bool) -> nn.Module:
    """The network ``timm.create_model(name)``, in eval mode.

    Arguments:
        trained: with timm's pretrained weights, which timm fetches from their public address; else random ones.

    Raises:
        ValueError: an unknown name or tag; no pretrained weights exist for it.
        ConnectionError: they could not be fetched; the message says how to give them by hand.
        ModuleNotFoundError: timm is missing; the message says how to install it.
    """
    needs("timm", "timm")
    import timm

    _check(name, timm.list_models())
    try:
        facts = timm.models.get_pretrained_cfg(name)
    except RuntimeError as error:  # a tag that it doesn't know
        tags = [tagged for tagged in timm.list_pretrained() if tagged.partition(".")[0] == name.partition(".")[0]]
        raise ValueError(f"timm/{name}: {error} Known: {', '.join(tags) or 'none'}") from error
    if not trained:
        return timm.create_model(name).eval()
    if facts is None or not facts.has_weights:
        raise ValueError(f"timm has no weights of {name}: pass weights=None for random ones, or weights=PATH")
    return _trained(name, facts.hf_hub_id)


def _trained(name: str, page: str | None) -> nn.Module:
    import timm

    try:
        return timm.create_model(name, pretrained=True).eval()
    except Exception as error:  # what the hub's client raises has no common class
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ConnectionError(
            f"timm's weights of {name} could not be fetched ({why}). Fetch model.safetensors of "
            f"{page or 'it'} by hand, and pass weights=PATH; or weights=None for random ones"
        ) from error


def _check(name: str, known: list[str]) -> None:
    found = _NAME.fullmatch(name)
    if found is None or found["base"] not in known:
        close = difflib.get_close_matches(name, known, n=3)
        guess = f" Did you mean {' or '.join(f'timm/{other}' for other in close)}?" if close else ""
        raise ValueError(
            f"unknown network 'timm/{name}'.{guess} timm.list_models() lists the {len(known):,} known names"
        )


def describe(network: nn.Module) -> dict[str, Any]:
    """The fields of its recipe: input shape, the mean of its input, and what it expects of images."""
    facts: dict[str, Any] = network.pretrained_cfg
    shape = tuple(facts["input_size"])
    mean, std = list(facts["mean"]), list(facts["std"])
    size = shape[1] if shape[1] == shape[2] else list(shape[1:])
    return {
        "input_shape": shape,
        "input_mean": mean_normalised(mean, std) if shape[0] == 3 else None,
        "images": {"size": size, "mean": mean, "std": std},
    }
