"""What other tools do with the same networks: the checks of docs/peers.md that can be executed.

    python -m benchmarks.peers                  all of them
    python -m benchmarks.peers ties products    these, by the first word of their names

torch-pruning and torch.nn.utils.prune are in the set that make installs; NNI, which needs an older torch, is tried by
benchmarks/peers/nni.py. Networks have random weights. A check returns what it found in a few words; one that raises is
reported by its error. The table is printed and kept in peers.csv.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import logging
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import safetensors.torch
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.randomised import randomise
from redlab import apply_plan, load_network, measure_cost, measure_latency, prune_channels, score_channels
from redlab.channels.coupling import couple
from redlab.channels.plan import make_plan
from redlab.zoo import torchvision_networks as zoo

ROWS = Path(__file__).with_name("peers.csv")
LIMIT = 90  # seconds a check of a hard network may take, in a process of its own
COUPLED = ["resnet18", "mobilenet_v2", "resnext50_32x4d", "densenet121"]
ONE = "--one"
HARD = ["shufflenet_v2_x0_5", "swin_t"]
# Words of which at least one must occur where the feature is there.
WORDS = {
    "hashing": r"codebook|\bk_?means|kernel density|weight sharing",
    "merging": r"merge_(neuron|channel|filter)|duplicate (neuron|channel|filter)|neuron merging",
    "splitting": r"input splitting|depthwise separation|split_inputs",
    "entropy": r"entropy(?!_loss|loss)",
    "relevance": r"\blrp\b|relevance propagation",
    "sensitivity": r"sensitivit",
    "latency": r"latency",
    "distillation": r"distil",
    "quantisation": r"quantiz|quantis",
    "onnx": r"onnx",
    "movement": r"movement",
    "heads": r"num_heads|attention_head",
    "several GPUs": r"deepspeed|distributeddataparallel|DataParallel",
}
TOOLS = {"redlab": "redlab", "torch-pruning": "torch_pruning", "torch.nn.utils.prune": "torch"}  # modules
CHECKS: list[tuple[str, str, Callable[[], str]]] = []


def check(name: str, tool: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    def add(function: Callable[[], str]) -> Callable[[], str]:
        CHECKS.append((name, tool, function))
        return function

    return add


def main(wanted: list[str]) -> None:
    rows = []
    only = tuple(wanted[1:]) if wanted[:1] == [ONE] else ()
    for name, tool, function in CHECKS:
        if only and (name, tool) != only:
            continue
        if wanted and not only and first_word(name) not in wanted:
            continue
        torch.manual_seed(0)
        start = time.perf_counter()
        found = run(function) if only or first_word(name) != "hard" else apart(name, tool)
        rows.append({"check": name, "tool": f"{tool} {installed(tool)}", "found": found})
        print(f"{name} | {rows[-1]['tool']} | {found} | {time.perf_counter() - start:.1f} s", flush=True)
    if not wanted:
        pd.DataFrame(rows).to_csv(ROWS, index=False)


def first_word(name: str) -> str:
    return name.split()[0].strip(":,")


def run(function: Callable[[], str]) -> str:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            return function()
        except Exception as error:
            return f"{type(error).__name__}: {first_line(error)}"


def apart(name: str, tool: str) -> str:
    """The same in a process of its own, which can be stopped."""
    command = [sys.executable, "-m", "benchmarks.peers", ONE, name, tool]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return f"not done after {LIMIT} s"
    lines = [line for line in done.stdout.splitlines() if line.startswith(name)]
    return lines[-1].split(" | ")[2] if lines else f"the process ended with {done.returncode}"


def first_line(error: Exception) -> str:
    return re.sub(r"\x1b\[\w+", "", (str(error).strip().splitlines() or [""])[0])[:100].strip()


def installed(tool: str) -> str:
    return version(TOOLS[tool].replace("_", "-")).split("+")[0]


# Removal


def difference(one: nn.Module, other: nn.Module, example: Tensor) -> float:
    with torch.no_grad():
        wanted, got = one(example), other(example)
    return float((wanted - got).abs().max() / wanted.abs().max())


def two_layers(filters: int = 16) -> nn.Sequential:
    """Two convolutions: all filters of the first are identical, weak and read alike; two of the second are weak."""
    network = nn.Sequential(nn.Conv2d(3, filters, 3), nn.ReLU(), nn.Conv2d(filters, 16, 3), nn.ReLU())
    network.append(nn.Conv2d(16, 4, 1))
    network[0].weight.data[:] = 0.01 * network[0].weight.data[:1]
    network[0].bias.data.zero_()
    network[2].weight.data[:] = network[2].weight.data[:, :1]
    network[2].weight.data[:2] *= 0.1
    return network.eval()


@check("ties, layer by layer", "redlab")
def _() -> str:
    return ours_on_ties("layer")


@check("ties, all layers together", "redlab")
def _() -> str:
    return ours_on_ties("global")


def ours_on_ties(scope: str) -> str:
    network, example = two_layers(), torch.randn(1, 3, 16, 16)
    result = prune_channels(network, score_channels(network, "magnitude", example=example), 0.25, scope=scope)
    return f"16, 16 -> {len(result.network[0].weight)}, {len(result.network[2].weight)}; 8 of 32 asked for"


@check("ties, layer by layer", "torch-pruning")
def _() -> str:
    return theirs_on_ties(global_pruning=False)


@check("ties, all layers together", "torch-pruning")
def _() -> str:
    return theirs_on_ties(global_pruning=True)


def theirs_on_ties(global_pruning: bool) -> str:
    network, example = two_layers(), torch.randn(1, 3, 16, 16)
    with said() as words:
        by_magnitude(network, example, 0.25, network[4], global_pruning).step()
    return (
        f"16, 16 -> {len(network[0].weight)}, {len(network[2].weight)}; 8 of 32 asked for; "
        f"{'said' if words() else 'said nothing'}"
    )


@contextlib.contextmanager
def said() -> Iterator[Callable[[], str]]:
    """All that is printed, logged or warned of."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    logging.getLogger().addHandler(handler)
    with (
        contextlib.redirect_stdout(text),
        contextlib.redirect_stderr(text),
        warnings.catch_warnings(record=True) as seen,
    ):
        warnings.simplefilter("always")
        yield lambda: text.getvalue() + "".join(str(item.message) for item in seen)
    logging.getLogger().removeHandler(handler)


