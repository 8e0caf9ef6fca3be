"""Every criterion on every kind of network: what comes out is smaller, dense, and runs."""

import pytest
import torch
from nets import labelled, made

from redlab import load_network, prune_channels, score_channels
from redlab.channels.coupling import couple
from redlab.pruning.criteria.registry import CRITERIA

slow = pytest.mark.slow
ZOO = ["resnet18", "mobilenet_v2", "densenet121", "resnext50_32x4d"]
each_criterion = pytest.mark.parametrize("criterion", [name for name, own in CRITERIA.items() if own.channels])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def check(network, criterion, images, dataset, **options):
    """Score, take 30 % of the channels, and look at what is left."""
    scores = score_channels(network, criterion, dataset, example=images[:1], **options)
    assert len(scores.values) > 1
    result = prune_channels(network, scores, 0.3, example=images[:1])
    gone = sum(len(where) - len({*where} - {-1}) for where in result.plan["groups"].values())
    assert gone == int(0.3 * len(scores))
    layers, smaller = result.layers, result.network
    assert (layers["channels_before"] - layers["channels_after"] == layers["merged"] + layers["removed"]).all()
    assert layers["products_after"].sum() < (1 if options else 0.9) * layers["products_before"].sum()
    assert "not compensated" not in result.plan["achieved"]
    with torch.no_grad():
        got = smaller(images)
    assert got.shape == network(images).shape
    assert got.isfinite().all()
    old, new = network.state_dict(), smaller.state_dict()
    assert all(tensor.numel() <= old[name].numel() for name, tensor in new.items() if name in old)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in smaller.modules())


@each_criterion
@pytest.mark.parametrize(
    "name", ["digits/resnet", "digits/mlp", "depthwise", pytest.param("digits/mobilenet", marks=slow)]
)
def test_small_networks_get_smaller(name, criterion):
    network, images = made(name, 2)
    check(network, criterion, images, labelled(images, 8))


@slow
@each_criterion
@pytest.mark.parametrize("name", ZOO)
def test_torchvision_gets_smaller(name, criterion):
    network, images = load_network(f"torchvision/{name}", weights=None), torch.randn(2, 3, 64, 64)
    # The oracle runs the network once for every channel: half an hour for all of ResNeXt's.
    free = [group.name for group in couple(network, images[:1]) if not group.frozen]
    options = {"only": free[1:3]} if criterion == "oracle" else {}
    check(network, criterion, images, labelled(images, 4, 1000), **options)
