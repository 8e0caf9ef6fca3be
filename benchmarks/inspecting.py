"""Memory and time of ``redlab inspect`` on a file far larger than what it may hold: a transformer of 4 GB in bfloat16.

    python -m benchmarks.inspecting [--folder DIR] [--layers N]

The file is written tensor by tensor into a folder that is deleted afterwards. The peak is that of the command's own
process, from /proc (Linux); it is held against Python with torch imported and three copies of the largest tensor in
float32.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch

from benchmarks.timing import store
from redlab.progress import progress

WIDE, HIDDEN, WORDS = 4096, 11_008, 32_000
_CHUNK = 1 << 20
_PEAK = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the file is written; default: the system's temporary folder")
    parser.add_argument("--layers", type=int, default=9, help="of the transformer, 0.4 GB each")
    asked = parser.parse_args()
    with TemporaryDirectory(dir=asked.folder) as folder:
        path = Path(folder) / "transformer.safetensors"
        sizes = dict(shapes(asked.layers))
        write(path, sizes)
        row = measure(path, sizes)
    table = pd.DataFrame([row])
    title = f"inspecting a transformer of {row['bytes'] / 1e9:.1f} GB"
    print(f"\n{title}\n{table.T.to_string(header=False, float_format='{:.3g}'.format)}", flush=True)
    store(title, table)


def shapes(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of each tensor of a transformer of 7 billion weights' width."""
    yield "embed_tokens.weight", (WORDS, WIDE)
    for k in range(layers):
        for name in ("q", "k", "v", "o"):
            yield f"layers.{k}.self_attn.{name}_proj.weight", (WIDE, WIDE)
        for name, shape in (("gate", (HIDDEN, WIDE)), ("up", (HIDDEN, WIDE)), ("down", (WIDE, HIDDEN))):
            yield f"layers.{k}.mlp.{name}_proj.weight", shape
        yield f"layers.{k}.norm.weight", (WIDE,)
    yield "lm_head.weight", (WORDS, WIDE)


def write(path: Path, sizes: dict[str, tuple[int, ...]]) -> None:
    """Random normal weights in bfloat16, a million at a time."""
    header, end = {}, 0
    for name, shape in sizes.items():
        begin, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    generator = torch.Generator().manual_seed(0)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in progress(sizes.values(), "writing", total=len(sizes)):
            for start in range(0, prod(shape), _CHUNK):
                part = 0.02 * torch.randn(min(_CHUNK, prod(shape) - start), generator=generator)
                file.write(part.bfloat16().view(torch.uint8).numpy())


def measure(path: Path, sizes: dict[str, tuple[int, ...]]) -> dict:
    """One row: seconds and peak of the command, and the memory that it may take."""
    words = ["inspect", str(path), "--out", str(path.with_name("out"))]
    torch_alone, _ = peak_of("import torch")
    peak, seconds = peak_of(
        f"from redlab.cli.main import app\ntry: app({words!r})\nexcept SystemExit as e: assert not e.code"
    )
    largest = max(map(prod, sizes.values()))
    return {
        "contestant": "redlab inspect",
        "seconds": seconds,
        "ratio": peak / (torch_alone + 12 * largest),
        "against": "peak of torch imported + 3 x the largest tensor in float32",
        "weights": sum(map(prod, sizes.values())),
        "largest": largest,
        "bytes": path.stat().st_size,
        "peak": peak,
        "torch_alone": torch_alone,
    }


def peak_of(code: str) -> tuple[int, float]:
    """The most memory, in bytes, that a process of its own takes for some code, and its seconds."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", f"{code}\n{_PEAK}"], stdout=subprocess.PIPE, text=True, check=True)
    return 1024 * int(done.stdout.split()[-1]), time.perf_counter() - start


if __name__ == "__main__":
    main()
