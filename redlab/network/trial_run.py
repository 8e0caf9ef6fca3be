"""Which layers of a network are really called, and with which shapes: a trial run on fake tensors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from redlab.network.evaluating import evaluating, first_line, refusal
from redlab.network.example import Example, Inputs, fit_example
from redlab.network.layers import Layer, copy_network, unwrap, weight_layers
from redlab.network.trace import Graph, operations, trace

R = TypeVar("R")


def try_out(network: nn.Module, inputs: Inputs, run: Callable[[nn.Module, Inputs], R]) -> R:
    """What ``run`` returns for a copy of ``network``, which it may hook, and for inputs: both fake if possible.

    Fake tensors have shapes and no values. A network whose path depends on values runs with real ones.

    Raises:
        ValueError: where the network doesn't accept ``inputs``.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)  # some networks make small tensors of numbers as they run
    try:
        with FakeCopyMode(fake):
            copied = copy_network(network)
        with fake, evaluating(copied):
            return run(copied, inputs.each(fake.from_tensor))
    except Exception:
        copied = copy_network(network)
        try:
            with evaluating(copied):
                return run(copied, inputs)
        except Exception as error:  # whatever the network's own code raises
            raise ValueError(refusal(network, inputs, "run", error)) from error


def record_calls(network: nn.Module, example: Example | None = None) -> dict[str, list[torch.Size]]:
    """By the name of every conv and linear layer that a forward in eval mode calls: the shapes of its inputs.

    Layers whose weight is used without a call, such as the projections of attention, are not among them.

    Arguments:
        example: what the network takes, batch first: a tensor, a tuple of positional inputs or a dict of keyword
            inputs; by default ``example_input(network)``. Its first input is run.

    Raises:
        ValueError: where the network doesn't accept ``example``.
    """
    network = unwrap(network)

    def run(copied: nn.Module, inputs: Inputs) -> dict[str, list[torch.Size]]:
        found: dict[str, list[torch.Size]] = defaultdict(list)
        for layer in weight_layers(copied):
            if layer.parameter == "weight":
                note_shapes(layer.module, found[layer.name])
        inputs.run(copied)
        return {name: shapes for name, shapes in found.items() if shapes}

    return try_out(network, fit_example(network, example).first(), run)


def note_shapes(module: nn.Module, shapes: list[torch.Size]) -> None:
    """Let ``module`` append the shape of its input to ``shapes`` at every call."""

    def note(_: nn.Module, args: tuple, kwargs: dict) -> None:
        shapes.append((args[0] if args else kwargs["input"]).shape)

    module.register_forward_pre_hook(note, with_kwargs=True)


def idle(module: Any, input: Tensor) -> Tensor:
    """In place of the forward of a module that knows its ``output_shape``: zeros of that shape."""
    return input.new_zeros(module.output_shape(input.shape))


def calls_of(network: nn.Module, inputs: Inputs, change: Callable[[nn.Module], None] | None = None) -> list[str]:
    """The functions that ``network`` calls, by name; layers that know their ``output_shape`` do no work.

    Arguments:
        change: changes a copy in place before the call.

    Raises:
        ValueError: where the network doesn't run on ``inputs``.
    """

    def run(copied: nn.Module, inputs: Inputs) -> list[str]:
        if change is not None:
            change(copied)
        for module in copied.modules():
            if hasattr(module, "output_shape"):
                module.forward = partial(idle, module)
        with _Calls() as watch:
            inputs.run(copied)
        return watch.names

    return try_out(network, inputs, run)


def why_not_run(network: nn.Module, inputs: Inputs, change: Callable[[nn.Module], None] | None = None) -> str:
    """The error of ``network`` when it is called, as ``calls_of`` does; "" if it runs."""
    try:
        calls_of(network, inputs, change)
    except ValueError as error:
        return first_line(error.__cause__)
    return ""


def culprits(names: Sequence[str], why_not: Callable[[Sequence[str]], str]) -> dict[str, str]:
    """Which of ``names`` fail, and why. A set that fails is halved until single names are left: few trials for a few.

    Arguments:
        why_not: why several of them fail together, or "".
    """
    why = why_not(names) if names else ""
    if not why or len(names) == 1:
        return dict.fromkeys(names, why) if why else {}
    half = len(names) // 2
    return culprits(names[:half], why_not) | culprits(names[half:], why_not)


NEVER = "never called in eval mode"


