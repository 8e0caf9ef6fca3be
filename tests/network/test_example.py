"""Networks of several inputs: an example is a tensor, a tuple of positional or a dict of keyword inputs, everywhere."""

from collections import namedtuple

import pytest
import torch
from nets import randomised
from torch import nn

from redlab import (
    error_bound,
    evaluate,
    fold_batchnorm,
    harden,
    hash_network,
    iterative_prune,
    measure_cost,
    measure_latency,
    measure_redundancy,
    merge_neurons,
    merge_trees,
    prune_channels,
    red,
    red_plus_plus,
    score_channels,
    score_weights,
    sensitivity,
    separate_kernels,
    sparsify,
    split_inputs,
)
from redlab.channels.coupling import couple
from redlab.compression.budget import share_error
from redlab.network.example import Inputs, fit_example, logits_of
from redlab.network.trace import trace
from redlab.network.trial_run import record_calls


class Towers(nn.Module):
    """Images and numbers, each in a tower of its own; ``scale`` is a number, ``extra`` holds tensors."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.seen, self.told, self.head = nn.Linear(6, 8), nn.Linear(4, 8), nn.Linear(8, 5)

    def forward(self, image, numbers, scale=1.0, extra=None):
        seen = self.seen(self.norm(self.conv(image)).relu().mean((2, 3)))
        hidden = (seen + self.told(numbers) * scale).relu()
        return self.head(hidden) if extra is None else self.head(hidden) + extra["shift"][0]


@pytest.fixture(scope="module")
def towers():
    torch.manual_seed(0)
    return randomised(Towers())


def inputs(count=2):
    generator = torch.Generator().manual_seed(1)
    image, numbers = (torch.rand(count, *shape, generator=generator) for shape in ((3, 9, 9), (4,)))
    return {"tuple": (image, numbers), "dict": {"numbers": numbers, "image": image}}


SHIFT = {"shift": [torch.ones(1, 5)]}


@pytest.fixture(params=["tuple", "dict"])
def example(request):
    return inputs()[request.param]


STEPS = {
    "fold": lambda network, own: fold_batchnorm(network, own),
    "merge": lambda network, own: merge_neurons(network, example=own),
    "split": lambda network, own: split_inputs(network, example=own),
    "separate": lambda network, own: separate_kernels(network, example=own),
    "red": lambda network, own: red(network, example=own, force=True, levels=400, rule="uniform"),
    "red++": lambda network, own: red_plus_plus(network, example=own, max_error=1e-5),
}


PAIRS = list(zip(STEPS, 3 * ["tuple", "dict"], strict=True))


@pytest.mark.parametrize(("step", "example"), PAIRS, indirect=["example"])
def test_steps_keep_the_function_of_a_network_of_two_inputs(towers, example, step):
    result = STEPS[step](towers, example)
    image, numbers = inputs(3)["tuple"]
    torch.testing.assert_close(result.network(image, numbers), towers(image, numbers), atol=2e-2, rtol=1e-3)


def test_pruning_reaches_what_was_asked_for(towers, example):
    scores = score_channels(towers, "reconstruction", example=example)
    pruned = prune_channels(towers, scores, ratio=0.5, example=example)
    assert pruned.plan["achieved"]["ratio"] == 0.5
    assert pruned.network(*inputs()["tuple"]).shape == (2, 5)


def test_rounds_take_the_example(towers):
    rounds = iterative_prune(towers, "magnitude", None, target=0.6, step=4, example=inputs()["dict"])
    assert rounds.plan["achieved"]["products"] <= 0.6


def test_what_is_measured_is_that_of_one_input_of_each_kind(towers, example):
    cost = measure_cost(towers, example)
    assert cost.set_index("layer")["products"].to_dict() == {
        "conv": 7 * 7 * 6 * 27, "norm": 0, "seen": 48, "told": 32, "head": 40
    }  # fmt: skip
    assert record_calls(towers, example)["told"] == [torch.Size([1, 4])]
    assert measure_latency(towers, example, batch=3, repeats=1).batch == 3
    assert list(share_error(towers, 0.1, example)) == ["conv", "seen", "told", "head"]
    assert measure_redundancy(towers, example=example)["layer"].tolist() == ["conv", "seen", "told", "head"]


def test_towers_that_meet_are_coupled(towers, example):
    groups = {group.name: group for group in couple(towers, example)}
    producers = {member.tensor for member in groups["seen"].producers}
    assert {"seen.weight", "told.weight"} <= producers
    assert list(merge_trees(towers, example=example)) == ["conv", "seen"]


def test_masks_of_channels_take_the_example(towers, example):
    masked = sparsify(towers, keep=0.5, granularity="filter", example=example)
    hard = harden(masked, example)
    image, numbers = inputs()["tuple"]
    torch.testing.assert_close(hard.network(image, numbers), masked.eval()(image, numbers))


def test_numbers_and_containers_are_handed_over(towers):
    image, numbers = inputs()["tuple"]
    for own in ((image, numbers, 2.0, SHIFT), {"image": image, "numbers": numbers, "scale": 2.0, "extra": SHIFT}):
        split = split_inputs(towers, example=own).network
        wanted = towers(image, numbers, 2.0, SHIFT)
        torch.testing.assert_close(split(image, numbers, scale=2.0, extra=SHIFT), wanted, atol=1e-5, rtol=1e-5)
    assert "shift" not in measure_cost(towers, own)["layer"].tolist()


def test_the_bound_holds_whatever_the_order_of_the_names(towers):
    folded = fold_batchnorm(towers, inputs()["tuple"]).network
    hashed = hash_network(folded, rule="uniform", levels=9).network
    labels, own = torch.tensor([0, 1, 2]), inputs(3)
    frames = [error_bound(folded, hashed, (own[kind], labels)) for kind in ("tuple", "dict")]
    frames.append(error_bound(folded, hashed, (own["dict"], labels), example=dict(reversed(own["dict"].items()))))
    for frame in frames:
        assert (frame["measured"] <= frame["bound"]).all()
        assert frame["bound"].tolist() == frames[0]["bound"].tolist()


CRITERIA = {"taylor": {}, "flexrel": {}, "singe": {"steps": 2}, "oracle": {}}


@pytest.mark.parametrize("criterion", CRITERIA)
def test_criteria_take_a_dataset_of_several_inputs_by_position_or_by_name(towers, criterion):
    labels, options = torch.arange(6) % 5, CRITERIA[criterion]
    one, other = (
        score_channels(towers, criterion, (inputs(6)[kind], labels), example=inputs()[kind], **options).values
        for kind in ("tuple", "dict")
    )
    assert list(one) == ["conv", "seen"]
    for name, values in one.items():
        assert values == pytest.approx(other[name], rel=1e-4)


def test_the_second_order_weights_and_sensitivity_take_them_too(towers):
    samples, example = (inputs(6)["dict"], torch.arange(6) % 5), inputs()["dict"]
    assert "conv" in score_channels(towers, "taylor", samples, order=2, example=example).values
    assert "told" in score_weights(towers, "taylor", samples, example=example).values
    frame = sensitivity(towers, "taylor", samples, [0.5], example=example)
    assert frame["group"].tolist() == ["conv", "seen"]


class Reader(nn.Module):
    """Token ids with a mask, and an answer as transformers give it."""

    def __init__(self):
        super().__init__()
        self.embed, self.hidden, self.head = nn.Embedding(11, 8), nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, input_ids, attention_mask):
        hidden = self.hidden(self.embed(input_ids)).relu() * attention_mask[..., None]
        return {"loss": None, "logits": self.head(hidden.sum(1))}


def sentences(count=4):
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, 11, (count, 6), generator=generator)
    return {"input_ids": ids, "attention_mask": (ids > 2).long()}


@pytest.mark.parametrize("criterion", ["taylor", "flexrel"])
def test_whole_numbers_stay_so_and_the_logits_are_found(criterion):
    torch.manual_seed(3)
    network, own = Reader().eval(), sentences()
    labels = network(**own)["logits"].argmax(1)
    assert evaluate(network, own | {"labels": labels}).accuracy == 100
    assert evaluate(network.double(), (own, labels)).accuracy == 100
    scores = score_channels(network, criterion, (own, labels), example=own)
    assert prune_channels(network, scores, ratio=0.5, example=own).plan["achieved"]["ratio"] == 0.5
    result = red_plus_plus(network, example=own)
    assert "whole numbers" in result.layers.set_index("layer").loc["hidden", "skipped"]


def test_what_is_of_the_batch_is_cut_and_the_rest_is_left():
    image, mask, scale = torch.rand(4, 3, 5, 5), torch.rand(7, 7), torch.tensor(2.0)
    first = Inputs.of({"image": image, "parts": [image[:, 0]], "mask": mask, "scale": scale, "on": True}).first()
    assert [tuple(tensor.shape) for tensor in first.tensors] == [(1, 3, 5, 5), (1, 5, 5), (7, 7), ()]
    assert first.kwargs["on"] is True
    images = [torch.rand(3, 8, 9), torch.rand(3, 7, 7)]  # as networks that detect take them
    assert [tuple(tensor.shape) for tensor in Inputs.of((images,)).first().tensors] == [(3, 8, 9), (3, 7, 7)]


def test_floating_inputs_take_the_dtype_of_the_network_and_others_keep_theirs():
    own = fit_example(
        nn.Linear(2, 2).half(), {"x": torch.rand(1, 2), "ids": torch.ones(1, 2).int(), "on": [torch.tensor(True)]}
    )
    assert [tensor.dtype for tensor in own.tensors] == [torch.float16, torch.int32, torch.bool]


@pytest.mark.parametrize("wrong", ["digits", 3, None, [], {}, (1, 2), {1: torch.rand(1)}])
def test_what_is_no_input_is_refused(wrong):
    with pytest.raises(ValueError, match=r"must be a tensor, a tuple of positional inputs or a dict of keyword inputs"):
        Inputs.of(wrong)


def test_a_wrong_example_is_refused_with_all_its_shapes(towers):
    image, numbers = inputs()["tuple"]
    for function, what in ((couple, "be traced"), (measure_cost, "run"), (record_calls, "run")):
        with pytest.raises(ValueError, match=rf"Towers cannot {what} on inputs of shape \(.*9, 9\) and \(., 3\): "):
            function(towers, (image, numbers[:, :3]))
        with pytest.raises(ValueError, match=r"inputs of shape image \(.*\) and number \(., 4\): .*number"):
            function(towers, {"image": image, "number": numbers})
    with pytest.raises(ValueError, match="at least one input"):
        trace(towers, (image[:0], numbers[:0]))


def test_an_answer_without_logits_is_refused():
    answer = namedtuple("answer", ["logits", "loss"])
    assert logits_of(answer(torch.ones(2, 3), None)).shape == (2, 3)
    for wrong in ({"scores": torch.ones(2, 3)}, (torch.ones(2, 3),), answer(None, None)):
        with pytest.raises(ValueError, match="must answer"):
            logits_of(wrong)
    with pytest.raises(ValueError, match=r"it gave dict of \['scores'\]"):
        logits_of({"scores": torch.ones(2, 3)})
