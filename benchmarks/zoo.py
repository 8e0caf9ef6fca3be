"""Every torchvision classifier: what couples, what is frozen and why, and whether merging planted duplicates is exact.

    python -m benchmarks.zoo                    goes on where the last run stopped
    python -m benchmarks.zoo resnet18 swin_t    these again

Weights are random, and so are the statistics of batch norms, layer scales and the heads of ViTs, which torchvision
leaves at values that hide errors. A quarter of the channels of every free group become copies of others; they are
merged, and the outputs of the two networks compared. Then the network is folded, hashed and split, and compared with
the hashed one before splitting, for every unit. One row a network is kept in zoo.csv as soon as it is there; zoo.md is
the table.
"""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks import zoo_split
from benchmarks.randomised import randomised
from benchmarks.zoo_split import measure_split
from redlab.channels.apply import apply_plan
from redlab.channels.coupling import couple
from redlab.channels.groups import Group
from redlab.channels.plan import make_plan
from redlab.network.layers import weight_layers
from redlab.network.trace import trace
from redlab.zoo import torchvision_networks as torchvision_zoo
from redlab.zoo.names import CLASSIFIERS

T = TypeVar("T")
ROWS, TABLE = Path(__file__).with_name("zoo.csv"), Path(__file__).with_name("zoo.md")
RUN_UP_TO = 150_000_000  # parameters: two networks and their activations then fit in 4 GB
SHARE = 0.25  # of the channels of a group become copies
A_LAYER = re.compile(r"^[\w.]+\.[\w.]+(?= has | is )")  # reasons that name one count together
COLUMNS = {
    "network": "network",
    "groups": "groups",
    "coupled": "channels coupled",
    "frozen": "channels frozen",
    "why": "why",
    "planted": "planted",
    "merged": "merged",
    "difference": "largest relative difference",
    "seconds": "seconds (tracing alone)",
    **zoo_split.COLUMNS,
}


def main(names: list[str]) -> None:
    rows = pd.DataFrame(columns=list(COLUMNS)[1:])
    if ROWS.exists():
        rows = pd.read_csv(ROWS, dtype=str, keep_default_na=False).set_index("network")
    todo = names or [name for name in CLASSIFIERS if name not in rows.index or not rows.loc[name, "split"]]
    for name in (bar := tqdm(todo, unit="network")):
        bar.set_description(name)
        rows.loc[name] = measure(name)
        rows.sort_index().to_csv(ROWS, index_label="network")
        TABLE.write_text(table(rows.sort_index()))


def measure(name: str) -> dict[str, str]:
    """One row of the table, all text."""
    network = randomised(name)
    seconds, groups = timed(lambda: couple(network))
    tracing, _ = timed(lambda: trace(network))
    row = count(network, groups) | {"seconds": f"{seconds:.1f} ({tracing:.1f})"}
    parameters = sum(p.numel() for p in network.parameters())
    if parameters > RUN_UP_TO:
        row |= {"planted": "", "merged": "", "difference": f"not run: {parameters / 1e6:.0f} M parameters"}
    else:
        row |= merge_planted(network, groups, torchvision_zoo.input_shape(name))
    del network, groups
    return row | measure_split(name, whole=parameters <= RUN_UP_TO)


def timed(run: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def count(network: nn.Module, groups: list[Group]) -> dict[str, str]:
    rows: Counter[str] = Counter()
    for group in groups:
        rows[A_LAYER.sub("a layer", group.frozen)] += group.size * per_channel(network, group)
    free = rows.pop("", 0)
    why = "; ".join(f"{reason}: {number:,}" for reason, number in rows.most_common())
    return {"groups": str(len(groups)), "coupled": f"{free:,}", "frozen": f"{rows.total():,}", "why": why}


def per_channel(network: nn.Module, group: Group) -> int:
    """How many rows of conv and linear weights one channel of a group is."""
    weights = {
        (f"{layer.name}." if layer.parameter == "weight" else f"{layer.name}_") + "weight"
        for layer in weight_layers(network)
    }
    return sum(member.index.shape[1] for member in group.producers if member.tensor in weights)


def rows_of(network: nn.Module) -> int:
    return sum(layer.weight.shape[0] for layer in weight_layers(network))


def merge_planted(network: nn.Module, groups: list[Group], shape: tuple[int, ...]) -> dict[str, str]:
    """Copy channels, merge the copies, compare."""
    destinations = plant(network, groups)
    smaller = apply_plan(network, make_plan(groups, destinations))
    example = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        wanted, got = network(example), smaller(example)
    difference = float((wanted - got).abs().max() / wanted.abs().max())
    sizes = {group.name: per_channel(network, group) for group in groups}
    planted = sum((len(going) - len(set(going))) * sizes[name] for name, going in destinations.items())
    merged = rows_of(network) - rows_of(smaller)
    return {"planted": f"{planted:,}", "merged": f"{merged:,}", "difference": f"{difference:.1e}"}


def plant(network: nn.Module, groups: list[Group]) -> dict[str, list[int]]:
    """Turn some channels of every free group into copies of others, in place; returns where each then goes."""
    tensors: dict[str, Tensor] = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    destinations = {}
    for group in groups:
        if group.frozen or group.size < 2:
            continue
        shuffled = torch.randperm(group.size)
        copies, others = shuffled[: max(1, int(SHARE * group.size))], shuffled[max(1, int(SHARE * group.size)) :]
        becomes = torch.arange(group.size)
        becomes[copies] = others[torch.randint(len(others), (len(copies),))]
        for member in group.producers:
            rows = tensors[member.tensor].data.index_select(member.dim, member.index[becomes].flatten())
            tensors[member.tensor].data.index_copy_(member.dim, member.index.flatten(), rows)
        kept = {int(channel): new for new, channel in enumerate(becomes.unique())}
        destinations[group.name] = [kept[int(channel)] for channel in becomes]
    return destinations


def table(rows: pd.DataFrame) -> str:
    """zoo.md."""
    lines = [
        "# Every torchvision classifier",
        "",
        f"Made by `make zoo`, torch {torch.__version__.split('+')[0]}. Channels are rows of conv and linear weights. "
        "Seconds: coupling, without building; in brackets the export of the network alone, which is part of it. "
        "Hashing is the default of `hash_network`, products are counted at the network's own image size (unit "
        '"channel"). Differences, on small images: of the whole network under unit "channel", and of every layer of '
        "several taps on its own input under the other two; where it says so, layer by layer. Where the count is old, "
        "products by padding, and those of attention between two inputs, are among those before.",
        "",
        "| " + " | ".join(COLUMNS.values()) + " |",
        "|---" * len(COLUMNS) + "|",
    ]
    for name, row in rows.iterrows():
        lines.append("| " + " | ".join([str(name), *(str(row[key]) for key in list(COLUMNS)[1:])]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:])
