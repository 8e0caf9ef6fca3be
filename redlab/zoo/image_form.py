"""The form in which a network expects images: their size, mean and standard deviation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from redlab.network.layers import unwrap
from redlab.network.recipe import recipe_of

# ImageNet's mean and standard deviation, by which redlab normalises images.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HOW = {
    "size": "size=224 or size=[height, width]",
    "mean": "mean=[...], a number a channel, of values in [0, 1]",
    "std": "std=[...], a number a channel, of values in [0, 1]",
}


@dataclass(frozen=True)
class ImageForm:
    """What images of files become.

    Attributes:
        size: (height, width).
        mean, std: per channel, of values in [0, 1]: three of them for colour, one for grey.
    """

    size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD


IMAGENET = ImageForm()


def form_of(
    name: str, network: nn.Module | None, given: Mapping[str, Any], default: ImageForm | None = None
) -> ImageForm:
    """The form of the dataset ``name``: each of size, mean and std as ``given``, else from the recipe of ``network``.

    Arguments:
        given: "size", "mean" and "std"; None: not given.
        default: of what neither of them says; None: there is none.

    Raises:
        ValueError: nobody says; the message names what to pass. Or one is not of its form, or the network none.
    """
    if not isinstance(network, nn.Module | None):
        raise ValueError(f"network must be the network itself, an nn.Module, not {type(network).__name__}")
    recipe = None if network is None else recipe_of(unwrap(network))
    known = dict((recipe.images if recipe else None) or {})
    chosen = {what: known.get(what) if given[what] is None else given[what] for what in _HOW}
    if default is not None:
        chosen = {what: getattr(default, what) if value is None else value for what, value in chosen.items()}
    if missing := [what for what, value in chosen.items() if value is None]:
        raise ValueError(_missing(name, missing, network))
    return ImageForm(_checked_size(chosen["size"]), *_checked_numbers(chosen["mean"], chosen["std"]))


def _missing(name: str, missing: list[str], network: nn.Module | None) -> str:
    who = "no network= was passed" if network is None else "the recipe of the network does not say"
    many = "is" if len(missing) == 1 else "are"
    return (
        f"{name}: the {_listed(missing)} of the images {many} not known ({who}): pass "
        f"{', '.join(_HOW[what] for what in missing)}; or pass network=, one whose recipe has them in `images`"
    )


def _listed(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _checked_size(size: Any) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, Integral) else tuple(size) if isinstance(size, list | tuple) else ()
    if len(sides) != 2 or not all(isinstance(s, Integral) and not isinstance(s, bool) and int(s) >= 1 for s in sides):
        raise ValueError(f"size must be a whole number of pixels or [height, width], not {size!r}")
    return int(sides[0]), int(sides[1])


def _checked_numbers(mean: Any, std: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    for what, values in (("mean", mean), ("std", std)):
        numbers = isinstance(values, Sequence | np.ndarray) and not isinstance(values, str) and len(values) in (1, 3)
        if not numbers or not all(isinstance(v, Real) and np.isfinite(float(v)) for v in values):
            raise ValueError(f"{what} must be a list of three numbers, or of one for grey images, not {values!r}")
    if len(mean) != len(std):
        raise ValueError(f"mean {mean!r} and std {std!r} must have as many numbers")
    if min(std) <= 0:
        raise ValueError(f"std must be above 0, not {std!r}")
    return tuple(map(float, mean)), tuple(map(float, std))


def normalised(image: np.ndarray, scale: float, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Bytes (channels, height, width) as float32: (image / scale - mean) / std, a mean and std per channel."""
    # numpy: half the time of torch for a small array
    pixels = image.astype(np.float32, order="C") / np.float32(scale)
    shift, width = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (mean, std))
    return torch.from_numpy((pixels - shift) / width)
