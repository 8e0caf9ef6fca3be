"""Equalisation: the function stays, ranges or rows become alike, hashing and bias correction go on as before."""

import pytest
import torch
from nets import Net, randomise
from torch import nn

from redlab import correct_biases, equalise, fold_batchnorm, hash_network, load_network, save_network
from redlab.compression.moments import mean_inputs
from redlab.compression.rescaling import few_bits
from redlab.network.layers import weight_layers
from redlab.network.result import of_layers

MODES = ["ranges", "absorb"]
each_mode = pytest.mark.parametrize("mode", MODES)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def change(one, other, shape, count=3):
    inputs = torch.randn(count, *shape)
    with torch.no_grad():
        wanted, got = one(inputs), other(inputs)
    return float((wanted - got).norm() / wanted.norm())


def folded(name, weights=None):
    return fold_batchnorm(randomise(load_network(name, weights=weights)))


def rows_of(network, name):
    return network.get_submodule(name).weight.detach().flatten(1)


def chain():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 5, 1))
    with torch.no_grad():
        network[0].weight *= torch.linspace(-6, 6, 8).exp2().view(-1, 1, 1, 1)
        network[2].weight *= torch.linspace(5, -5, 8).exp2().view(-1, 1, 1, 1)
    return network.eval(), torch.zeros(1, 3, 8, 8)


@each_mode
@pytest.mark.parametrize("name", ["digits/mlp", "digits/resnet", "digits/mobilenet", "cifar10/resnet20"])
def test_the_function_stays(name, mode):
    result = folded(name)
    made = equalise(result.network, mode, graph=result.graph)
    assert change(result.network, made.network, result.network.redlab.input_shape) < 1e-5
    rows = of_layers(made.layers)
    assert ((rows["smallest"] >= 2**-20) & (rows["largest"] <= 2**20) & (rows["smallest"] <= rows["largest"])).all()
    free = rows["skipped"] == ""
    assert (rows.loc[~free, ["largest", "smallest"]] == 1).all(axis=None)
    assert free.any() == (name != "digits/mobilenet")


@pytest.mark.slow
@each_mode
@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "mobilenet_v2", "densenet121", "shufflenet_v2_x1_0"])
def test_the_function_of_torchvision_networks_stays(name, mode):
    result = folded(f"torchvision/{name}")
    made = equalise(result.network, mode, graph=result.graph)
    assert change(result.network, made.network, (3, 64, 64), 2) < 1e-5
    assert (made.layers["skipped"] == "").any()


def test_rows_and_columns_get_equal_ranges():
    network, example = chain()
    made = equalise(network, "ranges", example).network
    rows = [rows_of(made, name).abs().amax(1) for name in ("0", "2")]
    columns = [rows_of(made, "2").abs().amax(1), rows_of(made, "4").abs().amax(0)]
    for row, column in zip(rows, columns, strict=True):
        assert torch.allclose(row, column, rtol=0.02)
    assert change(network, made, example.shape[1:]) < 1e-5


def test_a_second_time_nothing_moves():
    network, example = chain()
    for mode in MODES:
        once = equalise(network, mode, example).network
        rows = equalise(once, mode, example).layers
        assert ((rows["largest"] < 1.02) & (rows["smallest"] > 0.98)).all()


def test_absorbing_leaves_every_row_of_a_layer_alike():
    network, example = chain()
    made = equalise(network, "absorb", example)
    for name in ("0", "2"):
        sizes = rows_of(made.network, name).square().mean(1).sqrt()
        assert sizes.max() / sizes.min() < 1.02
    assert made.layers["skipped"].tolist() == ["", "", "network output"]
    assert change(network, made.network, example.shape[1:]) < 1e-5


def test_a_residual_stream_takes_the_mean_of_its_layers():
    network = Net(
        lambda net, x: net.last(net.inner(net.first(x).relu()).add(net.other(x)).relu()),
        first=nn.Linear(6, 6), inner=nn.Linear(6, 6), other=nn.Linear(6, 6), last=nn.Linear(6, 2),
    ).eval()  # fmt: skip
    made = equalise(network, "absorb", torch.zeros(1, 6)).network
    sizes = [rows_of(made, name).square().mean(1).log2() / 2 for name in ("inner", "other")]
    away = sum(sizes)
    assert away.max() - away.min() < 0.05
    assert change(network, made, (6,)) < 1e-5


