"""The images that notebooks learn and score on: those of training, and what stands in for them."""

from __future__ import annotations

import own_network
import pytest
import torch

from redlab import load_dataset, load_network, short_name, training_images
from redlab.zoo import dataset_names


def test_training_images_are_those_of_the_training_split():
    network = load_network("digits/mlp")
    own, wanted = training_images("digits", network, 20), load_dataset("digits", "train", limit=20)
    assert all(torch.equal(own[k][0], wanted[k][0]) for k in range(20))
    found = training_images(f"{own_network.__file__}:images", network, 5)
    assert len(found) == 5


def test_without_training_images_the_test_images_stand_in_with_a_warning(monkeypatch):
    monkeypatch.setattr(dataset_names, "_TEST_ONLY", ("digits",))
    with pytest.warns(UserWarning, match="digits has no training images: its test images are used"):
        found = training_images("digits", load_network("digits/mlp"))
    assert len(found) == len(load_dataset("digits"))


def test_code_without_a_training_split_is_an_error_that_says_what_to_return(tmp_path):
    file = tmp_path / "only_test.py"
    file.write_text("def images(split):\n    return {'test': [(0, 0)]}[split]\n")
    with pytest.raises(ValueError, match=r"only_test\.py:images: KeyError: 'train' .*let it return the test images"):
        training_images(f"{file}:images", load_network("digits/mlp"))


@pytest.mark.parametrize(
    ("network", "title"),
    [
        ("torchvision/resnet50", "torchvision/resnet50"),
        ("package.nets:Net", "package.nets:Net"),
        ("nets/mine.py:Net", "mine.py:Net"),
        ("/home/me/mine.py:Net", "mine.py:Net"),
        ("/home/me/small", "small"),
        ("small", "small"),
        ("hf/organisation/name", "hf/organisation/name"),
        ("hf//home/me/name", "hf/name"),
    ],
)
def test_a_title_names_a_file_and_no_folder_of_this_machine(network, title):
    assert short_name(network) == title
