"""What one input costs: PyTorch's own counter is the oracle for products, hand-made networks for the rows."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from redlab import hash_network, load_network, split_inputs
from redlab.network.cost import COSTS, measure_cost
from redlab.zoo.networks import build


def oracle(network, example):
    """Products of a real forward, without the fused attention that the counter can't see into."""
    network.eval()
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with FlopCounterMode(display=False) as counter:
        network(example)
    torch.backends.mha.set_fastpath_enabled(fused)
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2


def check(network, example):
    """The table of ``network``, after every check that holds for all of them."""
    table = measure_cost(network, example)
    assert table.attrs["macs"] == oracle(network, example)
    assert table.attrs["parameters"] == sum(p.numel() for p in network.parameters())
    assert table.attrs["bytes"] == sum(p.numel() * p.element_size() for p in network.parameters())
    assert list(table.columns) == ["layer", "kind", *COSTS, "skipped"]
    assert all(table[name].dtype == "int64" for name in COSTS)
    assert table.attrs == {name: table[name].sum() for name in COSTS}
    assert table["layer"].is_unique
    assert (table["additions"] == table["products"]).all()
    assert not table["lookups"].any()
    return table


def products(table):
    return {layer: count for layer, count in zip(table["layer"], table["products"], strict=True) if count}


def test_two_layers_counted_by_hand():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 5))
    table = check(network, torch.rand(1, 3, 8, 8))
    conv, linear = 4 * 3 * 3 * 3 * 6 * 6, 4 * 6 * 6 * 5
    assert table.values.tolist() == [
        ["0", "Conv2d", 112, conv, conv, conv, 0, 448, ""],
        ["1", "BatchNorm2d", 8, 0, 0, 0, 0, 32, ""],
        ["4", "Linear", 725, linear, linear, linear, 0, 2900, ""],
    ]


LAYERS = {
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6, padding=1), (6, 9, 9), 6 * (9 + 2 * 8) ** 2),
    "grouped": (nn.Conv2d(6, 9, 3, groups=3, stride=2), (6, 9, 9), 9 * 2 * 9 * 16),
    "1d": (nn.Conv1d(2, 3, 5, bias=False), (2, 9), 2 * 3 * 5 * 5),
    "3d": (nn.Conv3d(2, 3, 3, dilation=2), (2, 7, 7, 7), 2 * 3 * 27 * 27),
    "transposed": (nn.ConvTranspose2d(2, 3, 3, stride=2), (2, 5, 5), 2 * 3 * 9 * 25),
    "linear on sequences": (nn.Linear(4, 5), (7, 4), 4 * 5 * 7),
    "half": (nn.Linear(4, 5).to(torch.bfloat16), (4,), 20),
    "double": (nn.Linear(4, 5).double(), (4,), 20),
}


@pytest.mark.parametrize("case", LAYERS)
def test_products_of_one_layer(case):
    layer, shape, wanted = LAYERS[case]
    table = check(layer, torch.rand(1, *shape, dtype=layer.weight.dtype))
    assert products(table) == {type(layer).__name__: wanted}


def test_attention_counts_in_its_own_row():
    length, width = 5, 8

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend = nn.MultiheadAttention(width, 2, batch_first=True)
            self.read = nn.Linear(width, 1)

        def forward(self, x):
            return self.read(self.attend(x, x, x, need_weights=False)[0])

    table = check(Encoder(), torch.rand(1, length, width))
    projections, contractions = 4 * length * width * width, 2 * length * length * width
    assert products(table) == {"attend": projections, "read": length * width}
    assert table.set_index("layer").loc["attend", "macs"] == projections + contractions
    # The output projection owns its weight; its products are asked for by the attention around it.
    assert "attend.out_proj" in set(table["layer"])


def test_frozen_encoder_layers_are_counted_too():
    network = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).requires_grad_(False)
    with torch.no_grad():
        assert products(check(network, torch.rand(1, 5, 8))).keys() == {"self_attn", "linear1", "linear2"}


def test_functional_products_belong_to_the_module_that_asks_for_them():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.rand(4, 4))
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            return F.linear(self.inner(F.linear(x, self.weight)), self.weight) @ x.mT

    table = check(nn.Sequential(Block()), torch.rand(1, 3, 4))
    assert products(table) == {"0": 2 * 48, "0.inner": 48}
    assert table["macs"].tolist() == [2 * 48 + 36, 48]


def test_a_layer_called_twice_counts_twice_and_owns_its_parameters_once():
    layer = nn.Linear(4, 4)
    table = check(nn.Sequential(layer, nn.ReLU(), layer), torch.rand(1, 4))
    assert table[["layer", "parameters", "products"]].values.tolist() == [["0", 20, 32]]


