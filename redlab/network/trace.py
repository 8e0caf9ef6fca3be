"""The network as a graph of ATen operations, with the names of the parameters that feed them.

Tracing runs on fake tensors: shapes and data flow, no arithmetic, no memory, whatever the size of the network.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from redlab.network.evaluating import evaluating, quiet, refusal
from redlab.network.example import Example, Inputs, fit_example
from redlab.network.forwards import groups_of, has_own_forward, operation_of
from redlab.network.layers import TO_PREPARE, Layer, unwrap, weight_layers
from redlab.network.operations import KINDS, named

# What a layer's own forward may do besides: none of these holds a number that follows from how many channels there are.
_OF_ANY_WIDTH = named("layer", "rectifier zero", "activation zero", "activation", "copy", "cast", "dropout")
_OF_ANY_WIDTH |= named("view", "transpose", "pad", "channel norm")


@dataclass(frozen=True, eq=False)
class Graph:
    """What a network computes in eval mode, one node an operation, in the order in which they run.

    Every node carries a fake tensor of its output in ``node.meta["val"]``: shape, dtype and device.

    Attributes:
        network: what was traced.
        fx: the graph itself (``torch.fx``), over ATen operations such as ``aten.conv2d.default``.
        tensors: the placeholder of every parameter and buffer by its dotted name. A tensor with several names (tied
            weights, a module registered twice) has one placeholder, so that its users are all its uses.
        layers: the conv or linear layer by the placeholder of its weight.
        constants: the value of every other tensor that the network's code holds or makes, by its placeholder.
        inputs: the placeholders of what the network is called with, in the order of the call.
    """

    network: nn.Module
    fx: torch.fx.Graph
    tensors: dict[str, Node]
    layers: dict[Node, Layer]
    constants: dict[Node, Tensor]
    inputs: tuple[Node, ...]

    def names(self, node: Node) -> list[str]:
        """The parameters and buffers among the arguments of ``node``, each by the first of its names."""
        first = {placeholder: name for name, placeholder in reversed(self.tensors.items())}
        return [first[argument] for argument in node.all_input_nodes if argument in first]

    def users(self, name: str) -> list[Node]:
        """The operations that use a parameter or buffer, under whichever of its names; none if it isn't used."""
        return list(self.tensors[name].users) if name in self.tensors else []

    def calls(self, layer: Layer) -> list[Node]:
        """The convolutions or products that use the weight of ``layer``, except those of layers that share it."""
        name = tensor_name(self.network, layer)
        calls = [node for node in self.users(name) if is_layer(node) and node.args[1] is self.tensors[name]]
        others = [node for node in calls if getattr(self.caller(node), "weight", None) is layer.weight]
        return [node for node in calls if node not in others or self.caller(node) is layer.module]

    def caller(self, node: Node) -> nn.Module:
        """The innermost module whose forward runs ``node``."""
        return self.network.get_submodule(module_path(node))

    def is_plain(self, node: Node) -> bool:
        """Whether its module does nothing but ``node``: a layer or batch norm with PyTorch's own forward, no hooks."""
        return not has_own_forward(self.caller(node))

    def why_fixed(self, node: Node, calls: Collection[Node] = (), widths: bool = True) -> str:
        """Why no step may rewrite the weight and bias of the conv or linear ``node`` where they are, or "".

        The graph decides, not the class: one operation reads a layer's own weight, and its own bias or none.

        Arguments:
            calls: all calls of the layer, where it may be called more often than by ``node`` alone.
            widths: whether its channels may become fewer; False: only its values change.
        """
        layer, users = self.layers.get(node.args[1]), set(node.args[1].users)
        if layer is None:
            return f"the {operation(node)} next to it computes its weight at every call: {TO_PREPARE}"
        if layer.skipped:
            return f"{layer.name}: {layer.skipped}"
        if len(users) > 1 and layer.shared:
            return f"{layer.name} shares its weight with {' and '.join(layer.shared)}"
        if others := [user for user in node.args[1].users if not is_layer(user)]:
            return f"the weight of {layer.name} is also used by {operations(others)}"
        if users != {node, *calls}:
            return f"{layer.name} is called {len(users)} times"
        odd = next(filter(None, (self._why_odd(call, layer) for call in users)), "")
        return odd or (self._why_wide(node, layer) if widths else "")

    def _why_wide(self, node: Node, layer: Layer) -> str:
        """Why the numbers in a layer's own forward may depend on its width, as those of a scale do; or ""."""
        if not has_own_forward(layer.module) or self.caller(node) is not layer.module:
            return ""
        path = module_path(node)
        inside = [own for own in self.fx.nodes if own.op == "call_function" and module_path(own) == path]
        others = [own for own in inside if operation(own) not in _OF_ANY_WIDTH]
        what = f"{layer.name} has a forward of its own with {operations(others)} in it, which may depend on its width"
        return f"{what}: {TO_PREPARE}" if others else ""

    def _why_odd(self, node: Node, layer: Layer) -> str:
        """Why ``node`` is not what the class of its layer says, or reads another bias, or ""."""
        if operation(node) != operation_of(layer.module) or argument(node, "groups", 1) != groups_of(layer.module):
            return f"{layer.name} runs as another operation than its class, {operation(node)}"
        bias = node.args[2] if len(node.args) > 2 else None
        own = self.tensors.get(tensor_name(self.network, layer, "bias"))
        if bias is None and layer.module.bias is None:
            return ""
        if bias is None or bias is not own or set(own.users) != set(node.args[1].users):
            return f"the bias of {layer.name} is shared or computed at every call"
        return ""

    def reads_its_bias(self, layer: Layer) -> bool:
        """Whether every call of a layer reads ``bias`` of its module, or would read it if it had one."""
        calls, bias = self.calls(layer), self.tensors.get(tensor_name(self.network, layer, "bias"))
        if layer.module.bias is None:
            return all(self.is_plain(node) and self.caller(node) is layer.module for node in calls)
        return all(bias is not None and bias in node.args[2:3] for node in calls)

    def takes(self, inputs: Inputs) -> bool:
        """Whether it was traced for inputs of these shapes."""
        given = [getattr(node.meta["val"], "shape", None) for node in self.inputs]
        return given == [tensor.shape for tensor in inputs.tensors]

    def of(self, network: nn.Module) -> Graph:
        """A copy of the graph as that of ``network``: other values, tensors that are gone, layers that gained a bias.

        A layer of the traced network may have none, and has one since its batch norm was folded: each of its calls
        reads it now. What a missing norm did in the graph was taken out before.
        """
        fx = torch.fx.Graph()
        copied: dict[Node, Node] = {}
        fx.output(fx.graph_copy(self.fx, copied))
        own = (network.named_parameters(remove_duplicate=False), network.named_buffers(remove_duplicate=False))
        left = {name for named in own for name, _ in named}
        tensors = {name: copied[node] for name, node in self.tensors.items() if name in left}
        constants = {copied[node]: value for node, value in self.constants.items()}
        inputs = tuple(copied[node] for node in self.inputs)
        made = Graph(network, fx, tensors, _layers(network, tensors), constants, inputs)
        for weight, layer in made.layers.items():
            name = tensor_name(network, layer, "bias")
            if name in left and name not in tensors:
                with fx.inserting_before(next(iter(fx.nodes))):
                    tensors[name] = bias = fx.placeholder(name.replace(".", "_"))
                bias.meta["val"] = weight.meta["val"].new_empty(layer.module.bias.shape)
                for node in made.calls(layer):
                    node.args = (*node.args[:2], bias, *node.args[3:])
        return made


