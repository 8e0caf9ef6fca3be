"""The contrast of a density's modes, and which of them stay when the weak ones go."""

from __future__ import annotations

import heapq

import numpy as np
from jaxtyping import Float64
from numpy import ndarray


def strong_modes(
    turns: Float64[ndarray, " n"], heights: Float64[ndarray, " n"], contrast: float
) -> tuple[ndarray, ndarray]:
    """The modes and cuts that stay.

    A mode's contrast is its height above its higher neighbouring cut, divided by its own height. The mode of smallest
    contrast goes, its higher cut with it (the higher peak of the two cells stays), until all contrasts exceed
    ``contrast``; one mode always stays. Our choice: the papers keep every mode.

    Arguments:
        turns: positions of alternating maxima and minima, ascending, a maximum at either end (n odd).
        heights: the density there.
        contrast: in [0, 1); 0 keeps every mode.

    Raises:
        ValueError: a contrast outside [0, 1).
    """
    check_contrast(contrast)
    if contrast == 0:
        return turns[::2], turns[1::2]
    kept = _prune(heights.tolist(), contrast)
    return turns[::2][kept[::2] // 2], turns[1::2][kept[1::2] // 2]


def check_contrast(contrast: float) -> None:
    """Raises ValueError outside [0, 1)."""
    if not 0 <= contrast < 1:  # NaN too
        raise ValueError(f"contrast must lie in [0, 1), not be {contrast}")


def _prune(heights: list[float], limit: float) -> ndarray:
    """Indices of the extrema that stay; neighbours are a linked list, contrasts a heap with stale entries."""
    n = len(heights)
    left, right = list(range(-1, n - 1)), [*range(1, n), -1]
    alive = [True] * n

    def contrast(mode: int) -> float:
        return 1 - max(heights[cut] for cut in (left[mode], right[mode]) if cut >= 0) / heights[mode]

    heap = [(contrast(mode), mode) for mode in range(0, n, 2)] if n > 1 else []
    heapq.heapify(heap)
    while heap and heap[0][0] <= limit:
        value, mode = heapq.heappop(heap)
        if not alive[mode] or (left[mode] < 0 and right[mode] < 0) or value != contrast(mode):
            continue  # gone, the last one, or its neighbours changed since (then a fresh entry is in the heap)
        cut = max((c for c in (left[mode], right[mode]) if c >= 0), key=heights.__getitem__)
        alive[mode] = alive[cut] = False
        before, after = (left[cut], right[mode]) if cut < mode else (left[mode], right[cut])
        if before >= 0:
            right[before] = after
        if after >= 0:
            left[after] = before
        for near in [near for near in (before, after) if near >= 0]:
            _refresh(heap, near, left, right, contrast)
    return np.flatnonzero(alive)


def _refresh(heap: list, near: int, left: list[int], right: list[int], contrast) -> None:
    """Push the new contrast of the mode at ``near``, or of the modes beside it where a cut stands there."""
    modes = (near,) if near % 2 == 0 else (left[near], right[near])
    for mode in modes:
        if mode >= 0 and (left[mode] >= 0 or right[mode] >= 0):
            heapq.heappush(heap, (contrast(mode), mode))