@each_mode
def test_rows_of_zeros_and_tiny_ones_stay_bounded(mode):
    network, example = chain()
    with torch.no_grad():
        network[0].weight[0] = 0
        network[0].weight[1] *= 1e-15
        network[4].weight[:, 3] = 0
    made = equalise(network, mode, example)
    assert made.layers["smallest"].min() == 2**-20
    assert all(tensor.isfinite().all() for tensor in made.network.state_dict().values())
    assert change(network, made.network, example.shape[1:]) < 1e-5


def test_factors_have_few_bits():
    factors = torch.rand(1000).double().mul(80).sub(40).exp2()
    rounded = few_bits(factors)
    assert ((rounded / factors - 1).abs() <= 2**-8).all()
    codes = torch.randint(-(2**14), 2**14, (1000,)).float()
    products = codes * rounded.float()
    assert torch.equal(products.double(), codes.double() * rounded)
    assert torch.equal(products / rounded.float(), codes)


@each_mode
def test_biases_are_corrected_as_before(mode):
    result = folded("digits/resnet")
    made = equalise(result.network, mode, graph=result.graph)
    means = [mean_inputs(own, None, (0.0,)) for own in (result.network, made.network)]
    assert means[0].calls.keys() == means[1].calls.keys()
    hashed = hash_network(made.network, rule="uniform", levels=16).network
    corrected = correct_biases(hashed, made, input_mean=0.0)
    plain = correct_biases(hashed, made.network, input_mean=0.0)
    assert corrected.layers["shift"].tolist() == plain.layers["shift"].tolist()
    assert (corrected.layers["shift"][1:] > 0).all()  # the mean input of the first is 0


def test_what_is_known_of_outputs_is_scaled_too():
    result = folded("digits/resnet")
    made = equalise(result.network, "absorb", graph=result.graph).network
    inputs = torch.randn(64, 1, 8, 8)
    for name in ("conv1", "layer1.0.conv1"):
        seen = []
        for network in (result.network, made):
            layer, outputs = network.get_submodule(name), []
            hook = layer.register_forward_hook(lambda _, given, out, outputs=outputs: outputs.append(out))
            network(inputs)
            hook.remove()
            seen.append((outputs[0] - layer.out_mean.view(1, -1, 1, 1)) / layer.out_std.view(1, -1, 1, 1))
        assert torch.allclose(*seen, atol=1e-3)


def test_it_is_saved_and_opened(tmp_path):
    made = equalise(fold_batchnorm(load_network("digits/mlp")).network, "absorb")
    save_network(made, tmp_path / "mlp")
    again = load_network(str(tmp_path / "mlp"))
    assert again.redlab.steps[-1]["step"] == "equalise"
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), made.network.parameters(), strict=True))


def test_scales_of_hashed_rows_move_whole_and_codes_stay():
    network, example = chain()
    before = {}
    with torch.no_grad():
        for layer in list(weight_layers(network))[:2]:
            scale = few_bits(torch.rand(layer.weight.shape[0]) + 0.5)
            codes = torch.randint(-31, 32, layer.weight.shape).float() / 64
            layer.weight.copy_(codes * scale.view(-1, 1, 1, 1))
            layer.module.register_buffer("out_scale", scale)
            before[layer.name] = codes, scale
    made = equalise(network, "absorb", example).network
    for name in before:
        assert torch.equal(made.get_submodule(name).out_scale, torch.ones(8))
    codes, scale = before["0"]
    assert torch.equal(made[0].weight, codes)
    codes, _ = before["2"]
    assert torch.equal(made[2].weight, codes * scale.view(-1, 1, 1, 1))  # what the first layer gave away
    assert change(network, made, example.shape[1:]) < 1e-5


def test_wrong_options_are_refused():
    network, example = chain()
    with pytest.raises(ValueError, match="mode must be one of ranges, absorb"):
        equalise(network, "rows", example)
    with torch.no_grad():
        network[2].weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="layer 2: NaN or inf"):
        equalise(network, example=example)
