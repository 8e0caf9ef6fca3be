"""Examples as plain data: what is made of the description of an example is like it."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from redlab import fold_batchnorm, prune_channels, score_channels
from redlab.network.description import describe, example_from, sizes, tensor
from redlab.network.example import Inputs, example_input, fit_example, remember_example
from redlab.network.recipe import Recipe, recipe_of

EXAMPLES = {
    "a tensor": torch.rand(1, 3, 4),
    "a tuple": (torch.zeros(1, 3), [torch.ones(1, 2), None], 2.5, "how", True),
    "a dict": {
        "ids": torch.tensor([[3, 9, 5]]),
        "mask": torch.ones(1, 3, dtype=torch.int64),
        "deep": {"x": torch.rand(1)},
    },
    "other types": (torch.tensor([[True, False]]), torch.rand(1, 2).half(), torch.tensor([200], dtype=torch.uint8)),
    "infinite": torch.tensor([[0.0, float("-inf"), -2.0]]),
    "scalars": {"x": torch.rand(1, 2), "t": torch.tensor(7)},
}


def _alike(one, other) -> None:
    if not isinstance(one, torch.Tensor):
        assert type(one) is type(other)
        if isinstance(one, dict):
            assert list(one) == list(other)
            one, other = list(one.values()), list(other.values())
        if not isinstance(one, tuple | list):
            assert one == other
            return
        for pair in zip(one, other, strict=True):
            _alike(*pair)
        return
    assert (one.shape, one.dtype) == (other.shape, other.dtype)
    one = one[one.isfinite()]
    assert one.min() <= other.min()
    assert other.max() <= one.max()


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_comes_back_alike_and_the_same_every_time(name):
    description = json.loads(json.dumps(describe(EXAMPLES[name]), allow_nan=False))
    made = example_from(description)
    _alike(EXAMPLES[name], made)
    again = example_from(description)
    assert all(
        torch.equal(*pair) if isinstance(pair[0], torch.Tensor) else pair[0] == pair[1]
        for pair in zip(*(torch.utils._pytree.tree_leaves(one) for one in (made, again)), strict=True)
    )


def test_whole_numbers_fill_their_range_and_constants_stay():
    ids = example_from(tensor(1, 4000, dtype="int64", low=3, high=9))
    assert sorted(set(ids.flatten().tolist())) == [3, 4, 5, 6, 7, 8, 9]
    assert example_from(describe(torch.ones(1, 5, dtype=torch.int64))).tolist() == [[1] * 5]
    assert example_from(describe(torch.full((1, 2), -0.5))).tolist() == [[-0.5] * 2]


@pytest.mark.parametrize(
    "given",
    [object(), {1: torch.ones(1)}, torch.eye(2).to_sparse(), float("nan"), (torch.ones(1, dtype=torch.complex64),)],
)
def test_what_is_no_plain_data_is_not_described(given):
    assert describe(given) is None


def test_the_values_of_a_description_are_counted():
    assert sizes(describe({"x": torch.zeros(2, 3), "y": [torch.zeros(4), 1]})) == 10


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(x)) * scale)


@pytest.mark.parametrize(
    "example", [(torch.rand(4, 5), torch.ones(4, 1)), {"x": torch.rand(4, 5), "scale": torch.ones(4, 1)}]
)
def test_a_step_remembers_the_example_it_was_given(example):
    network = Two()
    pruned = prune_channels(network, score_channels(network, "magnitude", example=example), ratio=0.5, example=example)
    assert not hasattr(network, "redlab")
    made = example_input(pruned.network)
    assert type(made) is type(example)
    inputs = fit_example(pruned.network, None)
    assert [tuple(t.shape) for t in inputs.tensors] == [(1, 5), (1, 1)]
    assert inputs.tensors[1].item() == 1
    assert inputs.run(pruned.network).shape == (1, 3)
    assert fold_batchnorm(pruned.network).network.redlab.example == pruned.network.redlab.example


def test_a_recipe_that_tells_its_input_is_not_overruled():
    network = nn.Linear(4, 2)
    network.redlab = Recipe("mine", (4,))
    remember_example(network, torch.ones(2, 4))
    assert recipe_of(network).example is None
    remember_example(nn.Linear(4, 2), None)
    other = nn.Linear(4, 2)
    remember_example(other, Inputs.of((torch.ones(2, 4), object())))
    assert not hasattr(other, "redlab")
    remember_example(other, torch.ones(2, 4).double())
    assert example_input(other).dtype == torch.float32  # the network's
    assert example_input(other).tolist() == [[1] * 4]
