"""What opens the files of others, with valid files of every kind that the real writers make."""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import pickle
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from nbformat import v4
from PIL import Image
from safetensors.torch import save_file

from redlab import (
    apply_plan,
    correct_biases,
    example_input,
    fold_batchnorm,
    harden,
    hash_network,
    inspect_checkpoint,
    load_dataset,
    load_network,
    load_runs,
    merge_neurons,
    prune_channels,
    prune_weights,
    save_network,
    score_channels,
    score_weights,
    separate_kernels,
    sparsify,
    split_inputs,
)
from redlab.files.checkpoint import load_weights, read_checkpoint
from redlab.files.state import read_state, write_state
from redlab.lab.keys import run_key
from redlab.lab.parameters import default_parameters
from redlab.lab.report.sources import other_runs
from redlab.lab.runs import Run
from redlab.lab.sweeps import read_spec
from redlab.paths import checkout
from redlab.zoo import networks
from redlab.zoo import saving as storage
from redlab.zoo.image_folder import read_image_folder


@dataclass(frozen=True)
class Target:
    """Something that opens a folder, or a file in it.

    Attributes:
        name: of the target.
        make: writes the valid folders, each by a name of its own in the folder that it is given.
        open: opens one of them, and uses what comes out.
        declared: the errors that the docstrings declare.
        named: whether the message of a ValueError must name a path in the folder.
        seal: what somebody would mend after a change, so that a checksum does not give it away.
    """

    name: str
    make: Callable[[Path], None]
    open: Callable[[Path], object]
    declared: tuple[type[Exception], ...] = (ValueError, OSError)
    named: bool = True
    seal: Callable[[Path, Random], None] = lambda folder, draw: None


class _Harm:
    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


def _tensors() -> dict[str, torch.Tensor]:
    weight = torch.randn(6, 5)
    odd = torch.tensor([float("nan"), 1e-42, -0.0])
    half = {"half": weight.half(), "bfloat": weight.bfloat16(), "double": weight.double(), "count": torch.tensor(3)}
    return {"a.weight": weight, "a.bias": torch.randn(6), "conv": torch.randn(4, 3, 3, 3), "odd": odd, **half}


def _make_safetensors(folder: Path) -> None:
    for name, tensors in {"mixed": _tensors(), "one": {"w": torch.randn(20, 9)}}.items():
        (folder / name).mkdir()
        save_file(tensors, folder / name / "a.safetensors", {"format": "pt"})


def _trained() -> dict[str, Any]:
    """What trainers save: an optimizer, numbers of numpy, arguments, containers of many classes."""
    state = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(6, 5)}}, "param_groups": [{"lr": 0.1}]}
    odd = {"args": argparse.Namespace(lr=0.1), "loss": np.float64(0.3), "path": Path("a"), "deque": deque([1], 3)}
    odd |= {"sets": [{1, 2}, frozenset("ab")], "expanded": torch.ones(1).expand(9), "mean": np.ones(2)}
    return {"net": _tensors(), "optimizer": state, **odd, "counts": defaultdict(list, {1: [2]})}


def _make_kinds(folder: Path) -> None:
    """Files of every kind under names that say another one; two of them are checkpoints."""
    small = {"w": torch.randn(3, 2)}
    save_file(small, folder / "x")
    made = {"safe": (folder / "x").read_bytes(), "lfs": b"version https://git-lfs.github.com/spec/v1\nsize 3\n"}
    made |= {"gguf": b"GGUF\3\0\0\0", "html": b"<html></html>", "json": b'{"weight_map": {"a": "b"}}', "text": b"no"}
    made |= {"onnx": b"\x08\x08\x12\x07pytorch", "gz": gzip.compress(b"x"), "pickle": pickle.dumps({"a": 1}, 0)}
    for name, write in (("pt", torch.save), ("npy", lambda a, file: np.save(file, a["w"].numpy()))):
        write(small, buffer := io.BytesIO())
        made[name] = buffer.getvalue()
    (folder / "x").unlink()
    for name, content in made.items():
        (folder / name).mkdir()
        (folder / name / "a.ckpt").write_bytes(content)


