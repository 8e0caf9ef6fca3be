"""The checks of docs/peers.md that NNI 3.0 runs, in an environment of its own: it fails with the torch of redlab.

    python3 -m venv DIR
    DIR/bin/pip install torch==2.0.1 torchvision==0.15.2 nni==3.0 tensorboard "numpy<2" "setuptools<81"
    DIR/bin/python benchmarks/peers/nni.py

Nothing of redlab is imported. Networks have random weights. A check that raises is reported by its error. What was
found is printed and kept in nni.csv; checks that stand there are not made again.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import io
import logging
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import nni
import torch
import torch.nn.functional as F
import torchvision
from nni.compression import pruning
from nni.compression.pruning import L1NormPruner, TaylorPruner
from nni.compression.speedup import ModelSpeedup
from nni.compression.utils import TorchEvaluator, auto_set_denpendency_group_ids
from nni.compression.utils.counter import count_flops_params
from torch import Tensor, nn

ROWS = Path(__file__).with_name("nni.csv")
NETWORKS, HARD = ["resnet18", "mobilenet_v2", "resnext50_32x4d"], ["shufflenet_v2_x0_5", "swin_t"]
LIMIT = 240  # seconds a check may take
# torch.utils.flop_counter / 2, as in peers.csv; torch 2.0 counts some layers otherwise.
PRODUCTS = {"resnet18": 1_814_073_344, "mobilenet_v2": 300_774_272, "vit_b_16": 17_563_828_224}
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
    "amc": r"amcpruner|\bddpg\b",
}


def main() -> None:
    rows = list(csv.reader(ROWS.open()))[1:] if ROWS.exists() else []
    for name, check in checks().items():
        if name in [row[0] for row in rows]:
            continue
        torch.manual_seed(0)
        start = time.perf_counter()
        rows.append([name, f"NNI {nni.__version__}, torch {torch.__version__.split('+')[0]}", run(check)])
        print(*rows[-1], f"{time.perf_counter() - start:.0f} s", sep=" | ", flush=True)
        with ROWS.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([["check", "tool", "found"], *rows])


def run(check: Callable[[], str]) -> str:
    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {LIMIT} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            return check()
        except Exception as error:
            return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:100]}"
        finally:
            signal.alarm(0)


def checks() -> dict[str, Callable[[], str]]:
    found = {
        "pruners": lambda: ", ".join(name for name in dir(pruning) if name.endswith("Pruner")),
        "ties, layer by layer": lambda: ties({}),
        "ties, all layers together": lambda: ties({"global_group_id": "all"}),
    }
    found |= {f"half of the channels: {name}": lambda name=name: half(name) for name in NETWORKS}
    found |= {
        "zero-padded shortcut: a zeroed channel leaves": shortcut,
        "Taylor at a scale of batch norm": taylor_of_norm,
        "products beside torch's flop counter / 2": products,
        "files: the smaller network's weights in a fresh network": files,
    }
    found |= {f"words for {name}": lambda pattern=pattern: words(pattern) for name, pattern in WORDS.items()}
    return found | {f"half of the channels: {name}": lambda name=name: half(name) for name in HARD}


def masked(network: nn.Module, config: list[dict]) -> dict:
    pruner = L1NormPruner(network, config)
    _, masks = pruner.compress()
    pruner.unwrap_model()
    return masks


def ties(options: dict) -> str:
    """Two convolutions; the first has nothing but identical filters, weaker than the second's."""
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1))
    network[0].weight.data[:] = 0.01 * network[0].weight.data[:1]
    masks = masked(network, [{"op_names": ["0", "2"], "sparse_ratio": 0.25, **options}])
    left = [int(masks[name]["weight"].flatten(1).any(1).sum()) for name in ("0", "2")]
    return f"16, 16 -> {left[0]}, {left[1]}; {8 if not options else 'a quarter of the weights'} asked for"