@check("ties, layer by layer", "torch.nn.utils.prune")
def _() -> str:
    network = two_layers()
    for layer in (network[0], network[2]):
        prune.ln_structured(layer, "weight", 0.25, n=1, dim=0)
    rows = [int(layer.weight_mask.flatten(1).any(1).sum()) for layer in (network[0], network[2])]
    return f"16, 16 -> {rows[0]}, {rows[1]}; 8 of 32 asked for"


@check("ties, all layers together", "torch.nn.utils.prune")
def _() -> str:
    network = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    for layer in network:
        nn.init.constant_(layer.weight, 0.5)
    prune.global_unstructured([(layer, "weight") for layer in network], prune.L1Unstructured, amount=0.25)
    return f"weights only: {int(sum((layer.weight_mask == 0).sum() for layer in network))} of 512 gone, 128 asked for"


@check("smaller tensors", "redlab")
def _() -> str:
    network = zoo.build("resnet18").eval()
    scores = score_channels(network, "magnitude", example=torch.randn(1, 3, 64, 64))
    smaller = prune_channels(network, scores, 0.5, scope="layer").network
    return shapes(smaller)


@check("smaller tensors", "torch-pruning")
def _() -> str:
    network = zoo.build("resnet18").eval()
    by_magnitude(network, torch.randn(1, 3, 64, 64), 0.5, network.fc).step()
    return shapes(network)


@check("smaller tensors", "torch.nn.utils.prune")
def _() -> str:
    network = zoo.build("resnet18").eval()
    prune.ln_structured(network.layer1[0].conv1, "weight", 0.5, n=1, dim=0)
    return shapes(network)


def shapes(network: nn.Module) -> str:
    return f"layer1.0.conv1 of resnet18, half pruned: {tuple(network.layer1[0].conv1.weight.shape)}"


def by_magnitude(
    network: nn.Module, example: Tensor, ratio: float, whole: nn.Module, global_pruning: bool = False
) -> tp.pruner.MagnitudePruner:
    """torch-pruning's pruner by L1, which leaves the layer ``whole`` as it is."""
    return tp.pruner.MagnitudePruner(
        network,
        example,
        importance=tp.importance.MagnitudeImportance(p=1),
        pruning_ratio=ratio,
        global_pruning=global_pruning,
        ignored_layers=[whole],
    )


def last_layer(network: nn.Module) -> nn.Module:
    return [module for module in network.modules() if isinstance(module, nn.Linear)][-1]


def size(name: str) -> int:
    return 224 if name.startswith("swin") else 64


