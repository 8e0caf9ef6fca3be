"""The traced graph: names of tensors, sharing, and a network that stays as it was."""

import logging
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from redlab.network.layers import TO_PREPARE
from redlab.network.trace import in_place, is_layer, module_path, operation, trace
from redlab.network.trial_run import record_calls, without_bias


class Shared(nn.Module):
    """A layer called twice, a second one that shares its weight, and a constant."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.tied = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.tied.weight = self.first.weight
        self.norm = nn.BatchNorm2d(3)
        self.act = nn.ReLU(inplace=True)
        self.scale = torch.arange(3.0).view(3, 1, 1)

    def forward(self, x):
        return self.tied(self.act(self.norm(self.first(self.first(x))))) * self.scale


def calls(graph):
    return [node for node in graph.fx.nodes if node.op == "call_function"]


def test_operations_come_in_the_order_in_which_they_run():
    graph = trace(Shared(), torch.rand(1, 3, 8, 8))
    assert [operation(node) for node in calls(graph)] == ["conv2d", "conv2d", "batch_norm", "relu", "conv2d", "mul"]
    assert [module_path(node) for node in calls(graph)] == ["first", "first", "norm", "act", "tied", ""]
    assert [is_layer(node) for node in calls(graph)] == [True, True, False, False, True, False]
    assert [in_place(node) for node in calls(graph)] == [False, False, False, True, False, False]


def test_every_name_of_a_tied_weight_leads_to_all_its_uses():
    graph = trace(Shared(), torch.rand(1, 3, 8, 8))
    assert graph.users("first.weight") == graph.users("tied.weight")
    assert len(graph.users("first.weight")) == 3
    assert len(graph.users("first.bias")) == 2
    assert graph.users("tied.bias") == []


def test_an_operation_names_the_tensors_that_feed_it():
    graph = trace(Shared(), torch.rand(1, 3, 8, 8))
    names = [graph.names(node) for node in calls(graph)]
    assert names[0] == ["first.weight", "first.bias"]
    assert names[2] == ["norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"]
    assert names[4] == ["first.weight"]


def test_a_module_registered_twice_is_one_module():
    layer = nn.Linear(4, 4)
    graph = trace(nn.ModuleDict({"a": layer, "b": nn.Sequential(layer, layer)})["b"], torch.rand(2, 4))
    assert len(graph.users("0.weight")) == len(graph.users("1.weight")) == 2


def test_tracing_leaves_the_network_as_it_was():
    network = Shared().train()
    network.norm.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fused = torch.backends.mha.get_fastpath_enabled()
    trace(network, torch.rand(2, 3, 8, 8))
    assert [module.training for module in network.modules()] == [True, True, True, False, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert torch.backends.mha.get_fastpath_enabled() == fused


def test_a_network_on_the_meta_device_is_traced_without_memory():
    with torch.device("meta"):
        network = nn.Sequential(nn.Linear(1 << 16, 1 << 16), nn.ReLU())  # 16 GB, if it were real
    assert len(calls(trace(network, torch.empty(1, 1 << 16)))) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_example_takes_the_dtype_of_the_network(dtype):
    graph = trace(nn.Linear(3, 2).to(dtype), torch.rand(1, 3))
    assert calls(graph)[0].meta["val"].dtype == dtype


def test_attention_is_written_out_as_operations():
    network = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).requires_grad_(False)
    with torch.no_grad():
        done = {operation(node) for node in calls(trace(network, torch.rand(1, 5, 8)))}
    assert {"linear", "scaled_dot_product_attention", "layer_norm"} <= done


def test_by_default_the_example_is_the_networks_own():
    assert len(calls(trace(nn.Linear(3, 2)))) == 1


def test_a_wrong_example_is_refused_with_its_shape_and_the_reason():
    with pytest.raises(ValueError, match=r"Shared cannot be traced on an input of shape \(1, 5, 8, 8\): .*channels"):
        trace(Shared(), torch.rand(1, 5, 8, 8))


@pytest.mark.parametrize("example", [torch.tensor(1.0), torch.empty(0, 3)])
def test_an_example_without_inputs_is_refused(example):
    with pytest.raises(ValueError, match="at least one input"):
        trace(nn.Linear(3, 2), example)


def test_a_network_that_decides_by_value_is_refused_by_name():
    class Fickle(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match="Fickle cannot be traced") as caught:
        trace(Fickle(), torch.rand(1, 3))
    assert caught.value.__cause__ is not None


def test_lazy_layers_are_refused():
    with pytest.raises(ValueError, match="uninitialized"):
        trace(nn.Sequential(nn.LazyLinear(3)), torch.rand(1, 3))


def test_what_cannot_be_exported_prints_nothing_and_what_the_network_prints_is_kept(capfd, caplog):
    class Chatty(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            print("mine", file=sys.stderr)
            x = self.layer(x)
            return x[x.argmax() :] if x.sum() > 0 else x

    with pytest.raises(ValueError, match="Chatty cannot be traced"):
        trace(Chatty(), torch.rand(2, 3))
    with pytest.raises(ValueError, match="Linear cannot run"):
        record_calls(nn.Linear(3, 2), torch.rand(2, 4))
    said = capfd.readouterr()
    assert "mine" in said.err
    assert not said.out
    assert "def forward" not in said.err
    assert "user code" not in said.err
    assert "failed while" not in said.err
    assert not logging.getLogger("torch.export").disabled
    print("after", file=sys.stderr)
    assert capfd.readouterr().err == "after\n"


class Config:
    """A decoder's, as in the transformers library."""

    use_cache = True


