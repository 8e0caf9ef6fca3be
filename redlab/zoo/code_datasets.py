"""The dataset that a function of the user's makes."""

from __future__ import annotations

import inspect
from typing import Any

from torch.utils.data import Dataset

from redlab.network.samples import as_dataset, batches, whole
from redlab.zoo.code import call_code, load_code

_WANTED = "it must be a function that takes split= and returns a map-style dataset"


def dataset_of_code(name: str, split: str) -> Dataset:
    """What the function that ``name`` names returns for ``split``, checked.

    Raises:
        ValueError: there is no such function, it fails or returns no dataset; the dataset is empty; its first sample
            cannot be read, or is not (inputs, label).
    """
    made = load_code(name)
    if not callable(made):
        raise ValueError(f"{name} is of type {type(made).__name__}: {_WANTED}")
    if not _takes_split(made):
        raise ValueError(f"{name} does not take split=: {_WANTED}")
    given = call_code(name, made, split=split)
    try:
        dataset = as_dataset(given)
    except ValueError as error:
        raise ValueError(f"{name}, split {split!r}: {error}") from error
    _check_first(f"{name}, split {split!r}", dataset)
    return dataset


def _takes_split(made: Any) -> bool:
    """Whether it can be called with split= alone, as far as its signature tells."""
    try:
        inspect.signature(made).bind(split="test")
    except TypeError:
        return False
    except ValueError:  # no signature, as of a function in C
        return True
    return True


def _check_first(what: str, dataset: Any) -> None:
    if len(dataset) == 0:
        raise ValueError(f"{what}: the dataset is empty")
    try:
        _, labels = next(iter(batches(dataset, 1)))
        whole(labels)
    except Exception as error:  # the user's code may raise anything
        raise ValueError(f"{what}: the first sample is not (tensor or array, whole number): {error}") from error
