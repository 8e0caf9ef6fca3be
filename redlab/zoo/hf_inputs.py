"""What a network of Hugging Face is called with, read off its config and the arguments of its forward."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from redlab.network.description import tensor

_TOKENS, _SAMPLES, _FRAMES = 16, 16_000, 1024  # lengths of an example: our choice


def example(network: nn.Module, images: dict | None = None) -> dict | None:
    """The description of its keyword inputs, a batch of one; None where the config does not tell them.

    Arguments:
        images: what it expects of images, as ``images_of`` says it.
    """
    config: Any = network.config
    taken = inspect.signature(network.forward).parameters
    main = network.main_input_name
    names = [name for name in (main, "input_ids", "pixel_values") if name in taken and _is_asked(name, main, config)]
    makers = _MAKERS | {"pixel_values": lambda config: _pixels(config, (images or {}).get("size"))}
    found = {name: makers[name](config) for name in dict.fromkeys(names) if name in makers}
    if main not in found or None in found.values():
        return None
    if "input_ids" in found and "attention_mask" in taken:
        found["attention_mask"] = tensor(1, _length(config), dtype="int64", low=1, high=1)
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in taken:
        found["decoder_input_ids"] = _ids(config)
    return {"dict": found}


def _is_asked(name: str, main: str, config: Any) -> bool:
    """The main input; and of a network of text and images both."""
    return name == main or (hasattr(config, "vision_config") and hasattr(config, "text_config"))


def _of(config: Any, *names: str, within: str = "") -> Any:
    """The first of these numbers that the config holds, in itself or in a part of it."""
    for place in (config, getattr(config, within, None) if within else None):
        for name in names:
            if place is not None and getattr(place, name, None) is not None:
                return getattr(place, name)
    return None


def _length(config: Any) -> int:
    longest = _of(config, "max_position_embeddings", "n_positions", within="text_config")
    return min(_TOKENS, longest) if isinstance(longest, int) and longest > 0 else _TOKENS


def _ids(config: Any) -> dict | None:
    words = _of(config, "vocab_size", within="text_config")
    return tensor(1, _length(config), dtype="int64", low=0, high=words - 1) if words else None


def _pixels(config: Any, prepared: int | list[int] | None) -> dict | None:
    size = _of(config, "image_size", within="vision_config") or prepared or 224
    sides = [size, size] if isinstance(size, int) else list(size)
    return tensor(1, _of(config, "num_channels", within="vision_config") or 3, *sides[-2:])


def _values(config: Any) -> dict | None:
    if (bins := _of(config, "num_mel_bins")) is not None:  # a spectrogram
        return tensor(1, _of(config, "max_length") or _FRAMES, bins)
    return tensor(1, _SAMPLES)


def _features(config: Any) -> dict | None:
    positions, bins = _of(config, "max_source_positions"), _of(config, "num_mel_bins")
    if positions and bins:
        return tensor(1, bins, 2 * positions)  # Whisper's first convolutions halve the length
    width = _of(config, "input_feat_per_channel", "feature_projection_input_dim", "input_dim")
    return tensor(1, 128, width) if width else None


_MAKERS: dict[str, Callable[[Any], dict | None]] = {
    "input_ids": _ids,
    "input_values": _values,
    "input_features": _features,
}


def images_of(where: str) -> dict | None:
    """What its preprocessor config says of images: size, mean and standard deviation; None: nothing."""
    if (path := _preprocessor(where)) is None:
        return None
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        mean, std, size = (
            facts.get("image_mean"),
            facts.get("image_std"),
            _size(facts.get("crop_size") or facts["size"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return {"size": size, "mean": list(mean), "std": list(std)} if mean and std and size else None


def _preprocessor(where: str) -> Path | None:
    if Path(where).is_dir():
        path = Path(where) / "preprocessor_config.json"
        return path if path.is_file() else None
    from transformers.utils import cached_file

    found = cached_file(where, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    return Path(found) if found else None


def _size(given: Any) -> int | list[int] | None:
    if isinstance(given, int):
        return given
    if "height" in given:
        high, wide = given["height"], given["width"]
        return high if high == wide else [high, wide]
    return given.get("shortest_edge")
