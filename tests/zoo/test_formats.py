"""Folders that older versions wrote open for ever.

``fixtures/format1_*.zip`` and so on are folders that ``save_network`` wrote when those were its formats, of digits/mlp
with coarse weights: as it is, hashed, with channels removed, and pruned, hashed and split. Beside them is what those
networks answered then.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch

from redlab.zoo.saving import load_network, save_network

FIXTURES = Path(__file__).parent / "fixtures"
FOLDERS = sorted(path.stem for path in FIXTURES.glob("*.zip"))


def test_all_formats_are_there_and_small():
    assert {name.partition("_")[0] for name in FOLDERS} == {"format1", "format2", "format3"}
    assert {name.partition("_")[2] for name in FOLDERS} == {"plain", "hashed", "pruned", "split"}
    assert sum(path.stat().st_size for path in FIXTURES.iterdir()) < 150_000


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_an_older_format_opens_and_answers_as_it_did(name, tmp_path):
    with zipfile.ZipFile(FIXTURES / f"{name}.zip") as archive:
        archive.extractall(tmp_path / "old")
    written, _, kind = name.partition("_")
    assert json.loads((tmp_path / "old" / "redlab.json").read_text())["format"] == int(written[-1])
    network = load_network(tmp_path / "old")
    answers = torch.tensor(json.loads((FIXTURES / f"{written}.json").read_text())[kind])
    images = (torch.arange(192) % 17 / 16).reshape(3, 1, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(network(images), answers, atol=1e-4, rtol=1e-4)
    assert network.redlab.architecture == "digits/mlp"
    assert network.redlab.input_mean == load_network("digits/mlp").redlab.input_mean
    again = load_network(save_network(network, tmp_path / "new"))
    assert torch.equal(again(images), network(images))