def half(name: str) -> str:
    network = getattr(torchvision.models, name)(weights=None).eval()
    example = torch.randn(2, 3, *[224 if name.startswith("swin") else 64] * 2)
    before, start = sum(p.numel() for p in network.parameters()), time.perf_counter()
    names = [path for path, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    if name.startswith("swin"):
        names = [path for path, module in network.named_modules() if re.search(r"mlp\.0$", path)]
    speed_up(network, example, names)
    with torch.no_grad():
        network(example)
    left = sum(p.numel() for p in network.parameters()) / before
    return f"{left:.0%} of the parameters left, {time.perf_counter() - start:.0f} s"


def speed_up(network: nn.Module, example: Tensor, names: list[str]) -> None:
    config = auto_set_denpendency_group_ids(network, [{"op_names": names, "sparse_ratio": 0.5}], example)
    ModelSpeedup(network, example, masked(network, config)).speedup_model()


class Padded(nn.Module):
    """A stage of 16 channels and one of 32, with the zero-padded shortcut of CIFAR ResNets between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 3, stride=2, padding=1)
        self.outer, self.head = nn.Conv2d(8, 32, 3, padding=1), nn.Conv2d(32, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8))
        return self.head(torch.relu(self.outer(torch.relu(self.inner(x))) + shortcut))


def shortcut() -> str:
    """Channel i of the stem and channel i + 8 of the outer layer are zeroed, masked, and removed."""
    told = []
    for channel in (0, 3, 7, 10, 15):
        network, example = Padded().eval(), torch.randn(2, 3, 16, 16)
        masks = {}
        for name, gone in (("stem", channel), ("outer", channel + 8)):
            layer = network.get_submodule(name)
            layer.weight.data[gone], layer.bias.data[gone] = 0, 0
            masks[name] = {"weight": torch.ones_like(layer.weight), "bias": torch.ones_like(layer.bias)}
            masks[name]["weight"][gone], masks[name]["bias"][gone] = 0, 0
        smaller = copy.deepcopy(network)
        try:
            ModelSpeedup(smaller, example, masks).speedup_model()
            with torch.no_grad():
                wanted, got = network(example), smaller(example)
            change = f"{float((wanted - got).abs().max() / wanted.abs().max()):.0%}"
            told.append(f"{change} ({len(smaller.stem.weight)} and {len(smaller.outer.weight)} channels left)")
        except Exception as error:
            told.append(f"{type(error).__name__}: {str(error)[:60]}")
    return "output changes by " + "; ".join(told)


def taylor_of_norm() -> str:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    images = torch.randn(4, 3, 12, 12)

    def train(model, optimizer, training_step, *_, **__) -> None:
        for _ in range(4):
            optimizer.zero_grad()
            training_step(images, model).backward()
            optimizer.step()

    optimizer = nni.trace(torch.optim.SGD)(network.parameters(), lr=1e-6)
    evaluator = TorchEvaluator(train, optimizer, training_step=lambda batch, model: model(batch).square().sum())
    pruner = TaylorPruner(network, [{"op_names": ["1"], "sparse_ratio": 0.25}], evaluator, training_steps=2)
    _, masks = pruner.compress(None, None)
    return f"masks {sorted(masks['1'])}: {int(masks['1']['weight'].sum())} of 8 scales kept; no shift in the score"


def products() -> str:
    told = []
    for name, wanted in PRODUCTS.items():
        network = getattr(torchvision.models, name)(weights=None).eval()
        got = int(count_flops_params(network, torch.randn(1, 3, 224, 224), verbose=False)[0])
        told.append(f"{name} {got:,} ({'equal' if got == wanted else f'{got / wanted - 1:+.1%}'})")
    return "; ".join(told)


def files() -> str:
    network = torchvision.models.resnet18(weights=None).eval()
    names = [path for path, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    speed_up(network, torch.randn(1, 3, 64, 64), names)
    torchvision.models.resnet18(weights=None).load_state_dict(network.state_dict())
    return "they fit"


def words(pattern: str) -> str:
    folder = Path(nni.__file__).parent
    paths = [path for path in (folder / "compression").rglob("*.py") if re.search(pattern, path.read_text(), re.I)]
    found = sorted(str(path.relative_to(folder)) for path in paths)
    return f"{len(found)} files" + (f": {', '.join(found[:3])}" if found else "")


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    sys.exit(main())
