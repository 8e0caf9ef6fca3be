"""evaluate: right numbers, and a network left as it was."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from statsmodels.stats.proportion import proportion_confint
from torch import nn
from torch.utils.data import TensorDataset

from redlab.network.evaluation import Evaluation, evaluate, right_images
from redlab.paths import data_root
from redlab.zoo.datasets import load_dataset
from redlab.zoo.saving import load_network


def _needs(*files: str) -> None:
    for file in files:
        if not (data_root() / file).exists():
            pytest.skip(f"the data root (REDLAB_DATA) holds no {file}")


def _points(n: int = 10, classes: int = 3) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(n, classes, generator=generator), torch.arange(n) % classes)


class Answer(nn.Module):
    """Gives back whatever a function makes of its input."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_accuracy_and_loss_are_those_of_all_images_at_once():
    dataset = _points(10)
    images, labels = dataset.tensors
    found = evaluate(nn.Identity(), dataset, batch_size=3)
    assert found.count == 10
    assert found.accuracy == pytest.approx(100 * (images.argmax(1) == labels).float().mean().item())
    assert found.loss == pytest.approx(F.cross_entropy(images, labels).item(), rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_the_batch_size_changes_nothing(batch_size):
    network, dataset = load_network("digits/resnet"), load_dataset("digits", limit=50)
    found, usual = evaluate(network, dataset, batch_size), evaluate(network, dataset)
    assert found.accuracy == usual.accuracy
    assert found.loss == pytest.approx(usual.loss, rel=1e-5)


@pytest.mark.parametrize(("name", "least"), [("digits/resnet", 98), ("digits/mobilenet", 97), ("digits/mlp", 96)])
def test_shipped_networks_reach_the_accuracy_on_their_cards(name, least):
    import json

    from redlab.paths import shipped

    card = json.loads(shipped(f"{name}.json").read_text())
    found = evaluate(load_network(name), load_dataset("digits"))
    assert found.accuracy >= least
    assert found.accuracy == pytest.approx(card["test_accuracy"], abs=0.28)  # one image


def test_the_network_and_the_global_generator_are_left_as_they_were():
    network = load_network("digits/mobilenet").train()
    network.blocks[0].eval()
    flags = [module.training for module in network.modules()]
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    strides = [parameter.stride() for parameter in network.parameters()]
    before = torch.random.get_rng_state()
    evaluate(network, load_dataset("digits", limit=20))
    assert [module.training for module in network.modules()] == flags
    assert [parameter.stride() for parameter in network.parameters()] == strides
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_training_flags_come_back_after_an_error():
    network = nn.Sequential(nn.Linear(3, 2))  # too few classes
    with pytest.raises(ValueError, match="0 to 2, the network has 2 classes"):
        evaluate(network, _points())
    assert network.training
    assert network[0].training


def test_a_half_precision_network_gets_images_of_its_dtype():
    network = load_network("digits/mlp").to(torch.bfloat16)
    assert evaluate(network, load_dataset("digits")).accuracy > 96


def test_nan_outputs_make_the_loss_nan_and_their_images_wrong():
    def spoil(x):
        x = F.one_hot(torch.arange(len(x)) % 3, 3).float()
        x[0] = float("nan")
        return x

    found = evaluate(Answer(spoil), _points(9))
    assert found.loss != found.loss
    assert found.accuracy == pytest.approx(100 * 8 / 9)


@pytest.mark.parametrize(
    "function", [lambda x: x.sum(1), lambda x: x[:, :, None], lambda x: (x, x), lambda x: x[:1], lambda x: {"out": x}]
)
def test_an_output_that_is_not_a_row_of_classes_is_refused(function):
    with pytest.raises(ValueError, match=r"must answer \(images, classes\)"):
        evaluate(Answer(function), _points())


def test_a_negative_label_an_empty_dataset_and_a_bad_batch_size_are_refused():
    with pytest.raises(ValueError, match="-1 to -1"):
        evaluate(nn.Identity(), TensorDataset(torch.ones(1, 3), torch.tensor([-1])))
    with pytest.raises(ValueError, match="empty"):
        evaluate(nn.Identity(), TensorDataset(torch.ones(0, 3), torch.ones(0, dtype=torch.long)))
    with pytest.raises(ValueError, match="batch_size"):
        evaluate(nn.Identity(), _points(), batch_size=0)


def test_an_evaluation_reads_well():
    words = "accuracy 91.73 % of 10,000 images (95 % interval 91.2 to 92.3 %), cross-entropy 0.3727"
    assert str(Evaluation(91.73, 0.37267, 10_000)) == words


@pytest.mark.parametrize(("right", "count"), [(358, 360), (0, 10), (10, 10), (1, 1), (9173, 10_000)])
def test_the_interval_is_wilsons(right, count):
    found = Evaluation(100 * right / count, 0.0, count)
    wanted = proportion_confint(right, count, method="wilson")
    assert found.interval == pytest.approx([100 * bound for bound in wanted], abs=1e-5)
    assert list(found.columns().values()) == [found.accuracy, count, *found.interval]


def test_right_images_are_those_that_the_accuracy_counts():
    network, images = load_network("digits/mlp"), load_dataset("digits")
    right = right_images(network, images)
    assert right.shape == (360,)
    assert 100 * right.double().mean().item() == pytest.approx(evaluate(network, images).accuracy)


@pytest.mark.slow
def test_resnet20_reproduces_its_published_accuracy():
    _needs("cifar10/cifar-10-batches-py", "weights/cifar10/resnet20-12fca82f.th")
    found = evaluate(load_network("cifar10/resnet20"), load_dataset("cifar10"))
    assert found.accuracy == pytest.approx(91.73, abs=0.015)  # one image either way: sums round differently


@pytest.mark.slow
def test_resnet56_reproduces_its_published_accuracy():
    _needs("cifar10/cifar-10-batches-py", "weights/cifar10/resnet56-4bfd9763.th")
    found = evaluate(load_network("cifar10/resnet56"), load_dataset("cifar10"))
    assert found.accuracy == pytest.approx(93.39, abs=0.015)


@pytest.mark.slow
def test_mobilenet_is_right_on_four_of_five_real_images():
    _needs("imagenet/val250/labels.csv", "weights/imagenet/mobilenet_v1_0.75_224.pth")
    found = evaluate(load_network("imagenet/mobilenet_v1_0.75"), load_dataset("imagenet_folder"))
    assert found.accuracy == pytest.approx(80.4, abs=0.41)  # measured here; the padding alone would cost 4 points
