"""Look-up tables of a layer's weights: nothing is lost, and the fewest bits are taken."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scaled import scale_rows
from torch import nn

from redlab.export.palettes import BITS, Palette, palette_of
from redlab.network.layers import Layer, weight_layers


def layer_of(weight: torch.Tensor) -> Layer:
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight = nn.Parameter(weight)
    return next(weight_layers(linear))


def values_of(count: int, shape: tuple[int, int] = (40, 50)) -> torch.Tensor:
    """A weight of exactly so many values, none of them round."""
    torch.manual_seed(count)
    codebook = torch.randn(count).unique()
    return codebook[torch.randperm(shape[0] * shape[1]) % len(codebook)].view(shape)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9, 17, 64, 65, 255, 256])
def test_a_table_holds_just_the_values_in_the_fewest_bits(count):
    weight = values_of(count)
    palette = palette_of(layer_of(weight))
    assert palette.bits == min(bits for bits in BITS if count <= 2**bits)
    assert palette.table.shape == (1, 1, 2**palette.bits)
    np.testing.assert_array_equal(np.unique(palette.table), np.unique(weight.numpy()))
    np.testing.assert_array_equal(palette.values, weight.numpy())
    assert palette.bytes == weight.numel() * palette.bits // 8 + 4 * 2**palette.bits


def test_more_values_than_an_index_of_8_bits_has_fit_no_table():
    assert palette_of(layer_of(values_of(257))) is None


def test_minus_zero_is_zero():
    palette = palette_of(layer_of(torch.tensor([[-0.0, 0.0, 1.0]])))
    assert palette.bits == 1
    assert not np.signbit(palette.table).any()


KINDS = {
    "linear": lambda: nn.Linear(40, 30),
    "grouped": lambda: nn.Conv2d(8, 16, 3, groups=2),
    "depthwise": lambda: nn.Conv1d(16, 16, 5, groups=16),
    "transposed": lambda: nn.ConvTranspose2d(16, 8, 3),
    "transposed in groups": lambda: nn.ConvTranspose2d(16, 8, 3, groups=2),
}


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_scaled_rows_come_back_to_the_bit(kind, scaled):
    torch.manual_seed(0)
    layer = next(weight_layers(scale_rows(KINDS[kind]())))
    palette = palette_of(layer, scaled)
    np.testing.assert_array_equal(palette.values, layer.weight.detach().numpy())
    assert (palette.scales is not None) == (scaled and palette.scales is not None)
    if scaled:  # 15 codes in one table
        assert (palette.bits, palette.tables) == (4, 1)
        assert palette.scales.size == len(layer.module.out_scale)


def test_rows_of_few_codes_have_a_table_each_where_they_cannot_be_scaled():
    torch.manual_seed(0)
    layer = next(weight_layers(scale_rows(nn.Linear(300, 30))))
    palette = palette_of(layer)
    assert (palette.bits, palette.tables, palette.scales) == (4, 30, None)


def test_a_row_that_was_trained_since_keeps_its_own_values():
    torch.manual_seed(0)
    layer = next(weight_layers(scale_rows(nn.Linear(40, 30))))
    with torch.no_grad():
        layer.weight[3] = torch.randn(40)
    palette = palette_of(layer, scaled=True)
    assert palette.scales[3] == 1
    np.testing.assert_array_equal(palette.values, layer.weight.detach().numpy())


def test_palettes_are_the_same_only_if_every_number_is():
    palette = palette_of(layer_of(values_of(5)))
    table, indices = palette.table.copy(), palette.indices.copy()
    assert palette.same_as(Palette(table, indices))
    assert not palette.same_as(Palette(table, indices, np.ones((40, 1), np.float32)))
    table[0, 0, 1] = np.nextafter(table[0, 0, 1], np.float32(9))
    assert not palette.same_as(Palette(table, indices))
    indices[7, 7] ^= 1
    assert not palette.same_as(Palette(palette.table, indices))