def _make_pickled(folder: Path) -> None:
    tensors, weight = _tensors(), torch.randn(8, 6)
    views = {"w": weight, "t": weight.t(), "cut": weight[::2, 1:3], "tied": weight}
    nested = {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}, "rates": [0.1]}
    odd = {"sparse": torch.eye(3).to_sparse(), "parameter": torch.nn.Parameter(weight), "code": _Harm()}
    for name, content in {"plain": tensors, "views": views, "nested": nested, "odd": odd, "list": [weight]}.items():
        for form in ("new", "old"):
            (folder / f"{name} {form}").mkdir()
            torch.save(content, folder / f"{name} {form}" / "a.pt", _use_new_zipfile_serialization=form == "new")
    for protocol in (2, 4):
        (folder / f"trained {protocol}").mkdir()
        torch.save(_trained(), folder / f"trained {protocol}" / "a.pt", pickle_protocol=protocol)
    (folder / "harm").mkdir()
    (folder / "harm" / "a.pt").write_bytes(pickle.dumps(_Harm(), protocol=2))


def _make_sharded(folder: Path) -> None:
    for name, suffix, write in (("new", ".safetensors", save_file), ("old", ".pt", torch.save)):
        (folder / name).mkdir()
        shards = {f"part-{k}{suffix}": {f"w{k}": torch.randn(4, k), f"b{k}": torch.randn(4)} for k in (1, 2)}
        for file, tensors in shards.items():
            write(tensors, folder / name / file)
        places = {tensor: file for file, tensors in shards.items() for tensor in tensors}
        index = {"metadata": {"total_size": 80}, "weight_map": places}
        (folder / name / "model.safetensors.index.json").write_text(json.dumps(index))


def _make_weights(folder: Path) -> None:
    state = load_network("digits/mlp").state_dict()
    small = {name: tensor.half() for name, tensor in state.items()}
    for name, content in {"plain": small, "nested": {"state_dict": small, "epoch": 1}, "harm": _Harm()}.items():
        (folder / name).mkdir()
        torch.save(content, folder / name / "a.pt")
    (folder / "trained").mkdir()
    torch.save(_trained() | {"net": small}, folder / "trained" / "a.pt")
    (folder / "safe").mkdir()
    save_file(small, folder / "safe" / "a.safetensors")


def _open_weights(folder: Path) -> None:
    path = next((path for path in sorted(folder.iterdir()) if path.suffix == ".safetensors"), folder / "a.pt")
    load_weights(load_network("digits/mlp", weights=None), read_checkpoint(path), str(path))


def _make_networks(folder: Path) -> None:
    network, mlp = load_network("digits/resnet"), load_network("digits/mlp")
    hashed = hash_network(fold_batchnorm(network).network).network
    # By hand: red_plus_plus differentiates, which PyTorch can't in a process forked from one that did.
    folded = fold_batchnorm(mlp)
    rows = hash_network(folded.network, "uniform", max_error=0.1, scale="row")
    made = {
        "plain": load_network("digits/mlp").half(),
        "merged": merge_neurons(hashed, alpha=0.25),
        "split": split_inputs(hashed),
        "separated": separate_kernels(hashed),
        "red++": split_inputs(correct_biases(rows.network, folded.network).network, signed=True),
        "channels": prune_channels(mlp, score_channels(mlp, "magnitude"), ratio=0.5),
        "weights": prune_weights(mlp, score_weights(mlp, "magnitude"), ratio=0.5),
        "masked": harden(sparsify(load_network("digits/mlp"), 0.25, "filter", weight_bits=8)),
    }
    for name, saved in made.items():
        save_network(saved, folder / name)