def test_tied_weights_count_where_they_come_first():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, bias=False))
    network[1].weight = network[0].weight
    table = check(network, torch.rand(1, 4))
    assert table["parameters"].tolist() == [20, 0]
    assert table["products"].tolist() == [16, 16]


def test_the_size_of_the_batch_does_not_matter():
    network = models.resnet18(num_classes=10)
    one, seven = (measure_cost(network, torch.rand(batch, 3, 33, 33)) for batch in (1, 7))
    assert one.equals(seven)


NETWORKS = {"resnet18": 1_814_073_344, "mobilenet_v2": 300_774_272}


@pytest.mark.parametrize("name", NETWORKS)
def test_published_totals(name):
    network = models.get_model(name, weights=None)
    assert check(network, torch.rand(1, 3, 224, 224)).attrs["macs"] == NETWORKS[name]


CIFAR = [("resnet20", 36_957_504, 40_551_040), ("resnet56", 113_892_672, 125_485_696)]


@pytest.mark.parametrize(("name", "products", "macs"), CIFAR)
def test_cifar_resnets(name, products, macs):
    torch.manual_seed(0)  # one random weight in 2^24 is exactly 0, and costs no product
    found = measure_cost(build(f"cifar10/{name}"), torch.rand(1, 3, 32, 32)).attrs
    assert (found["products"], found["additions"], found["macs"]) == (products, products, macs)


@pytest.mark.parametrize("name", ["densenet121", "shufflenet_v2_x0_5", "efficientnet_b0"])
def test_the_total_is_pytorchs_on_small_images(name):
    check(models.get_model(name, weights=None, num_classes=10), torch.rand(1, 3, 64, 64))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["vit_b_16", "vit_b_32", "swin_t", "swin_v2_t", "maxvit_t", "convnext_tiny", "regnet_y_8gf"]
)
def test_the_total_is_pytorchs_on_attention_and_large_networks(name):
    check(models.get_model(name, weights=None), torch.rand(1, 3, 224, 224))


def test_a_window_transformer_counts_its_functional_layers():
    network = models.SwinTransformer([4, 4], 16, [1, 1], [2, 2], [4, 4], num_classes=3)
    table = check(network, torch.rand(1, 3, 64, 64)).set_index("layer")
    # Its forward reads the weights of qkv and proj, and never calls them.
    assert table.loc["features.1.0.attn.qkv", "products"] == 0
    assert table.loc["features.1.0.attn", "products"] == 4 * 16 * 16 * 16 * 16


def test_a_huge_network_costs_nothing_to_measure():
    with torch.device("meta"):
        network = nn.Sequential(nn.Linear(1 << 17, 1 << 17, bias=False))  # 64 GB, if it were real
    assert measure_cost(network, torch.empty(1, 1 << 17)).attrs["products"] == 1 << 34


def test_a_network_that_decides_by_value_is_run_for_real():
    class Fickle(nn.Module):
        def __init__(self):
            super().__init__()
            self.large, self.small = nn.Linear(4, 400), nn.Linear(4, 4)

        def forward(self, x):
            return self.large(x) if x.sum() > 0 else self.small(x)

    assert products(measure_cost(Fickle(), torch.ones(1, 4))) == {"large": 1600}
    assert products(measure_cost(Fickle(), -torch.ones(1, 4))) == {"small": 16}


def test_measuring_leaves_the_network_as_it_was():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout()).train()
    network[1].eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    measure_cost(network, torch.rand(2, 3, 8, 8))
    assert [module.training for module in network.modules()] == [True, True, False, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_grad_mode_does_not_matter(mode):
    network, example = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)), torch.rand(1, 3, 8, 8)
    outside = measure_cost(network, example)
    with mode():
        assert measure_cost(network, example).equals(outside)


def test_by_default_the_example_is_the_networks_own():
    assert measure_cost(nn.Linear(3, 2)).attrs["products"] == 6


def test_a_network_without_layers_has_no_rows():
    table = measure_cost(nn.ReLU(), torch.rand(1, 3))
    assert len(table) == 0
    assert table.attrs == dict.fromkeys(COSTS, 0)


def test_a_wrong_example_is_refused_with_its_shape_and_the_reason():
    with pytest.raises(ValueError, match=r"Conv2d cannot run on an input of shape \(1, 5, 8, 8\): .*channels"):
        measure_cost(nn.Conv2d(3, 4, 3), torch.rand(2, 5, 8, 8))


class Direct(nn.Module):
    """Calls its layer's forward, which no hook of the layer sees."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer.forward(x)


def test_a_split_layer_is_counted_where_its_forward_is_called_directly():
    hashed = hash_network(load_network("digits/mlp")).network
    split = split_inputs(hashed).network.classifier
    assert measure_cost(Direct(split), torch.zeros(1, 128)).attrs == measure_cost(split, torch.zeros(1, 128)).attrs
