"""Compiled and parallel networks: every function takes them, sees the network inside, and never ends the process."""

import pytest
import torch
from torch import nn

import redlab
from redlab.channels.coupling import couple
from redlab.compression.budget import share_error
from redlab.compression.merging import merge_each
from redlab.network.layers import unwrap, weight_layers
from redlab.network.trace import trace
from redlab.network.training import train
from redlab.network.trial_run import record_calls
from redlab.pruning.weights import sparse_bytes
from redlab.studies.pruning import inner_groups, oracle_agreement
from redlab.studies.splitting import split_differences

IMAGES = (torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 10)


class Fake(Exception):
    """Raised by a kernel that meets tensors without values, where inductor's own would end the process."""


def kernel(graph, example):
    """A backend whose kernels, like inductor's, are for real tensors alone."""

    def run(*args):
        if any(isinstance(argument, torch._subclasses.FakeTensor) for argument in args):
            raise Fake
        return graph(*args)

    return run


def plain():
    return redlab.load_network("digits/mlp")


def compiled():
    network = torch.compile(plain(), backend=kernel)
    network(IMAGES[0])
    return network


def compiled_inside():
    network = plain()
    network.hidden[0] = torch.compile(network.hidden[0], backend=kernel)
    network.hidden[1].linear = nn.DataParallel(network.hidden[1].linear)
    network(IMAGES[0])
    return network


def compiled_in_place():
    network = plain()
    network.compile(backend=kernel)
    network(IMAGES[0])
    return network


def compiled_everywhere():
    return torch.compile(nn.DataParallel(compiled_inside()), backend=kernel)


WRAPPED = {"everywhere": compiled_everywhere, "around": compiled, "in place": compiled_in_place}
NAMES = ["hidden.0.linear", "hidden.1.linear", "classifier"]


@pytest.fixture(scope="module", params=WRAPPED)
def wrapped(request):
    torch._dynamo.reset()
    return WRAPPED[request.param]()


# What each public function that takes a network says of it: layers by name, numbers.
SAYS = {
    "fold_batchnorm": lambda own: redlab.fold_batchnorm(own).layers["layer"].tolist(),
    "hash_network": lambda own: redlab.hash_network(own).layers.to_dict("list"),
    "merge_neurons": lambda own: redlab.merge_neurons(own, 0.1).layers.to_dict("list"),
    "merge_each": lambda own: [result.plan for result in merge_each(own, [{"alpha": 0.1}])],
    "merge_trees": lambda own: list(redlab.merge_trees(own)),
    "split_inputs": lambda own: redlab.split_inputs(own).layers.to_dict("list"),
    "separate_kernels": lambda own: redlab.separate_kernels(own).layers.to_dict("list"),
    "as_dense": lambda own: [layer.name for layer in weight_layers(redlab.as_dense(own))],
    "red": lambda own: redlab.red(own).layers.to_dict("list"),
    "red_plus_plus": lambda own: redlab.red_plus_plus(own).layers.to_dict("list"),
    "red_plus_plus, images": lambda own: redlab.red_plus_plus(own, correct_bias=IMAGES).layers.to_dict("list"),
    "correct_biases": lambda own: redlab.correct_biases(redlab.hash_network(own).network, own).layers.to_dict("list"),
    "error_bound": lambda own: redlab.error_bound(own, redlab.hash_network(own), IMAGES)["bound"].tolist(),
    "measure_cost": lambda own: redlab.measure_cost(own).to_dict("list"),
    "measure_redundancy": lambda own: redlab.measure_redundancy(own).to_dict("list"),
    "share_error": lambda own: share_error(own, 0.1),
    "evaluate": lambda own: redlab.evaluate(own, IMAGES).loss,
    "score_channels": lambda own: redlab.score_channels(own, "taylor", IMAGES).frame().to_dict("list"),
    "flexrel": lambda own: redlab.score_channels(own, "flexrel", IMAGES).frame().to_dict("list"),
    "prune_channels": lambda own: redlab.prune_channels(
        own, redlab.score_channels(own, "magnitude"), ratio=0.3
    ).layers.to_dict("list"),
    "apply_plan": lambda own: redlab.measure_cost(
        redlab.apply_plan(own, redlab.merge_neurons(plain(), 0.1).plan)
    ).to_dict("list"),
    "prune_weights": lambda own: redlab.prune_weights(own, redlab.score_weights(own, "magnitude"), 0.5).plan,
    "iterative_prune": lambda own: redlab.iterative_prune(own, "magnitude", None, 0.5, 100).plan,
    "spp": lambda own: redlab.iterative_prune(own, "spp", IMAGES, 0.9, 1, cap=2).plan["options"],
    "sensitivity": lambda own: redlab.sensitivity(own, "magnitude", IMAGES, [0.5]).to_dict("list"),
    "sparsify": lambda own: list(redlab.sparsify(own, 0.5).dpp.masks),
    "sparsify, filters": lambda own: redlab.harden(redlab.sparsify(own, 0.5, "filter")).layers.to_dict("list"),
    "train": lambda own: train(own, IMAGES, 1).history.to_dict("list"),
    "inner_groups": lambda own: inner_groups(own),
    "oracle_agreement": lambda own: oracle_agreement(
        own, IMAGES, {"taylor": {"criterion": "taylor"}}, ["hidden.1.linear"]
    )["score"].tolist(),
    "split_differences": lambda own: split_differences(own, IMAGES)["unit"].tolist(),
    "sparse_bytes": lambda own: sparse_bytes(own),
    "weight_layers": lambda own: [layer.name for layer in redlab.weight_layers(own)],
    "example_input": lambda own: redlab.example_input(own).shape,
    "couple": lambda own: [group.name for group in couple(own)],
    "record_calls": lambda own: record_calls(own),
    "trace": lambda own: list(trace(own).tensors),
}


