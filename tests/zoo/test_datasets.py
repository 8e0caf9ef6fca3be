"""The datasets that redlab knows by name."""

from __future__ import annotations

import hashlib
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from redlab.paths import data_root
from redlab.zoo.datasets import default_dataset, load_dataset
from redlab.zoo.image_form import MEAN, STD


def _data(*parts: str) -> Path:
    path = data_root().joinpath(*parts)
    if not path.exists():
        pytest.skip(f"the data root (REDLAB_DATA) holds no {'/'.join(parts)}")
    return path


def _image(path: Path, size: tuple[int, int] = (230, 240), color: tuple[int, int, int] = (255, 0, 0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def _table(root: Path, *rows: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "labels.csv").write_text("\n".join(["file,label", *rows]) + "\n")
    return root


def test_digits_split_is_fixed_stratified_and_complete():
    train, test = load_dataset("digits", "train"), load_dataset("digits")
    assert (len(train), len(test)) == (1437, 360)
    assert set(np.bincount(test.labels)) <= {35, 36, 37}
    both = np.concatenate([train.images, test.images])
    assert len(both) == 1797
    # The very split that the shipped networks were trained and measured on.
    assert hashlib.sha256(test.labels.astype(np.uint8).tobytes()).hexdigest().startswith("70ee2850bb25b543")
    assert hashlib.sha256(np.ascontiguousarray(test.images).tobytes()).hexdigest().startswith("3cc232bd25364446")


def test_digits_are_single_channel_float_images_in_the_unit_interval():
    for image, label in load_dataset("digits"):
        assert image.shape == (1, 8, 8)
        assert image.dtype == torch.float32
        assert 0 <= image.min() <= image.max() <= 1
        assert type(label) is int


def test_limit_is_the_start_of_one_fixed_permutation():
    whole, few, more = (load_dataset("digits", limit=limit) for limit in (None, 10, 20))
    order = np.random.RandomState(0).permutation(360)
    assert len(few) == 10
    assert np.array_equal(few.labels, more.labels[:10])
    for k in range(10):
        assert torch.equal(few[k][0], whole[order[k]][0])
    assert len(load_dataset("digits", limit=10_000)) == 360


@pytest.mark.parametrize("limit", [0, -1, 1.5, "10", True])
def test_a_bad_limit_is_refused(limit):
    with pytest.raises(ValueError, match="limit"):
        load_dataset("digits", limit=limit)


def test_an_unknown_dataset_or_split_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"did you mean cifar10\?\); known: digits, mnist, fashion_mnist"):
        load_dataset("cifar_10")
    with pytest.raises(ValueError, match="known: test, train"):
        load_dataset("digits", "valid")
    with pytest.raises(ValueError, match="one split, 'test'"):
        load_dataset("imagenet_folder", "train")


def test_an_array_dataset_keeps_bytes_and_pickles():
    dataset = load_dataset("digits", limit=5)
    assert dataset.images.dtype == np.uint8
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[3][0], dataset[3][0])
    with pytest.raises(IndexError):
        dataset[5]


def test_cifar10_agrees_with_torchvisions_transforms():
    root = _data("cifar10", "cifar-10-batches-py").parent
    from torchvision import datasets, transforms

    normalise = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    theirs = datasets.CIFAR10(root, train=False, transform=normalise)
    ours = load_dataset("cifar10")
    assert len(ours) == 10_000
    for k in (0, 77, 9_999):
        torch.testing.assert_close(ours[k][0], theirs[k][0])
        assert ours[k][1] == theirs[k][1]
        assert ours[k][0].is_contiguous()


def test_a_tampered_cifar_batch_is_never_unpickled(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    class Touches:
        def __reduce__(self):
            return os.system, (f"touch '{tmp_path / 'trace'}'",)

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list, ("batches.meta", "")]:
        (folder / name).write_bytes(pickle.dumps(Touches()))

    def fail(self):
        raise OSError("no route to host")

    monkeypatch.setattr(CIFAR10, "download", fail)
    with pytest.raises(ConnectionError, match=r"(?s)no route to host.*put the folder cifar-10-batches-py"):
        load_dataset("cifar10", root=tmp_path)
    assert not (tmp_path / "trace").exists()


def _idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(head + array.astype(np.uint8).tobytes())


def _mnist(root: Path, kind: str, count: int = 10_000, labels: int = 10) -> Path:
    raw = root / kind / "raw"
    images = np.zeros((count, 28, 28), np.uint8)
    images[:, 0, 0] = 255
    for part in ("train", "t10k"):
        _idx(raw / f"{part}-images-idx3-ubyte", images)
        _idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count) % labels)
    return root


