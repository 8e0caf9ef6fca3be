"""Labelled samples, however they are given: a map-style dataset, a DataLoader, or a pair of tensors.

Images are shifted and mirrored here too, at random, for training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, default_collate

from redlab.network.example import Example, Inputs
from redlab.network.recipe import recipe_of

# What may be passed as a dataset: see ``as_dataset``.
Labelled: TypeAlias = "Dataset | DataLoader | Sequence | Mapping[str, Any]"
LABELS = ("labels", "label", "label_ids")  # the keys of labels in a sample that is a dict


class Pair(Dataset):
    """Samples in memory: ``inputs``, tensors in any container, and ``labels``, one each."""

    def __init__(self, inputs: Any, labels: Tensor) -> None:
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        return tree_map(lambda tensor: tensor[index], self.inputs), self.labels[index]


class Loaded(Dataset):
    """The samples of a DataLoader by index, in its order and with its collation."""

    def __init__(self, dataset: Dataset, order: Sequence[Any], collate: Callable) -> None:
        self.dataset, self.order, self.collate = dataset, order, collate

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[self.order[index]]


def as_dataset(given: Any) -> Dataset:
    """What is given, as a map-style dataset: with a length and an order of its own.

    Arguments:
        given: such a dataset, or a list of samples; a DataLoader, whose samples, order and collation are used, not its
            batch size; or a pair (inputs, labels) of tensors or arrays of one length, where inputs are a tensor, a
            tuple of them or a dict by name. A sample is (inputs, label), with inputs of the same kinds, or a dict with
            its label under "labels", "label" or "label_ids".

    Raises:
        ValueError: it is none of these: it has no length, no labels, or lengths that differ.

    Example:
        >>> dataset = as_dataset((torch.rand(5, 3), torch.arange(5)))
        >>> len(dataset), dataset[4][1]
        (5, tensor(4))
    """
    if isinstance(given, DataLoader):
        return _loaded(given)
    if isinstance(given, Mapping):
        return _pair(*_parted(given))
    if isinstance(given, tuple | list) and len(given) == 2 and any(isinstance(p, Tensor | np.ndarray) for p in given):
        return _pair(*given)
    if isinstance(given, str):
        raise ValueError(f"pass a dataset, not its name: load_dataset({given!r})")
    if isinstance(given, Tensor | np.ndarray):
        raise ValueError("a dataset needs labels: pass a pair (inputs, labels)")
    if isinstance(given, IterableDataset) or not (hasattr(given, "__len__") and hasattr(given, "__getitem__")):
        raise ValueError(
            "a dataset must be map-style (with a length, read by index), a DataLoader over one, or a pair of tensors "
            f"(inputs, labels): {type(given).__name__} has no samples by index; pass list(...) of it"
        )
    return given


def batches(dataset: Dataset, size: int, shuffle: bool = False, drop_last: bool = False) -> DataLoader:
    """The samples of ``as_dataset`` in batches (Inputs, labels) of ``size``, in their order; the labels as they come.

    torch's global generator is used only to shuffle.
    """
    generator = None if shuffle else torch.Generator()  # otherwise a DataLoader draws a seed from torch's own
    collate = partial(_collated, _collation(dataset))
    return DataLoader(dataset, size, shuffle, drop_last=drop_last, collate_fn=collate, generator=generator)


def placed(network: nn.Module, batch: tuple[Inputs, Any]) -> tuple[Inputs, Tensor]:
    """A batch on the device of ``network``, with labels as whole numbers."""
    inputs, labels = batch[0].to(network), whole(batch[1])
    return inputs, labels.to(inputs.tensors[0].device)


def whole(labels: Any) -> Tensor:
    """(n,) int64 labels; ValueError if they are no whole numbers."""
    labels = torch.as_tensor(labels)
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"labels must be whole numbers, one a sample; a batch of them is {labels.dtype}, {tuple(labels.shape)}"
        )
    return labels.long()


def _collated(collate: Callable, samples: list) -> tuple[Inputs, Any]:
    """Samples -> (Inputs, labels)."""
    batch = collate(samples)
    if isinstance(batch, Mapping):
        inputs, labels = _parted(batch)
    elif isinstance(batch, tuple | list) and len(batch) == 2:
        inputs, labels = batch
    else:
        what = f"{len(batch)} values" if isinstance(batch, tuple | list) else type(batch).__name__
        raise ValueError(
            f"a sample must be (inputs, label), or a dict with labels, and this dataset gives {what}; "
            "for a network of several inputs give ((u, v), label)"
        )
    return Inputs.of(inputs), labels


def _parted(named: Mapping) -> tuple[dict, Any]:
    """A dict without its labels, and those."""
    found = [name for name in LABELS if name in named]
    if len(found) != 1:
        raise ValueError(f"a dict needs labels under one of {', '.join(LABELS)}; it has {', '.join(map(str, named))}")
    return {name: value for name, value in named.items() if name != found[0]}, named[found[0]]


def _pair(inputs: Any, labels: Any) -> Pair:
    inputs = tree_map(lambda part: torch.as_tensor(part) if isinstance(part, np.ndarray) else part, inputs)
    inputs, labels = tuple(inputs) if isinstance(inputs, list) else inputs, torch.as_tensor(labels)
    parts = tree_leaves(inputs)
    if not parts or not all(isinstance(part, Tensor) for part in parts) or any(p.ndim == 0 for p in [*parts, labels]):
        raise ValueError("of a pair (inputs, labels) all must be tensors, one part a sample")
    if lengths := sorted({len(part) for part in parts} - {len(labels)}):
        raise ValueError(f"a pair of {lengths[0]} inputs and {len(labels)} labels: they must be as many")
    return Pair(inputs, labels)


def _loaded(loader: DataLoader) -> Loaded:
    if isinstance(loader.dataset, IterableDataset):
        raise ValueError(
            "a DataLoader over an iterable dataset has no samples by index: pass a map-style dataset, "
            "or list(loader.dataset)"
        )
    if loader.batch_sampler is None:
        raise ValueError("a DataLoader with batch_size=None has no batches of its own: pass its dataset")
    return Loaded(loader.dataset, _order(loader), loader.collate_fn)


def _order(loader: DataLoader) -> list:
    """The indices in the order in which the loader reads them; all generators stay as they were."""
    generators = {id(g): g for part in (loader, loader.sampler) if (g := getattr(part, "generator", None)) is not None}
    states = [(generator, generator.get_state()) for generator in generators.values()]
    with torch.random.fork_rng(devices=[]):
        order = [index for batch in loader.batch_sampler for index in batch]
    for generator, state in states:
        generator.set_state(state)
    return order


def _collation(dataset: Any) -> Callable:
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset.collate if isinstance(dataset, Loaded) else default_collate


def first_of(dataset: Dataset, count: int) -> Inputs:
    """The inputs of the first ``count`` samples, as one batch."""
    return next(iter(batches(dataset, min(count, len(dataset)))))[0]


def example_of(network: nn.Module, example: Example | None, dataset: Labelled | None) -> Example | None:
    """``example``; without one, and where the recipe of ``network`` tells none, the first input of ``dataset``."""
    recipe = recipe_of(network)
    if example is not None or dataset is None or (recipe is not None and recipe.knows_input):
        return example
    samples = as_dataset(dataset)
    return first_of(samples, 1) if len(samples) else None


def shift_images(images: Tensor, shift: int) -> Tensor:
    """Each image (n, c, h, w) moved by random whole pixels in [-shift, shift], along both axes; zeros fill the gap.

    With a shift of 0 nothing is drawn.
    """
    if shift == 0:
        return images
    n, _, height, width = images.shape
    padded = F.pad(images, (shift,) * 4)
    down, right = torch.randint(0, 2 * shift + 1, (2, n, 1, 1))
    rows = torch.arange(height).reshape(1, -1, 1) + down
    columns = torch.arange(width).reshape(1, 1, -1) + right
    # Advanced indices around a slice put the indexed axes first: (n, h, w, c).
    return padded[torch.arange(n).reshape(-1, 1, 1), :, rows, columns].permute(0, 3, 1, 2)


def flip_images(images: Tensor, flip: bool) -> Tensor:
    """Each image (n, c, h, w) mirrored left to right with probability 1/2; without ``flip`` nothing is drawn."""
    if not flip:
        return images
    mirrored = torch.rand(len(images)) < 0.5
    return torch.where(mirrored.reshape(-1, 1, 1, 1), images.flip(-1), images)