def half_of(names: list[str], halved: Callable[[nn.Module, Tensor], nn.Module]) -> str:
    """Of each network: the share of the parameters that is left when half of its channels are asked for."""
    told = []
    for name in names:
        network, example = zoo.build(name).eval(), torch.randn(2, 3, size(name), size(name))
        before, start = sum(p.numel() for p in network.parameters()), time.perf_counter()
        try:
            network = halved(network, example)
            with torch.no_grad():
                network(example)
            left = sum(p.numel() for p in network.parameters()) / before
            told.append(f"{name} {left:.0%} left, {time.perf_counter() - start:.0f} s")
        except Exception as error:
            told.append(f"{name} {type(error).__name__}: {first_line(error)[:60]}")
    return "; ".join(told)


def ours(network: nn.Module, example: Tensor) -> nn.Module:
    return prune_channels(network, score_channels(network, "magnitude", example=example), 0.5, scope="layer").network


def theirs(network: nn.Module, example: Tensor) -> nn.Module:
    by_magnitude(network, example, 0.5, last_layer(network)).step()
    return network


for _tool, _way in {"redlab": ours, "torch-pruning": theirs}.items():
    check("coupling: residual, depthwise, grouped, concatenated", _tool)(lambda way=_way: half_of(COUPLED, way))
    for _name in HARD:
        check(f"hard networks: {_name}", _tool)(lambda way=_way, name=_name: half_of([name], way))


def shortcut() -> tuple[nn.Module, dict, Tensor]:
    """ResNet-20 with zero-padded shortcuts, one channel of its first stage zero wherever it goes."""
    network = randomise(load_network("cifar10/resnet20", weights=None)).eval()
    groups = {group.name: group for group in couple(network)}
    return network, groups, torch.randn(4, 3, 32, 32)


CHANNELS = [0, 3, 7, 10, 15]


@check("zero-padded shortcut: a zeroed channel leaves", "redlab")
def _() -> str:
    told = []
    for channel in CHANNELS:
        network, groups, example = shortcut()
        zero_channel(network, groups, channel)
        kept_ones = [i - (i > channel) if i != channel else -1 for i in range(16)]
        told.append(
            difference(network, apply_plan(network, make_plan([*groups.values()], {"conv1": kept_ones})), example)
        )
    return f"output changes by {max(told):.0e} at most (channels {CHANNELS})"


@check("zero-padded shortcut: a zeroed channel leaves", "torch-pruning")
def _() -> str:
    told = []
    for channel in CHANNELS:
        network, groups, example = shortcut()
        zero_channel(network, groups, channel)
        smaller = copy.deepcopy(network)
        graph = tp.DependencyGraph().build_dependency(smaller, example[:1])
        graph.get_pruning_group(smaller.conv1, tp.prune_conv_out_channels, idxs=[channel]).prune()
        try:
            told.append(f"{difference(network, smaller, example):.0%}")
        except RuntimeError as error:
            told.append(first_line(error)[:60])
    return f"output changes by {'; '.join(told)} (channels {CHANNELS})"


@torch.no_grad()
def zero_channel(network: nn.Module, groups: dict, channel: int) -> None:
    """Make everything that produces the channel of the first stage give 0."""
    tensors = network.state_dict()
    for member in groups["conv1"].producers:
        if not member.tensor.endswith("running_var"):
            tensors[member.tensor].index_fill_(member.dim, member.index[channel], 0)


# Scores


@check("Taylor scores and the gradient of batch norm, times 1000", "torch-pruning")
def _() -> str:
    network, example = trained_once()
    scores = []
    for factor in (1, 1000):
        copied = copy.deepcopy(network)
        for parameter, original in zip(copied.parameters(), network.parameters(), strict=True):
            parameter.grad = original.grad.clone()
        copied[1].weight.grad *= factor
        graph = tp.DependencyGraph().build_dependency(copied, example)
        group = graph.get_pruning_group(copied[0], tp.prune_conv_out_channels, idxs=list(range(8)))
        scores.append(tp.importance.TaylorImportance(normalizer=None)(group))
    return "scores alike to the last bit" if torch.equal(*scores) else "scores differ"


def trained_once() -> tuple[nn.Sequential, Tensor]:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    example = torch.randn(4, 3, 12, 12)
    network(example).square().sum().backward()
    return network, example


@check("Taylor: scores from outside", "torch.nn.utils.prune")
def _() -> str:
    network, _ = trained_once()
    weight = network[0].weight
    prune.ln_structured(network[0], "weight", 0.25, n=1, dim=0, importance_scores=weight * weight.grad)
    kept_rows = network[0].weight_mask.flatten(1).any(1)
    wanted = (weight * weight.grad).abs().flatten(1).sum(1).topk(6).indices
    return f"importance_scores takes |w g|: {sorted(wanted.tolist()) == kept_rows.nonzero().flatten().tolist()}"


