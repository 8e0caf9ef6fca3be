"""Augmentation: whole pixels, zeros coming in, and a coin an image."""

from __future__ import annotations

import pytest
import torch

from redlab.network.samples import flip_images, shift_images


@pytest.fixture(autouse=True)
def _forked():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_shifts_move_each_image_by_whole_pixels():
    images = torch.zeros(64, 1, 5, 5)
    images[:, :, 2, 2] = 1
    moved = shift_images(images, 1)
    assert moved.shape == images.shape
    assert torch.equal(moved.sum((1, 2, 3)), torch.ones(64))
    places = {tuple(place) for place in moved.nonzero()[:, 2:].tolist()}
    assert places == {(row, column) for row in (1, 2, 3) for column in (1, 2, 3)}
    assert torch.equal(shift_images(images, 0), images)


def test_a_shift_brings_in_zeros_and_keeps_channels_apart():
    image = torch.arange(1.0, 19.0).reshape(1, 2, 3, 3)
    for seed in range(20):
        torch.manual_seed(seed)
        moved = shift_images(image, 1)
        # The second channel holds the first plus nine, wherever a pixel is not a zero that came in.
        inside = moved[0, 0] > 0
        assert torch.equal(moved[0, 1][inside], moved[0, 0][inside] + 9)
        assert moved[0, 1][~inside].count_nonzero() == 0


def test_a_coin_decides_for_each_image_whether_it_is_mirrored():
    images = torch.arange(400.0).reshape(100, 1, 2, 2)
    seen = flip_images(images, True)
    mirrored = (seen == images.flip(-1)).flatten(1).all(1)
    assert 30 < int(mirrored.sum()) < 70
    assert torch.equal(seen[~mirrored], images[~mirrored])


def test_what_is_not_asked_for_draws_nothing():
    images, before = torch.ones(3, 1, 2, 2), torch.get_rng_state()
    assert flip_images(shift_images(images, 0), False) is images
    assert torch.equal(torch.get_rng_state(), before)