def trace(network: nn.Module, example: Example | None = None) -> Graph:
    """The graph of ``network`` in eval mode on inputs like ``example`` (batch first, as the network takes it).

    The network is left as it was, on any device. Source: ``torch.export``, without strict mode.

    Arguments:
        example: a tensor, a tuple of positional inputs or a dict of keyword inputs.

    Raises:
        ValueError: the network cannot be exported, or does not accept ``example``.
    """
    network = unwrap(network)
    inputs = fit_example(network, example)
    try:
        with evaluating(network), quiet():
            program = torch.export.export(network, inputs.args, inputs.kwargs, strict=False)
    except Exception as error:  # torch.export raises whatever the network's own code does
        raise ValueError(refusal(network, inputs, "be traced", error)) from error
    return graph_of(network, program)


def graph_of(network: nn.Module, program: ExportedProgram) -> Graph:
    """The graph of a ``network`` that was exported; what computes nothing is removed from the program's own."""
    _drop_assertions(program.graph)
    tensors = _tensors(network, program)
    lifted = program.graph_signature.inputs_to_lifted_tensor_constants
    constants = {node: program.constants[lifted[node.name]] for node in program.graph.nodes if node.name in lifted}
    given = {name for name in program.graph_signature.user_inputs if isinstance(name, str)}
    inputs_of = tuple(node for node in program.graph.nodes if node.op == "placeholder" and node.name in given)
    return Graph(network, program.graph, tensors, _layers(network, tensors), constants, inputs_of)


