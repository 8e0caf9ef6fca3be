"""Images and datasets of one's own by name: torchvision is the oracle, and nothing is guessed."""

from __future__ import annotations

import pickle
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from redlab.network.evaluation import evaluate
from redlab.network.recipe import Recipe
from redlab.pruning.scores import score_channels
from redlab.zoo.dataset_names import check_at_hand, check_dataset, has_training, is_here, own_dataset
from redlab.zoo.datasets import default_dataset, load_dataset
from redlab.zoo.image_form import MEAN, STD

FORM = {"size": 32, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}


def put(path: Path, size: tuple[int, int] = (40, 50), seed: int = 0) -> None:
    """An image of noise; ``size`` is (width, height), as Pillow counts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.RandomState(seed).randint(0, 255, (*size[::-1], 3), np.uint8)).save(path)


def expecting(images: dict | None) -> nn.Module:
    """A network whose recipe says what it expects of images."""
    network = nn.Linear(1, 1)
    network.redlab = Recipe("my/own", (3, 32, 32), images=images)
    return network


def code(path: Path, text: str) -> str:
    path.write_text("import torch\n" + textwrap.dedent(text))
    return f"{path}:make"


def test_labels_of_a_folder_are_those_of_torchvision(tmp_path):
    from torchvision.datasets import ImageFolder

    for k, name in enumerate(("dog", "Cat", "n01440764", "a b", "_x", "Zebra/deep")):
        put(tmp_path / name / "one.png", seed=k)
        put(tmp_path / name / "two.png", seed=k + 10)
    ours, theirs = load_dataset(f"folder:{tmp_path}", **FORM), ImageFolder(tmp_path)
    assert [str(tmp_path / file) for file in ours.files] == [path for path, _ in theirs.samples]
    assert list(ours.labels) == theirs.targets


def test_classes_beyond_a_thousand_are_counted(tmp_path):
    for k in range(1003):
        (tmp_path / f"c{k:04d}").mkdir()
    put(tmp_path / "c1002" / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert load_dataset(f"folder:{tmp_path}", **FORM).labels == (1002,)
    (tmp_path / "labels.csv").write_text("file,label\nc1002/a.png,123456\n")
    assert load_dataset(f"folder:{tmp_path}", **FORM).labels == (123456,)


def test_folders_whose_numbers_are_not_their_labels_are_told(tmp_path):
    for name in ("2", "10"):
        put(tmp_path / name / "a.png")
    with pytest.warns(UserWarning, match="sorted order of their names: 10 has label 0"):
        assert load_dataset(f"folder:{tmp_path}", **FORM).labels == (0, 1)


def test_size_mean_and_std_come_from_the_network_or_from_the_caller(tmp_path):
    put(tmp_path / "cat" / "a.png", (32, 32))
    name, network = f"folder:{tmp_path}", expecting(FORM)
    pixels = torch.from_numpy(np.asarray(Image.open(tmp_path / "cat" / "a.png")).transpose(2, 0, 1) / 255).float()
    mean, std = (torch.tensor(FORM[what]).reshape(3, 1, 1) for what in ("mean", "std"))
    for given in ({"network": network}, FORM, {"network": nn.DataParallel(network)}):
        torch.testing.assert_close(load_dataset(name, **given)[0][0], (pixels - mean) / std)
    dataset = load_dataset(name, network=expecting(FORM | {"size": 99}), size=[32, 32])
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[0][0], dataset[0][0])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "the size, mean and std of the images are not known .no network= was passed.: pass size=224 or size="),
        ({"size": 32, "mean": MEAN}, "the std of the images is not known"),
        ({"network": expecting(None)}, "size, mean and std of .*the recipe of the network does not say"),
        ({"network": nn.Linear(1, 1), "std": STD}, "the size and mean of"),
        ({"network": expecting({"size": 32, "mean": [0.5] * 3})}, "the std of the images is not known"),
        (FORM | {"network": "digits/mlp"}, "network must be the network itself, an nn.Module, not str"),
        (FORM | {"size": 0}, "size must be a whole number"),
        (FORM | {"size": [3, 32, 32]}, "size must be a whole number"),
        (FORM | {"mean": 0.5}, "mean must be a list of three numbers, or of one for grey"),
        (FORM | {"mean": [0.5]}, "must have as many numbers"),
        (FORM | {"std": [0, 1, 1]}, "std must be above 0"),
        (FORM | {"root": "elsewhere"}, "root='elsewhere' cannot be set"),
    ],
)
def test_nothing_is_guessed(tmp_path, given, words):
    put(tmp_path / "cat" / "a.png")
    with pytest.raises(ValueError, match=words):
        load_dataset(f"folder:{tmp_path}", **given)


@pytest.mark.parametrize("size", [(64, 64), (56, 80), (100, 30)])
@pytest.mark.parametrize("image", [(40, 50), (300, 70), (70, 66), (64, 64), (90, 200)])
def test_every_size_agrees_with_torchvisions_resize_and_crop(tmp_path, image, size):
    """The rule of 224 (resize to 256, unless the image lies between) with both numbers scaled, also for two sides."""
    from torchvision.transforms import functional as T

    put(tmp_path / "cat" / "a.png", image)
    ours = load_dataset(f"folder:{tmp_path}", size=list(size), mean=MEAN, std=STD)[0][0]
    theirs, (width, height) = Image.open(tmp_path / "cat" / "a.png"), image
    most = [round(side * 256 / 224) for side in size]
    if height < size[0] or width < size[1] or (height > most[0] and width > most[1]):
        by_height = most[0] / height >= most[1] / width
        side, other = (height, width) if by_height else (width, height)
        length = most[0] if by_height else most[1]
        rest = int(other * length / side)
        theirs = T.resize(theirs, [length, rest] if by_height else [rest, length])
    assert ours.shape == (3, *size)
    torch.testing.assert_close(ours, T.normalize(T.to_tensor(T.center_crop(theirs, list(size))), MEAN, STD))


def test_one_mean_means_grey_images(tmp_path):
    put(tmp_path / "cat" / "a.png", (28, 28))
    image, _ = load_dataset(f"folder:{tmp_path}", size=28, mean=[0.5], std=[0.25])[0]
    grey = np.array(Image.open(tmp_path / "cat" / "a.png").convert("L"))
    torch.testing.assert_close(image, (torch.from_numpy(grey)[None] / 255 - 0.5) / 0.25)


def test_splits_are_folders_where_they_are_there(tmp_path):
    for file in ("train/ant/a.png", "train/bee/b.png", "train/cat/c.png", "val/cat/d.png"):
        put(tmp_path / file)
    name = f"folder:{tmp_path}"
    assert load_dataset(name, "train", **FORM).labels == (0, 1, 2)
    assert load_dataset(name, **FORM).labels == (2,)  # torchvision, which sees one class, would say 0
    assert has_training(name)
    (tmp_path / "test").mkdir()
    put(tmp_path / "test" / "dog" / "e.png")
    with pytest.raises(ValueError, match="class folders that the training split lacks: dog"):
        load_dataset(name, **FORM)
    (tmp_path / "test" / "labels.csv").write_text("file,label\ndog/e.png,1\n")
    with pytest.raises(ValueError, match="their labels may differ"):
        load_dataset(name, **FORM)


def test_a_folder_without_splits_is_for_tests(tmp_path):
    put(tmp_path / "cat" / "a.png")
    assert not has_training(f"folder:{tmp_path}")
    with pytest.raises(ValueError, match=r"has the split 'test' only: 'train' needs the folders train/ and test/"):
        load_dataset(f"folder:{tmp_path}", "train", **FORM)
    put(tmp_path / "more" / "training" / "cat" / "a.png")
    with pytest.raises(ValueError, match=r"holds splits \(training\), not classes"):
        load_dataset(f"folder:{tmp_path / 'more'}", **FORM)


def test_the_limit_is_the_start_of_one_fixed_permutation(tmp_path):
    for k in range(9):
        put(tmp_path / f"c{k}" / "a.png", seed=k)
    name, order = f"folder:{tmp_path}", np.random.RandomState(0).permutation(9)
    assert load_dataset(name, limit=4, **FORM).labels == tuple(order[:4])
    made = code(tmp_path / "mine_limit.py", "def make(split): return torch.arange(9.0)[:, None], torch.arange(9)")
    assert [int(label) for _, label in load_dataset(made, limit=4)] == order[:4].tolist()


def test_a_folder_under_imagenet_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("REDLAB_DATA", str(tmp_path))
    for folder in ("val1", "val2"):
        put(tmp_path / "imagenet" / folder / "17" / "a.png", (230, 240))
    dataset = load_dataset("imagenet_folder:val2")
    assert (dataset.labels, dataset[0][0].shape) == ((17,), (3, 224, 224))
    assert torch.equal(dataset[0][0], load_dataset("imagenet_folder", root=tmp_path / "imagenet" / "val1")[0][0])
    assert is_here("imagenet_folder:val1")
    for refuse in (check_at_hand, load_dataset):
        with pytest.raises(FileNotFoundError, match="known: imagenet_folder:val1, imagenet_folder:val2"):
            refuse("imagenet_folder:val3")
    with pytest.raises(ValueError, match="one split, 'test'"):
        load_dataset("imagenet_folder:val1", "train")


def test_images_of_imagenet_follow_a_network_that_says_what_it_expects(tmp_path):
    put(tmp_path / "0" / "a.png", (300, 240))
    plain = load_dataset("imagenet_folder", root=tmp_path)
    for network in (None, expecting(None), expecting({"size": 224, "mean": list(MEAN), "std": list(STD)})):
        assert torch.equal(load_dataset("imagenet_folder", root=tmp_path, network=network)[0][0], plain[0][0])
    assert load_dataset("imagenet_folder", root=tmp_path, network=expecting(FORM))[0][0].shape == (3, 32, 32)
    assert load_dataset("imagenet_folder", root=tmp_path, size=48)[0][0].shape == (3, 48, 48)


def test_images_that_have_their_own_form_refuse_another(tmp_path):
    made = code(tmp_path / "mine_form.py", "def make(split): return [(torch.zeros(3), 0)]")
    for name in ("digits", "cifar10", made):
        with pytest.raises(ValueError, match=r"mean cannot be set: .* of their own; folder:PATH and"):
            load_dataset(name, mean=MEAN)
    assert len(load_dataset("digits", network=expecting(FORM), limit=3)) == 3


class TwoInputs(nn.Module):
    """(u, v) -> classes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 8), nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.first(u) + self.second(v)))


