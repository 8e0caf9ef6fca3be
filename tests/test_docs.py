"""The API reference: every public name, on pages that ask the network for nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import redlab

ROOT = Path(__file__).resolve().parent.parent
# What a browser would fetch by itself: scripts, pictures, styles, fonts.
FETCHED = r"""(?:<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)=|@import\s+|url\()["']?((?:https?:)?//[^"'\s>]+)"""


@pytest.mark.slow
def test_the_reference_holds_every_public_name_and_fetches_nothing(tmp_path):
    script = ROOT / "docs" / "build.py"
    subprocess.run([sys.executable, script, tmp_path], cwd=tmp_path, check=True, capture_output=True, timeout=300)
    pages = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    assert not [name for name in redlab.__all__ if f'id="{name}"' not in pages["redlab.html"]]
    assert not [address for page in pages.values() for address in re.findall(FETCHED, page)]
    assert not [name for name, page in pages.items() if str(ROOT) in page]


def test_what_would_be_fetched_is_seen():
    page = "<script async src='//a.example/a.js'></script> <link rel=icon href=\"https://a.example/b\"> <a href='https://c'>"
    assert re.findall(FETCHED, page) == ["//a.example/a.js", "https://a.example/b"]
