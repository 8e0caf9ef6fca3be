"""What stands in the place of a layer or norm: it has their attributes, or the network keeps them, with the reason."""

import pytest
import torch
from nets import Net, randomised
from torch import nn

from redlab import as_dense, fold_batchnorm, load_network, red_plus_plus, separate_kernels, sparsify, split_inputs
from redlab.compression.units import UNITS, split_layer

LAYERS = {
    "conv": nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2),
    "conv, circular": nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular", bias=False),
    "conv, same": nn.Conv1d(4, 6, 3, padding="same"),
    "volumes": nn.Conv3d(2, 3, 3),
    "linear": nn.Linear(4, 6),
}
ASKED = [
    *("in_channels", "out_channels", "in_features", "out_features", "kernel_size", "stride", "padding", "dilation"),
    *("groups", "padding_mode", "transposed", "output_padding", "_reversed_padding_repeated_twice"),
]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("case", LAYERS)
def test_a_split_layer_has_what_the_layer_has_and_nothing_else(case, unit):
    layer = LAYERS[case]
    layer.note = "mine"
    split = split_layer(layer, unit)
    for name in ASKED:
        assert hasattr(split, name) == hasattr(layer, name)
        assert getattr(split, name, None) == getattr(layer, name, None)
    assert torch.equal(split.weight, layer.weight)
    assert split.bias is layer.bias
    assert split.note == split.dense().note == "mine"
    assert not hasattr(split.dense(), "geometry")


class Audio(nn.Module):
    """As the encoders of speech check their inputs: the layers are asked for their strides and widths."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv1d(3, 6, 3, padding=1), nn.Conv1d(6, 6, 3, stride=2, padding=1)
        self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(6, 4)

    def forward(self, x):
        assert x.shape[-1] == 8 * self.one.stride[0] * self.two.stride[0]
        assert self.norm.num_features == self.two.out_channels == self.head.in_features
        assert self.norm.eps > 0
        hidden = self.norm(self.two(self.one(x).relu())).to(self.head.weight.dtype)
        return self.head(hidden.mean(-1))


@pytest.mark.parametrize("step", [split_inputs, separate_kernels, red_plus_plus])
def test_a_network_that_asks_its_layers_for_their_shapes_runs_on(step):
    torch.manual_seed(0)
    network, x = randomised(Audio()), torch.rand(2, 3, 16)
    options = {"max_error": 1e-5} if step is red_plus_plus else {}
    result = step(network, example=x, **options)
    assert result.layers["skipped"].str.contains("does not run").sum() == 0
    torch.testing.assert_close(result.network(x), network(x), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(as_dense(result.network)(x), network(x), atol=1e-4, rtol=1e-3)
    assert fold_batchnorm(network, x).layers["folded"].tolist() == ["", "norm", ""]
    assert sparsify(network, 0.5, example=x)(x).shape == (2, 4)


def test_layers_that_the_code_asks_for_more_stay_and_say_why():
    layers = {name: nn.Linear(4, 4) for name in "abcde"}

    def forward(net, x):
        net.b.weight.mean()  # which a split layer has, too
        assert isinstance(net.d, nn.Linear), "d must be linear"
        return net.e(net.d(net.c(net.b(net.a(x)))))

    network, x = Net(forward, **layers), torch.rand(2, 4)
    network.redlab = load_network("digits/mlp", weights=None).redlab
    result = split_inputs(network, example=x)
    skipped = result.layers.set_index("layer")["skipped"].to_dict()
    assert skipped.pop("d") == "the network does not run with it split: d must be linear"
    assert set(skipped.values()) == {""}
    assert result.plan["layers"] == result.network.redlab.steps[-1]["layers"] == ["a", "b", "c", "e"]
    assert type(result.network.d) is nn.Linear
    torch.testing.assert_close(result.network(x), network(x))


@pytest.mark.parametrize("asks", ["weight", "running_mean", "bias"])
def test_a_norm_whose_values_the_code_asks_for_stays_and_says_why(asks):
    def forward(net, x):
        x = net.one(net.a(x))
        return net.two(net.b(x)).to(getattr(net.two, asks).dtype)

    layers = {"a": nn.Conv2d(3, 4, 3), "b": nn.Conv2d(4, 4, 3), "one": nn.BatchNorm2d(4), "two": nn.BatchNorm2d(4)}
    network, x = randomised(Net(forward, **layers)), torch.rand(2, 3, 9, 9)
    result = fold_batchnorm(network, x)
    rows = result.layers.set_index("layer")
    assert rows["folded"].to_dict() == {"a": "one", "b": "", "two": ""}
    assert rows.loc["two", "skipped"].startswith("the network's code asks for the norm itself: ")
    assert asks in rows.loc["two", "skipped"]
    torch.testing.assert_close(result.network(x), network(x), atol=1e-5, rtol=1e-4)