def _open_network(folder: Path) -> None:
    network = load_network(folder)
    dtypes = {tensor.dtype for tensor in network.state_dict().values() if tensor.is_floating_point()}
    if len(dtypes) == 1 and network.redlab.input_shape == networks.input_shape(network.redlab.architecture):
        network(example_input(network).to(*dtypes))


def _seal_network(folder: Path, draw: Random) -> None:
    """Half of the time the checksum fits again."""
    facts, weights = folder / storage.FACTS, folder / storage.WEIGHTS
    if draw.random() < 0.5 and facts.is_file() and weights.is_file():
        try:
            facts.write_text(json.dumps({**json.loads(facts.read_bytes()), "sha256": storage.sha256_of(weights)}))
        except (ValueError, TypeError, RecursionError):
            return


_CALL = {"rate": 0.1, "widths": [1, 2], "network": "digits/mlp"}


def _make_states(folder: Path) -> None:
    state = {"network": _tensors(), "epoch": 3, "optimizer": {"state": {0: {"step": 1.0}}, "groups": [{"lr": 0.1}]}}
    write_state(folder / "whole" / "a.pt", _CALL, state)
    write_state(folder / "other" / "a.pt", {**_CALL, "rate": 0.2}, state)


_PARAMETERS = """\
n = 1
rate = 0.5
name = "kde"
flag = False
levels = [0.1, 0.2]
network = "digits/resnet"
seed = 0
free = None
"""
_SPEC = """\
notebook: "01"
grid:
  rate: [0.1, 1e-3]
  levels: [[0.1], [1]]
  network: [digits/mlp, digits/resnet]
points:
- {n: 2, flag: true}
- {name: lloyd, free: [1, a]}
seeds: 3
"""


def _make_specs(folder: Path) -> None:
    cell = v4.new_code_cell(_PARAMETERS, metadata={"tags": ["parameters"]}, id="a")
    small = {"notebook": "all", "grid": {"n": [1, 2]}, "seeds": [4, 5]}
    for name, spec in {"long": _SPEC, "short": yaml.safe_dump(small)}.items():
        (folder / name / "notebooks").mkdir(parents=True)
        (folder / name / "notebooks" / "01_all.ipynb").write_text(json.dumps(v4.new_notebook(cells=[cell])))
        (folder / name / "spec.yml").write_text(spec)


NOTEBOOK = checkout() / "notebooks" / "02_hash_collapse.ipynb"


def _make_runs(folder: Path) -> None:
    frame = pd.DataFrame({"layer": ["a", "b"], "share": [0.5, np.nan], "n": [1, 2]}, index=pd.Index([3, 4], name="row"))
    defaults = default_parameters(NOTEBOOK)
    for name, parts in {"many": ("digits/mlp", "digits/mobilenet"), "one": ("digits/mlp",)}.items():
        for network in parts:
            own = folder / name / NOTEBOOK.stem / run_key(NOTEBOOK, {"network": network})
            (own / "figures").mkdir(parents=True)
            facts = {"notebook": NOTEBOOK.stem, "parameters": {**defaults, "network": network}, "seconds": 1.5}
            (own / "run.json").write_text(json.dumps(facts))
            frame.to_parquet(own / "results.parquet")
    failed = folder / "many" / NOTEBOOK.stem / "failed"
    failed.mkdir()
    (failed / "failed.json").write_text(json.dumps({**facts, "error": "ValueError", "message": "no", "cell": "1/0"}))


def _open_report(folder: Path) -> None:
    known = Run(folder / NOTEBOOK.stem / "none", NOTEBOOK.stem, {}, 1.0)
    for source in other_runs(NOTEBOOK, known, Counter()):
        source.frame()


def _make_plans(folder: Path) -> None:
    network = load_network("digits/resnet")
    plans = {
        "pruned": prune_channels(network, score_channels(network, "magnitude"), ratio=0.5).plan,
        "merged": merge_neurons(network, alpha=0.5).plan,
    }
    for name, plan in plans.items():
        (folder / name).mkdir()
        (folder / name / "plan.json").write_text(json.dumps(plan))


