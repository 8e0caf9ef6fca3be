"""What docs/deploy.md shows works as printed: files are written with redlab, and run without it."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from redlab.paths import checkout

BLOCKS = re.findall(r"```python\n(.*?)```", (checkout() / "docs" / "deploy.md").read_text(encoding="utf-8"), re.S)
# In a Python that cannot import redlab, and does not find it in the folder either.
ALONE = "import sys\nsys.modules['redlab'] = None\n"


def block(part: str) -> str:
    (found,) = [code for code in BLOCKS if part in code]
    return found


def run_alone(code: str, folder) -> str:
    command = [sys.executable, "-P", "-c", ALONE + code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the page's first lines have written their file."""
    pytest.importorskip("onnxscript")
    place = tmp_path_factory.mktemp("deploy")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        known: dict = {}
        exec(block("rl.export_onnx"), known)
    return place


def test_ten_lines_without_redlab_run_the_file(folder):
    code = block("import onnxruntime")
    assert len([line for line in code.splitlines() if line.strip()]) == 9
    assert len(run_alone(code, folder).strip("[]\n").split()) == 4


def test_the_file_is_as_right_as_the_network(folder):
    from redlab import evaluate, load_dataset, load_network

    images = load_dataset("digits")
    before, after = evaluate(load_network("digits/resnet"), images), evaluate(folder / "net.onnx", images)
    assert after.count == before.count == 360
    assert abs(after.accuracy - before.accuracy) < 0.6  # two images of 360


@pytest.mark.slow
def test_openvino_and_torch_run_their_files_without_redlab(folder):
    images = "import numpy as np\nimages = np.zeros((4, 1, 8, 8), np.float32)\n"
    pytest.importorskip("openvino")
    assert run_alone(images + block("import openvino") + "print(logits.shape)", folder).strip() == "(4, 10)"
    known: dict = {}
    exec(block("rl.export_onnx").split("export =")[0], known)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(block("torch.export.save"), known)
        exec(block("network.state_dict()"), known)
    code = "import torch\nprint(torch.export.load('net.pt2').module()(torch.zeros(1, 1, 8, 8)).shape)"
    assert "10" in run_alone(code, folder)
    assert known["state"].keys() == known["network"].state_dict().keys()
