"""Training of masks and weights together: DPP's loss, its temperature, and the masks epoch by epoch."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.utils.data import Dataset

from redlab.dpp.hardening import harden
from redlab.dpp.masks import masks_in, sparsity_of
from redlab.dpp.metrics import mask_entropy, mask_metrics
from redlab.dpp.sparsifying import sparsify
from redlab.network.cost import measure_cost
from redlab.network.layers import unwrap
from redlab.network.result import Result
from redlab.network.samples import Labelled, as_dataset
from redlab.network.training import minibatches, train
from redlab.options import check_number, count_of, plain_options, settle
from redlab.pruning.channels import products_of
from redlab.pruning.scores import score_channels
from redlab.pruning.selection import Selector, check_share


@dataclass(frozen=True, eq=False)
class TrainedMasks:
    """What training returns.

    Attributes:
        network: a trained copy, in eval mode; ``harden`` makes an ordinary network of it.
        history: of ``train``, and the ``temperature`` and ``noise`` at the end of each epoch.
        metrics: ``mask_metrics`` before the first ``epoch``, 0, and after each.
        logits: by watched layer, its logits (epochs + 1, rows, n).
    """

    network: nn.Module
    history: pd.DataFrame
    metrics: pd.DataFrame
    logits: dict[str, Tensor]


@dataclass(frozen=True)
class MaskTraining:
    """How masks and weights are trained together.

    Attributes:
        mu: of the entropy in the loss, at least 0; the paper uses 5e-3 to 5e-6, less for more rows (docs/defaults.md).
        temperatures: of the first minibatch and of the last; linear in between.
        noises: the same for the scale of the noise, times that of the masks. Without noise at the end (ours), weights
            and batch norms adapt to the masks that stay (docs/defaults.md).
        learning_rate: of Adam for the weights, at its peak.
        logit_rate: of Adam for the logits, at its peak.
        batch_size, smoothing, shift, flip, seed: as in ``train``.
        draws: as in ``mask_metrics``, for every epoch; 0 leaves the inclusion probabilities out.
        watch: names of layers (or groups) whose logits are kept epoch by epoch.
    """

    mu: float = 5e-5
    temperatures: tuple[float, float] = (5.0, 0.5)
    noises: tuple[float, float] = (1.0, 0.0)
    learning_rate: float = 2e-3
    logit_rate: float = 0.3
    batch_size: int = 64
    smoothing: float = 0.0
    shift: int = 0
    flip: bool = False
    seed: int = 0
    draws: int = 0
    watch: Sequence[str] = ()

    def __post_init__(self) -> None:
        settle(self)
        numbers = (self.mu, *self.noises, *self.temperatures)
        if not all(0 <= number < math.inf for number in numbers) or min(self.temperatures) == 0:
            what = f"not {self.mu!r}, {self.noises!r} and {self.temperatures!r}"
            raise ValueError(f"mu and noises must be at least 0 and temperatures above 0, {what}")
        check_number("learning_rate", self.learning_rate)
        check_number("logit_rate", self.logit_rate)

    def at(self, share: float) -> tuple[float, float]:
        """Temperature and noise when this share of the minibatches, in [0, 1], is done."""
        temperature, noise = (first + (last - first) * share for first, last in (self.temperatures, self.noises))
        return temperature, noise

    def observed(self, network: nn.Module) -> dict[str, Any]:
        """What is recorded of the masks before the first epoch and after each."""
        masks = sparsity_of(network).masks
        logits = {name: masks[name].logits.detach().cpu().clone() for name in self.watch}
        return {"metrics": mask_metrics(network, self.draws).to_dict("records"), "logits": logits}


@plain_options
def train_masks(
    network: nn.Module, dataset: Labelled, epochs: int, *, checkpoint: str | Path | None = None, **options: Any
) -> TrainedMasks:
    """Train a copy of ``network``, made by ``sparsify``: its weights, and which of them are kept.

    The loss is cross-entropy plus mu times the entropy of all rows of logits, in nats (Gonzalez-Carabarin et al., arXiv
    2105.12686). Ours are the optimizer, Adam with two learning rates, and its schedule, a tenth of warm-up and a cosine
    to zero: logits move by whole units, since they have to rise above noise of that size.

    Arguments:
        network, dataset, checkpoint: as in ``train``.
        epochs: passes over ``dataset``.
        options: the attributes of ``redlab.dpp.training.MaskTraining``: mu, temperatures, noises, learning_rate,
            logit_rate, batch_size, smoothing, shift, flip, seed, draws and watch.

    Raises:
        TypeError: an unknown option.
        ValueError: a network without masks, a number out of range, an unknown layer; and as ``train``.

    Example:
        >>> masked = sparsify(load_network("digits/mlp"), keep=0.25)
        >>> trained = train_masks(masked, load_dataset("digits", "train", limit=64), epochs=2)
        >>> trained.history["temperature"].tolist(), sorted(set(trained.metrics["epoch"]))
        ([5.0, 0.5], [0, 1, 2])
    """
    network, dataset = unwrap(network), as_dataset(dataset)
    asked, sparsity = MaskTraining(**options), sparsity_of(network)
    if strange := [name for name in asked.watch if name not in sparsity.masks]:
        raise ValueError(f"no mask is called {strange[0]!r}; there are {', '.join(sparsity.masks)}")
    if len(dataset) == 0:
        raise ValueError("training needs images, and there are none")
    steps = minibatches(dataset, asked.batch_size)
    last = max(epochs * steps - 1, 1)

    def set_masks(network: nn.Module, number: int) -> None:
        for mask in masks_in(network):
            mask.temperature, mask.calm = asked.at(number / last)

    trained = train(
        network,
        dataset,
        epochs,
        **{name: getattr(asked, name) for name in ("batch_size", "smoothing", "shift", "flip", "seed")},
        on_batch=set_masks,
        penalty=(lambda network: asked.mu * mask_entropy(network)) if asked.mu else None,
        observe=asked.observed,
        optimizer=adam(asked.learning_rate, asked.logit_rate),
        checkpoint=checkpoint,
        depends={"masks": sparsity.options} | vars(asked) | {"watch": list(asked.watch)},
    )
    if epochs:  # also if the training was read from its checkpoint
        set_masks(trained.network, epochs * steps - 1)
    seen = trained.observations
    metrics = pd.DataFrame([{"epoch": epoch} | row for epoch, own in enumerate(seen) for row in own["metrics"]])
    logits = {name: torch.stack([own["logits"][name] for own in seen]) for name in asked.watch}
    ends = [asked.at(((epoch + 1) * steps - 1) / last) for epoch in range(epochs)]
    history = trained.history.assign(temperature=[own[0] for own in ends], noise=[own[1] for own in ends])
    return TrainedMasks(trained.network, history, metrics, logits)


def _with_options(function: Callable, options: type) -> inspect.Signature:
    """The signature of ``function`` with the fields of ``options`` in place of its ``**options``, for ``help``."""
    own = [each for each in inspect.signature(function).parameters.values() if each.kind is not each.VAR_KEYWORD]
    named = [each.replace(kind=each.KEYWORD_ONLY) for each in inspect.signature(options).parameters.values()]
    return inspect.Signature([*own, *named], return_annotation=TrainedMasks)


train_masks.__signature__ = _with_options(train_masks, MaskTraining)  # type: ignore[attr-defined]


def prune_by_masks(
    network: nn.Module, dataset: Dataset, products: float, epochs: int, start: str = "magnitude", **training: Any
) -> Result:
    """Train masks of whole channels and remove what they shut: ``sparsify``, ``train_masks``, ``harden``.

    Arguments:
        network: left untouched.
        products: the share of the network's multiplications to keep, in [0, 1]. Every coupled group keeps the same
            share of its channels, the largest that reaches it (our choice), and at least one.
        start: of the logits, as in ``sparsify``.
        epochs, training: as in ``train_masks``.

    Example:
        >>> images = load_dataset("digits", "train", limit=64)
        >>> result = prune_by_masks(load_network("digits/mlp"), images, products=0.5, epochs=1)
        >>> result.layers[["layer", "channels_before", "channels_after"]]
                     layer  channels_before  channels_after
        0  hidden.0.linear              256             165
        1  hidden.1.linear              128              83
        2       classifier               10              10
    """
    check_share("products", products)
    scores, cost = score_channels(network, "magnitude"), measure_cost(network)
    allowed = count_of(products, cost.attrs["products"])
    kept = Selector(scores.values, "layer").down_to(allowed, products_of(network, scores.groups, cost))
    keep = {name: int(mask.sum()) for name, mask in kept.items()}
    sparse = sparsify(network, keep, "filter", start=start, seed=training.get("seed", 0))
    return harden(train_masks(sparse, dataset, epochs, **training).network)


def adam(learning_rate: float, logit_rate: float = 0.0) -> Callable[[nn.Module], Optimizer]:
    """A function that makes the optimizer of ``train_masks``."""

    def make(network: nn.Module) -> Optimizer:
        logits = [mask.logits for mask in masks_in(network) if mask.logits.requires_grad]
        apart = {id(parameter) for parameter in logits}
        others = [own for own in network.parameters() if own.requires_grad and id(own) not in apart]
        groups = [{"params": others, "lr": learning_rate}, {"params": logits, "lr": logit_rate}]
        return Adam([group for group in groups if group["params"]])

    return make
