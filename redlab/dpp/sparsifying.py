"""From a network to one with masks that learn: ``sparsify``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from redlab.channels.groups import Group
from redlab.dpp.draws import ESTIMATORS
from redlab.dpp.masks import ChannelMask, Mask, MaskedWeight, Sparsity, UnitMask, Units, begin_pass, end_pass
from redlab.dpp.quantization import ACTIVATION_BITS, WEIGHT_BITS, RoundedInput, round_input
from redlab.network.example import Example
from redlab.network.layers import Layer, copy_network, unwrap, weight_layers
from redlab.network.result import report_once
from redlab.options import check_number, check_one_of, check_whole, plain_options
from redlab.pruning.scores import score_channels

GRANULARITIES = ("weight", "kernel", "filter", "tile")
STARTS = ("random", "magnitude")
Keep = float | int | Mapping[str, float | int]
_K_STEPS = 16  # up to so many draws "auto" takes the paper's estimator
_FAINT = 1e-8  # of the largest weight of a row: no logit is minus infinity


@dataclass(frozen=True)
class Request:
    """The arguments of ``sparsify``.

    Raises:
        ValueError: one of them is out of range or unknown; the message says what is right.
    """

    keep: Keep
    granularity: str
    whole: tuple[str, ...]
    estimator: str
    tiles: int
    start: str
    noise: float
    weight_bits: int
    activation_bits: int
    learn: bool
    seed: int

    def __post_init__(self) -> None:
        known: dict[str, tuple] = {"granularity": GRANULARITIES, "estimator": ("auto", *ESTIMATORS), "start": STARTS}
        known |= {"weight_bits": WEIGHT_BITS, "activation_bits": ACTIVATION_BITS}
        for name, values in known.items():
            check_one_of(name, getattr(self, name), values)
        for keep in self.keep.values() if isinstance(self.keep, Mapping) else [self.keep]:
            _check_keep(keep)
        check_number("noise", self.noise)
        check_whole("tiles", self.tiles)

    @property
    def options(self) -> dict[str, Any]:
        """As plain data."""
        keep = self.keep
        plain = {k: _number(v) for k, v in keep.items()} if isinstance(keep, Mapping) else _number(keep)
        own = vars(self) | {"keep": plain, "whole": list(self.whole)}
        left_out = {"whole": not self.whole, "tiles": self.granularity != "tile"}
        return {name: value for name, value in own.items() if not left_out.get(name)}

    def count(self, name: str, n: int, tiles: int = 1) -> int | None:
        """k of ``n``, each of so many tiles; None: it stays whole."""
        if name in self.whole:
            return None
        keep = self.keep.get(name) if isinstance(self.keep, Mapping) else self.keep
        if not isinstance(keep, Integral):
            return None if keep is None else max(1, round(keep * n))
        if keep % tiles:
            raise ValueError(f"keep must be a multiple of tiles, {tiles}, not {keep}")
        return min(int(keep) // tiles, n)


def _number(keep: Any) -> int | float:
    """As JSON knows it: numpy has numbers of its own."""
    return int(keep) if isinstance(keep, Integral) else float(keep)


def _check_keep(keep: Any) -> None:
    whole = isinstance(keep, Integral) and not isinstance(keep, bool) and int(keep) >= 1
    if not (whole or (isinstance(keep, Real) and not isinstance(keep, Integral) and 0 < float(keep) <= 1)):
        raise ValueError(f"keep must be a share in (0, 1] or a whole number of at least 1, not {keep!r}")


@plain_options
@torch.inference_mode(False)
def sparsify(
    network: nn.Module,
    keep: Keep,
    granularity: str = "weight",
    *,
    whole: Sequence[str] = (),
    estimator: str = "auto",
    tiles: int = 4,
    start: str = "random",
    noise: float = 1.0,
    weight_bits: int = 32,
    activation_bits: int = 32,
    learn: bool = True,
    seed: int = 0,
    example: Example | None = None,
) -> nn.Module:
    """A copy of ``network`` whose conv and linear layers learn which k of n of their parts to keep (DPP).

    Dynamic probabilistic pruning (Gonzalez-Carabarin et al., arXiv 2105.12686): in training mode every forward pass
    draws one mask by Gumbel noise, with exactly k ones a row; in eval mode the k largest logits are kept. Nothing is
    trained here: ``train_masks`` does that, and ``harden`` makes an ordinary network of the result.

    Arguments:
        network: left untouched. Biases, norms and tied weights get no masks.
        keep: a share of n in (0, 1], k = max(1, round(keep n)); or an int, k itself, at most n; or either by the name
            of a layer (for "filter" of a coupled group), and those left out stay whole.
        granularity: what k and n count. "weight": the weights of each output unit. "kernel": the k x k kernels of each
            unit (single weights in a linear layer). "filter": the channels of each coupled group, with one mask for all
            consumer layers. "tile": the weights in each of a unit's ``tiles`` blocks.
        whole: names of layers (groups) that get no mask, such as the first one, whose units have few weights.
        estimator: of the gradient (docs/defaults.md): "k_step", the paper's relaxation; "one_shot" (ours), faster;
            "auto", k_step for k <= 16, else one_shot.
        tiles: blocks of equal size in turn; layers whose units do not divide into them are skipped. An int ``keep``
            is the k of the unit, and ``tiles`` must divide it.
        start: of the logits (docs/defaults.md): "random", of standard deviation 0.5, kernels 1 (the paper's numbers, as
            we read them); or "magnitude" (ours), the logarithm of the mean absolute weight: the chance to be drawn is
            in proportion to it.
        noise: the scale c of the Gumbel noise, at least 0; 0 trains with the k largest (docs/defaults.md).
        weight_bits: 32, 8 or 1 (signs alone).
        activation_bits: 32 or 8, of the inputs of masked layers.
        learn: False fixes the masks as they start: no gradient and no noise.
        seed: of random logits; torch's global generator is left alone.
        example: a tensor, tuple or dict that the network takes, for "filter"; by default ``example_input(network)``.

    Returns:
        The network, in the mode of the given one. Its attribute ``dpp`` has the masks, and what was skipped and why.

    Raises:
        ValueError: an option out of range or unknown, an unknown layer, weights that are not finite, a network that has
            masks already or that can get none.

    Example:
        >>> masked = sparsify(load_network("digits/mlp"), keep=0.25)
        >>> {name: (mask.k, mask.logits.shape[1]) for name, mask in masked.dpp.masks.items()}
        {'hidden.0.linear': (16, 64), 'hidden.1.linear': (64, 256), 'classifier': (32, 128)}
        >>> masked.dpp.masks["classifier"]().sum(1).unique().tolist()
        [32.0]
    """
    network = unwrap(network)
    whole = (whole,) if isinstance(whole, str) else tuple(whole)
    asked = Request(keep, granularity, whole, estimator, tiles, start, noise, weight_bits, activation_bits, learn, seed)
    if hasattr(network, "dpp"):
        raise ValueError("the network has masks already: harden(network) first")
    sparse = copy_network(network)
    if bad := [own.name for own in weight_layers(sparse) if not own.lazy and not own.weight.isfinite().all()]:
        raise ValueError(f"{bad[0]}: its weights hold NaN or inf")
    made = (_OfChannels if granularity == "filter" else _OfUnits)(sparse, asked, example)
    made.place()
    _check_names(asked, made)
    if not made.masks:
        reasons = report_once(made.skipped, made.skipped.values()) or "it has no conv or linear layer"
        raise ValueError(f"no part of {type(network).__name__} can get a mask: {reasons}")
    sparse.dpp = Sparsity(asked.options, made.masks, made.skipped, tuple(made.layers), tuple(made.groups), example)
    sparse.register_forward_pre_hook(begin_pass)
    sparse.register_forward_hook(end_pass, always_call=True)
    return sparse.train(network.training)


def _check_names(asked: Request, made: _Masks) -> None:
    """Raises ValueError if ``keep`` or ``whole`` names an unknown layer, or ``keep`` one that cannot have a mask."""
    known, kept = [*made.masks, *made.skipped], asked.keep if isinstance(asked.keep, Mapping) else ()
    for name in [*kept, *asked.whole]:
        if name not in known:
            raise ValueError(f"nothing is called {name!r} that could have a mask; there are {', '.join(known)}")
        if name in kept and name in made.skipped:
            raise ValueError(f"keep names {name!r}, which gets no mask: {made.skipped[name]}")


class _Masks:
    """Masks being made for ``network``, in place."""

    def __init__(self, network: nn.Module, asked: Request, example: Example | None) -> None:
        self.network, self.asked, self.example = network, asked, example
        self.masks: dict[str, Mask] = {}
        self.skipped: dict[str, str] = {}
        self.layers: list[str] = []
        self.groups: list[Group] = []
        self._generator = torch.Generator().manual_seed(asked.seed)

    def place(self) -> None:
        """Make all masks."""
        raise NotImplementedError

    def mask(self, k: int, saliency: Tensor, tiles: int = 1) -> Mask:
        """``k`` of n in each row; ``saliency`` (rows, n), the shape of the logits, is where "magnitude" starts."""
        asked, estimator = self.asked, self.asked.estimator
        # 16 bits would make close logits equal.
        saliency = saliency if saliency.dtype == torch.float64 else saliency.float()
        if estimator == "auto":
            estimator = "k_step" if k <= _K_STEPS else "one_shot"
        if asked.start == "random":
            spread = 1.0 if asked.granularity == "kernel" else 0.5
            logits = (spread * torch.randn(saliency.shape, generator=self._generator)).to(saliency)
        else:
            peak = saliency.amax(1, keepdim=True)
            logits = (saliency / peak.where(peak > 0, 1)).clamp(min=_FAINT).log()
        mask = Mask(logits, k, estimator, asked.noise if asked.learn else 0.0, tiles)
        mask.logits.requires_grad_(asked.learn)
        return mask

    def attach(self, name: str, layer: nn.Module, parts: list[nn.Module]) -> None:
        """Make ``layer`` compute with its masked weight, and with rounded inputs if asked for."""
        self.layers.append(name)
        weight, masked = layer.weight.detach(), MaskedWeight(parts, self.asked.weight_bits)
        parametrize.register_parametrization(layer, "weight", masked, unsafe=True)
        if self.asked.activation_bits < 32:
            layer.rounded_input = RoundedInput().to(weight)
            layer.register_forward_pre_hook(round_input)


class _OfUnits(_Masks):
    """Of the weights, kernels or tiles of each layer's units."""

    def place(self) -> None:
        for layer in list(weight_layers(self.network)):
            if reason := _why_whole(layer) or self._place(layer):
                self.skipped[layer.name] = reason

    def _place(self, layer: Layer) -> str:
        """Make the mask of a layer; returns why there is none, or ""."""
        units = Units.of(layer.module)
        rows = units.rows(layer.weight.detach().abs())
        saliency = rows.mean(2) if self.asked.granularity == "kernel" else rows.flatten(1)
        tiles = int(self.asked.tiles) if self.asked.granularity == "tile" else 1
        if saliency.shape[1] % tiles:
            return f"its {saliency.shape[1]} weights a unit do not divide into {tiles} tiles"
        saliency = saliency.reshape(len(saliency) * tiles, -1)
        if (k := self.asked.count(layer.name, saliency.shape[1], tiles)) is None:
            return "it was asked to stay whole"
        self.masks[layer.name] = self.mask(k, saliency, tiles)
        self.attach(layer.name, layer.module, [UnitMask(self.masks[layer.name], units)])
        return ""


