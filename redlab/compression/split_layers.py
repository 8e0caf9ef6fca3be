"""Conv and linear layers that compute each distinct product once and look it up wherever it is needed again.

The third step of RED++ (TPAMI 2022, arXiv 2110.01397): "removes the input-wise redundant operations". What the units
are in which products are compared is our choice (``splitting``), as is how they are computed here: the products are the
rows of a table, and every output is the sum of some of its rows, which ``embedding_bag`` adds up without multiplying.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
import torch
import torch.nn.functional as F
from numpy import ndarray
from torch import Tensor, nn

from redlab.network.geometry import Geometry

# Values in a table of products that are there at once: 4 MB in float32, so that what reads them finds them in cache.
# Measured on one core, tables of 64 MB take half as long again to twice as long, those of 256 kB up to five times.
_AT_ONCE = 1 << 20


class Table(nn.Module):
    """What is multiplied: row r holds the products of input channel ``channels[r]`` with ``values[r]``.

    Attributes:
        values: (rows,) distinct weight values, or (rows, *kernel) distinct kernels.
        channels: (rows,) int32.
    """

    def __init__(self, values: Tensor, channels: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values)
        self.register_buffer("channels", channels)

    def __len__(self) -> int:
        return len(self.values)

    def part(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Values and channels of some rows, and of one more behind them whose products are never read."""
        values, channels = self.values[start:stop], self.channels[start:stop].long()
        return F.pad(values, (0, 0) * (values.ndim - 1) + (0, 1)), F.pad(channels, (0, 1))


# Of a split layer, and no other's; what its forward is, a layer says itself.
_OWN = ("geometry", "unit", "signed", "scales", "row_scales", "forward")


def remember(layer: nn.Module, other: nn.Module) -> None:
    """Give ``layer`` the buffers and attributes of the ``other`` that it stands for: what folding noted of its outputs,
    its stride and padding, whatever the network's code may ask it for.
    """
    for name, value in vars(other).items():
        if name not in _OWN:
            vars(layer).setdefault(name, value)
    for name, buffer in other.named_buffers(recurse=False):
        if name != "lookup":
            layer.register_buffer(name, buffer, persistent=name not in other._non_persistent_buffers_set)


