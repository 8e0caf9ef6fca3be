"""Channel labels through the layers that hold weights: what they consume and what they make."""

from __future__ import annotations

from torch import Tensor
from torch.fx import Node

from redlab.channels.labels import Flow
from redlab.network.layers import OUT_SCALE, OUTPUT_STATISTICS
from redlab.network.trace import argument, operation, operations


def channel_norm(flow: Flow, node: Node) -> Tensor:
    """Batch norm, instance norm and PReLU have numbers of their own for every channel, on axis 1."""
    labels, name = flow.at(node.args[0]), operation(node)
    tensors = [own for own in node.args[1:5] if isinstance(own, Node)]
    if not all(map(flow.name, tensors)):
        return flow.freeze(node, f"{name} computes its parameters at every call")
    tensors = [tensor for tensor in tensors if tensor.meta["val"].numel() > 1 or name != "prelu"]
    if tensors:
        flow.meet(node, [(flow.name(tensor), 0) for tensor in tensors], "producer", flow.slices(labels, 1))
    return labels


def embedding(flow: Flow, node: Node) -> Tensor:
    """A table of rows that are looked up: its columns are channels along the last axis."""
    table, value = node.args[0], node.meta["val"]
    if not flow.name(table):
        return flow.freeze(node, "embedding looks up a table that is computed at every call")
    labels = flow.known(flow.name(table), 1, "producer")
    if labels is None:
        labels = flow.labels.fresh(value.shape[-1])
        flow.meet(node, [(flow.name(table), 1)], "producer", labels)
    if others := [user for user in table.users if operation(user) != "embedding"]:
        tied = flow.graph.layers.get(table)
        why = f"{tied.name} shares its weight with {flow.name(table)}" if tied else f"{operations(others)} reads it too"
        flow.labels.freeze(labels, why)
    return labels.flatten().expand(value.shape)


def layer(flow: Flow, node: Node) -> Tensor:
    """A conv or linear layer. Its columns consume the channels of its input; its rows make new ones."""
    graph, labels, weight = flow.graph, flow.at(node.args[0]), node.args[1]
    why = graph.why_fixed(node)
    if flow.name(weight) and weight not in graph.layers:  # as in MultiheadAttention
        why = f"{flow.name(weight).rpartition('.')[2]} is no weight of a layer: the code of its module cuts it up"
    if why:
        flow.labels.freeze(labels, why)
    if not flow.name(weight):
        return flow.of_fixed_width(node, why)
    ranks = weight.meta["val"].ndim - 1  # of one input, without its batch
    axis = labels.ndim - (1 if operation(node) == "linear" else ranks)
    inputs, groups = flow.slices(labels, axis), argument(node, "groups", 1)
    transposed = operation(node).startswith("conv_transpose")
    if transposed and groups > 1:
        why = why or "grouped transposed convolution"
        flow.labels.freeze(inputs, why)
    outputs = _outputs(flow, node, inputs, groups, transposed)
    if why:
        flow.labels.freeze(outputs, why)
    shape = [1] * labels.ndim
    shape[axis] = -1
    return outputs.view(shape).expand(node.meta["val"].shape)


def _outputs(flow: Flow, node: Node, inputs: Tensor, groups: int, transposed: bool) -> Tensor:
    """The labels of the channels that a layer makes. Enters what its weight consumes and produces.

    Examples, for inputs a b c d:
        1 group, 3 outputs: x y z, all new. The columns of the weight consume a b c d.
        4 groups, 4 outputs (depthwise): a b c d themselves, each filtered.
        4 groups, 8 outputs: x0 x1 for a, y0 y1 for b, and so on, all new. x0 and x1 leave together with a.
        2 groups, 6 outputs: x y z | x' y' z', all new. x and x' leave together. The two columns of the weight consume
            (a, c) and (b, d): a and c leave together too.
    """
    name, rows = flow.name(node.args[1]), int(transposed)  # the dim of the weight along which its outputs lie
    sizes = node.args[1].meta["val"].shape
    count = sizes[1] * groups if transposed else sizes[0]
    depthwise = 1 < groups == len(inputs) and not transposed
    if depthwise and count == groups:
        outputs = inputs
    else:
        known = flow.known(name, rows, "producer")  # of a weight that another layer uses too
        outputs = flow.labels.fresh(count) if known is None else known.flatten()
        blocks = outputs.view(groups, -1)
        flow.labels.unite(inputs[:, None] if depthwise else blocks[:1], blocks, same=False)
    if not depthwise:
        columns = inputs.view(1 if transposed else groups, -1)
        flow.labels.unite(columns[:1], columns, same=False)
        flow.meet(node, [(name, 1 - rows)], "consumer", columns.T.contiguous())
    flow.meet(node, [(name, rows), *_beside(flow, node, count)], "producer", outputs)
    return outputs


def _beside(flow: Flow, node: Node, out: int) -> list[tuple[str, int]]:
    """The bias of a layer, the statistics of its outputs that folding keeps, and the scales of hashing."""
    bias = [flow.name(node.args[2])] if len(node.args) > 2 and flow.name(node.args[2]) else []
    path = flow.name(node.args[1]).removesuffix("weight")
    owner = flow.graph.layers.get(node.args[1])
    buffers = dict(owner.module.named_buffers(recurse=False)) if owner else {}
    kept = (*OUTPUT_STATISTICS, OUT_SCALE)
    remembered = [path + key for key, tensor in buffers.items() if key in kept and len(tensor) == out]
    return [(name, 0) for name in (*bias, *remembered)]
