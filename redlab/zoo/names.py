"""Networks by name, and where saved ones are, without torch: what is wrong is reported at once."""

from __future__ import annotations

import difflib
import json
import os
import re
from pathlib import Path
from typing import Literal, TypeAlias

from redlab.files.atomic import set_aside
from redlab.zoo.code import check_code, code_of, nearly_code

FACTS, WEIGHTS = "redlab.json", "weights.safetensors"  # the files of a saved network; the first makes it one
TORCHVISION, TIMM, HF = "torchvision/", "timm/", "hf/"
# redlab's own; ``networks`` builds them.
OWN = (
    "digits/resnet",
    "digits/mobilenet",
    "digits/mlp",
    "cifar10/resnet20",
    "cifar10/resnet56",
    "imagenet/mobilenet_v1_0.75",
    "imagenet/efficientnet_lite0",
)
# torchvision's classifiers, listed here because importing torchvision takes seconds. A test compares the two.
CLASSIFIERS = tuple(
    """
    alexnet convnext_base convnext_large convnext_small convnext_tiny densenet121 densenet161 densenet169 densenet201
    efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_b6
    efficientnet_b7 efficientnet_v2_l efficientnet_v2_m efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5
    mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_16gf regnet_x_1_6gf
    regnet_x_32gf regnet_x_3_2gf regnet_x_400mf regnet_x_800mf regnet_x_8gf regnet_y_128gf regnet_y_16gf regnet_y_1_6gf
    regnet_y_32gf regnet_y_3_2gf regnet_y_400mf regnet_y_800mf regnet_y_8gf resnet101 resnet152 resnet18 resnet34
    resnet50 resnext101_32x8d resnext101_64x4d resnext50_32x4d shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5
    shufflenet_v2_x2_0 squeezenet1_0 squeezenet1_1 swin_b swin_s swin_t swin_v2_b swin_v2_s swin_v2_t vgg11 vgg11_bn
    vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn vit_b_16 vit_b_32 vit_h_14 vit_l_16 vit_l_32 wide_resnet101_2
    wide_resnet50_2
    """.split()  # noqa: SIM905  one name a line would fill a page
)


Kind: TypeAlias = Literal["own", "torchvision", "timm", "hf", "file", "module", "folder"]
# timm's names, with or without a tag: resnet18.a1_in1k. A colon or slash would name a hub or a folder.
_TIMM = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def list_networks() -> list[str]:
    """The networks that redlab knows without asking timm or Hugging Face: its own, then ``torchvision/...``.

    Example:
        >>> list_networks()[:3], "torchvision/resnet50" in list_networks()
        (['digits/resnet', 'digits/mobilenet', 'digits/mlp'], True)
    """
    return [*OWN, *(TORCHVISION + name for name in CLASSIFIERS)]


def kind_of_name(name: str | Path) -> Kind | None:
    """What ``load_network`` takes a name for, by its form alone and the files that are there; nothing is imported.

    Returns:
        "own" and "torchvision" for names of ``list_networks()``; "timm", "hf"; "file" for ``FILE.py:NAME``; "module"
        for ``package.module:NAME``; "folder" for the path of a saved network; None for anything else.

    Example:
        >>> [kind_of_name(name) for name in ("digits/mlp", "timm/resnet18", "nets.py:Net", "torch.nn:ReLU")]
        ['own', 'timm', 'file', 'module']
    """
    text = str(name)
    if _saved_folder(name) is not None:
        return "folder"
    if text in OWN:
        return "own"
    if text.startswith(TORCHVISION) and text.removeprefix(TORCHVISION) in CLASSIFIERS:
        return "torchvision"
    if text.startswith(TIMM) and _TIMM.fullmatch(text.removeprefix(TIMM)):
        return "timm"
    if (code := code_of(text)) is not None:
        return "file" if code.is_file else "module"
    return "hf" if text.startswith(HF) and hub_name(text.removeprefix(HF)) else None


def hub_name(place: str) -> str | None:
    """The FOLDER_OR_ID of ``hf/FOLDER_OR_ID``: the absolute path of a folder that exists, else an ID; None: neither."""
    if place and os.path.isdir(os.path.expanduser(place)):
        return os.path.abspath(os.path.expanduser(place))
    return place if _HUB_ID.fullmatch(place) else None