@pytest.mark.parametrize(
    ("name", "kind", "mean", "std"),
    [("mnist", "MNIST", 0.1307, 0.3081), ("fashion_mnist", "FashionMNIST", 0.2860, 0.3530)],
)
def test_mnist_is_normalised_by_its_own_constants(tmp_path, name, kind, mean, std):
    image, label = load_dataset(name, root=_mnist(tmp_path, kind))[3]
    assert image.shape == (1, 28, 28)
    assert label == 3
    assert image[0, 0, 0] == pytest.approx((1 - mean) / std, rel=1e-5)
    assert image[0, 1, 1] == pytest.approx(-mean / std, rel=1e-5)


def test_mnist_files_of_another_size_or_with_other_labels_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected 10000 of 28 x 28"):
        load_dataset("mnist", root=_mnist(tmp_path / "few", "MNIST", count=100))
    with pytest.raises(ValueError, match=r"labels 0\.\.9"):
        load_dataset("mnist", root=_mnist(tmp_path / "labels", "MNIST", labels=11))
    root = _mnist(tmp_path / "cut", "MNIST")
    file = root / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ValueError, match="damaged"):
        load_dataset("mnist", root=root)


def test_missing_data_says_what_to_put_where(tmp_path, monkeypatch):
    from torchvision import datasets

    def fail(self):
        raise RuntimeError("Error downloading")

    monkeypatch.setattr(datasets.MNIST, "download", fail)
    monkeypatch.setenv("REDLAB_DATA", str(tmp_path))
    with pytest.raises(ConnectionError, match=r"put the four \*-ubyte files of FashionMNIST") as error:
        load_dataset("fashion_mnist")
    assert str(tmp_path / "fashion_mnist") in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"labels\.csv") as error:
        load_dataset("imagenet_folder")
    assert str(tmp_path / "imagenet" / "val250") in str(error.value)


def test_a_table_gives_files_and_labels_in_its_order(tmp_path):
    _image(tmp_path / "b.png", color=(255, 255, 255))
    _image(tmp_path / "deep" / "a.jpg")
    dataset = load_dataset("imagenet_folder", root=_table(tmp_path, "b.png,7", "deep/a.jpg,999"))
    assert dataset.labels == (7, 999)
    image, _ = dataset[0]
    assert image.shape == (3, 224, 224)
    assert image.dtype == torch.float32
    torch.testing.assert_close(image[:, 5, 5], (1 - torch.tensor(MEAN)) / torch.tensor(STD))
    assert pickle.loads(pickle.dumps(dataset)).files == dataset.files


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("gone.png,3", r"line 3: there is no file 'gone\.png'"),
        ("../a.png,3", r"line 3: '\.\./a\.png' is not a file inside"),
        ("/etc/hostname,3", "line 3: '/etc/hostname' is not a file inside"),
        (",3", "line 3: '' is not a file inside"),
        ("a.png,1000", r"line 3: label '1000' is not a whole number in 0\.\.999"),
        ("a.png,-1", "label '-1'"),
        ("a.png,cat", "label 'cat'"),
        ("a.png", "label ''"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, words):
    _image(tmp_path / "in" / "a.png")
    _image(tmp_path / "a.png")
    with pytest.raises(ValueError, match=words):
        load_dataset("imagenet_folder", root=_table(tmp_path / "in", "a.png,1", row))


def test_a_table_without_its_columns_or_rows_is_refused(tmp_path):
    (tmp_path / "labels.csv").write_text("name,class\na.png,1\n")
    with pytest.raises(ValueError, match="needs the columns file,label"):
        load_dataset("imagenet_folder", root=tmp_path)
    with pytest.raises(ValueError, match="holds no images"):
        load_dataset("imagenet_folder", root=_table(tmp_path / "empty"))


@pytest.mark.parametrize("content", [b"file,label\n\xff.png,1\n", b"file,label\n" + b"a" * 200_000 + b",1\n"])
def test_a_table_that_is_no_text_or_has_endless_cells_is_named(tmp_path, content):
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"labels\.csv is no table in UTF-8 \(.*\): save it as CSV with the columns"):
        load_dataset("imagenet_folder", root=tmp_path)


def test_a_name_too_long_for_a_file_is_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="line 2: there is no file 'nnn"):
        load_dataset("imagenet_folder", root=_table(tmp_path, f"{'n' * 5000},1"))


