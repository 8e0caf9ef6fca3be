"""``redlab inspect``: a table, a folder with the same and figures, exit codes, one line for every refusal."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from redlab import inspect_checkpoint
from redlab.cli import main as cli
from redlab.paths import shipped
from redlab.studies import inspection

FIGURES = sorted(f"{name}.{kind}" for name in ("entropy", "error", "products", "values") for kind in ("pdf", "png"))


@pytest.fixture(autouse=True)
def own_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def redlab_says(*words: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of one command."""
    result = CliRunner().invoke(cli.app, ["inspect", *map(str, words)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def small(path: Path) -> Path:
    weight = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    save_file({"weight": weight, "bias": torch.zeros(6), "steps": torch.tensor(3)}, path)
    return path


def test_the_table_and_the_folder_say_the_same(tmp_path):
    path = shipped("digits/mlp.safetensors")
    code, said, complained = redlab_says(path)
    assert (code, complained) == (0, "")
    folder = tmp_path / "mlp-inspect"
    assert f"saved to {folder}: results.parquet and figures" in said
    frame = pd.read_parquet(folder / "results.parquet")
    pd.testing.assert_frame_equal(frame, inspect_checkpoint(path))
    assert sorted(file.name for file in (folder / "figures").iterdir()) == FIGURES
    for row in frame.itertuples():
        line = next(line for line in said.splitlines() if line.split()[:1] == [row.tensor])
        assert row.shape in line.split()
        assert row.skipped or f"{row.distinct_before:,}" in line.split()
        assert ("one axis, not hashed" in line) == (row.unhashed == "one axis, not hashed")
    measured, expected = frame["measured"].sum(), frame["expected"].sum()
    wide = frame.loc[frame["expected"] > 0, "weights"].sum()
    assert f"once: {measured / wide:.2%}, by chance {expected / wide:.2%}" in said


def test_every_tensor_has_a_line_and_the_reasons_are_summed_up():
    code, said, _ = redlab_says(small(Path("a.safetensors")), "--out", "there")
    assert code == 0
    table, summary = said.split("\n\n")
    assert [line.split()[0] for line in table.splitlines()] == ["tensor", "bias", "steps", "weight"]
    assert "3 tensors, 37 weights; 1 hashed" in summary
    assert "measured, not hashed: bias (one axis, not hashed)" in summary
    assert "skipped: steps (no real floating-point numbers)" in summary
    assert "nan" not in said.lower()
    assert (Path("there") / "results.parquet").is_file()


@pytest.mark.slow
def test_an_inspection_is_replaced_and_nothing_else_is(tmp_path):
    path = small(Path("a.safetensors"))
    assert redlab_says(path)[0] == redlab_says(path)[0] == 0
    first = {file.name: file.read_bytes() for file in Path("a-inspect").rglob("*") if file.is_file()}
    assert redlab_says(path)[0] == 0
    assert {file.name: file.read_bytes() for file in Path("a-inspect").rglob("*") if file.is_file()} == first
    Path("empty").mkdir()
    assert redlab_says(path, "--out", "empty")[0] == 0
    (tmp_path / "a-inspect" / "thesis.tex").touch()
    for out, reason in (("a-inspect", "holds something else than an inspection"), ("a.safetensors", "is a file")):
        code, said, complained = redlab_says(path, "--out", out)
        assert (code, said) == (2, "")
        assert reason in complained
    assert (tmp_path / "a-inspect" / "thesis.tex").is_file()


def test_names_reach_the_terminal_as_text_and_the_frame_as_they_are(tmp_path):
    names = ["red\x1b[31m", "two\nlines", "a$_{b$"]
    weight = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    torch.save({**{name: weight.clone() for name in names}, "same\x07": weight[0], "tied": weight[0]}, "a.pt")
    code, said, _ = redlab_says("a.pt")
    assert code == 0
    assert all(character.isprintable() for character in said.replace("\n", ""))
    assert [line.split()[0] for line in said.splitlines()[1:4]] == [r"red\x1b[31m", r"two\nlines", "a$_{b$"]
    assert pd.read_parquet("a-inspect/results.parquet")["tensor"].tolist()[:3] == names
    assert sorted(path.name for path in Path("a-inspect/figures").iterdir()) == FIGURES


def test_without_a_tensor_of_two_axes_there_is_nothing_to_draw(tmp_path):
    save_file({"bias": torch.ones(4)}, "a.safetensors")
    code, said, _ = redlab_says("a.safetensors")
    assert code == 0
    assert said.rstrip().endswith("results.parquet")
    assert [path.name for path in (tmp_path / "a-inspect").iterdir()] == ["results.parquet"]


@pytest.mark.slow
def test_a_folder_of_shards_is_named_after_the_folder(tmp_path):
    Path("model").mkdir()
    small(Path("model") / "one.safetensors")
    index = Path("model") / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"weight": "one.safetensors"}}))
    for path in ("model", "model/", index):
        code, said, _ = redlab_says(path)
        assert code == 0
        assert f"saved to {tmp_path / 'model-inspect'}" in said


