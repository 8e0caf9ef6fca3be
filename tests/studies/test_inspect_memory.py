"""Memory follows the largest tensor, not the file: measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

LINUX = Path("/proc/self/status").exists()
COLUMNS = 4096
# The peak of a process is in VmHWM; getrusage would add that of the process which started it.
PEAK = "print(next(l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')))"


def peak_of(code: str) -> int:
    """The most memory that a Python process held while it ran ``code``, in bytes."""
    done = subprocess.run([sys.executable, "-c", f"{code}\n{PEAK}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return 1024 * int(done.stdout.split()[-1])


def inspecting(path: Path, out: Path) -> str:
    """What a process runs to inspect a file from the command line."""
    words = ["inspect", str(path), "--out", str(out)]
    return f"from redlab.cli.main import app\ntry: app({words!r})\nexcept SystemExit as done: assert not done.code"


def weights(count: int, dtype: torch.dtype) -> torch.Tensor:
    return (0.02 * torch.randn(count // COLUMNS, COLUMNS, generator=torch.Generator().manual_seed(0))).to(dtype)


@pytest.mark.slow
@pytest.mark.skipif(not LINUX, reason="reads the peak from /proc")
@pytest.mark.parametrize(
    ("form", "dtype", "largest", "tensors"),
    [
        ("safetensors", torch.bfloat16, 48, 2),
        ("pt", torch.bfloat16, 48, 2),
        ("pt", torch.float32, 48, 1),
    ],
)
def test_the_peak_is_at_most_a_small_file_and_four_of_the_largest_tensor(tmp_path, form, dtype, largest, tensors):
    path, count = tmp_path / f"large.{form}", largest << 20
    content = {f"layers.{k}.weight": weights(count, dtype) for k in range(tensors)} | {"bias": torch.zeros(9)}
    save_file(content, path) if form == "safetensors" else torch.save(content, path)
    assert path.stat().st_size > 190 << 20
    torch.save({"small": weights(8 * COLUMNS, dtype)}, tmp_path / "small.pt")
    least, used = (peak_of(inspecting(file, tmp_path / "out")) for file in (tmp_path / "small.pt", path))
    bound = least + 4 * 4 * count
    assert used <= bound, f"{used >> 20} MiB, {bound >> 20} allowed"
    assert (tmp_path / "out" / "results.parquet").is_file()


@pytest.mark.slow
@pytest.mark.skipif(not LINUX, reason="reads the peak from /proc")
def test_a_file_that_claims_gigabytes_is_refused_without_taking_them(tmp_path):
    torch.save({"huge": torch.zeros(1).expand(10**9)}, tmp_path / "a.pt")
    listed = "from redlab.files.checkpoint import list_checkpoint\n"
    wrong = f"try: list_checkpoint({str(tmp_path / 'a.pt')!r})\nexcept ValueError: pass"
    assert peak_of(listed + wrong) < peak_of(listed) + (100 << 20)