def _open_plan(folder: Path) -> None:
    try:
        plan = json.loads((folder / "plan.json").read_bytes())
    except RecursionError as error:
        raise ValueError("no JSON") from error
    apply_plan(load_network("digits/resnet"), plan)  # if it lacks a tensor, the first image that it sees says so


def _make_images(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.effect_noise((40, 30), 60).convert("RGB")
    for name, suffixes in {"table": ("jpg", "png", "bmp", "webp"), "folders": ("png", "bmp"), "ids": ("bmp",)}.items():
        for k, suffix in enumerate(suffixes):
            own = folder / name / {"table": "", "folders": f"{k}", "ids": f"n{k:08}"}[name]
            own.mkdir(parents=True, exist_ok=True)
            picture.save(own / f"a{k}.{suffix}")
    for k, (mode, suffix) in enumerate((("I;16", "png"), ("F", "tif"), ("P", "gif"), ("LA", "png"), ("CMYK", "jpg"))):
        (own := folder / "modes" / f"class {k}" / "deep").mkdir(parents=True)
        Image.new(mode, (40, 30)).save(own / f"a.{suffix}", **({"exif": exif} if suffix == "jpg" else {}))
    rows = "".join(f"a{k}.{suffix},{k}\n" for k, suffix in enumerate(("jpg", "png", "bmp", "webp")))
    (folder / "table" / "labels.csv").write_text(f"file,label\n{rows}")
    (folder / "ids" / "wnids_sorted.txt").write_text("".join(f"n{k:08}\n" for k in range(1000)))


def _open_images(folder: Path) -> None:
    for image, label in read_image_folder(folder):
        assert image.shape == (3, 224, 224), image.shape
        assert 0 <= label < 1000, label


def _make_mnist(folder: Path) -> None:
    raw = folder / "all" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    sizes = np.array([10_000, 28, 28], ">i4").tobytes()
    (raw / "t10k-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + sizes + bytes(7_840_000))
    (raw / "t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + sizes[:4] + bytes(10_000))
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (raw / name).touch()


def _open_mnist(folder: Path) -> None:
    if sum(path.is_file() for path in (folder / "MNIST" / "raw").glob("t*-ubyte")) < 4:
        raise FileNotFoundError("a download would follow")
    load_dataset("mnist", root=folder)


# CIFAR-10 is not here: torchvision checks the md5 of each of its pickles before it opens one.
TARGETS = (
    Target("safetensors", _make_safetensors, lambda folder: inspect_checkpoint(folder / "a.safetensors")),
    Target("pickled", _make_pickled, lambda folder: inspect_checkpoint(folder / "a.pt")),
    Target("kinds", _make_kinds, lambda folder: read_checkpoint(folder / "a.ckpt"), (ValueError, FileNotFoundError)),
    Target("sharded", _make_sharded, inspect_checkpoint),
    Target("weights", _make_weights, _open_weights, (ValueError, FileNotFoundError)),
    Target(
        "network",
        _make_networks,
        _open_network,
        (ValueError, ConnectionError, FileNotFoundError),
        seal=_seal_network,
    ),
    Target("state", _make_states, lambda folder: read_state(folder / "a.pt", _CALL)),
    Target(
        "spec",
        _make_specs,
        lambda folder: read_spec(folder / "spec.yml", folder / "notebooks"),
        (ValueError, TypeError, OSError),
    ),
    Target("runs", _make_runs, load_runs, (ValueError, FileNotFoundError)),
    Target("report", _make_runs, _open_report, (ValueError, FileNotFoundError)),
    Target("plan", _make_plans, _open_plan, named=False),
    Target("images", _make_images, _open_images, (ValueError, FileNotFoundError)),
    Target("mnist", _make_mnist, _open_mnist, (ValueError, ConnectionError, FileNotFoundError)),
)
