"""The registry of networks, their architectures, and load_network."""

from __future__ import annotations

import re
from collections import OrderedDict

import pytest
import torch
from torch import nn

from redlab.network.example import example_input
from redlab.network.recipe import Recipe
from redlab.network.zero_pad import ZeroPadShortcut
from redlab.paths import data_root
from redlab.zoo import networks
from redlab.zoo.architectures import BasicBlock, CifarResNet, to_plus_minus_one
from redlab.zoo.image_form import MEAN, STD
from redlab.zoo.names import list_networks
from redlab.zoo.networks import build, input_shape
from redlab.zoo.saving import load_network

OWN = ["digits/resnet", "digits/mobilenet", "digits/mlp"]
REAL = {
    "cifar10/resnet20": (269_722, "weights/cifar10/resnet20-12fca82f.th"),
    "cifar10/resnet56": (853_018, "weights/cifar10/resnet56-4bfd9763.th"),
    "imagenet/mobilenet_v1_0.75": (2_585_560, "weights/imagenet/mobilenet_v1_0.75_224.pth"),
}


def _needs(file: str) -> None:
    if not (data_root() / file).exists():
        pytest.skip(f"the data root (REDLAB_DATA) holds no {file}")


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _without_init(monkeypatch) -> None:
    """Build networks without filling their weights: their memory is then never touched."""
    for name in ("kaiming_normal_", "kaiming_uniform_", "normal_", "trunc_normal_", "uniform_", "xavier_uniform_"):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)