PAIRS = """
class make(torch.utils.data.Dataset):
    def __init__(self, split):
        self.split = split

    def __len__(self):
        return 12

    def __getitem__(self, index):
        made = torch.Generator().manual_seed(index)
        u, v = torch.randn(3, generator=made), torch.randn(4, generator=made)
        return INPUTS, index % 2
"""


@pytest.mark.parametrize("inputs", ["(u, v)", "{'v': v, 'u': u}", "(u.numpy(), v.numpy())"])
def test_a_function_s_dataset_serves_networks_of_several_inputs(tmp_path, inputs):
    made = code(tmp_path / f"mine_{len(inputs)}.py", PAIRS.replace("INPUTS", inputs))
    dataset, network = load_dataset(made, "train", limit=10), TwoInputs().eval()
    assert dataset.dataset.split == "train"
    assert evaluate(network, dataset, batch_size=4).count == 10
    for criterion in ("taylor", "magnitude"):
        assert score_channels(network, criterion, dataset).values


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("make = 3", "is of type int: it must be a function that takes split="),
        ("def make(): return 1", "does not take split="),
        ("def make(split, size): return 1", "does not take split="),
        ("def make(split): return 1", "split 'test': a dataset must be map-style"),
        ("def make(split): return []", "the dataset is empty"),
        ("def make(split): return [(torch.zeros(3), 0.5)]", "the first sample is not .*labels must be whole numbers"),
        ("def make(split): return [('text', 1)]", "the first sample is not .tensor or array"),
        ("def make(split): return [(torch.zeros(3), 1, 2)]", "the first sample is not .*3 values"),
        ("def make(split): raise RuntimeError('no disk')", "RuntimeError: no disk"),
        ("def other(split): return 1", "has no 'make'"),
    ],
)
def test_a_function_that_gives_no_dataset_is_refused_by_its_name(tmp_path, text, words):
    made = code(tmp_path / f"mine_{abs(hash(text))}.py", text)
    check_at_hand(made)  # nothing is run
    with pytest.raises(ValueError, match=words) as error:
        load_dataset(made)
    assert "mine_" in str(error.value)