def _why_whole(layer: Layer) -> str:
    if layer.skipped and not layer.shared:
        return layer.skipped
    if layer.parameter != "weight":
        return "it is a projection inside an attention module, no layer of its own"
    return f"it shares its weight with {' and '.join(layer.shared)}" if layer.shared else ""


class _OfChannels(_Masks):
    """Of the channels of coupled groups."""

    def place(self) -> None:
        scores = score_channels(self.network, "magnitude", example=self.example)
        self.groups, self.skipped = list(scores.groups), dict(scores.skipped)
        layers = {f"{path}.weight".lstrip("."): module for path, module in self.network.named_modules()}
        parts: dict[str, list[nn.Module]] = {}
        for group in [group for group in self.groups if group.name in scores.values]:
            if reason := self._place(group, torch.from_numpy(scores.values[group.name]), layers, parts):
                self.skipped[group.name] = reason
        for name, own in parts.items():
            self.attach(name.removesuffix("weight").rstrip("."), layers[name], own)

    def _place(self, group: Group, saliency: Tensor, layers: Mapping[str, nn.Module], parts: dict) -> str:
        """Add a part for each consumer layer to ``parts``; returns why there is no mask, or ""."""
        if (k := self.asked.count(group.name, group.size)) is None:
            return "it was asked to stay whole"
        if strange := [m.tensor for m in group.consumers if not isinstance(layers.get(m.tensor), _ConvNd | nn.Linear)]:
            return f"{strange[0]} reads it, which is the weight of no conv or linear layer"
        weight = layers[group.consumers[0].tensor].weight
        self.masks[group.name] = mask = self.mask(k, saliency[None].to(weight))
        for member in group.consumers:
            ndim = layers[member.tensor].weight.ndim
            part = ChannelMask(mask, member.index.to(weight.device), member.width, member.dim, ndim)
            parts.setdefault(member.tensor, []).append(part)
        return ""
