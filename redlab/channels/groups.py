"""Groups: channels that must stay in step, and the slices of tensors that belong to them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Member:
    """The slices of one tensor that belong to the channels of a group.

    Attributes:
        tensor: the dotted name of a parameter or buffer; of the module in ``Group.paddings``; of an attribute in
            ``Group.sizes`` (``layer1.0.width``, or ``conv.splits.0`` for one of several numbers).
        dim: the axis of the slices.
        index: int64 (size, m), the m slices of each channel. Column k means the same for every channel.
        width: how many slices the tensor has along ``dim``; of a size, its value.
    """

    tensor: str
    dim: int
    index: Tensor
    width: int


@dataclass(frozen=True, eq=False)
class Group:
    """Channels with the same producers and consumers. Each may be removed, or merged with another of the group.

    Attributes:
        name: the layer that makes them first; " (2)" and so on where it makes those of several groups.
        size: how many channels. One may be several rows of a layer that must leave together (index.shape[1] > 1).
        producers: rows of conv and linear weights and biases, batch norms, columns of embedding tables, and other
            numbers that a channel carries.
        consumers: input slices of conv and linear weights.
        paddings: the zeros of shortcuts that belong to the channels.
        sizes: what the channels count for in numbers that modules hold, such as the ``num_groups`` of a group norm.
        frozen: why they must stay, or "".
        relu: whether every producer feeds a ReLU, directly or through its own batch norm, and nothing after it moves
            zero. A channel that the ReLU makes zero then reaches its consumers as zero.
    """

    name: str
    size: int
    producers: tuple[Member, ...]
    consumers: tuple[Member, ...]
    paddings: tuple[Member, ...] = ()
    frozen: str = ""
    relu: bool = False
    sizes: tuple[Member, ...] = ()
