"""The site: pages, notebooks and the reference, which a browser opens without a network."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.error
import urllib.request
from html.parser import HTMLParser
from pathlib import Path

import pytest

import redlab

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs" / "extensions"))
offline = pytest.importorskip("offline")
reference = pytest.importorskip("reference")
WRITTEN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site as ``make docs`` builds it, in a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    words = re.search(r"^docs:.*\n\t@OMP_NUM_THREADS=1 \$\(BIN\)/python (.*)$", (ROOT / "Makefile").read_text(), re.M)
    command = words[1].replace("build/docs", str(folder / "html")).replace("build/doctrees", str(folder / "doctrees"))
    done = subprocess.run(
        [sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder / "html"


@pytest.mark.slow
def test_the_site_holds_every_page_notebook_and_public_name(site):
    pages = {str(path.relative_to(site)): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    for source in [*WRITTEN, *ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("benchmarks/*.md")]:
        assert str(source.relative_to(ROOT).with_suffix(".html")) in pages
    shown = "".join(page for name, page in pages.items() if name.startswith("docs/reference/"))
    assert not [path for path in reference.public() if f'id="{path}"' not in shown]
    assert "<math" in pages["notebooks/01_weight_density.html"]
    assert not [name for name, page in pages.items() if str(ROOT) in page]
    assert not [name for name, page in pages.items() if ">$" in page and "\\frac" in page]


@pytest.mark.slow
def test_the_site_fetches_nothing_and_loads_what_it_has(site):
    assert offline.fetched(site) == []
    for page in site.rglob("*.html"):
        for address in _loaded(page.read_text(encoding="utf-8")):
            if not address.startswith(("data:", "#")):
                assert (page.parent / address.split("?")[0]).exists(), (page.name, address)


class _Loaded(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "link") and (address := given.get("src") or given.get("href")):
            self.found.append(address)


def _loaded(page: str) -> list[str]:
    """What a page loads by itself: scripts, styles, pictures."""
    parser = _Loaded()
    parser.feed(page)
    return parser.found


def test_what_would_be_fetched_is_seen(tmp_path):
    page = "<script async src='//a.example/a.js'></script> <link rel=icon href=\"https://a.example/b\"> <a href='https://c'>"
    (tmp_path / "a.html").write_text(page)
    (tmp_path / "b.css").write_text("@import url(https://d.example/e.css); p { background: url(local.png) }")
    found = [address for _, address in offline.fetched(tmp_path)]
    assert found == ["//a.example/a.js", "https://a.example/b", "https://d.example/e.css"]


def test_the_reference_has_each_public_name_once_and_as_it_is_imported():
    pages = reference.pages()
    entries = re.findall(r"^`{5}\{py:\w+\} (redlab[\w.]+)", "\n".join(pages.values()), re.M)
    assert sorted(entries) == sorted(reference.public())
    assert {f"redlab.{name}" for name in redlab.__all__} <= set(entries)
    assert not [page for page in pages.values() if " at 0x" in page]


def test_a_docstring_becomes_markdown():
    text = "What it does.\n\nArguments:\n    alpha: a share,\n        at most 1.\n\nExample:\n    >>> 1 + 1\n    2\n"
    wanted = "What it does.\n\n**Arguments**\n\n- `alpha`: a share, at most 1.\n\n```pycon\n>>> 1 + 1\n2\n```"
    assert reference._markdown(text) == wanted


@pytest.mark.slow
def test_every_outside_link_answers():
    addresses = {
        found.rstrip(".,)")
        for path in WRITTEN
        for found in re.findall(r"(?<!\w)https://[^\s)\"'`>]+", path.read_text(encoding="utf-8"))
        if "HOST/" not in found
    }
    assert addresses
    answers = {address: _answer(address) for address in sorted(addresses)}
    if set(answers.values()) == {None}:
        pytest.skip("needs a connection to the web")
    assert {address: code for address, code in answers.items() if code in (404, 410)} == {}


def _answer(address: str) -> int | None:
    """The status that a server answers with; None where none answers."""
    request = urllib.request.Request(address, headers={"User-Agent": "Mozilla/5.0 (link check)"})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None
