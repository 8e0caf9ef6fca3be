"""How far new weights can move a network's outputs: an upper bound, image by image, beside what is measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from numpy import ndarray
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils.data import Dataset, Subset

from redlab.compression.lipschitz import arguments, factors, joins, operator_norm, refuse, refuse_overwriting
from redlab.network.evaluating import evaluating
from redlab.network.example import Example, Inputs, fit_example, logits_of
from redlab.network.layers import copy_network, unwrap
from redlab.network.result import Result
from redlab.network.samples import Labelled, as_dataset, batches, first_of
from redlab.network.trace import Graph, in_place, is_layer, module_path, trace
from redlab.options import plain_options
from redlab.progress import progress

Network: TypeAlias = nn.Module | Result
_FLOOR, _OVERFLOWN = 1.4e-45, 1e300  # the smallest float32, for 0 in a logarithm; what stands for more than 1e300


@plain_options
def error_bound(
    network: Network, hashed: Network, dataset: Labelled, batch_size: int = 64, example: Example | None = None
) -> pd.DataFrame:
    """An upper bound on the error that ``hashed`` makes against ``network`` after each layer, beside the measured one.

    W~ h~ + b~ - (W h + b) = W~ (h~ - h) + (W~ - W) h + b~ - b, so a layer turns a bound d on ||h~ - h|| into
    ||W~|| d + ||W~ - W|| ||h|| + ||b~ - b||; h is what it reads in the original network, and ``operator_norm`` bounds
    ||W~|| and ||W~ - W||. Other operations multiply d by their Lipschitz constant, and at additions the bounds add up.
    This is the algebra behind the accuracy theorem of RED++ (arXiv 2110.01397), its details are our choice. It holds
    for every image, in exact arithmetic: both networks run in float64.

    In a deep network the bound is vacuous, 1e10 times the measured error and more: the norms of all later layers
    multiply, and errors never cancel. ``certain`` is 0 then, which says nothing of how many predictions stay.

    Arguments:
        network: left untouched; with its batch norms folded if those of ``hashed`` are.
        hashed: the same architecture with other weights and biases, as ``hash_network`` gives it.
        dataset: of (inputs, label), as for ``evaluate``; the labels aren't looked at.
        batch_size: images at once.
        example: a tensor, tuple or dict that the network takes, batch first; by default the first sample.

    Returns:
        A row for each call of a conv or linear layer, as they run, then one, "output", for the network's answer:
        ``layer``; ``kind``; ``norm`` and ``weight_error``, the bounds on ||W~|| and ||W~ - W|| (NaN for "output");
        ``bound`` and ``measured``, the medians over the images of d and ||h~ - h|| after the layer, divided by the
        median norm of the original's output there unless that is 0; ``log10_ratio``, log10(bound / measured), 0 where
        both are 0. Norms are L2, of all that belongs to one image. ``.attrs`` holds the number of ``images``; of the
        output ``bound`` and ``measured``, not divided, and ``log10_ratio``; ``certain``, the share of images whose two
        largest outputs lie more than twice the bound apart, so that the predicted class cannot change; and ``same``,
        the share whose predicted class doesn't.

    Raises:
        NotImplementedError: attention, layer norm, products of activations and whatever else has no known Lipschitz
            constant; the message names the operation and the module that runs it.
        ValueError: no images, images of another shape than the network's, an answer other than (images, at least two
            classes), NaN or inf in a tensor, networks that differ in more than the weights and biases of layers.

    Example:
        >>> network, images = load_network("digits/mlp"), load_dataset("digits", limit=20)
        >>> frame = error_bound(network, hash_network(network), images)
        >>> bool((frame["measured"] <= frame["bound"]).all()), frame.attrs["same"]
        (True, 1.0)
    """
    found = evidence(network, hashed, dataset, batch_size, example)
    bound, measured, size = np.median(found.norms, axis=0).T
    ratio = np.log10(np.maximum(bound, _FLOOR)) - np.log10(np.maximum(measured, _FLOOR))
    size[size == 0] = 1.0
    rows = [(call.layer, call.kind, call.norm, call.weight_error) for call in found.calls]
    frame = pd.DataFrame([*rows, ("output", "", np.nan, np.nan)], columns=["layer", "kind", "norm", "weight_error"])
    frame = frame.assign(bound=bound / size, measured=measured / size, log10_ratio=ratio)
    certain = found.margin > 2 * found.norms[:, -1, 0]
    frame.attrs = {"images": len(certain), "certain": float(certain.mean()), "same": float(found.same.mean())}
    frame.attrs |= {"bound": float(bound[-1]), "measured": float(measured[-1]), "log10_ratio": float(ratio[-1])}
    return frame


@dataclass(frozen=True)
class Call:
    """One call of a conv or linear layer: bounds on ||W~|| and ||W~ - W||, and ||b~ - b|| over all its positions."""

    layer: str
    kind: str
    norm: float
    weight_error: float
    bias_error: float


@dataclass(frozen=True, eq=False)
class Evidence:
    """What ``error_bound`` sums up, image by image.

    Attributes:
        calls: the calls of layers, as they run; the second one of a layer "fc" is "fc (call 2)".
        norms: (images, calls + 1, 3), d, ||h~ - h|| and ||h|| after each call and, last, of the network's answer.
        margin: (images,) the original's largest output less its second largest.
        same: (images,) whether both networks predict the same class.
    """

    calls: list[Call]
    norms: ndarray
    margin: ndarray
    same: ndarray


def evidence(
    network: Network, hashed: Network, dataset: Labelled, batch_size: int = 64, example: Example | None = None
) -> Evidence:
    """The bound and the measured error of every image; arguments and errors are those of ``error_bound``."""
    dataset = as_dataset(dataset)
    if len(dataset) == 0 or batch_size < 1:
        raise ValueError(f"there must be images, not {len(dataset)}, and a batch_size of at least 1, not {batch_size}")
    own, other = (copy_network(unwrap(n.network if isinstance(n, Result) else n)) for n in (network, hashed))
    own, other = own.double(), other.double()
    _match_biases(own, other)
    one = fit_example(own, first_of(dataset, 1) if example is None else example).first()
    graph = trace(own, one)
    with evaluating(other):
        walk = _Walk(graph, other, one)
        walk.check(_inputs(dataset, 0, 1, walk))
        starts = progress(range(0, len(dataset), batch_size), "error bound")
        found = [walk.run(_inputs(dataset, start, batch_size, walk)) for start in starts]
    norms, before, after = (torch.cat(part).cpu() for part in zip(*found, strict=True))
    first, second = before.topk(2)[0].T
    same = (before.argmax(1) == after.argmax(1)).numpy()
    return Evidence(list(walk.calls.values()), norms.numpy(), (first - second).numpy(), same)


class _Walk:
    """Both networks on the graph of the first one, operation by operation, with the bound beside them."""

    def __init__(self, graph: Graph, other: nn.Module, example: Inputs) -> None:
        self.graph, self.other, self.known = graph, other, _known(graph, other)
        self.example, self.inputs = example, graph.inputs
        if len(answers := graph.fx.output_node().args[0]) != 1:
            raise ValueError(f"the network must answer one tensor, not {len(answers)}")
        self.output = answers[0]
        # A node that nobody reads does nothing, unless it overwrites what somebody reads.
        nodes = [node for node in graph.fx.nodes if node.op == "call_function" and (node.users or in_place(node))]
        self.nodes = [node for node in nodes if node not in self.known]
        self.last = {read: node for node in self.nodes for read in node.all_input_nodes if read is not self.output}
        self.factors = self._factors()
        refuse_overwriting(graph.fx)
        self.calls = {node: self._call(node) for node in self.nodes if is_layer(node)}

    def check(self, image: list[Tensor]) -> None:
        """Refuse an ``other`` that isn't what the graph computes with its tensors, judged by one image (1, ...)."""
        _, before, after = self.run(image)
        if before.ndim != 2 or before.shape[1] < 2:
            raise ValueError(f"the network must answer (images, two or more classes), not {tuple(before.shape)}")
        given = iter(image)
        wanted = logits_of(self.example.each(lambda _: next(given)).run(self.other))
        if wanted.shape != after.shape or (wanted - after).norm() > 1e-6 * after.norm():
            raise ValueError("the networks differ in more than weights and biases: fold the batch norms of both")

    def run(self, images: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """``Evidence.norms`` of some images, and the answers of both networks, (images, classes) each.

        Arguments:
            images: what each input of the graph gets, (images, ...).
        """
        # Traced for one image, the graph may hold that number in its views: vmap makes it run on many.
        return torch.vmap(self._run_one)(*images)

    def _run_one(self, *image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # Clones, since an operation in place may overwrite them.
        values = {node: (own[None].clone(), own[None].clone()) for node, own in zip(self.inputs, image, strict=True)}
        values = {**self.known, **values}
        none = torch.zeros((), dtype=torch.float64, device=image[0].device)
        bounds, norms = dict.fromkeys(self.inputs, none), []
        for node in self.nodes:
            bounds[node] = self._bound(node, bounds, values).clamp(max=_OVERFLOWN)
            before, after = values[node] = _both(node, values)
            if node in self.calls:  # at once, since the next operation may overwrite it
                norms.append(torch.stack([bounds[node], (after - before).norm(), before.norm()]))
            for read in [read for read in node.all_input_nodes if self.last.get(read) is node]:
                del values[read]
        before, after = values[self.output]
        norms.append(torch.stack([bounds[self.output], (after - before).norm(), before.norm()]))
        return torch.stack(norms), before[0], after[0]

    def _bound(self, node: Node, bounds: dict[Node, Tensor], values: dict[Node, Any]) -> Tensor:
        if call := self.calls.get(node):
            moved, read = bounds[node.args[0]], values[node.args[0]][0].norm()
            return call.norm * moved + call.weight_error * read + call.bias_error
        return reduce(torch.hypot if joins(node) else torch.add, [k * bounds[read] for read, k in self.factors[node]])

    def _factors(self) -> dict[Node, list[tuple[Node, float]]]:
        """What each operation but a layer reads, with its Lipschitz constants."""
        found, constants = {}, {node: own for node, (own, _) in self.known.items()}
        for node in [node for node in self.nodes if not is_layer(node)]:
            if not all(torch.equal(*self.known[read]) for read in node.all_input_nodes if read in constants):
                name = ", ".join(self.graph.names(node)) or f"a constant of {module_path(node)}"
                raise ValueError(f"{name} differs between the networks and isn't the weight or bias of a layer")
            found[node] = factors(node, constants)
        return found

    def _call(self, node: Node) -> Call:
        given, layer = arguments(node), self.graph.layers.get(node.args[1])
        if given["weight"] not in self.known or given["bias"] not in {None, *self.known}:
            refuse(node, "its weight or bias is an activation")
        (before, after), path = self.known[given["weight"]], module_path(node)
        bias_before, bias_after = self.known.get(given["bias"], (torch.zeros(1), torch.zeros(1)))
        options = [given.get(option, 1) for option in ("stride", "dilation", "groups")]
        calls = [other for other in self.nodes if is_layer(other) and other.args[1] is node.args[1]]
        return Call(
            (layer.name if layer else path) + (f" (call {calls.index(node) + 1})" if node is not calls[0] else ""),
            layer.kind if layer else type(self.graph.network.get_submodule(path)).__name__,
            operator_norm(after, *options),
            operator_norm(after - before, *options),
            float((bias_after - bias_before).norm()) * math.sqrt(node.meta["val"].numel() / bias_before.numel()),
        )


def _both(node: Node, values: dict[Node, Any]) -> tuple[Any, Any]:
    """What ``node`` computes in each of the networks."""
    given = [map_arg((node.args, node.kwargs), lambda read, k=k: values[read][k]) for k in (0, 1)]
    return tuple(node.target(*args, **kwargs) for args, kwargs in given)


def _known(graph: Graph, other: nn.Module) -> dict[Node, tuple[Any, Any]]:
    """What no input changes, in both networks: parameters, buffers, and what is computed from them alone."""
    own, theirs = (
        dict([*n.named_parameters(remove_duplicate=False), *n.named_buffers(remove_duplicate=False)])
        for n in (graph.network, other)
    )
    known = {}
    for name in [name for name, node in graph.tensors.items() if node.users]:
        if name not in theirs:
            raise ValueError(f"{name} is missing in the second network: were the batch norms of one folded, not both?")
        if theirs[name].shape != own[name].shape:
            raise ValueError(f"{name} has two shapes: {tuple(own[name].shape)} and {tuple(theirs[name].shape)}")
        if not (own[name].isfinite().all() and theirs[name].isfinite().all()):
            raise ValueError(f"NaN or inf in {name}")
        known[graph.tensors[name]] = own[name], theirs[name]
    for node in graph.fx.nodes:
        if node.op == "call_function" and all(read in known for read in node.all_input_nodes):
            known[node] = _both(node, known)
    return known


def _match_biases(own: nn.Module, other: nn.Module) -> None:
    """A layer without a bias, where the other network's has one (a corrected one, say), gets a bias of zeros."""
    modules = dict(own.named_modules())
    for name, module in other.named_modules():
        bias, twin = module._parameters.get("bias"), modules.get(name)
        if bias is not None and twin is not None and twin._parameters.get("bias", bias) is None:
            twin.bias = nn.Parameter(torch.zeros_like(bias))


def _inputs(dataset: Dataset, start: int, count: int, walk: _Walk) -> list[Tensor]:
    """What each input of the graph gets of some samples, (samples, ...)."""
    some = Subset(dataset, range(start, min(start + count, len(dataset))))
    rows = [_ordered(inputs, walk.example).tensors for inputs, _ in batches(some, 1)]
    likes = [node.meta["val"] for node in walk.inputs]
    for index, row in enumerate(rows, start):
        if [part.shape for part in row] != [like.shape for like in likes]:
            got, wanted = (", ".join(str(tuple(part.shape[1:])) for part in parts) for parts in (row, likes))
            raise ValueError(f"image {index} has shape {got}, and the network takes {wanted}")
    columns = zip(*rows, strict=True)
    return [torch.cat(parts).to(like.device, like.dtype) for parts, like in zip(columns, likes, strict=True)]


def _ordered(inputs: Inputs, like: Inputs) -> Inputs:
    """Those by name in the order in which the graph takes them."""
    if set(inputs.kwargs) != set(like.kwargs):
        names = [", ".join(own.kwargs) or "no names" for own in (inputs, like)]
        raise ValueError(f"the dataset gives inputs with {names[0]}, the example has {names[1]}")
    return Inputs(inputs.args, {name: inputs.kwargs[name] for name in like.kwargs})
