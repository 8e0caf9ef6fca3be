"""Tied weights: they stay tied, and no step changes the others without a word or counts them twice."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from redlab import (
    as_dense,
    correct_biases,
    fold_batchnorm,
    harden,
    hash_network,
    load_network,
    merge_neurons,
    prune_channels,
    prune_weights,
    red,
    red_plus_plus,
    score_channels,
    score_weights,
    separate_kernels,
    sparsify,
    split_inputs,
)

TOKENS = torch.tensor([[1, 5, 2], [0, 7, 19]])


class Speaks(nn.Module):
    """A language model whose last layer is its embedding."""

    def __init__(self):
        super().__init__()
        self.embed, self.inner, self.head = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 20)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(F.relu(self.inner(self.embed(tokens))))


@pytest.fixture
def speaks():
    torch.manual_seed(0)
    return Speaks().eval()


STEPS = {
    "fold": lambda n: fold_batchnorm(n, TOKENS),
    "hash": hash_network,
    "merge": lambda n: merge_neurons(n, 0.2, example=TOKENS),
    "split": lambda n: split_inputs(n, example=TOKENS),
    "separate": lambda n: separate_kernels(n, example=TOKENS),
    "correct biases": lambda n: correct_biases(n, n, example=TOKENS),
    "red": lambda n: red(n, example=TOKENS),
    "red++": lambda n: red_plus_plus(n, example=TOKENS),
    "prune channels": lambda n: prune_channels(n, score_channels(n, "magnitude", example=TOKENS), 0.2, example=TOKENS),
    "prune weights": lambda n: prune_weights(n, score_weights(n, "magnitude", example=TOKENS), 0.5),
    "harden": lambda n: harden(sparsify(n, 0.5)),
}


@pytest.mark.parametrize("step", STEPS)
def test_an_embedding_stays_the_weight_of_the_last_layer_and_has_a_row_that_says_so(speaks, step):
    result = STEPS[step](speaks)
    dense = as_dense(result.network)
    assert dense.head.weight is dense.embed.weight
    assert dense(TOKENS).shape == (2, 3, 20)
    row = result.layers.set_index("layer").loc["embed.weight"]
    assert (row["kind"], row["weights"], row["skipped"]) == ("other", 0, "is the weight of head: one tensor")
    assert "embed.weight (is the weight of head: one tensor)" in str(result)
    if "parameters_before" in result.layers:
        assert (result.layers["parameters_after"] <= result.layers["parameters_before"]).all()
        head = result.layers.set_index("layer").loc["head"]
        assert head["parameters_before"] in (160, 180)  # of prune_weights, and harden, the weights alone
        assert head["parameters_after"] >= (60 if "prune" in step or "harden" in step else 160)


def test_no_step_says_of_it_that_it_is_never_called(speaks):
    for step in ("merge", "prune channels", "correct biases"):
        assert "never called" not in str(STEPS[step](speaks))
    with pytest.raises(ValueError, match=r"shares its weight with embed\.weight"):
        sparsify(speaks, 0.5, "filter", example=TOKENS)


def test_hashing_it_is_hashing_both(speaks):
    network = hash_network(speaks, rule="uniform", levels=4).network
    assert network.head.weight.unique().numel() == 4
    assert network.embed.weight is network.head.weight


def test_splitting_leaves_it_and_adds_no_parameters(speaks):
    result = split_inputs(hash_network(speaks).network, example=TOKENS)
    table = result.layers.set_index("layer")
    assert table.loc["head", "skipped"] == "shares its weight with embed.weight"
    assert table.loc["inner", "skipped"] == ""
    assert table.loc["head", "parameters_before"] == table.loc["head", "parameters_after"]
    assert sum(p.numel() for p in result.network.parameters()) < sum(p.numel() for p in speaks.parameters())


def test_the_others_of_a_tied_bias_are_not_shifted():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    network[2].bias = network[0].bias
    images = torch.utils.data.TensorDataset(torch.randn(50, 4) + 1, torch.zeros(50))
    hashed = hash_network(network, rule="uniform", levels=3).network
    for statistics in ("batchnorm", images):
        result = correct_biases(hashed, network, statistics, input_mean=1.0)
        assert torch.equal(result.network[0].bias, network[0].bias)
        assert set(result.layers["skipped"]) == {"its bias is shared, or added elsewhere"}


def test_a_tied_bias_counts_once_after_splitting_too():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    network[2].bias = network[0].bias
    result = split_inputs(network)
    assert result.network[0].bias is result.network[2].bias
    assert result.layers["parameters_after"].sum() == sum(p.numel() for p in result.network.parameters())


def test_a_module_with_two_names_is_split_once_in_both_places():
    torch.manual_seed(0)
    shared = nn.Linear(4, 4)
    network = nn.Sequential(shared, nn.ReLU(), shared)
    result = split_inputs(network)
    assert result.network[0] is result.network[2]
    assert result.layers["skipped"].tolist() == [""]
    assert torch.allclose(result.network(torch.ones(2, 4)), network(torch.ones(2, 4)), atol=1e-6)


def test_merging_what_two_tied_layers_make_keeps_the_function():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.last = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.last(F.relu(self.one(x)) + F.relu(self.two(-x)))

    torch.manual_seed(0)
    network, x = Twice().eval(), torch.randn(5, 6)
    with torch.no_grad():
        for tensor in (network.one.weight, network.one.bias, network.two.bias):
            tensor[3] = tensor[1]
    result = merge_neurons(network, example=x[:1])
    assert result.network.one.weight is result.network.two.weight
    assert torch.allclose(result.network(x), network(x), atol=1e-6)


def test_an_untied_network_says_nothing_of_ties():
    assert (hash_network(load_network("digits/resnet")).layers["kind"] != "other").all()