QUICK = ("fold_batchnorm", "split_inputs", "measure_cost", "evaluate", "score_channels", "sparsify", "weight_layers")


@pytest.fixture(scope="module")
def wanted():
    return {}


OTHERS = [pytest.param(what, marks=pytest.mark.slow) for what in SAYS if what not in QUICK]


@pytest.mark.parametrize("what", [*QUICK, *OTHERS])
def test_every_function_says_of_a_wrapped_network_what_it_says_of_the_plain_one(wrapped, wanted, what):
    if what not in wanted:
        wanted[what] = SAYS[what](plain())
    assert SAYS[what](wrapped) == wanted[what]


def test_what_comes_out_is_a_new_network_without_wrappers(wrapped, tmp_path):
    for network in (redlab.fold_batchnorm(wrapped).network, redlab.hash_network(wrapped).network):
        assert [layer.name for layer in weight_layers(network)] == NAMES
        assert not any(hasattr(module, "_orig_mod") for module in network.modules())
        assert not any(module._compiled_call_impl for module in network.modules())
    again = redlab.load_network(redlab.save_network(wrapped, tmp_path / "saved"))
    assert torch.equal(again(IMAGES[0]), plain()(IMAGES[0]))


def test_masks_on_a_wrapped_network_harden(wrapped):
    masked = redlab.sparsify(wrapped, 0.5)
    around = torch.compile(masked, backend=kernel)
    assert redlab.mask_metrics(around, draws=0)["layer"].tolist() == NAMES
    assert redlab.harden(around).plan == redlab.harden(masked).plan
    assert redlab.train_masks(around, IMAGES, 1).history.equals(redlab.train_masks(masked, IMAGES, 1).history)


def test_unwrapping_shares_every_tensor_and_leaves_the_wrapped_network_as_it_was(wrapped):
    inside, before = unwrap(wrapped), [name for name, _ in wrapped.named_modules()]
    assert {id(p) for p in inside.parameters()} == {id(p) for p in wrapped.parameters()}
    assert list(inside.state_dict()) == list(plain().state_dict())
    assert [name for name, _ in wrapped.named_modules()] == before


def test_functions_compiled_in_a_forward_run_as_they_are_written():
    double = torch.compile(lambda x: x * 2, backend=kernel)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return double(self.layer(x))

    network, x = Net().eval(), torch.rand(2, 4)
    wanted = network(x)
    torch.testing.assert_close(redlab.split_inputs(network, example=x).network(x), wanted)
    assert redlab.measure_cost(network, x).attrs["products"] == 12
    assert [group.frozen for group in couple(network, x)] == ["network output"]
    assert torch.compiler.is_compiling() is False
    torch.testing.assert_close(network(x), wanted)


def test_time_is_that_of_the_compiled_network():
    seen = []

    def counting(graph, example):
        return lambda *args: seen.append(len(args)) or graph(*args)

    redlab.measure_latency(torch.compile(plain(), backend=counting), repeats=1)
    assert seen
    with pytest.raises(ValueError, match=r"MLP was compiled in place, .*pass torch.compile\(network\)"):
        redlab.measure_latency(compiled_in_place(), repeats=1)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_torchscript_is_refused_by_name_where_its_layers_are_needed():
    script = torch.jit.trace(plain(), IMAGES[0][:1])
    assert redlab.evaluate(script, IMAGES) == redlab.evaluate(plain(), IMAGES)
    for function in (couple, redlab.merge_neurons, redlab.red_plus_plus):
        with pytest.raises(ValueError, match="TorchScript"):
            function(script, example=IMAGES[0][:1])
    assert "(of TorchScript, no conv or linear layer)" in str(redlab.split_inputs(script, example=IMAGES[0][:1]))