def bad(kind: str) -> str:
    """A file that must be refused; its name."""
    path = Path(f"{kind.replace(' ', '-')}.{'safetensors' if 'safetensors' in kind else 'pt'}")
    if kind == "folder":
        path.mkdir()
    elif kind.startswith("empty"):
        path.touch()
    elif kind == "stride":
        torch.save({"huge": torch.zeros(1).expand(10**9)}, path)
    elif kind == "module":
        torch.save(nn.Linear(2, 2), path)
    elif kind == "truncated":
        torch.save({"a": torch.ones(500)}, path)
        path.write_bytes(path.read_bytes()[:1000])
    elif kind == "truncated safetensors":
        path.write_bytes(small(path).read_bytes()[:-10])
    elif kind == "lying safetensors":
        header = {"a": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 16]}}
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    return str(path)


REFUSALS = {
    "missing": "there is no checkpoint at missing.pt",
    "folder": "folder.pt is a folder without model.safetensors.index.json: name a file instead",
    "empty": "empty.pt is empty, truncated or no checkpoint: download or save it again",
    "empty safetensors": "empty-safetensors.safetensors is empty, truncated or no checkpoint",
    "stride": "'huge' is expanded: 1000000000 elements claim 4,000,000,000 bytes, its storage holds 4",
    "module": "module.pt wants to run torch.nn.modules.linear.Linear: redlab never runs code",
    "truncated": "truncated.pt cannot be read, it is truncated or no checkpoint",
    "truncated safetensors": "truncated-safetensors.safetensors cannot be read, it is truncated or no checkpoint",
    "lying safetensors": "lying-safetensors.safetensors cannot be read, it is truncated or no checkpoint",
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_bad_file_is_one_line_and_exit_code_2_and_nothing_is_written(tmp_path, kind):
    name = bad(kind)
    before = sorted(tmp_path.rglob("*"))
    code, said, complained = redlab_says(name)
    assert (code, said) == (2, "")
    assert REFUSALS[kind] in complained
    assert complained.startswith("redlab: ")
    assert complained.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("words", [[], ["a.pt", "b.pt"], ["a.pt", "--no-such-option"]])
def test_wrong_words_exit_with_2(words):
    assert redlab_says(*words)[0] == 2


def test_what_cannot_be_written_exits_with_1_and_leaves_nothing(tmp_path, monkeypatch):
    path = small(Path("a.safetensors"))
    code, said, complained = redlab_says(path, "--out", "a.safetensors/there")
    assert (code, complained.count("\n")) == (1, 1)
    assert "weight" in said

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    code, _, complained = redlab_says(path, "--out", "there")
    assert code == 1
    assert "No space left on device" in complained
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_bar_stands_on_a_terminal_alone(capfd):
    assert redlab_says(small(Path("a.safetensors")))[0] == 0
    assert "inspecting" not in capfd.readouterr().err


def test_progress_counts_tensors(monkeypatch):
    seen = []
    monkeypatch.setattr(inspection, "progress", lambda items, title: seen.append((len(items), title)) or items)
    inspect_checkpoint(small(Path("a.safetensors")))
    assert seen == [(3, "inspecting")]


def test_as_a_program_of_its_own():
    small(Path("a.safetensors"))
    command = [sys.executable, "-m", "redlab.cli", "inspect", "a.safetensors"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"weight\s+6x5 float32\s+30", done.stdout)