class Decoder(nn.Module):
    """Answers with a cache, an object that no graph can hold, unless its config says otherwise."""

    def __init__(self, config):
        super().__init__()
        self.config, self.layer = config, nn.Linear(4, 4)

    def forward(self, x):
        hidden = self.layer(x)
        return (hidden, Cache(hidden)) if self.config.use_cache else (hidden,)


class Cache:
    def __init__(self, keys):
        self.keys = keys


@pytest.mark.parametrize("inside", [False, True])
def test_a_decoder_is_traced_without_its_cache_and_has_it_back(inside):
    config = Config()
    network = Decoder(config) if not inside else nn.Sequential(Decoder(config))
    assert [operation(node) for node in calls(trace(network, torch.rand(1, 4)))] == ["linear"]
    assert config.use_cache is True
    with pytest.raises(ValueError, match="traced"):
        trace(network, torch.rand(1, 5))
    assert config.use_cache is True


def test_the_inputs_of_a_graph_are_those_of_the_call_in_its_order():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, a, b, scale=1.0):
            return self.layer(a) * scale + b

    a, b = torch.rand(1, 3), torch.rand(2, 3)
    graph = trace(Two(), {"b": b, "scale": 2.0, "a": a})
    assert [tuple(node.meta["val"].shape) for node in graph.inputs] == [(2, 3), (1, 3)]
    assert [tuple(node.meta["val"].shape) for node in trace(Two(), (a, b)).inputs] == [(1, 3), (2, 3)]


class Own(nn.Conv2d):
    """A convolution with a forward of its own, which pads what it reads."""

    def forward(self, x):
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride)


class Transposed(nn.Conv2d):
    """A convolution by class, a transposed one in the graph."""

    def forward(self, x):
        return F.conv_transpose2d(x, self.weight)


class Aside(nn.Conv2d):
    """Adds its bias by itself."""

    def forward(self, x):
        return F.conv2d(x, self.weight) + self.bias.view(-1, 1, 1)


class Scaled(nn.Conv2d):
    """Scales by a number that follows from its width."""

    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias) * self.in_channels**-0.5


WHY_FIXED = {
    "own forward": (Own(3, 4, 2), ""),
    "own forward, no bias": (Own(3, 4, 2, bias=False), ""),
    "scaled by its width": (
        Scaled(3, 4, 2),
        f"0 has a forward of its own with mul in it, which may depend on its width: {TO_PREPARE}",
    ),
    "hooked": (
        nn.Conv2d(3, 4, 2),
        f"0 has a forward of its own with mul in it, which may depend on its width: {TO_PREPARE}",
    ),
    "transposed": (Transposed(3, 4, 2, bias=False), "0 runs as another operation than its class, conv_transpose2d"),
    "bias beside": (Aside(3, 4, 2), "the bias of 0 is shared or computed at every call"),
    "computed": (
        nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 2)),
        f"the conv2d next to it computes its weight at every call: {TO_PREPARE}",
    ),
}
WHY_FIXED["hooked"][0].register_forward_hook(lambda module, args, out: 2 * out)


@pytest.mark.parametrize("case", WHY_FIXED)
def test_the_graph_says_which_layers_may_change_not_their_class(case):
    layer, why = WHY_FIXED[case]
    graph = trace(nn.Sequential(layer), torch.rand(1, 4 if case == "transposed" else 3, 8, 8))
    (node,) = filter(is_layer, calls(graph))
    assert graph.why_fixed(node) == why
    assert graph.why_fixed(node, widths=False) == ("" if "width" in why else why)


def test_which_layers_would_not_read_a_bias_is_tried():
    class Without(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, self.weight)

    kinds = (nn.Conv2d, Own, Without)
    network = nn.Sequential(*(kind(3, 3, 2, bias=False) for kind in kinds))
    graph = trace(network, torch.rand(1, 3, 8, 8))
    assert without_bias(graph, graph.layers.values(), torch.rand(1, 3, 8, 8)) == {"2"}
    assert network[1].bias is None
