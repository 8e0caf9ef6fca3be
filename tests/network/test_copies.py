"""Copies of networks that keep attributes, buffers and hooks of their own: modules of ``torch.fx`` lose them."""

import pytest
import torch
from nets import randomised
from torch import fx, nn

from redlab import Recipe, fold_batchnorm, harden, sparsify, split_inputs, train_masks
from redlab.network.layers import copy_network


@pytest.fixture
def traced():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)]
    network = fx.symbolic_trace(randomised(nn.Sequential(*layers)))
    network.redlab, network.note = Recipe("mine", (3, 8, 8)), {"parts": [1]}
    network.register_buffer("kept", torch.ones(2))
    network.idle = nn.Linear(2, 2)
    network.register_forward_hook(lambda module, args, output: output * 2)
    return network


X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("inside", [False, True])
def test_a_copy_of_a_graph_module_has_all_that_it_has_and_shares_nothing(traced, inside):
    network = nn.Sequential(traced, nn.Softmax(1)) if inside else traced
    copied = copy_network(network)
    own, other = (copied[0], network[0]) if inside else (copied, network)
    assert own.redlab == other.redlab
    assert own.note == other.note
    assert own.note["parts"] is not other.note["parts"]
    assert list(copied.state_dict()) == list(network.state_dict())
    assert [name for name, _ in copied.named_modules()] == [name for name, _ in network.named_modules()]
    assert not {t.data_ptr() for t in copied.state_dict().values()} & {
        t.data_ptr() for t in network.state_dict().values()
    }
    assert torch.equal(copied(X), network(X))


def test_tensors_that_are_given_instead_stand_in_the_copy(traced):
    weight = nn.Parameter(torch.zeros(5, 8 * 36))
    copied = copy_network(traced, {id(getattr(traced, "4").weight): weight})
    assert getattr(copied, "4").weight is weight


def test_steps_on_a_graph_module_are_written_down(traced):
    folded = fold_batchnorm(traced).network
    torch.testing.assert_close(folded(X), traced(X), atol=1e-4, rtol=1e-4)
    assert [step["step"] for step in split_inputs(folded).network.redlab.steps] == ["fold", "split"]


def test_masks_on_a_graph_module_learn_and_harden(traced):
    trained = train_masks(sparsify(traced, 0.5), (torch.rand(8, 3, 8, 8), torch.arange(8) % 5), 1).network
    torch.testing.assert_close(harden(trained).network(X), trained(X))