@pytest.mark.parametrize("name", OWN)
def test_shipped_networks_load_stamped_and_in_eval_mode_wherever_the_data_root_is(name, tmp_path, monkeypatch):
    monkeypatch.setenv("REDLAB_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    network = load_network(name)
    assert network.redlab == Recipe(name, (1, 8, 8), input_mean=(0.3054,))
    assert not any(module.training for module in network.modules())
    assert network(example_input(network)).shape == (1, 10)


@pytest.mark.parametrize("name", OWN)
def test_shipped_files_are_small(name):
    from redlab.paths import shipped

    assert shipped(f"{name}.safetensors").stat().st_size < 1_000_000


@pytest.mark.parametrize("name", REAL)
def test_real_networks_have_the_published_parameters(name):
    assert _parameters(build(name)) == REAL[name][0]


@pytest.mark.parametrize("name", REAL)
def test_real_weights_fit_strictly(name):
    _needs(REAL[name][1])
    network = load_network(name)
    assert network(example_input(network)).shape[1] in (10, 1000)


def test_random_weights_follow_the_global_generator():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first = load_network("digits/mlp", weights=None)
        other = load_network("digits/mlp", weights=None)
        torch.manual_seed(3)
        again = load_network("digits/mlp", weights=None)
    weight = "hidden.0.linear.weight"
    assert torch.equal(first.state_dict()[weight], again.state_dict()[weight])
    assert not torch.equal(first.state_dict()[weight], other.state_dict()[weight])
    assert first.redlab.architecture == "digits/mlp"


@pytest.mark.parametrize("name", ["cifar10/resnet-20", "torchvision/resnet51", "resnet50", "", "/", "torchvision/"])
def test_an_unknown_network_is_refused_with_the_known_ones(name):
    for function in (load_network, build, input_shape, networks.default_weights):
        with pytest.raises(ValueError, match="unknown network") as error:
            function(name)
        assert "digits/resnet" in str(error.value)
        assert "torchvision/NAME for" in str(error.value)


def test_an_unknown_network_gets_a_guess():
    with pytest.raises(ValueError, match="Did you mean 'cifar10/resnet20'"):
        load_network("cifar10/resnet-20")


def test_other_weights_are_refused():
    with pytest.raises(ValueError, match="'default' or None, not 'IMAGENET1K_V2'"):
        load_network("torchvision/resnet18", weights="IMAGENET1K_V2")


def test_missing_weights_say_what_to_put_where(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setenv("REDLAB_DATA", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    for name, part in [("cifar10/resnet20", "akamaster"), ("torchvision/resnet18", "resnet18-f37072fd.pth")]:
        with pytest.raises(ConnectionError, match="place the file by hand") as error:
            load_network(name)
        assert part in str(error.value)
        assert str(tmp_path / "weights") in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"(?s)Google's MobileNetV1 0\.75.*b4b1fd30"):
        load_network("imagenet/mobilenet_v1_0.75")


@pytest.mark.slow
def test_every_torchvision_classifier_builds_with_an_input_shape_and_a_source(monkeypatch):
    _without_init(monkeypatch)
    names = [name for name in list_networks() if name.startswith("torchvision/")]
    assert len(names) >= 80
    for name in names:
        download = networks._find(name).download
        assert download.url.startswith("https://download.pytorch.org/")
        assert len(download.sha256) >= 8
        assert input_shape(name)[0] == 3
        # ImageNet's mean is taken off; one network wants a half taken off in its place.
        halves = [(mean - 0.5) / 0.5 for mean in MEAN] if name.endswith("efficientnet_v2_l") else [0, 0, 0]
        assert networks.input_mean(name) == pytest.approx(halves)
        assert not build(name).training


def _as_old_densenet_file(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As PyTorch 0.3 wrote it: dots in the names of dense layers, no counts of batches, no metadata."""
    kept = {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    return OrderedDict((re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key), kept[key]) for key in kept)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["densenet121", "googlenet", "inception_v3", "mnasnet0_5", "shufflenet_v2_x0_5"])
def test_torchvision_weights_load_as_torchvision_itself_loads_them(name, tmp_path, monkeypatch):
    """The file is written here in the form of the public one; torchvision's own loader is the oracle."""
    from torchvision import models
    from torchvision.models._api import WeightsEnum

    monkeypatch.setenv("REDLAB_DATA", str(tmp_path))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        heads = {"aux_logits": True, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
        state = models.get_model(name, weights=None, **heads).state_dict()
    if name.startswith("densenet"):
        state = _as_old_densenet_file(state)
    file = tmp_path / networks._find(f"torchvision/{name}").download.path
    file.parent.mkdir(parents=True)
    torch.save(state, file)
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: torch.load(file, weights_only=True))
    # The hash in the public name is not that of our stand-in.
    monkeypatch.setattr(networks, "fetch", lambda url, path, sha256, about: path)
    ours = load_network(f"torchvision/{name}")
    theirs = models.get_model(name, weights="DEFAULT").eval()
    image = example_input(ours)
    with torch.inference_mode():
        assert torch.equal(ours(image), theirs(image))


def test_a_zero_padded_shortcut_takes_every_second_pixel_and_pads_both_sides():
    shortcut = ZeroPadShortcut(2, 5, stride=2)
    x = torch.randn(1, 2, 4, 4)
    y = shortcut(x)
    assert y.shape == (1, 5, 2, 2)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert y[:, [0, 3, 4]].count_nonzero() == 0
    assert not list(shortcut.state_dict())


def test_the_widths_of_a_zero_padded_shortcut_can_be_changed():
    shortcut = ZeroPadShortcut(16, 32, stride=2)
    shortcut.zeros_before, shortcut.zeros_after = 6, 7
    assert shortcut(torch.ones(1, 15, 4, 4)).shape == (1, 28, 2, 2)


def test_cifar_resnet_names_its_modules_as_the_checkpoints_do():
    names = {name for name, _ in CifarResNet((3, 3, 3)).named_parameters()}
    assert {"conv1.weight", "bn1.bias", "layer1.0.conv1.weight", "layer3.2.bn2.weight", "linear.bias"} <= names
    assert isinstance(build("cifar10/resnet20").layer2[0], BasicBlock)


def test_mobilenet_maps_normalised_images_to_plus_minus_one():
    pixels = torch.rand(2, 3, 5, 5)
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, STD))
    torch.testing.assert_close(to_plus_minus_one()((pixels - mean) / std), 2 * pixels - 1)


def test_mobilenet_pads_as_tensorflow_does():
    stem = build("imagenet/mobilenet_v1_0.75").stem
    # Only the tap at the centre of a top-left window: pixel (1, 1), as nothing is padded at the top and left.
    nn.init.zeros_(stem.conv.weight)
    with torch.no_grad():
        stem.conv.weight[:, 0, 1, 1] = 1
        x = torch.zeros(1, 3, 8, 8)
        x[0, 0, 1, 1] = 1
        y = stem.conv(stem.pad(x))
    assert y.shape[2:] == (4, 4)
    assert y[0, 0, 0, 0] == 1
    assert y[0, 0].count_nonzero() == 1


@pytest.mark.parametrize("name", ["digits/resnet", "cifar10/resnet20", "torchvision/squeezenet1_1"])
def test_networks_survive_export(name):
    network = load_network(name, weights=None)
    image = example_input(network)
    torch.testing.assert_close(torch.export.export(network, (image,)).module()(image), network(image))


def test_the_example_is_the_same_every_time_and_leaves_the_global_generator_alone():
    network = build("digits/resnet")
    network.redlab = Recipe("digits/resnet", (1, 8, 8))
    before = torch.random.get_rng_state()
    assert torch.equal(example_input(network), example_input(network))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_example_follows_stamp_dtype_and_device():
    network = nn.Sequential(nn.Conv2d(5, 4, 3)).to(torch.bfloat16)
    network.redlab = Recipe("mine", (5, 9, 9))
    assert example_input(network).shape == (1, 5, 9, 9)
    assert example_input(network).dtype == torch.bfloat16
    assert example_input(network.to("meta")).device.type == "meta"


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(3, 4, 3), (1, 3, 224, 224)),
        (nn.Conv2d(1, 4, 3), (1, 1, 28, 28)),
        (nn.Linear(7, 2), (1, 7)),
    ],
)
def test_the_example_is_guessed_from_the_first_layer(layer, shape):
    assert example_input(nn.Sequential(nn.ReLU(), layer, nn.Linear(9, 9))).shape == shape


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(4, 4, 3), nn.Conv1d(3, 4, 3), nn.Embedding(5, 3), nn.LazyLinear(3), nn.LazyConv2d(4, 3), nn.GELU()],
)
def test_where_nothing_can_be_guessed_an_example_is_asked_for(layer):
    with pytest.raises(ValueError, match="example="):
        example_input(nn.Sequential(layer))


def test_torchvision_networks_get_their_own_image_size(monkeypatch):
    from torchvision import models

    _without_init(monkeypatch)
    assert example_input(models.inception_v3(weights=None, init_weights=False)).shape == (1, 3, 299, 299)
    assert example_input(models.resnet18(weights=None)).shape == (1, 3, 224, 224)
    assert example_input(models.VisionTransformer(64, 32, 1, 2, 8, 8)).shape == (1, 3, 64, 64)
    with pytest.raises(ValueError, match="example="):
        example_input(models.video.r3d_18(weights=None))