def record_uses(network: nn.Module, example: Example | None = None) -> dict[str, list[str]]:
    """By the dotted name of every parameter and buffer that a forward in eval mode uses, the functions that use it.

    A tensor has the first of its names. Raises ValueError as ``record_calls`` does.

    Example:
        >>> record_uses(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU()))
        {'0.weight': ['linear'], '0.bias': ['linear']}
    """
    network = unwrap(network)

    def run(copied: nn.Module, inputs: Inputs) -> dict[str, list[str]]:
        named = [*copied.named_parameters(), *copied.named_buffers()]
        with _Uses({id(tensor): name for name, tensor in named}) as watch:
            inputs.run(copied)
        return {name: list(dict.fromkeys(found)) for name, found in watch.found.items()}

    return try_out(network, fit_example(network, example).first(), run)


def why_unseen(graph: Graph, tensors: Sequence[str], example: Example | None = None) -> dict[str, str]:
    """By the dotted name of each of ``tensors``, why no layer or norm of ``graph`` reads it as its own.

    "never called in eval mode" is said only of tensors that a trial run does not use.
    """
    first = {node: name for name, node in reversed(graph.tensors.items())}
    unread = [name for name in tensors if not graph.users(name)]
    used = record_uses(graph.network, example) if unread else {}
    reasons = {}
    for name in tensors:
        if name in unread:
            by = ", ".join(used.get(first.get(graph.tensors.get(name), name), []))
            reasons[name] = f"{by} uses it, and nothing that comes of it reaches the network's output" if by else NEVER
        elif (other := first[graph.tensors[name]]) != name:
            reasons[name] = f"shares its weight with {other.rpartition('.')[0] or other}"
        else:
            what, by = name.rpartition(".")[2], operations(graph.users(name))
            reasons[name] = f"its {what} is passed to {by}, not straight to a conv or linear layer"
    return reasons


class _Uses(TorchFunctionMode):
    """Inside, the functions that are called with a parameter are recorded."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self._names = names
        self.found: dict[str, list[str]] = defaultdict(list)

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = getattr(func, "__name__", str(func))
        if name not in _QUESTIONS:
            for leaf in tree_leaves((args, kwargs)):
                if id(leaf) in self._names:
                    self.found[self._names[id(leaf)]].append(name)
        return func(*args, **(kwargs or {}))


# To ask for a shape or a dtype uses no values.
_QUESTIONS = frozenset(("__get__", "size", "dim", "numel", "stride", "is_floating_point", "is_complex", "__len__"))


class _Calls(TorchFunctionMode):
    """Inside, the names of the functions that are called are recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.names.append(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))


class _Noting(dict):
    """The parameters of a module; ``note`` is called where one of the name "bias" is asked for."""

    def __init__(self, parameters: dict[str, Any], note: Callable[[], None]) -> None:
        super().__init__(parameters)
        self._note = note

    def __getitem__(self, name: str) -> Any:
        if name == "bias":
            self._note()
        return super().__getitem__(name)


def note_bias(layer: nn.Module, note: Callable[[], None]) -> None:
    """Let a layer call ``note`` where code outside its own forward asks for its bias; in place."""
    running: list[bool] = []
    layer._parameters = _Noting(layer._parameters, lambda: None if running else note())
    layer.register_forward_pre_hook(lambda *_: running.append(True))
    layer.register_forward_hook(lambda *_: running.clear())


def give_bias(layer: nn.Module) -> None:
    """Zeros, where a layer has no bias."""
    if layer.bias is None:
        layer.bias = nn.Parameter(layer.weight.new_zeros(_outputs(layer)))


def without_bias(graph: Graph, layers: Iterable[Layer], example: Example | None = None) -> set[str]:
    """The names of the layers that would not read a bias if they were given one: forwards of their own may not.

    Those that run PyTorch's own forward are known. The others are tried: a copy gets biases of zeros, and its graph
    says whether they are read.
    """
    unknown = {layer.name: layer for layer in layers if not graph.reads_its_bias(layer)}
    if not unknown:
        return set()
    copied = copy_network(graph.network)
    paths = {module: path for path, module in graph.network.named_modules()}
    for layer in unknown.values():
        give_bias(copied.get_submodule(paths[layer.module]))
    try:
        tried = trace(copied, example)
    except ValueError:  # its code refuses a bias
        return set(unknown)
    return {layer.name for layer in tried.layers.values() if layer.name in unknown and not tried.reads_its_bias(layer)}


def _outputs(layer: nn.Module) -> int:
    return len(layer.weight) if isinstance(layer, nn.Linear) else layer.out_channels
