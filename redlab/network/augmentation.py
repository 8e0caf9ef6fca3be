"""Images moved and mirrored at random, for training; drawn from torch's global generator."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
