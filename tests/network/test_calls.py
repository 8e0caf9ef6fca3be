"""Which layers are called, and with what: networks whose answer is seen at a glance."""

import pytest
import torch
from nets import Net
from torch import nn
from torch.nn.utils import parametrizations
from torchvision import models

from redlab.network.recipe import Recipe
from redlab.network.trial_run import record_calls, try_out


def calls(network, *shape):
    """As plain tuples; each layer that is called has at least one of them."""
    found = record_calls(network, torch.rand(shape) if shape else None)
    assert all(found.values())
    return {name: [tuple(shape) for shape in shapes] for name, shapes in found.items()}


def test_shapes_are_those_of_the_inputs():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 5))
    assert calls(network, 1, 3, 9, 9) == {"0": [(1, 3, 9, 9)], "3": [(1, 64)]}


def test_only_the_first_input_of_a_batch_runs():
    assert calls(nn.Sequential(nn.Linear(3, 2)), 7, 3) == {"0": [(1, 3)]}


def test_every_call_of_a_layer_is_taken_down_in_order():
    network = Net(lambda net, x: net.a(net.a(net.b(x)[..., :3])[:, :2]), a=nn.Linear(3, 3), b=nn.Linear(3, 4))
    assert calls(network, 1, 6, 3) == {"b": [(1, 6, 3)], "a": [(1, 6, 3), (1, 2, 3)]}


def test_an_input_may_be_passed_by_name():
    network = Net(lambda net, x: net.a(input=x), a=nn.Linear(3, 3))
    assert calls(network, 1, 3) == {"a": [(1, 3)]}


def test_layers_that_are_never_called_are_not_there():
    network = Net(
        lambda net, x: nn.functional.linear(net.a(x), net.used.weight),
        a=nn.Linear(3, 3),
        used=nn.Linear(3, 3),
        idle=nn.Linear(3, 3),
    )
    assert calls(network, 1, 3) == {"a": [(1, 3)]}


def test_heads_for_training_are_not_called():
    network = models.GoogLeNet(num_classes=4, aux_logits=True, init_weights=False).train()
    found = calls(network, 1, 3, 64, 64)
    assert not any("aux" in name for name in found)
    assert found["fc"] == [(1, 1024)]
    assert network.training


def test_projections_of_attention_are_not_called():
    network = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert calls(network, 1, 5, 8) == {"linear1": [(1, 5, 8)], "linear2": [(1, 5, 16)]}


def test_other_layers_with_weights_are_recorded_too():
    network = nn.Sequential(nn.ConvTranspose2d(2, 3, 3), parametrizations.weight_norm(nn.Conv2d(3, 2, 3)))
    assert calls(network, 1, 2, 4, 4) == {"0": [(1, 2, 4, 4)], "1": [(1, 3, 6, 6)]}


def test_a_layer_with_two_names_goes_by_the_first():
    layer = nn.Linear(3, 3)
    network = Net(lambda net, x: net.b(net.a(x)), a=layer, b=layer)
    assert calls(network, 1, 3) == {"a": [(1, 3), (1, 3)]}


def test_a_network_that_is_one_layer_goes_by_its_class():
    assert calls(nn.Linear(3, 3), 1, 3) == {"Linear": [(1, 3)]}


def test_a_network_without_layers_calls_none():
    assert calls(nn.ReLU(), 1, 3) == {}


def test_by_default_the_example_is_the_networks_own():
    network = nn.Sequential(nn.Conv1d(2, 3, 3))
    network.redlab = Recipe("some/network", (2, 9))
    assert calls(network) == {"0": [(1, 2, 9)]}


def test_the_network_is_left_as_it_was():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout()).train()
    network[1].eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    calls(network, 2, 3, 8, 8)
    assert [module.training for module in network.modules()] == [True, True, False, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_hooks_of_ones_own_still_run():
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[0].register_forward_pre_hook(lambda module, args: (args[0].expand(1, 7, 3),))
    # The hook was there before ours: what the layer itself gets.
    assert calls(network, 1, 1, 3) == {"0": [(1, 7, 3)], "1": [(1, 7, 3)]}


def test_a_network_that_decides_by_value_is_run_for_real_and_recorded_once():
    network = Net(
        lambda net, x: net.large(net.first(x)) if x.sum() > 0 else net.small(net.first(x)),
        first=nn.Linear(3, 3),
        large=nn.Linear(3, 9),
        small=nn.Linear(3, 1),
    )
    assert record_calls(network, torch.ones(1, 3)).keys() == {"first", "large"}
    found = record_calls(network, -torch.ones(1, 3))
    assert {name: len(shapes) for name, shapes in found.items()} == {"first": 1, "small": 1}
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_a_huge_network_costs_nothing_to_try():
    with torch.device("meta"):
        network = nn.Sequential(nn.Linear(1 << 17, 1 << 17, bias=False))  # 64 GB, if it were real
    assert record_calls(network, torch.empty(1, 1 << 17)) == {"0": [torch.Size([1, 1 << 17])]}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_grad_mode_does_not_matter(mode):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    with mode():
        assert calls(network, 1, 3, 8, 8) == {"0": [(1, 3, 8, 8)], "2": [(1, 144)]}


def test_a_wrong_example_is_refused_with_its_shape_and_the_reason():
    with pytest.raises(ValueError, match=r"Conv2d cannot run on an input of shape \(1, 5, 8, 8\): .*channels"):
        record_calls(nn.Conv2d(3, 4, 3), torch.rand(2, 5, 8, 8))
    with pytest.raises(ValueError, match="batch of at least one"):
        record_calls(nn.Linear(3, 4), torch.rand(0, 3))


def test_what_is_tried_out_is_a_copy_in_eval_mode():
    network, seen = nn.Sequential(nn.Linear(3, 3)).train(), []

    def run(copied, images):
        seen.append((copied is network, copied.training, torch.is_grad_enabled(), tuple(images.shape)))
        copied[0].weight = nn.Parameter(torch.zeros(3, 3))

    weight = network[0].weight.clone()
    try_out(network, torch.rand(1, 3), run)
    assert seen == [(False, False, False, (1, 3))]
    assert torch.equal(network[0].weight, weight)
    assert network.training
