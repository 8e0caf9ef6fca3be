"""One's own images: every file is read right, or reported."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from redlab.zoo.datasets import load_dataset
from redlab.zoo.image_form import MEAN, STD

GREY = np.add.outer(np.arange(224), np.arange(224)).astype(np.float64) / 446  # from 0 to 1


def put(path: Path, image: Image.Image | None = None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.new("RGB", (230, 240), (255, 0, 0))).save(path, **options)
    return path


def read(root: Path):
    """The dataset, and the one warning or ""."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = load_dataset("imagenet_folder", root=root)
    assert len(caught) <= 1, [str(warning.message) for warning in caught]
    return dataset, str(caught[0].message) if caught else ""


def bytes_of(image: torch.Tensor) -> np.ndarray:
    """The colours that a normalised image had, as bytes, (height, width, 3)."""
    pixels = image * torch.tensor(STD).reshape(3, 1, 1) + torch.tensor(MEAN).reshape(3, 1, 1)
    return (pixels * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def read_one(root: Path, image: Image.Image, name: str = "a.png", **options):
    """The bytes of an image in a folder of one class, and how it was altered."""
    put(root / "cat" / name, image, **options)
    dataset, said = read(root)
    altered = dataset.altered.get(f"cat/{name}", "")
    assert bool(said) == bool(altered)
    return bytes_of(dataset[0][0]), altered


GREYS = {
    "16-bit png": (GREY * 65535, np.uint16, "a.png", "16-bit grey"),
    "16-bit tiff": (GREY * 65535, np.uint16, "a.tif", "16-bit grey"),
    "16-bit, other order": (GREY * 65535, ">u2", "a.tif", "16-bit grey"),
    "32-bit tiff": (GREY * 65535, np.int32, "a.tiff", "16-bit grey"),
    "real, to 1": (GREY, np.float32, "a.tif", "real grey"),
    "real, to 255": (GREY * 255, np.float32, "a.tif", "real grey"),
    "8-bit": (GREY * 255, np.uint8, "a.png", ""),
}


@pytest.mark.parametrize("case", GREYS)
def test_grey_of_any_depth_has_the_same_values_in_8_bits(tmp_path, case):
    values, dtype, name, altered = GREYS[case]
    values = np.rint(values) if np.dtype(dtype).kind != "f" else values
    found, why = read_one(tmp_path, Image.fromarray(values.astype(dtype)), name)
    assert altered in why
    assert (altered == "") == (why == "")
    assert (found[..., 0] == found[..., 1]).all()
    assert abs(found[..., 0] - GREY * 255).max() <= 1
    assert (found.min(), found.max()) == (0, 255)


def png_of_16_bits(size: int, colour: tuple[int, ...]) -> bytes:
    """A square in RGB of 16 bits, which Pillow reads and does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    row = b"\0" + struct.pack(">3H", *colour) * size
    head = struct.pack(">IIBBBBB", size, size, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(row * size)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_sixteen_bits_of_colour_are_cut_and_reported(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").write_bytes(png_of_16_bits(224, (65535, 32768, 0)))
    dataset, _ = read(tmp_path)
    assert dataset.altered == {"cat/a.png": "its 16 bits a channel are cut to 8"}
    assert bytes_of(dataset[0][0])[0, 0].tolist() == [255, 128, 0]


def test_values_that_nobody_can_scale_are_left_out(tmp_path):
    put(tmp_path / "cat" / "a.tif", Image.fromarray((GREY * 1e5).astype(np.int32)))
    put(tmp_path / "cat" / "b.tif", Image.fromarray((GREY - 1).astype(np.float32)))
    put(tmp_path / "cat" / "c.png")
    dataset, said = read(tmp_path)
    assert dataset.files == ("cat/c.png",)
    assert "2 files left out" in said
    assert "its grey values from 0 to 100000 are not within 0..65535" in dataset.left_out["cat/a.tif"]


def test_images_of_every_mode_have_their_colours(tmp_path):
    colour = Image.new("RGB", (224, 224), (200, 100, 50))
    grey = Image.new("L", (224, 224), 77)
    half = Image.new("L", (224, 224), 128)
    seen = Image.merge("LA", (grey, half))
    wanted = {
        "P": (colour.convert("P", palette=Image.Palette.ADAPTIVE), [200, 100, 50], ""),
        "RGBA opaque": (colour.convert("RGBA"), [200, 100, 50], ""),
        "RGBA": (Image.merge("RGBA", (*colour.split(), half)), [200, 100, 50], "its transparency is ignored"),
        "LA": (seen, [77, 77, 77], "its transparency is ignored"),
        "1": (Image.new("1", (224, 224), 1), [255, 255, 255], ""),
        "L": (grey, [77, 77, 77], ""),
    }
    for k, (image, pixel, altered) in enumerate(wanted.values()):
        found, why = read_one(tmp_path / str(k), image)
        assert (found == pixel).all()
        assert why == altered
    found, why = read_one(tmp_path / "cmyk", Image.new("CMYK", (224, 224), (0, 255, 255, 0)), "a.jpg", quality=100)
    assert abs(found.astype(int) - [255, 0, 0]).max() <= 3
    assert why == "turned from CMYK into RGB"


@pytest.mark.filterwarnings("error:.*transparency")
def test_a_palette_with_transparency_shows_its_colours(tmp_path):
    image = Image.new("P", (224, 224), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    found, why = read_one(tmp_path, image, transparency=b"\xff\x00")
    assert found[5, 5].tolist() == [10, 20, 30]
    assert why == "its transparency is ignored"


def test_an_image_is_turned_as_its_camera_was(tmp_path):
    upright = Image.fromarray(np.repeat((GREY * 255).astype(np.uint8)[..., None], 3, axis=2)).resize((224, 230))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    found, why = read_one(tmp_path / "a", upright.transpose(Image.Transpose.ROTATE_90), "a.png", exif=exif)
    wanted, none = read_one(tmp_path / "b", upright, "a.png")
    assert (found == wanted).all()
    assert (why, none) == ("turned as its EXIF orientation says", "")
    exif[0x0112] = 1
    assert read_one(tmp_path / "c", upright, "a.jpg", exif=exif)[1] == ""


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path, name):
    frames = [Image.new("RGB", (224, 224), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if name == "a.webp" else {}
    found, why = read_one(tmp_path, frames[0], name, save_all=True, append_images=frames[1:], **options)
    assert found[0, 0].tolist() == [255, 0, 0]
    assert "the first of its 3 frames is taken" in why


def test_images_below_a_class_folder_are_of_that_class_as_in_torchvision(tmp_path):
    from torchvision.datasets import ImageFolder

    for file in ("cat/b.png", "cat/a/x.JPG", "cat/a/b/y.Jpeg", "dog/z.BMP", "cat.png/c.webp", "dog/a b/c.PNG"):
        put(tmp_path / file)
    dataset, said = read(tmp_path)
    theirs = ImageFolder(tmp_path)
    assert said == ""
    assert [str(tmp_path / file) for file in dataset.files] == [path for path, _ in theirs.samples]
    assert list(dataset.labels) == theirs.targets


STRAYS = ["__MACOSX/cat/._a.png", "cat/._a.png", "cat/Thumbs.db", "dog/desktop.ini", ".ipynb_checkpoints/a.png"]
STRAYS += ["cat/.ipynb_checkpoints/a-checkpoint.png", ".DS_Store", "cat/notes.txt", "readme.md", "cat/.hidden.png"]


def test_what_systems_leave_behind_is_no_class_and_no_image_and_is_reported(tmp_path):
    for file in ("cat/a.png", "dog/b.png", *STRAYS):
        put(tmp_path / file) if file.endswith((".png", "._a.png")) else (tmp_path / file).write_bytes(b"junk")
    dataset, said = read(tmp_path)
    assert dataset.files == ("cat/a.png", "dog/b.png")
    assert dataset.labels == (0, 1)
    assert dataset.left_out.keys() == set(STRAYS)
    assert f"{len(STRAYS)} files left out (" in said
    assert said.count(": hidden") + said.count(": no image") == 3
    assert len(list(dataset)) == 2


def test_images_that_cannot_be_decoded_are_left_out_and_reported(tmp_path):
    noise = Image.fromarray(np.random.RandomState(0).randint(0, 255, (300, 300, 3), np.uint8))
    kept = [put(tmp_path / "cat" / f"whole.{suffix}", noise) for suffix in ("png", "jpg", "bmp", "webp", "gif", "tif")]
    for path in kept:
        (tmp_path / "cat" / f"cut{path.suffix}").write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (tmp_path / "cat" / "empty.png").touch()
    (tmp_path / "cat" / "text.jpg").write_text("no image")
    put(tmp_path / "cat" / "line.png", Image.new("RGB", (1, 150)))
    (tmp_path / "cat" / "trailing.jpg").write_bytes((tmp_path / "cat" / "whole.jpg").read_bytes() + b"more" * 50)
    dataset, said = read(tmp_path)
    assert sorted(dataset.files) == sorted(["cat/trailing.jpg", *(f"cat/{path.name}" for path in kept)])
    assert len(dataset.left_out) == len(kept) + 3
    assert dataset.left_out["cat/empty.png"] == "empty"
    assert "9 files left out" in said
    assert len(list(dataset)) == len(dataset)


def test_an_empty_class_keeps_its_number_and_is_reported(tmp_path):
    for name in ("ant", "bee", "cat"):
        (tmp_path / name).mkdir()
    put(tmp_path / "ant" / "a.png")
    put(tmp_path / "cat" / "a.png")
    (tmp_path / "bee" / "a.png").touch()
    dataset, said = read(tmp_path)
    assert dataset.labels == (0, 2)
    assert dataset.empty == ("bee",)
    assert "1 class folder without images (bee)" in said
    assert dataset.take(np.array([1])).left_out == {"bee/a.png": "empty"}


def test_splits_are_no_classes(tmp_path):
    for split in ("train", "val"):
        put(tmp_path / split / "cat" / "a.png")
    with pytest.raises(ValueError, match=r"holds splits \(train, val\), not classes: name one of them, such as .*/val"):
        read(tmp_path)
    assert read(tmp_path / "val")[0].labels == (0,)
    put(tmp_path / "other" / "images" / "cat" / "a.png")
    dataset, said = read(tmp_path / "other")
    assert dataset.labels == (0,)
    assert "all images lie one level deeper (cat): if those are the classes, name the folder that holds them" in said


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["0", "1", "10", "2", "extra"], r"folders named by numbers and 1 others \(extra\)"),
        (["n00000001", "n00000002", "misc"], r"folders named by WordNet ids and 1 others \(misc\)"),
        (["4", "04"], "the folders 04 and 4 are the same label"),
    ],
)
def test_a_folder_that_would_move_the_labels_of_others_is_refused(tmp_path, names, words):
    for name in names:
        put(tmp_path / name / "a.png")
    with pytest.raises(ValueError, match=words):
        read(tmp_path)


def test_links_in_a_circle_end(tmp_path):
    put(tmp_path / "cat" / "a.png")
    for name in ("one", "two"):
        (tmp_path / "cat" / name).symlink_to(tmp_path / "cat")
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere")
    os.symlink("self", tmp_path / "self")
    dataset, _ = read(tmp_path)
    assert dataset.files == ("cat/a.png",)
    assert dataset.left_out.keys() == {"cat/one/", "cat/two/", "cat/gone.png", "self"}


def table(root: Path, *rows: str) -> Path:
    (root / "labels.csv").write_text("\n".join(["file,label", *rows]) + "\n")
    return root


def test_images_that_the_table_does_not_name_are_reported(tmp_path):
    for name in ("a.png", "b.png", "deep/c.JPG"):
        put(tmp_path / name)
    dataset, said = read(table(tmp_path, "deep/c.JPG,5", "a.png,3"))
    assert dataset.labels == (5, 3)
    assert dataset.left_out == {"b.png": "not in labels.csv"}
    assert "1 file left out (b.png: not in labels.csv)" in said


def test_what_the_table_names_is_altered_and_reported_too(tmp_path):
    put(tmp_path / "a.png", Image.fromarray((GREY * 65535).astype(np.uint16)))
    dataset, said = read(table(tmp_path, "a.png,3"))
    assert dataset.altered.keys() == {"a.png"}
    assert "1 file altered (a.png: its 16-bit grey values" in said


@pytest.mark.parametrize("again", ["a.png,3", "./a.png,3", "a.png,4"])
def test_a_file_that_the_table_names_twice_is_refused(tmp_path, again):
    put(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"labels\.csv, line 3: '(\./)?a\.png' is in line 2 already"):
        read(table(tmp_path, "a.png,3", again))
