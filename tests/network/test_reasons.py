"""Targets that are missed by more than a tenth of what was to go: a warning that says why, in the result as well."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from redlab import (
    iterative_prune,
    load_network,
    merge_neurons,
    prune_channels,
    prune_weights,
    red,
    score_channels,
    score_weights,
)

EXAMPLE = torch.randn(1, 4)


class Frozen(nn.Module):
    """Layers whose channels must all stay, since a product of two activations mixes them."""

    def __init__(self, free=0):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(5))
        self.free = nn.Sequential(nn.Linear(4, free), nn.ReLU(), nn.Linear(free, 4)) if free else nn.Identity()

    def forward(self, x):
        for layer in self.layers:
            x = (F.relu(layer(x))[:, :, None] @ x[:, None]).mean(1)
        return self.free(x)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def prune(network, criterion="magnitude", **options):
    return prune_channels(network, score_channels(network, criterion, example=EXAMPLE), example=EXAMPLE, **options)


ASKS = {
    "ratio": lambda network: prune(network, ratio=0.5),
    "count": lambda network: prune(network, count=3),
    "products": lambda network: prune(network, products=0.5),
    "reconstruction": lambda network: prune(network, "reconstruction", ratio=0.5),
    "rounds": lambda network: iterative_prune(network, "magnitude", None, 0.5, 1, example=EXAMPLE),
    "merging": lambda network: merge_neurons(network, 0.5, example=EXAMPLE),
    "pairs": lambda network: merge_neurons(network, 0.5, alpha_of="pairs", example=EXAMPLE),
    "red": lambda network: red(network, alpha=0.5, example=EXAMPLE),
}


@pytest.mark.parametrize("ask", ASKS)
def test_where_nothing_can_go_a_warning_says_why_with_counts(ask):
    with pytest.warns(UserWarning, match="asked to remove .*, removed 0.0%. What stays: ") as said:
        result = ASKS[ask](Frozen().eval())
    (text,) = [str(own.message) for own in said if "asked to remove" in str(own.message)]
    assert "and 2 more" in text
    assert "matmul" in text
    assert result.plan["short"] == text
    assert f"short: {text}" in str(result).splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("ask", ASKS)
def test_what_was_reached_is_not_warned_of(ask):
    network = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        result = ASKS[ask](network) if ask != "reconstruction" else ASKS["ratio"](network)
    assert "short" not in result.plan


def test_products_that_no_group_can_give_are_missed():
    with pytest.warns(UserWarning, match=r"asked to remove 50\.0% of the products, removed \d+\.\d%"):
        result = prune(Frozen(2).eval(), products=0.5)
    assert result.plan["achieved"]["products"] > 0.55


def test_rounding_is_a_reason():
    network = load_network("digits/mlp")
    with pytest.warns(UserWarning, match="widths stay multiples of 128"):
        result = prune_channels(network, score_channels(network, "magnitude"), ratio=0.3, round_to=128)
    assert result.plan["achieved"]["ratio"] < 0.27
    with pytest.warns(UserWarning, match="widths stay multiples of 128"):
        merge_neurons(network, 0.3, round_to=128)


def test_weights_of_which_none_has_a_score_are_missed():
    network = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    with pytest.warns(UserWarning, match=r"asked to remove 50\.0% of the weights, removed 0\.0%.*parametrized"):
        prune_weights(network, score_weights(network, "magnitude"), 0.5)


def test_a_tenth_may_be_missing():
    network = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        result = prune(network, ratio=1.0)  # the best channel of the ten stays
    assert result.plan["achieved"]["ratio"] == 0.9
