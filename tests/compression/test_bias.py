"""Bias correction: layers put out on average what they did, wherever the mean of their input is known."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

from redlab import (
    correct_biases,
    fold_batchnorm,
    hash_network,
    load_dataset,
    load_network,
    merge_neurons,
    save_network,
    split_inputs,
    weight_layers,
)
from redlab.network.evaluation import evaluate

NETWORKS = ["digits/resnet", "digits/mobilenet", "digits/mlp"]
each_network = pytest.mark.parametrize("name", NETWORKS)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def folded():
    return {name: fold_batchnorm(load_network(name)).network for name in NETWORKS}


@pytest.fixture(scope="module")
def hashed(folded):
    """Hashed so hard that accuracy falls."""
    return {name: hash_network(network, "uniform", max_error=0.3).network for name, network in folded.items()}


@pytest.fixture(scope="module")
def train():
    return load_dataset("digits", "train")


def images_of(dataset, limit: int = 500) -> Tensor:
    return torch.stack([dataset[k][0] for k in range(min(limit, len(dataset)))])


def calls(network: nn.Module, images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """By layer: what goes in and what comes out."""
    found = {}
    handles = [
        layer.module.register_forward_hook(lambda _, args, out, name=layer.name: found.update({name: (args[0], out)}))
        for layer in weight_layers(network)
    ]
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    return found


def per_channel(out: Tensor) -> Tensor:
    return out.transpose(0, 1).flatten(1).mean(1)


def constant_then(layer: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """A convolution and norm that put out constants whatever goes in, a ReLU, and ``layer``; folded, in float64."""
    norm = nn.BatchNorm2d(6)
    nn.init.uniform_(norm.bias, -1, 2)
    nn.init.zeros_(norm.weight)
    middle = nn.Flatten() if isinstance(layer, nn.Linear) else nn.Identity()
    network = nn.Sequential(nn.Conv2d(2, 6, 1, bias=False), norm, nn.ReLU(), middle, layer).double().eval()
    return fold_batchnorm(network, torch.randn(1, *shape, dtype=torch.float64)).network


def shifted(network: nn.Module, layer: str, by: float) -> nn.Module:
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.get_submodule(layer).weight += by
    return other


@each_network
@pytest.mark.parametrize("source", ["batchnorm", "images"])
def test_without_a_difference_nothing_is_shifted(folded, train, name, source):
    network = folded[name]
    result = correct_biases(network, network, "batchnorm" if source == "batchnorm" else train)
    assert (result.layers["shift"] == 0).all()
    assert (result.layers["skipped"] == "").all()
    after = result.network.state_dict()
    assert all(torch.equal(tensor, after[key]) for key, tensor in network.state_dict().items())


CONSTANT = {
    "linear": (nn.Linear(96, 5), (2, 4, 4)),
    "linear without bias": (nn.Linear(96, 5, bias=False), (2, 4, 4)),
    "conv": (nn.Conv2d(6, 4, 3), (2, 5, 5)),
    "strided, dilated": (nn.Conv2d(6, 4, 2, stride=2, dilation=2, bias=False), (2, 9, 9)),
    "depthwise": (nn.Conv2d(6, 12, 3, groups=6), (2, 5, 5)),
    "transposed": (nn.ConvTranspose2d(6, 4, 1), (2, 5, 5)),
    "reflected": (nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"), (2, 5, 5)),
}


@pytest.mark.parametrize("case", CONSTANT)
def test_on_constant_inputs_the_correction_is_exact(case):
    layer, shape = copy.deepcopy(CONSTANT[case])
    original = constant_then(layer, shape)
    images = torch.randn(3, *shape, dtype=torch.float64)
    wrong = shifted(original, "4", 0.37)
    result = correct_biases(wrong, original, example=images)
    with torch.no_grad():
        wanted = original(images)
        assert (wrong(images) - wanted).abs().max() > 0.1
        assert torch.allclose(result.network(images), wanted, atol=1e-12)
    assert result.plan["gained"] == (["4"] if "without" in case or "strided" in case else [])
    bias = result.network[4].bias.detach()
    before = 0 if wrong[4].bias is None else wrong[4].bias.detach()
    assert result.layers["shift"].tolist() == [0, float((bias - before).abs().max())]


def test_under_padding_the_mean_over_the_positions_is_exact():
    original = constant_then(nn.Conv2d(6, 4, 3, padding=1), (2, 5, 5))
    images = torch.randn(3, 2, 5, 5, dtype=torch.float64)
    result = correct_biases(shifted(original, "4", -0.2), original, example=images)
    with torch.no_grad():
        difference = result.network(images) - original(images)
    assert difference.mean((0, 2, 3)).abs().max() < 1e-12
    assert difference.abs().max() > 0.01


def test_the_first_layer_is_shifted_by_what_the_mean_image_makes(folded, hashed, train):
    mean = images_of(train, len(train)).mean()
    for name in NETWORKS:
        (known,) = folded[name].redlab.input_mean
        assert known == pytest.approx(float(mean), abs=1e-4)
        table = correct_biases(hashed[name], folded[name]).layers
        assert (table["shift"] > 0).all()
        own, first = table.iloc[0], next(weight_layers(hashed[name])).module
        difference = next(weight_layers(folded[name])).weight - first.weight
        given = torch.full((1, *(first.weight.shape[1:2] if first.weight.ndim == 2 else (1, 8, 8))), known)
        made = F.linear(given, difference) if first.weight.ndim == 2 else F.conv2d(given, difference, None, 1, 1)
        assert own["shift"] == pytest.approx(float(per_channel(made).abs().max()), rel=1e-4)


def test_an_unknown_mean_of_the_input_is_asked_for_and_changes_nothing(folded, hashed):
    network, original = (copy.deepcopy(each["digits/resnet"]) for each in (hashed, folded))
    del network.redlab, original.redlab
    example = torch.zeros(1, 1, 8, 8)
    result = correct_biases(network, original, example=example)
    first, *others = result.layers.itertuples()
    assert first.skipped == "the mean of the network's input is not known: pass input_mean"
    assert (first.shift, torch.equal(result.network.conv1.bias, network.conv1.bias)) == (0, True)
    assert all(row.shift > 0 and not row.skipped for row in others)
    for given in (0.3054, [0.3054], (0.3054,), torch.tensor([0.3054]), np.float32(0.3054)):
        told = correct_biases(network, original, example=example, input_mean=given)
        wanted = correct_biases(hashed["digits/resnet"], folded["digits/resnet"])
        assert told.layers["shift"].tolist() == pytest.approx(wanted.layers["shift"].tolist(), rel=1e-5)
        assert told.plan["options"]["input_mean"] == pytest.approx([0.3054])


def test_a_mean_is_taken_channel_by_channel():
    torch.manual_seed(0)
    original = nn.Sequential(nn.Conv2d(3, 4, 3)).double()
    wrong, mean = shifted(original, "0", 0.1), [0.5, -1.0, 2.0]
    example = torch.zeros(1, 3, 5, 5)
    corrected = correct_biases(wrong, original, example=example, input_mean=mean).network
    images = torch.tensor(mean, dtype=torch.float64)[None, :, None, None].expand(2, 3, 5, 5)
    with torch.no_grad():
        assert torch.allclose(corrected(images), original(images), atol=1e-12)
    for bad in ([0.5, 1.0], float("nan"), "a half", [[1.0, 2.0, 3.0]], []):
        with pytest.raises(ValueError, match="input_mean"):
            correct_biases(wrong, original, example=example, input_mean=bad)


class WithNorm(nn.Conv2d):
    """A convolution that norms and rectifies what it makes, in its own forward."""

    def __init__(self, *given):
        super().__init__(*given)
        self.norm = nn.BatchNorm2d(given[1])
        nn.init.uniform_(self.norm.running_mean, -1, 1)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)
        nn.init.uniform_(self.norm.bias, -1, 1)

    def forward(self, x):
        return F.relu(self.norm(super().forward(x)))


class Late(nn.Linear):
    """A linear layer that adds its bias where it likes."""

    def forward(self, x):
        return F.relu(F.linear(x, self.weight)) + self.bias


class Lent(nn.Module):
    """A layer whose weight another module uses."""

    def __init__(self):
        super().__init__()
        self.lent = nn.Linear(6, 6)

    def forward(self, x):
        return F.linear(F.linear(x, self.lent.weight).relu(), self.lent.weight.T) + self.lent.bias


def doubling(layer):
    layer.register_forward_hook(lambda module, args, out: 2 * out)
    return layer


class Often(nn.Module):
    def __init__(self):
        super().__init__()
        self.often = nn.Linear(6, 6)

    def forward(self, x):
        return self.often(self.often(x).relu())


UNSEEN = {
    "own forward": nn.Sequential(WithNorm(2, 6, 3), nn.Flatten(), nn.Linear(24, 3)),
    "bias elsewhere": nn.Sequential(nn.Flatten(), Late(32, 6), nn.Linear(6, 3)),
    "weight lent": nn.Sequential(nn.Flatten(), nn.Linear(32, 6), Lent(), nn.Linear(6, 3)),
    "hook": nn.Sequential(nn.Flatten(), doubling(nn.Linear(32, 6)), nn.ReLU(), nn.Linear(6, 3)),
    "called twice": nn.Sequential(nn.Flatten(), nn.Linear(32, 6), Often(), nn.Linear(6, 3)),
}


@pytest.mark.parametrize("case", UNSEEN)
def test_where_a_layer_puts_out_something_else_its_bias_stays_and_the_row_says_why(case):
    """What is left is corrected after it, so that the outputs come to the right mean in any case."""
    torch.manual_seed(0)
    original = copy.deepcopy(UNSEEN[case]).eval()
    data = TensorDataset(torch.randn(200, 2, 4, 4) + 0.5, torch.zeros(200))
    hashed = hash_network(original, rule="uniform", max_error=0.3).network
    result = correct_biases(hashed, original, data)
    left = result.layers[result.layers["skipped"] != ""]
    assert len(left) == 1
    layer = left["layer"].item()
    assert left["skipped"].item().startswith(("its class or a hook", "its bias is", "its weight is", "it is called 2"))
    assert torch.equal(result.network.get_submodule(layer).bias, hashed.get_submodule(layer).bias)
    with torch.no_grad():
        wanted, before, after = (network(data.tensors[0]).mean(0) for network in (original, hashed, result.network))
    assert (after - wanted).abs().max() < 1e-5 < (before - wanted).abs().max()


@pytest.mark.parametrize("case", ["own forward", "hook"])
def test_statistics_correct_what_the_convolution_makes_whatever_comes_behind_it(case):
    torch.manual_seed(0)
    original = copy.deepcopy(UNSEEN[case]).double().eval()
    layer = "0" if case == "own forward" else "1"
    wrong, images = shifted(original, layer, 0.1), torch.full((2, 2, 4, 4), 0.7, dtype=torch.float64)
    corrected = correct_biases(wrong, original, example=images, input_mean=0.7).network
    with torch.no_grad():
        assert torch.allclose(corrected(images), original(images), atol=1e-12)


def test_statistics_leave_a_bias_that_is_added_elsewhere():
    torch.manual_seed(0)
    original = copy.deepcopy(UNSEEN["bias elsewhere"])
    result = correct_biases(shifted(original, "1", 0.1), original, input_mean=0.5, example=torch.zeros(1, 2, 4, 4))
    assert result.layers["skipped"].iloc[0] == "its bias is shared, or added elsewhere"
    assert torch.equal(result.network[1].bias, original[1].bias)


def test_a_layer_that_is_called_twice_is_shifted_by_the_mean_of_its_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.both = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.both(self.both(torch.sigmoid(self.one(x))))

    original = Twice().double()
    nn.init.zeros_(original.one.weight)
    wrong = shifted(original, "both", 0.1)
    corrected = correct_biases(wrong, original, example=torch.zeros(1, 4), input_mean=0).network
    with torch.no_grad():
        first = torch.sigmoid(original.one.bias)
        second = original.both(first)
        wanted = -0.1 * (first.sum() + second.sum()) / 2
    assert torch.allclose(corrected.both.bias - original.both.bias, wanted.expand(4), atol=1e-12)


@each_network
def test_with_images_each_layer_puts_out_the_original_means(folded, hashed, train, name):
    result = correct_biases(hashed[name], folded[name], train)
    images = images_of(train)
    wanted, before, after = (calls(n, images) for n in (folded[name], hashed[name], result.network))
    for layer in wanted:
        mean = per_channel(wanted[layer][1])
        assert torch.allclose(per_channel(after[layer][1]), mean, atol=1e-4)
        assert not torch.allclose(per_channel(before[layer][1]), mean, atol=1e-2)
    assert (result.layers["shift"] > 0).all()


def test_only_the_first_500_images_count_and_fewer_will_do(folded, hashed, train):
    network, original = hashed["digits/mlp"], folded["digits/mlp"]
    whole, first, few = (correct_biases(network, original, Subset(train, range(n))) for n in (1437, 500, 20))
    assert whole.layers.equals(first.layers)
    assert not whole.layers.equals(few.layers)
    states = whole.network.state_dict(), first.network.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_linear_layers_on_sequences_are_corrected_along_their_features():
    original = nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 4)).double()
    data = TensorDataset(torch.randn(30, 7, 6, dtype=torch.float64), torch.zeros(30))
    wrong = shifted(shifted(original, "0", 0.2), "2", -0.3)
    corrected = correct_biases(wrong, original, data).network
    with torch.no_grad():
        wanted, got = (n(data.tensors[0]).mean((0, 1)) for n in (original, corrected))
    assert torch.allclose(got, wanted, atol=1e-12)


@each_network
def test_on_the_original_inputs_every_layer_comes_nearer_to_its_mean(folded, hashed, train, name):
    """What batch-norm statistics promise; that the errors of earlier layers come on top is another matter."""
    corrected = correct_biases(hashed[name], folded[name]).network
    right = calls(folded[name], images_of(train, 1437))
    off = {}
    for key, network in (("before", hashed[name]), ("after", corrected)):
        modules = {layer.name: layer.module for layer in weight_layers(network)}
        with torch.no_grad():
            outs = {layer: modules[layer](given) - out for layer, (given, out) in right.items()}
        off[key] = [float(per_channel(out).abs().mean()) for out in outs.values()]
    assert all(after < 0.7 * before for before, after in zip(off["before"], off["after"], strict=True))


def test_outputs_come_nearer_to_the_original(folded, hashed, train):
    images = images_of(load_dataset("digits"))

    def off(name, network):
        wanted, got = calls(folded[name], images), calls(network, images)
        return sum(float((got[layer][1] - out).abs().mean()) for layer, (_, out) in wanted.items()) / len(wanted)

    for name, without, withal in (
        ("digits/resnet", 0.85, 0.7),
        ("digits/mobilenet", 0.96, 0.85),
        ("digits/mlp", 0.96, 0.75),
    ):
        before = off(name, hashed[name])
        assert off(name, correct_biases(hashed[name], folded[name]).network) < without * before
        assert off(name, correct_biases(hashed[name], folded[name], train).network) < withal * before


def test_what_hashing_hard_cost_comes_back(folded, hashed, train):
    dataset = load_dataset("digits")
    for name in ("digits/resnet", "digits/mobilenet"):
        right = evaluate(folded[name], dataset).accuracy
        without, withal = (
            correct_biases(hashed[name], folded[name], source).network for source in ("batchnorm", train)
        )
        lost, left, least = (right - evaluate(network, dataset).accuracy for network in (hashed[name], without, withal))
        assert lost > 10
        assert left < lost
        assert least < 3


def test_norms_and_weights_stay_as_they_are():
    class Left(nn.Module):
        """A norm after a ReLU, which cannot be folded."""

        def __init__(self):
            super().__init__()
            self.one, self.norm, self.two = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 3, padding=1)

        def forward(self, x):
            return self.two(F.relu(self.norm(F.relu(self.one(x)))))

    example = torch.randn(1, 1, 8, 8)
    original = fold_batchnorm(Left().eval(), example).network
    nn.init.uniform_(original.norm.bias, 0, 1)
    network = hash_network(original, "uniform", max_error=0.3).network
    corrected = correct_biases(network, original, example=example).network
    before, after = network.state_dict(), corrected.state_dict()
    assert list(before) == list(after)
    assert [key for key in before if not torch.equal(before[key], after[key])] == ["two.bias"]


# What comes out.


@each_network
def test_the_table_has_a_row_per_layer(folded, hashed, train, name):
    for statistics, said in (("batchnorm", "batchnorm"), (train, type(train).__name__)):
        result = correct_biases(hashed[name], folded[name], statistics)
        assert list(result.layers) == ["layer", "kind", "weights", "shift", "skipped"]
        layers = list(weight_layers(folded[name]))
        assert result.layers["layer"].tolist() == [layer.name for layer in layers]
        assert result.layers["weights"].tolist() == [layer.weight.numel() for layer in layers]
        assert not result.layers.isna().any().any()
        assert result.plan == {"step": "correct_biases", "gained": [], "options": {"statistics": said}}
        assert result.network.redlab.steps == (*hashed[name].redlab.steps, {"step": "correct_biases", "gained": []})
        assert str(result).startswith(f"correct_biases(statistics={said!r})")
        for row, old, new in zip(
            result.layers.itertuples(), weight_layers(hashed[name]), weight_layers(result.network), strict=True
        ):
            moved = float((new.module.bias - old.module.bias).detach().abs().max())
            assert row.shift == pytest.approx(moved, abs=1e-5)


@pytest.mark.parametrize("source", ["batchnorm", "images"])
def test_layers_without_a_bias_gain_one_and_come_back_bit_for_bit(train, tmp_path, source):
    original = load_network("digits/resnet")  # not folded: only the last layer has a bias
    network = hash_network(original, "uniform", max_error=0.3).network
    result = correct_biases(network, original, "batchnorm" if source == "batchnorm" else train)
    gained = [layer.name for layer in weight_layers(original) if layer.module.bias is None]
    assert result.plan["gained"] == gained
    assert len(gained) == 7
    opened = load_network(save_network(result, tmp_path / "net"))
    assert opened.redlab == result.network.redlab
    states = result.network.state_dict(), opened.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    images = images_of(train, 9)
    assert torch.equal(result.network(images), opened(images))
    assert all(layer.module.bias.requires_grad for layer in weight_layers(opened))


@pytest.mark.parametrize("source", ["batchnorm", "images"])
def test_both_networks_are_left_as_they_were(folded, hashed, train, source):
    network, original = (copy.deepcopy(each["digits/mobilenet"]).train() for each in (hashed, folded))
    states = [copy.deepcopy(each.state_dict()) for each in (network, original)]
    random = torch.random.get_rng_state()
    with torch.inference_mode():
        corrected = correct_biases(network, original, "batchnorm" if source == "batchnorm" else train).network
    for each, before in zip((network, original), states, strict=True):
        assert all(torch.equal(tensor, before[key]) for key, tensor in each.state_dict().items())
        assert all(module.training and not module._forward_hooks for module in each.modules())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert not any(module._forward_hooks for module in corrected.modules())
    corrected.train()(images_of(train, 2)).sum().backward()
    assert corrected.classifier.bias.grad is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_kept(folded, hashed, train, dtype):
    network, original = (copy.deepcopy(each["digits/mlp"]).to(dtype) for each in (hashed, folded))
    plain = correct_biases(hashed["digits/mlp"], folded["digits/mlp"]).layers["shift"]
    for statistics in ("batchnorm", train):
        result = correct_biases(network, original, statistics)
        assert {tensor.dtype for tensor in result.network.parameters()} == {dtype}
    other = correct_biases(network, original).layers["shift"]
    assert other.tolist() == pytest.approx(plain.tolist(), rel=0.2 if dtype == torch.bfloat16 else 0.05)


def test_layers_of_unknown_input_are_left_alone_and_say_why():
    original = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    result = correct_biases(shifted(original, "2", 0.3), original, input_mean=0)
    assert result.layers["skipped"].tolist() == ["", "layer_norm is in its way, whose mean output is not known"]
    assert torch.equal(result.network[2].bias, original[2].bias)
    assert result.layers["shift"].tolist() == [0, 0]
    data = TensorDataset(torch.randn(9, 5), torch.zeros(9))
    assert correct_biases(shifted(original, "2", 0.3), original, data).layers["shift"].iloc[1] > 0


def test_a_layer_is_left_alone_where_the_input_of_one_of_its_calls_is_unknown():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.both = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.both(self.both(torch.sigmoid(self.one(x))).softmax(1))

    original = Twice()
    result = correct_biases(shifted(original, "both", 0.3), original, example=torch.zeros(1, 4), input_mean=0)
    assert result.layers["skipped"].tolist() == ["", "softmax is in its way, whose mean output is not known"]
    assert torch.equal(result.network.both.bias, original.both.bias)


def test_layers_that_are_never_called_and_those_that_cannot_be_rewritten_say_so():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.called, self.unused = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
            self.parametrized = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))

        def forward(self, x):
            return self.parametrized(self.called(x))

    original = Odd()
    for statistics in ("batchnorm", TensorDataset(torch.randn(9, 4), torch.zeros(9))):
        result = correct_biases(shifted(original, "called", 0.3), original, statistics, input_mean=0)
        assert result.plan["gained"] == []
        skipped = result.layers.set_index("layer")["skipped"]
        assert skipped["called"] == ""
        assert skipped["unused"] == "it is never called"
        assert "parametrized" in skipped["parametrized"]


CALLED = {
    "a root": (nn.Linear(4, 3), (1, 4), "Linear"),
    "tied": (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), (1, 4), "0"),
    "attention": (nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), (1, 3, 8), "self_attn.in_proj"),
}


@pytest.mark.parametrize("case", CALLED)
def test_what_is_called_is_not_said_never_to_be(case):
    network, shape, layer = copy.deepcopy(CALLED[case])
    if case == "tied":
        network[2].weight = network[0].weight
    table = correct_biases(copy.deepcopy(network), network, example=torch.randn(shape)).layers
    assert "never called" not in table.set_index("layer").loc[layer, "skipped"]


# What is refused.


def test_networks_of_different_layers_are_refused(folded):
    original = folded["digits/resnet"]
    merged = merge_neurons(hash_network(original).network, alpha=0.3).network
    for other in (merged, folded["digits/mlp"], split_inputs(original).network):
        with pytest.raises(ValueError, match="do not have the same layers: correct biases before channels are removed"):
            correct_biases(other, original)


def test_unknown_statistics_are_refused(folded):
    network = folded["digits/mlp"]
    with pytest.raises(ValueError, match="statistics must be 'batchnorm' or a dataset, not 'imagenet'"):
        correct_biases(network, network, "imagenet")


def test_a_network_that_cannot_be_traced_is_refused():
    network = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ValueError, match="cannot be traced"):
        correct_biases(network, network, example=torch.randn(1, 5))