def test_a_function_takes_no_root(tmp_path):
    made = code(tmp_path / "mine_root.py", "def make(split): return [(torch.zeros(3), 0)]")
    with pytest.raises(ValueError, match=r"cannot be set: .* is called with split= alone"):
        load_dataset(made, root=tmp_path)


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("folder:", ValueError, "names no folder: write folder:PATH"),
        ("imagenet_folder:../text", ValueError, "NAME is a folder under imagenet/"),
        ("folder:/no/such/place", FileNotFoundError, "no folder /no/such/place"),
        ("/no/such/file.py:make", ValueError, "there is no file"),
        ("nets.py:make()", ValueError, "names no dataset: write FILE.py:NAME, as nets.py:make"),
        ("no_such_package.mine:make", ValueError, "no_such_package"),
        ("folders:x", ValueError, "folders"),
        ("cifar 10", ValueError, "did you mean cifar10.*folder:PATH, FILE.py:NAME"),
    ],
)
def test_what_is_not_there_is_refused_without_running_anything(name, error, words):
    with pytest.raises(error, match=words):
        check_at_hand(name)
    if error is ValueError:
        with pytest.raises(error, match=words):
            check_dataset(name)


def test_a_folder_that_is_missing_is_said_before_the_size_that_is():
    with pytest.raises(FileNotFoundError, match="no folder /no/such/place"):
        load_dataset("folder:/no/such/place")


def test_images_of_other_networks_must_be_named(tmp_path):
    for name in ("timm/resnet18", "hf/folder", "digits/mine.py:Net", "cifar10.nets:Net", "torch.nn:Linear"):
        assert own_dataset(name) is None
        with pytest.raises(ValueError, match=r"name one of digits, .*imagenet_folder:NAME, folder:PATH, FILE\.py:NAME"):
            default_dataset(name)
    network = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="no dataset is known for a network Linear without a name"):
        default_dataset(network)
    network.redlab = Recipe("cifar10/resnet20", (3, 32, 32))
    assert default_dataset(network) == "cifar10"