def absolute_name(name: str) -> str:
    """The same network by a name that holds in any folder: paths in it are made absolute.

    Raises:
        ValueError: as ``folder_of``.

    Example:
        >>> absolute_name("timm/resnet18"), absolute_name("torchvision.models:alexnet")
        ('timm/resnet18', 'torchvision.models:alexnet')
    """
    if (folder := folder_of(name)) is not None:
        return str(folder.resolve())
    if (code := code_of(name)) is not None:
        return str(code.absolute())
    return HF + str(hub_name(name.removeprefix(HF))) if kind_of_name(name) == "hf" else name


def unknown_network(name: str) -> str:
    """The message for a name that is no network's."""
    close = difflib.get_close_matches(name, list_networks(), n=3)
    guess = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    more = f"torchvision/NAME for {len(CLASSIFIERS)} classifiers (redlab.list_networks() lists them)"
    others = "timm/NAME, hf/FOLDER_OR_ID, FILE.py:NAME, package.module:NAME, or a folder that save_network wrote"
    return f"unknown network {name!r}.{guess} Known: {', '.join(OWN)}, {more}, {others}"


def folder_of(name_or_path: str | Path) -> Path | None:
    """The folder of a saved network that is meant, or None for a name.

    Raises:
        ValueError: it is neither; the message says what was tried, and the names that are known.
    """
    if (folder := _saved_folder(name_or_path)) is not None:
        return folder
    name = str(name_or_path)
    if kind_of_name(name) is None:
        raise ValueError(_why_neither(name))
    if (code := code_of(name)) is not None:
        check_code(code)
    return None


def _saved_folder(name_or_path: str | Path) -> Path | None:
    """The folder of a saved network, where ``name_or_path`` is one and no network's name."""
    name, folder = str(name_or_path), Path(name_or_path).absolute()
    # os.path accepts any text, even a name that is too long.
    if not os.path.exists(folder) and folder.name and os.path.isfile(set_aside(folder) / FACTS):
        folder = set_aside(folder)  # a save was killed between its two moves
    if not name or not os.path.isfile(folder / FACTS):
        return None
    said = isinstance(name_or_path, Path) or Path(name).is_absolute() or name.startswith(".")
    return folder if said or name not in list_networks() else None


def _why_neither(name: str) -> str:
    unknown = unknown_network(name)
    if hint := nearly_code(name):
        return f"{name!r} names no network: {hint}"
    if name and os.path.isdir(Path(name).absolute()):
        return f"the folder {name} holds no saved network (no {FACTS}); as a name: {unknown}"
    if name.startswith(TIMM):
        return f"{unknown}; timm/NAME takes a name of timm.list_models(), perhaps with a tag, and no other prefix"
    if name.startswith(HF):
        return f"{unknown}; and {name.removeprefix(HF)!r} is neither a folder nor an ID such as OWNER/NAME"
    if name.endswith(".py"):
        return f"{unknown}; say which of its networks is meant: {name}:NAME"
    return f"{unknown}; and there is no folder {name!r}" if os.sep in name else unknown


def check_target(folder: str | Path) -> None:
    """Refuse a path that ``save_network`` may not write to: anything but a saved network, an empty folder or nothing.

    Raises:
        ValueError: with the reason.
    """
    folder = Path(folder).resolve()
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a new folder, or one that save_network wrote")
    held = {path.name for path in folder.iterdir()}
    if held and FACTS not in held:
        raise ValueError(f"{folder} is no saved network and not empty: it is left alone, name another folder")
    if others := sorted(held - {FACTS, WEIGHTS}):
        raise ValueError(f"{folder} holds more than a saved network: move {', '.join(others)} elsewhere first")


def architecture_of(name_or_path: str) -> str | None:
    """The name of a network, or of the one that the saved one was made of; None where its folder does not tell.

    Raises:
        ValueError: as ``folder_of``.
    """
    if (folder := folder_of(name_or_path)) is None:
        return name_or_path
    try:
        found = json.loads((folder / FACTS).read_text(encoding="utf-8"))["recipe"]["architecture"]
        return found if found is None else str(found)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None  # opening it reports the damage