def retrace(network: nn.Module, example: Example | None, known: Graph | None) -> Graph:
    """``trace``, without tracing where ``known`` is the graph of ``network`` with other values: see ``Graph.of``."""
    inputs = fit_example(network, example)
    return trace(network, inputs) if known is None or not known.takes(inputs) else known.of(network)


def _layers(network: nn.Module, tensors: dict[str, Node]) -> dict[Node, Layer]:
    named = {tensor_name(network, layer): layer for layer in weight_layers(network)}
    return {tensors[name]: layer for name, layer in named.items() if name in tensors}


def _drop_assertions(graph: torch.fx.Graph) -> None:
    """Remove what computes nothing, such as the check of a dtype that ``x.float()`` leaves in the graph."""
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and not in_place(node) and not node.target._schema.returns:
            graph.erase_node(node)


def tensor_name(network: nn.Module, layer: Layer, which: str = "weight") -> str:
    """The dotted name of the weight or bias of ``layer``."""
    return which if layer.module is network else f"{layer.name}.{which}"


def operation(node: Node) -> str:
    """The name of what ``node`` does: ``relu`` for ``aten.relu_.default``, and so on."""
    if node.op != "call_function":
        return "the network's input" if node.op == "placeholder" else "the network's output"
    if node.target is operator.getitem:  # one of several outputs
        return operation(node.args[0])
    packet = getattr(node.target, "overloadpacket", node.target)
    return getattr(packet, "__name__", str(packet)).rstrip("_")


def argument(node: Node, name: str, default: Any = None) -> Any:
    """The argument of ``node`` that its operation calls ``name``; ``default`` if the operation has none of that name.

    Example: of ``aten.mean.dim(x, [2, 3])``, whose schema is (self, dim, keepdim=False, ...), "dim" is [2, 3] and
    "keepdim" False.
    """
    for place, own in enumerate(node.target._schema.arguments):
        if own.name == name:
            return node.args[place] if place < len(node.args) else node.kwargs.get(name, own.default_value)
    return default


def operations(nodes: Iterable[Node]) -> str:
    """What several nodes do, each kind once: ``relu, add``."""
    return ", ".join(dict.fromkeys(operation(node) for node in nodes))


def is_layer(node: Node) -> bool:
    """Whether ``node`` is a convolution, transposed or not, or a linear layer: (data, weight, bias, ...)."""
    return operation(node) in KINDS["layer"]


def in_place(node: Node) -> bool:
    """Whether ``node`` overwrites one of its arguments."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def module_path(node: Node) -> str:
    """The dotted name of the innermost module whose forward runs ``node``, "" for the network itself."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return stack[-1][0] if stack else ""


def _tensors(network: nn.Module, program: ExportedProgram) -> dict[str, Node]:
    signature = program.graph_signature
    name_of = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    placeholder_of = {name_of[node.name]: node for node in program.graph.nodes if node.name in name_of}
    aliases: dict[int, list[str]] = {}
    for each in (network.named_parameters, network.named_buffers):
        for name, tensor in each(remove_duplicate=False):
            aliases.setdefault(id(tensor), []).append(name)
    tensors: dict[str, Node] = {}
    for names in aliases.values():
        # Export may give a tensor with several names several placeholders, and reads from any of them.
        placeholders = [placeholder_of[name] for name in names if name in placeholder_of]
        for other in placeholders[1:]:
            other.replace_all_uses_with(placeholders[0])
        if placeholders:
            tensors |= dict.fromkeys(names, placeholders[0])
    return tensors