# Measures


PRODUCTS = ["resnet18", "mobilenet_v2", "vit_b_16"]


def flops(network: nn.Module, example: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        network(example)
    return counter.get_total_flops() // 2


def beside_torch(count: Callable[[nn.Module, Tensor], float]) -> str:
    told = []
    for name in PRODUCTS:
        network, example = zoo.build(name).eval(), torch.randn(1, 3, 224, 224)
        wanted = flops(network, example)
        got = count(network, example)
        told.append(f"{name} {int(got):,} ({'equal' if got == wanted else f'{got / wanted - 1:+.1%}'})")
    return "; ".join(told)


@check("products beside torch's flop counter / 2", "redlab")
def _() -> str:
    return beside_torch(lambda network, example: int(measure_cost(network, example).attrs["macs"]))


@check("products beside torch's flop counter / 2", "torch-pruning")
def _() -> str:
    return beside_torch(lambda network, example: tp.utils.count_ops_and_params(network, example)[0])


@check("latency on a CPU", "redlab")
def _() -> str:
    measured = measure_latency(load_network("digits/mlp"), repeats=3)
    return f"median and quartiles on {measured.device}: {measured.q25 <= measured.median <= measured.q75}"


@check("latency on a CPU", "torch-pruning")
def _() -> str:
    tp.utils.benchmark.measure_latency(nn.Linear(4, 4), torch.randn(1, 4), repeat=3, warmup=1)
    return "mean and standard deviation"


# Files


@check("files: loaded without pickle", "redlab")
def _() -> str:
    import tempfile

    from redlab import save_network

    network = load_network("digits/resnet")
    example = torch.randn(2, *network.redlab.input_shape)
    smaller = prune_channels(network, score_channels(network, "magnitude"), 0.5, scope="layer")
    with tempfile.TemporaryDirectory() as folder:
        save_network(smaller, Path(folder) / "saved")
        names = sorted(path.name for path in (Path(folder) / "saved").iterdir())
        same = difference(smaller.network, load_network(str(Path(folder) / "saved")), example)
    return f"{', '.join(names)}; output differs by {same:.0e}"


@check("files: loaded without pickle", "torch-pruning")
def _() -> str:
    network = zoo.build("resnet18").eval()
    by_magnitude(network, torch.randn(1, 3, 64, 64), 0.5, network.fc).step()
    file = io.BytesIO()
    torch.save(tp.state_dict(network), file)
    file.seek(0)
    torch.load(file, weights_only=True)
    return "tp.state_dict opens with weights_only=True"


@check("files: loaded without pickle, by the list of removals", "torch-pruning")
def _() -> str:
    network, example = zoo.build("resnet18").eval(), torch.randn(1, 3, 64, 64)
    pruner = by_magnitude(network, example, 0.5, network.fc)
    pruner.step()
    file = io.BytesIO()
    torch.save({"history": pruner.pruning_history(), "weights": network.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    fresh = zoo.build("resnet18").eval()
    tp.DependencyGraph().build_dependency(fresh, example).load_pruning_history(saved["history"])
    fresh.load_state_dict(saved["weights"])
    return f"pruning_history replayed on a fresh network: output differs by {difference(network, fresh, example):.0e}"


@check("files: loaded without pickle", "torch.nn.utils.prune")
def _() -> str:
    network = nn.Linear(8, 8)
    prune.l1_unstructured(network, "weight", 0.5)
    saved = safetensors.torch.load(safetensors.torch.save(network.state_dict()))
    fresh = nn.Linear(8, 8)
    prune.identity(fresh, "weight")
    fresh.load_state_dict(saved)
    return f"safetensors: {', '.join(sorted(saved))}"


# Words in the source


def searched(tool: str, pattern: str) -> str:
    folder = Path(importlib.import_module(TOOLS[tool]).__file__ or "").parent
    files = {
        "torch.nn.utils.prune": [folder / "nn/utils/prune.py"],
        "torch-pruning": folder.rglob("*.py"),
    }[tool]
    found = [str(path.relative_to(folder)) for path in files if re.search(pattern, path.read_text(), re.I)]
    return f"{len(found)} files" + (f": {', '.join(sorted(found)[:3])}" if found else "")


for _feature, _pattern in WORDS.items():
    for _tool in ("torch-pruning", "torch.nn.utils.prune"):
        check(f"words for {_feature}", _tool)(lambda tool=_tool, pattern=_pattern: searched(tool, pattern))


if __name__ == "__main__":
    logging.disable(logging.INFO)
    main(sys.argv[1:])