class SplitLayer(nn.Module):
    """A layer that multiplies each input value once by each distinct weight that it meets; exact.

    Attributes:
        geometry: the shape of the layer that it stands for.
        unit: in what products are compared: "channel", "tap" or "kernel".
        signed: whether w and -w share a product.
        tables: one, or one a tap.
        lookup: int32 (tables' taps, outputs, inputs per group): the row of the product, shifted by the number of rows
            where its negative is meant; beyond all of them where the weight is zero.
        scales: (outputs, inputs per group) what a looked-up product is multiplied by, or None.
        row_scales: (outputs,) what each sum is multiplied by before the bias is added, or None. A row that isn't taken
            as a multiple of its codes has a 1, and costs nothing.
    """

    def __init__(
        self,
        geometry: Geometry,
        unit: str,
        tables: list[Table],
        lookup: Tensor,
        bias: nn.Parameter | None,
        signed: bool = False,
        scales: Tensor | None = None,
        row_scales: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.geometry, self.unit, self.signed = geometry, unit, signed
        self.tables = nn.ModuleList(tables)
        self.register_buffer("lookup", lookup)
        trained = tables[0].values.requires_grad
        self.scales = None if scales is None else nn.Parameter(scales, trained)
        self.row_scales = None if row_scales is None else nn.Parameter(row_scales, trained)
        self.bias = bias

    def extra_repr(self) -> str:
        rows, own = sum(map(len, self.tables)), self.geometry
        text = f"{own.kind}, {own.inputs}, {own.outputs}, kernel_size={own.kernel}, stride={own.stride}"
        text += f", padding={own.padding}, dilation={own.dilation}, groups={own.groups}, bias={self.bias is not None}"
        scaled = "" if self.scales is None else ", scaled"
        scaled += "" if self.row_scales is None else ", row_scales=True"
        return f"{text}, unit={self.unit!r}, signed={self.signed}{scaled}, distinct={rows}"

    @property
    def weight(self) -> Tensor:
        """The weight of the ordinary layer that does the same, computed at every call."""
        codes = self.codes
        return codes if self.row_scales is None else codes * self.row_scales.view(-1, *[1] * (codes.ndim - 1))

    @property
    def codes(self) -> Tensor:
        """The weight before its rows are scaled."""
        own = self.geometry
        kernels = [self._read(table.values, rows) for table, rows in zip(self._per_tap, self.lookup, strict=True)]
        return torch.stack(kernels, -1).reshape(own.outputs, own.per_group, *own.kernel)

    def dense(self) -> nn.Module:
        """The ordinary layer that does the same."""
        made = self.geometry.layer(self.weight.detach(), self.bias).train(self.training)
        made.weight.requires_grad_(all(table.values.requires_grad for table in self.tables))
        remember(made, self)
        return made

    def _read(self, values: Tensor, rows: Tensor) -> Tensor:
        signs = [values, -values] if self.signed else [values]
        return torch.cat([*signs, values.new_zeros(1, *values.shape[1:])])[rows.long()]

    @property
    def _per_tap(self) -> list[Table]:
        """The table of each slice of ``lookup``."""
        return list(self.tables) if len(self.tables) > 1 else [self.tables[0]] * len(self.lookup)

    def forward(self, input: Tensor) -> Tensor:
        """As the ordinary layer does: (*, inputs) for a linear layer, ([n,] inputs, *space) for a conv."""
        shape = self.output_shape(input.shape)
        dims = len(self.geometry.kernel)
        space, sizes = input.shape[input.ndim - dims :], shape[input.ndim - dims :]
        flat = input.reshape(-1, self.geometry.inputs, *space)
        largest = max(map(len, self.tables)) * max(prod(space), prod(sizes)) * (1 + self.signed)  # table of one image
        step = max(1, _AT_ONCE // max(1, largest))
        parts = [self._images(flat[k : k + step], sizes) for k in range(0, len(flat), step)]
        return (torch.cat(parts) if parts else input.reshape(-1)).reshape(shape)

    def output_shape(self, shape: torch.Size) -> torch.Size:
        """The shape of the output for that of an input; ValueError where the layer doesn't take it."""
        own, dims = self.geometry, len(self.geometry.kernel)
        if len(shape) <= dims or shape[-1 - dims] != own.inputs or (dims and len(shape) > dims + 2):
            raise ValueError(f"a split {own.kind} of {own.inputs} channels got an input of shape {tuple(shape)}")
        sizes = own.sizes(tuple(shape[len(shape) - dims :]))
        if min(sizes, default=1) < 1:
            raise ValueError(f"a split {own.kind} of kernel {own.kernel} got a smaller input, of shape {tuple(shape)}")
        return torch.Size([*shape[: -1 - dims], own.outputs, *sizes])

    def _images(self, x: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """Some images: (n, inputs, *space) -> (n, outputs, *sizes)."""
        x = x.transpose(0, 1)
        out = x.new_zeros(self.geometry.outputs, len(x[0]) * prod(sizes))
        for number, table in enumerate(self.tables):
            # Rows of a table that are computed at once.
            positions = max(prod(x.shape[1:]), len(x[0]) * prod(sizes)) * (1 + self.signed)
            step = max(1, _AT_ONCE // max(1, positions))
            for start in range(0, len(table), step):
                values, channels = table.part(start, start + step)
                products = self._multiply(x, values, channels, number, sizes)
                for tap, seen in self._views(products, number, sizes):
                    out += self._gather(seen.flatten(1), self.lookup[tap], start, len(table))
        if self.row_scales is not None:
            out = out * self.row_scales[:, None]
        if self.bias is not None:
            out += self.bias[:, None]
        return out.reshape(len(out), -1, *sizes).transpose(0, 1)

    def _multiply(self, x: Tensor, values: Tensor, channels: Tensor, number: int, sizes: tuple[int, ...]) -> Tensor:
        """The products of some rows of table ``number``, with their own padding: (rows, n, *positions)."""
        raise NotImplementedError

    def _views(self, products: Tensor, number: int, sizes: tuple[int, ...]) -> Iterator[tuple[int, Tensor]]:
        """What each slice of ``lookup`` reads of the products: (its number, (rows, n, *sizes))."""
        yield number, products

    def _gather(self, seen: Tensor, lookup: Tensor, start: int, rows: int) -> Tensor:
        """(rows of the block and one more, L) -> (outputs, L): for every output the sum of the products it looks up."""
        block = len(seen) - 1
        if self.signed:
            seen = torch.cat([seen[:-1], -seen])  # a negative is no product
        if block < rows:
            negative = lookup >= rows if self.signed else torch.zeros_like(lookup, dtype=torch.bool)
            local = lookup - start - negative * rows
            inside = (local >= 0) & (local < block)
            lookup = torch.where(inside, local + negative * block, len(seen) - 1)
        return F.embedding_bag(lookup, seen, mode="sum", padding_idx=len(seen) - 1, per_sample_weights=self.scales)

    def cost(self, shape: torch.Size) -> dict[str, int]:
        """What one call on an input of this shape costs: products, unsigned (the same without sharing w and -w),
        additions, lookups; see ``splitting``. A row's scale is one product at each output position, padded or not.
        """
        images, space = self._parts(shape)
        shared, unsigned = self._count_products(space)
        scaled = self.scaled_rows * prod(self.geometry.sizes(space))
        counts = {"products": shared + scaled, "unsigned": unsigned + scaled, "lookups": self._count_lookups(space)}
        counts["additions"] = counts["lookups"] + self._count_inner(space)
        return {name: images * count for name, count in counts.items()}

    @property
    def scaled_rows(self) -> int:
        """How many rows have a scale to be multiplied by, at each output position."""
        return 0 if self.row_scales is None else int((self.row_scales != 1).sum())

    def macs(self, shape: torch.Size) -> int:
        """The multiplications of the ordinary layer on such an input, those by padding and by zeros too."""
        images, space = self._parts(shape)
        own = self.geometry
        return images * own.outputs * own.per_group * len(own.taps) * prod(own.sizes(space))

    def _parts(self, shape: torch.Size) -> tuple[int, tuple[int, ...]]:
        """How many images an input of this shape holds, and their spatial sizes."""
        inner = len(shape) - len(self.geometry.kernel)
        return prod(shape[: inner - 1]), tuple(shape[inner:])

    def _zero(self, table: Table) -> int:
        """What ``lookup`` holds for a weight that is zero."""
        return len(table) * (1 + self.signed)

    def _meetings(self, space: tuple[int, ...]) -> ndarray:
        """(taps,) at how many outputs each tap meets an input and no zero of the padding."""
        none = np.zeros(len(self.geometry.taps), np.int64)
        return sum((outputs * mask for outputs, mask in self.geometry.views(space)), none)

    def _count_lookups(self, space: tuple[int, ...]) -> int:
        read = [(rows < self._zero(own)).sum() for own, rows in zip(self._per_tap, self.lookup, strict=True)]
        return int((torch.stack(read).cpu().numpy() * self._meetings(space)).sum())

    def _count_inner(self, space: tuple[int, ...]) -> int:
        """Additions within what is looked up."""
        return 0

    def _count_products(self, space: tuple[int, ...]) -> tuple[int, int]:
        used = [self._used(table, rows) for table, rows in zip(self._per_tap, self.lookup, strict=True)]
        each = np.array([(own.any(0).sum(), own.sum()) for own in used])
        shared, unsigned = (each * self._meetings(space)[:, None]).sum(0).tolist()
        return shared, unsigned

    def _used(self, table: Table, rows: Tensor) -> ndarray:
        """(signs, rows of the table) bool: which products are looked up, with either sign."""
        used = np.zeros(self._zero(table) + 1, bool)
        used[rows.cpu().numpy().ravel()] = True
        return used[:-1].reshape(1 + self.signed, -1)


class TapSplit(SplitLayer):
    """Products are shared by the outputs, for each input channel and tap apart."""

    def _multiply(self, x: Tensor, values: Tensor, channels: Tensor, number: int, sizes: tuple[int, ...]) -> Tensor:
        seen = self.geometry.at_tap(self.geometry.pad(x), self.geometry.taps[number], sizes)
        return values.view(-1, *[1] * (x.ndim - 1)) * seen[channels]


class ChannelSplit(SplitLayer):
    """Products are shared by the outputs and the taps: each pixel is multiplied once by each value of its channel."""

    def _multiply(self, x: Tensor, values: Tensor, channels: Tensor, number: int, sizes: tuple[int, ...]) -> Tensor:
        return self.geometry.pad(values.view(-1, *[1] * (x.ndim - 1)) * x[channels])

    def _views(self, products: Tensor, number: int, sizes: tuple[int, ...]) -> Iterator[tuple[int, Tensor]]:
        for index, tap in enumerate(self.geometry.taps):
            yield index, self.geometry.at_tap(products, tap, sizes)

    def _count_products(self, space: tuple[int, ...]) -> tuple[int, int]:
        """By input position, with the taps that reach it."""
        used = np.stack([self._used(self.tables[0], rows) for rows in self.lookup], -1)  # (signs, rows, taps)
        shared = unsigned = 0
        for positions, mask in self.geometry.reach(space):
            met = used[..., mask].any(-1)
            shared += positions * int(met.any(0).sum())
            unsigned += positions * int(met.sum())
        return shared, unsigned
