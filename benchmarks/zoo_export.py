"""Every torchvision classifier as a float32 ONNX file, and a member of twenty families in 8 bits, beside the network.

    python -m benchmarks.zoo_export                              goes on where the last run stopped, small ones first
    python -m benchmarks.zoo_export int8:resnet18 float32:swin_t these again

Weights are random (``randomised``); batch norms then take in eight images, so that their statistics say what is put
out, and the mean answer over the images is taken off the last bias, so that "agreement" means something. Images are
smooth random fields, normalised. Deep networks of random weights enlarge any error: "noise" is how far the answer moves
when each pixel does by 2 % of the images' spread. Each row has a process of its own on one core, and is kept in
zoo_export.csv.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from collections import Counter
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import get_model_weights
from tqdm import tqdm

from benchmarks.randomised import randomised
from redlab import export_onnx
from redlab.network.layers import weight_layers
from redlab.network.recipe import change_recipe
from redlab.zoo import torchvision_networks as torchvision_zoo
from redlab.zoo.names import CLASSIFIERS

ROWS = Path(__file__).with_name("zoo_export.csv")
CONTEXT = get_context("fork")
WALL, MEMORY = 900, 12 * 2**30  # seconds and bytes a network
IN_BYTES = (
    "resnet18", "resnext50_32x4d", "wide_resnet50_2", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large",
    "efficientnet_b0", "efficientnet_v2_s", "regnet_x_400mf", "regnet_y_400mf", "shufflenet_v2_x1_0", "squeezenet1_1",
    "densenet121", "googlenet", "inception_v3", "mnasnet1_0", "alexnet", "vgg11_bn", "convnext_tiny", "vit_b_16",
    "swin_t", "maxvit_t",
)  # fmt: skip
IMAGES = {"float32": 2, "int8": 16}
COLUMNS = [
    "network", "precision", "bytes", "seconds", "difference", "agreement", "noise", "in_bytes", "in_float", "reason",
    "fixed",
]  # fmt: skip


def main(asked: list[str]) -> None:
    torch.set_num_threads(1)
    rows = pd.read_csv(ROWS, dtype=str, keep_default_na=False) if ROWS.exists() else pd.DataFrame(columns=COLUMNS)
    rows = rows.set_index(["precision", "network"])
    todo = [tuple(name.split(":")) for name in asked] or [pair for pair in pairs() if pair not in rows.index]
    for precision, name in (bar := tqdm(todo, unit="file")):
        bar.set_description(f"{precision} {name}")
        row = {"reason": "", **measure(precision, name)}
        rows.loc[(precision, name), :] = {column: str(row.get(column, "")) for column in rows.columns}
        rows.sort_index().reset_index()[COLUMNS].to_csv(ROWS, index=False)


def pairs() -> list[tuple[str, str]]:
    """Precisions and names; in 8 bits first, and small ones before large ones."""
    size = {name: get_model_weights(name).DEFAULT.meta["num_params"] for name in CLASSIFIERS}
    ordered = sorted(CLASSIFIERS, key=lambda name: size[name])
    return [("int8", name) for name in ordered if name in IN_BYTES] + [("float32", name) for name in ordered]


def measure(precision: str, name: str) -> dict:
    """One row, by a process that is forked, so that nothing is imported again."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=child, args=(precision, name, sender))
    start = time.monotonic()
    process.start()
    sender.close()
    row = {"reason": f"over {WALL} s"}
    if receiver.poll(WALL):
        try:
            row = receiver.recv()
        except EOFError:
            process.join(5)
            row = {"reason": f"ended with exit code {process.exitcode}"}
    process.kill()
    process.join()
    return {"seconds": round(time.monotonic() - start, 1), **row}


def child(precision: str, name: str, sender: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        sender.send(export(precision, name))
    except Exception as error:  # whatever stops an export is what the row says
        sender.send({"reason": f"{type(error).__name__}: {error}".replace("\n", " ")[:400]})


def export(precision: str, name: str) -> dict:
    network, images = realistic(name, IMAGES[precision])
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        made = export_onnx(network, f"{folder}/net.onnx", precision, example=images)
        seconds = round(time.perf_counter() - start, 1)
    skipped = Counter(made.layers["skipped"][made.layers["skipped"] != ""])
    reason = "; ".join(f"{count} times {why}" for why, count in skipped.most_common())
    row: dict = {"bytes": made.bytes, "seconds": seconds, "difference": f"{made.difference:.2g}"}
    row |= {"noise": f"{moved(network, images):.2g}", "agreement": f"{made.agreement:.3g}"}
    row |= {"in_bytes": int((made.layers["precision"] == "int8").sum())}
    in_float = int((made.layers["precision"] == "float32").sum())
    return row | {"in_float": in_float, "reason": reason, "fixed": made.plan["fixed"]}


@torch.no_grad()
def realistic(name: str, images: int) -> tuple[nn.Module, Tensor]:
    """The network with statistics as training leaves them, and so many images at its own size."""
    network = randomised(name)
    mean, std = torchvision_zoo.normalisation(name)
    stamp = {"size": torchvision_zoo.input_shape(name)[1], "mean": mean, "std": std}
    change_recipe(network, images=stamp, input_mean=torchvision_zoo.input_mean(name))
    shape = torchvision_zoo.input_shape(name)
    large = sum(p.numel() for p in network.parameters()) > 100e6
    settle(network, fields(2 if large else 8, shape, mean, std, 0))
    given = fields(images, shape, mean, std, 1)
    last = [layer.module for layer in weight_layers(network)][-1]
    answer = network(given)
    if getattr(last, "bias", None) is not None and last.bias.shape == answer.shape[1:]:
        last.bias -= answer.mean(0)
    return network, given


@torch.no_grad()
def moved(network: nn.Module, images: Tensor) -> float:
    """The largest change of the answer over its largest magnitude, when a little noise is added to the images."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(2))
    answer = network(images)
    return float((network(images + 0.02 * images.std() * noise) - answer).abs().max() / answer.abs().max())


@torch.no_grad()
def settle(network: nn.Module, images: Tensor) -> nn.Module:
    """The network itself; each of its batch norms has the statistics of these images."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.momentum, norm.training = 1.0, True
    if norms:
        network(images)
    return network.eval()


def fields(count: int, shape: tuple[int, ...], mean: list[float], std: list[float], seed: int) -> Tensor:
    """(count, *shape): sums of random fields from coarse to fine, as bright as images of [0, 1], normalised."""
    made = torch.Generator().manual_seed(seed)
    total = torch.zeros(count, *shape)
    for size in (2, 5, 14, 56):
        coarse = torch.randn(count, shape[0], size, size, generator=made) / size**0.5
        total += interpolate(coarse, shape[1:], mode="bilinear")
    bright = (0.5 + 0.3 * total).clamp(0, 1)
    return (bright - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)


if __name__ == "__main__":
    main(sys.argv[1:])
