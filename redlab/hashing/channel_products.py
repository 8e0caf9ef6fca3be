"""How many products each input of a weight asks for when every distinct one is computed once (RED++'s unit "channel").

A pixel of input channel i meets all weights of that channel, W[:, i]: as many products as they take values, zero apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
from numpy import ndarray
from torch import Tensor

from redlab.hashing.patterns import as_patterns, values_of
from redlab.hashing.sorted_values import AT_ONCE
from redlab.hashing.spectrum import Lookup, Spectrum

_TABLE = 1 << 25  # bytes that say which channel has met which value


def count_products(weight: Tensor, spectrum: Spectrum) -> int:
    """The distinct products of a hashed weight, summed over its input channels.

    Arguments:
        weight: (out, in, *kernel), not hashed yet; groups are not known from a file, so that it is taken for one group.
        spectrum: of the same tensor.
    """
    weight, cells = weight.reshape(*weight.shape[:2], -1), spectrum.cells
    # A table of all channels and cells is fastest, unless there are nearly as many cells as weights.
    if cells is not None and weight.shape[1] * len(cells.products) <= max(16 * spectrum.size, _TABLE):
        return _by_table(weight, cells)
    return _by_sorting(weight, cells)


def _by_table(weight: Tensor, cells: Lookup) -> int:
    codes, width = _coder(weight, cells), len(cells.products)
    outputs, inputs, taps = weight.shape
    total, long = 0, min(taps, AT_ONCE)
    for channels in _slices(inputs, min(AT_ONCE // long, _TABLE // width)):
        met = np.zeros((channels.stop - channels.start, width), bool)
        place = np.arange(len(met))[:, None] * width
        for rows, kernel in product(_slices(outputs, AT_ONCE // (len(met) * long)), _slices(taps, long)):
            met.reshape(-1)[codes(weight[rows, channels, kernel]) + place] = True
        total += int(np.count_nonzero(met & cells.products))
    return total


def _by_sorting(weight: Tensor, cells: Lookup | None) -> int:
    outputs, inputs, taps = weight.shape
    total = 0
    for channels in _slices(inputs, AT_ONCE // (outputs * taps)):
        keys = _numbers(weight[:, channels].transpose(0, 1)).reshape(channels.stop - channels.start, -1)
        keys = keys.copy() if cells is None else cells.codes(keys.ravel()).reshape(keys.shape)
        keys.sort(axis=1)
        first = np.ones(keys.shape, bool)
        np.not_equal(keys[:, 1:], keys[:, :-1], out=first[:, 1:])
        total += int(np.count_nonzero(first & (keys != 0 if cells is None else cells.products[keys])))
    return total


def _slices(size: int, step: int) -> Iterator[slice]:
    step = max(1, step)
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def _coder(weight: Tensor, cells: Lookup) -> Callable[[Tensor], ndarray]:
    """What gives the cells of a part of the weight, in its shape."""
    if weight.element_size() > 2:
        return lambda part: cells.codes(part.reshape(-1).numpy()).reshape(part.shape)
    # Of all patterns those that occur lie in the range; no other is looked up.
    values = values_of(weight.dtype)
    inside = (values >= cells.low) & (values <= cells.high) | (values == 0)
    table = np.zeros(len(values), np.int64)
    table[inside] = cells.codes(values[inside])
    return lambda part: table[as_patterns(part)]


def _numbers(part: Tensor) -> ndarray:
    return (part.float() if part.element_size() <= 2 else part).numpy()
