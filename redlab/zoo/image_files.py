"""Image files of any mode as colour or grey images of one size, and what is changed on the way."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
RESIZE, CROP = 256, 224  # the share of a resized image that is left after cropping
FLATTEST = 100  # the longer side of an image is less than so many times the shorter
_SYSTEM = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin"}
_SYSTEM |= {"system volume information", "lost+found"}
_ORIENTATION = 0x0112  # of EXIF
_COLOURS = ("1", "L", "P", "RGB", "LA", "PA", "RGBA", "RGBX", "La", "RGBa")


def is_stray(name: str) -> bool:
    """Whether a name is that of a hidden file, or of one that an operating system writes."""
    return name.startswith(".") or name.lower() in _SYSTEM


def why_no_image(root: Path, file: str) -> str:
    """Why a ``file`` inside of ``root`` is not taken for an image, by its name, or ""."""
    path = root / file
    if any(map(is_stray, Path(file).parts)):
        return "hidden or of the operating system"
    if not os.path.isfile(path):
        return "no file, or a link to none"
    if path.suffix.lower() not in SUFFIXES:
        return "no image by its suffix"
    return "" if path.stat().st_size else "empty"


def look_at(path: Path) -> tuple[str, str]:
    """Why an image cannot be decoded, and what decoding will change; "" for nothing.

    A JPEG with a proper end is not decoded to find out; any other image is.
    """
    try:
        with Image.open(path) as image:
            _check_sides(image)
            changes = _changes_of_mode(image)  # first: EXIF may load the image
            if (frames := getattr(image, "n_frames", 1)) > 1:
                changes.append(f"the first of its {frames} frames is taken")
            if image.getexif().get(_ORIENTATION, 1) in range(2, 9):
                changes.append("turned as its EXIF orientation says")
            if image.format != "JPEG" or not _ends_as_jpeg(path):
                image.load()
            return "", ", ".join(changes)
    except Exception as error:  # a damaged image raises nearly anything
        return f"cannot be decoded: {_reason(error)}", ""


def decode(path: Path, size: tuple[int, int] = (CROP, CROP), grey: bool = False) -> Image.Image:
    """``size`` (height, width), in colour or ``grey``: the first frame, turned as EXIF says, resized and cropped.

    The image is resized to ``resized(size)``, of which the centre is taken; one that is neither smaller than ``size``
    nor larger than that is only cropped.

    Raises:
        ValueError: it cannot be decoded; the message names it.
    """
    try:
        with Image.open(path) as image:
            _check_sides(image)
            ImageOps.exif_transpose(image, in_place=True)
            colour = as_colour(image)
            return _cropped(colour.convert("L") if grey else colour, size)
    except Exception as error:
        raise ValueError(f"{path} cannot be decoded: {_reason(error)}") from error


def resized(size: tuple[int, int]) -> tuple[int, int]:
    """The sides that an image just covers before its centre of ``size`` is taken: 256 for 224, others alike.

    Example:
        >>> from redlab.zoo.image_files import resized
        >>> resized((224, 224)), resized((299, 299)), resized((32, 128))
        ((256, 256), (342, 342), (37, 146))
    """
    return round(size[0] * RESIZE / CROP), round(size[1] * RESIZE / CROP)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its message is the whole path again
        return "it is no image, or one of a kind that Pillow does not know"
    return str(error) or type(error).__name__


def as_colour(image: Image.Image) -> Image.Image:
    """An image of any mode in RGB.

    Grey values of 16 bits become 8 bits, 65535 white. Real ones are taken from 0 to 1 where they all are, else from 0
    to 255. Transparency is ignored, as torchvision does: the colours below it show.

    Raises:
        ValueError: its values are beyond those ranges, so that white is unknown.

    Example:
        >>> from PIL import Image
        >>> as_colour(Image.fromarray(np.array([[0, 257, 65535]], np.uint16))).getpixel((1, 0))
        (1, 1, 1)
    """
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _scaled(np.asarray(image), {65535: 255 / 65535})
    elif image.mode == "F":
        image = _scaled(np.asarray(image), {1: 255.0, 255: 1.0})
    elif image.mode == "P":  # by way of RGBA, or Pillow warns of a palette with transparency
        image = image.convert("RGBA")
    return image.convert("RGB")


def _scaled(values: np.ndarray, scales: dict[int, float]) -> Image.Image:
    """Grey values of 8 bits. White is the smallest of the keys of ``scales`` that no value exceeds."""
    low, high = values.min(), values.max()
    for white, scale in scales.items():
        if low >= 0 and high <= white:
            return Image.fromarray(np.rint(values * scale).astype(np.uint8))
    raise ValueError(
        f"its grey values from {low:g} to {high:g} are not within 0..{max(scales)}: save it in 8 or 16 bits"
    )


def _changes_of_mode(image: Image.Image) -> list[str]:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        as_colour(image)  # raises if its values are beyond any range
        return [f"its {'real' if image.mode == 'F' else '16-bit'} grey values are scaled to 8 bits"]
    if any("16" in str(tile[3]) for tile in getattr(image, "tile", ())):
        return ["its 16 bits a channel are cut to 8"]
    if image.mode not in _COLOURS:
        return [f"turned from {image.mode} into RGB"]
    if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        return ["its transparency is ignored"]
    return []


def _ends_as_jpeg(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-min(64, path.stat().st_size), os.SEEK_END)
        return file.read().rstrip(b"\0\r\n ").endswith(b"\xff\xd9")


def _check_sides(image: Image.Image) -> None:
    if max(image.size) >= FLATTEST * min(image.size):  # resizing it would fill the memory
        raise ValueError(f"{image.size[0]} x {image.size[1]} pixels are a line, not an image")


def _cropped(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    crop, most = (size[1], size[0]), resized(size)[::-1]  # Pillow counts (width, height)
    smaller = any(side < least for side, least in zip(image.size, crop, strict=True))
    larger = all(side > limit for side, limit in zip(image.size, most, strict=True))
    if smaller or larger:
        # The axis that has to grow most, or may shrink least, gets its length; the other keeps the shape.
        side, length = max(zip(image.size, most, strict=True), key=lambda pair: pair[1] / pair[0])
        width, height = (other * length // side for other in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)  # antialiased, as Pillow always does
    left, top = (round((side - length) / 2) for side, length in zip(image.size, crop, strict=True))
    return image.crop((left, top, left + crop[0], top + crop[1]))