@pytest.mark.parametrize("size", [(1, 150), (300, 2)])
def test_a_line_of_pixels_is_refused_before_it_is_enlarged(tmp_path, size):
    _image(tmp_path / "a.png", size)
    dataset = load_dataset("imagenet_folder", root=_table(tmp_path, "a.png,1"))
    with pytest.raises(ValueError, match=rf"a\.png cannot be decoded: {size[0]} x {size[1]} pixels are a line"):
        dataset[0]


@pytest.mark.filterwarnings("error")
def test_a_picture_as_large_as_pillow_warns_of_is_refused_where_warnings_are_errors(tmp_path):
    Image.new("1", (10_000, 9_000)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png cannot be decoded: .*90000000 pixels"):
        load_dataset("imagenet_folder", root=_table(tmp_path, "a.png,1"))[0]


def test_a_truncated_image_is_named_when_it_is_read(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(np.random.RandomState(0).randint(0, 255, (230, 230, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:4000])
    (tmp_path / "b.jpg").write_bytes(b"no image")
    dataset = load_dataset("imagenet_folder", root=_table(tmp_path, "a.jpg,1", "b.jpg,2"))
    for k, name in enumerate(("a.jpg", "b.jpg")):
        with pytest.raises(ValueError, match=f"{name} cannot be decoded"):
            dataset[k]


@pytest.mark.parametrize("size", [(500, 300), (224, 224), (227, 227), (256, 400), (100, 150)])
def test_images_of_every_size_agree_with_torchvisions_resize_and_crop(tmp_path, size):
    from torchvision.transforms import functional as T

    noise = np.random.RandomState(0).randint(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    image, _ = load_dataset("imagenet_folder", root=_table(tmp_path, "a.png,1"))[0]
    theirs = Image.fromarray(noise)
    if not 224 <= min(size) <= 256:
        theirs = T.resize(theirs, 256)
    theirs = T.normalize(T.to_tensor(T.center_crop(theirs, 224)), MEAN, STD)
    torch.testing.assert_close(image, theirs)


def test_class_folders_named_by_integers_are_their_labels(tmp_path):
    for name in ("17", "4", "900"):
        _image(tmp_path / name / "a.png")
    (tmp_path / ".hidden").mkdir()
    assert load_dataset("imagenet_folder", root=tmp_path).labels == (17, 4, 900)


def test_other_class_folders_count_in_sorted_order(tmp_path):
    for name in ("dog", "cat"):
        _image(tmp_path / name / "a.png")
    dataset = load_dataset("imagenet_folder", root=tmp_path)
    assert dataset.files == ("cat/a.png", "dog/a.png")
    assert dataset.labels == (0, 1)


def test_some_wordnet_folders_need_the_list_of_all_ids(tmp_path):
    root = tmp_path / "val"
    ids = [f"n{k:08d}" for k in range(1000)]
    for name in (ids[3], ids[700]):
        _image(root / name / "a.png")
    with pytest.raises(ValueError, match=r"wnids_sorted\.txt"):
        load_dataset("imagenet_folder", root=root)
    (tmp_path / "wnids_sorted.txt").write_text("\n".join(ids))
    assert load_dataset("imagenet_folder", root=root).labels == (3, 700)
    for content in ("\n".join(ids[:-1]).encode(), "\n".join([*ids[:-1], "z"]).encode(), b"\xff" * 1000):
        (tmp_path / "wnids_sorted.txt").write_bytes(content)
        with pytest.raises(ValueError, match="must list the 1000"):
            load_dataset("imagenet_folder", root=root)


def test_all_wordnet_folders_count_in_sorted_order(tmp_path):
    for k in range(1000):
        (tmp_path / f"n{k:08d}").mkdir()
    _image(tmp_path / "n00000321" / "a.png")
    assert load_dataset("imagenet_folder", root=tmp_path).labels == (321,)


def test_a_folder_without_labels_is_refused(tmp_path):
    _image(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"neither labels\.csv nor"):
        load_dataset("imagenet_folder", root=tmp_path)


def test_every_network_family_has_its_images():
    named = {name: default_dataset(name) for name in ("digits/mlp", "cifar10/resnet20", "torchvision/vgg16")}
    assert list(named.values()) == ["digits", "cifar10", "imagenet_folder"]
    with pytest.raises(ValueError, match="name one of digits"):
        default_dataset("mine/net")
