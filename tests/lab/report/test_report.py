"""The report: one file that needs nothing else, with every notebook in it and the command behind every number."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import resource
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from commands import redlab_says
from nbformat import v4
from pages import Page

from redlab import paths
from redlab.lab import runs
from redlab.lab.keys import run_key
from redlab.lab.notebooks import list_notebooks, read_cells
from redlab.lab.parameters import default_parameters
from redlab.lab.report.page import write_report
from redlab.lab.report.sources import other_runs
from redlab.lab.runs import Run, RunFailed, run_notebook

ROOT, NAMES = paths.checkout(), list_notebooks()
FIRST = """
import os, sys
import matplotlib.pyplot as plt
import pandas as pd
from redlab import record, save_figure
ax = plt.figure().add_subplot(title="Two bars", xlabel="what", ylabel="how much")
ax.bar([0, 1], [n, 2])
save_figure(ax.figure, "01_bars")
print(os.environ["REDLAB_OUT"], os.getcwd(), sys.prefix, os.path.expanduser("~/x"), os.environ["REDLAB_DATA"])
rows = {"method": ["a", "b"], "products": [0.1 * n, 0.5], "accuracy": [98.5, 90.0], "before": 99.0, "network": network}
record(pd.DataFrame(rows))
"""
PROSE = """# 01 · First

Of $a_1 * b_1$ and $$\\sum_i x_i^2,$$ not of `$HOME`; see [02](02_second.ipynb) and [here](../elsewhere.md).

![far](https://example.org/far.png)

<script src="https://example.org/x.js"></script>"""


def write_notebook(path: Path, prose: str, parameters: str, *code: str) -> None:
    path.parent.mkdir(exist_ok=True)
    tagged = v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    cells = [v4.new_code_cell(source.strip()) for source in code]
    nbformat.write(v4.new_notebook(cells=[v4.new_markdown_cell(prose), tagged, *cells]), path)


def fake_run(notebook: Path, folder: Path, **params: object) -> Run:
    """A finished run with what the notebook's file holds, as if it had been executed."""
    changed = {**default_parameters(notebook), **params}
    run = folder / notebook.stem / run_key(notebook, params)
    run.mkdir(parents=True)
    (run / "executed.ipynb").write_bytes(notebook.read_bytes())
    facts = {"notebook": notebook.stem, "parameters": changed, "seconds": 1.0}
    (run / "run.json").write_text(json.dumps(facts))
    return Run(run, notebook.stem, changed, 1.0, cached=True)


@dataclass
class Made:
    """What ``redlab report`` said in a checkout, and the page that it left there."""

    root: Path
    code: int
    said: str
    complained: str
    html: str

    def part(self, first: str, last: str) -> str:
        """The page from one section to another."""
        return self.html[self.html.index(f'<section id="{first}">') : self.html.index(f'<section id="{last}">')]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    """A good and a bad notebook; the good one was run with other parameters, too, and quickly."""
    root = tmp_path_factory.mktemp("checkout")
    first = root / "notebooks" / "01_first.ipynb"
    write_notebook(first, PROSE, 'n = 3\nnetwork = "digits/mlp"\nquick = False', FIRST)
    failing = "import os\nprint('as far as here')", "raise ValueError(os.getcwd())", "print('never')"
    write_notebook(root / "notebooks" / "02_second.ipynb", "# 02 · Second\n\n## A part", "n = 1", *failing)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "PACKAGE", root / "redlab")
        patch.chdir(root)
        other = fake_run(first, root / "runs", n=2, network="digits/resnet")
        rows = {"method": ["a"], "products": [0.2], "accuracy": [98.5], "before": 99.0}  # no network: the parameter is
        pd.DataFrame(rows).to_parquet(other.folder / "results.parquet")
        fake_run(first, root / "runs", quick=True)
        fake_run(first, root / "runs", n=5).folder.rename(root / "runs" / "01_first" / "of_another_package")
        return Made(root, *redlab_says("report"), (root / "runs" / "report.html").read_text())


@pytest.fixture
def checkout(made, monkeypatch) -> Path:
    monkeypatch.setattr(paths, "PACKAGE", made.root / "redlab")
    monkeypatch.chdir(made.root)
    return made.root


def committed_report(folder: Path) -> Path:
    """The report of the notebooks that are committed, with the outputs that they hold: nothing is executed."""
    outcomes = [fake_run(ROOT / "notebooks" / f"{name}.ipynb", folder) for name in NAMES]
    return write_report(outcomes, folder / "deep" / "er" / "report.html", ROOT / "notebooks")


@pytest.fixture(scope="module")
def committed(tmp_path_factory) -> tuple[str, Page]:
    html = committed_report(tmp_path_factory.mktemp("runs")).read_text()
    return html, Page(html)


def test_the_report_of_all_notebooks_fetches_nothing(committed):
    html, page = committed
    assert page.fetched == []
    assert all(source.startswith("data:image/") for source in page.all("img", "src"))
    assert not {"link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert "default-src 'none'" in html


def test_the_only_script_is_our_own_and_the_policy_names_it(committed, made):
    for html in (committed[0], made.html):
        (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
        assert html.count("<script") == 1
        assert script == (paths.PACKAGE / "lab" / "report" / "report.js").read_text()
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
        assert policy.endswith(f"script-src 'sha256-{digest}'")


def test_the_report_of_all_notebooks_is_well_formed(committed):
    html, page = committed
    assert (page.open, page.broken) == ([], [])
    assert [name for name, count in Counter(page.ids).items() if count > 1] == []
    anchors = [target[1:] for target in page.all("a", "href") if target.startswith("#")]
    assert set(anchors) <= set(page.ids)
    assert all(target.startswith(("#", "https://", "http://")) for target in page.all("a", "href"))
    assert html.startswith("<!doctype html>")
    assert page.all("html", "lang") == ["en"]


def test_every_notebook_has_a_section_and_an_entry_in_the_contents(committed):
    html, page = committed
    contents = Page(re.search(r"<nav.*?</nav>", html, re.DOTALL)[0])
    for name in NAMES:
        assert ("section", {"id": name}) in page.tags
        assert f"#{name}" in contents.all("a", "href")
        prose = "\n".join(c["source"] for c in read_cells(ROOT / "notebooks" / f"{name}.ipynb"))
        assert sum(t.startswith(f"#{name}.") for t in contents.all("a", "href")) == len(
            re.findall("^## ", prose, re.MULTILINE)
        )
    assert "¶" not in html
    assert {"#summary", "#made", "#benchmark.pruning"} <= set(contents.all("a", "href"))


def test_every_picture_is_said_in_words(committed):
    _, page = committed
    words = page.all("img", "alt")
    assert len(words) == len(page.all("img", "src")) > 10
    assert all(len(text) > 10 and "No description" not in text for text in words)


def test_formulas_are_mathml_and_no_dollar_is_left_of_them(committed):
    html, page = committed
    assert html.count("<math") > 20
    assert "xformula" not in html
    assert not re.search(r"\$[^$]*\$", page.text)
    assert "<mi>log</mi><mspace" in html  # log n, not logn


def test_missing_runs_are_executed_and_a_failed_notebook_is_shown_in_its_place(made):
    assert made.code == 1
    assert "01_first: done in" in made.said
    assert "02_second: FAILED, ValueError" in made.said
    assert "report in runs/report.html" in made.said
    assert "1 of 2 notebooks failed" in made.complained
    assert (made.root / "figures" / "01_bars.png").is_file()

    page = Page(made.html)
    assert (page.open, page.broken, page.fetched) == ([], [], [])
    second = made.part("02_second", "made")
    assert second.index("02 · Second") < second.index("This notebook failed") < second.index("as far as here")
    assert "<code>redlab run 02</code> tries again" in second
    assert "never" not in second
    assert "papermill" not in second.lower()
    assert 'href="#02_second">02 · Second</a> <span class="mark">failed' in made.html


def test_a_chapter_has_prose_figure_table_folded_code_and_its_command(made):
    first = made.part("01_first", "02_second")
    assert "<h2>01 · First</h2>" in first
    assert "<code>redlab run 01</code> on 20" in first
    assert '<a href="#02_second">02</a> and here.' in first  # a link to another file is none in a single one
    assert '<a href="https://example.org/far.png">far</a>' in first
    assert "<code>$HOME</code>" in first
    assert first.count("<math") == 2
    assert '<details class="code"><summary>Parameters</summary>' in first
    assert 'alt="Two bars. Across: what. Up: how much."' in first
    assert "figures/01_bars.png" in first
    assert "Recorded by <code>redlab run 01 -p n 2 -p network digits/resnet</code>: 1 row<" in first


def test_the_summary_shows_each_method_and_names_its_command(made):
    summary = made.part("summary", "01_first")
    text = " ".join(re.sub(r"<[^>]+>", " ", summary).replace("&nbsp;", " ").split())
    other = "redlab run 01 -p n 2 -p network digits/resnet"
    assert "the choice does not look at the accuracy" in text
    assert f"digits/resnet 01 · First a 99.00 → 98.50 20 % of multiplications {other}" in text
    assert "digits/mlp 01 · First a 99.00 → 98.50 30 % of multiplications redlab run 01 b 99.00" in text
    assert "99.00 → <em>90.00</em>" in summary  # loses more than a point
    assert "Runs beside these that were left out: 1 of an older package or notebook, 1 quick." in text


def test_the_page_holds_no_path_of_this_machine(made):
    for place in (str(made.root), sys.prefix, str(Path.home()) + "/", str(paths.data_root())):
        assert place not in made.html


def test_what_was_done_is_not_done_again_and_the_page_is_the_same(checkout, monkeypatch):
    monkeypatch.setattr(runs, "execute", None)
    known = run_notebook("01", notebooks=checkout / "notebooks")
    one, two = (write_report([known], checkout / name).read_bytes() for name in ("one.html", "two.html"))
    assert one == two
    assert b'class="failed"' not in one


def test_a_notebook_whose_kernel_never_started_has_its_place_too(checkout):
    lost = RunFailed(checkout / "runs" / "02_second" / "nothing", "02_second", "DeadKernelError", "it died", "")
    page = Page(write_report([lost], checkout / "lost.html").read_text())
    assert "This notebook failed: DeadKernelError: it died" in page.text
    assert "02_second" in page.ids


@pytest.mark.parametrize("content", [None, "", '{"cells": ['])
def test_a_finished_run_without_its_notebook_is_named(checkout, tmp_path, content):
    run = fake_run(checkout / "notebooks" / "01_first.ipynb", tmp_path)
    executed = run.folder / "executed.ipynb"
    executed.unlink() if content is None else executed.write_text(content)
    with pytest.raises(ValueError, match=f"{run.folder} is damaged .*: delete it, and run it again"):
        write_report([run], tmp_path / "report.html")


@pytest.mark.parametrize(
    "content", [None, b"[" * 100_000, b'{"notebook": "01_first", "parameters": "n", "seconds": 1}']
)
def test_a_damaged_run_beside_is_counted_and_left_out(checkout, tmp_path, content):
    run = fake_run(checkout / "notebooks" / "01_first.ipynb", tmp_path)
    mark = run.folder.with_name("damaged") / "run.json"
    mark.parent.mkdir()
    mark.mkdir() if content is None else mark.write_bytes(content)
    left_out = Counter()
    assert not list(other_runs(checkout / "notebooks" / "01_first.ipynb", run, left_out))
    assert left_out == {"older": 1}


def test_a_damaged_frame_is_named(checkout, tmp_path):
    run = fake_run(checkout / "notebooks" / "01_first.ipynb", tmp_path)
    (run.folder / "results.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(ValueError, match=f"{run.folder}/results.parquet is damaged .*: delete the folder, and run it"):
        write_report([run], tmp_path / "report.html")


def test_a_full_disk_leaves_the_old_page(checkout):
    (checkout / "old").mkdir()
    page = checkout / "old" / "report.html"
    page.write_text("old")
    lost = RunFailed(checkout / "runs" / "02_second" / "nothing", "02_second", "DeadKernelError", "it died", "")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, limits[1]))  # the system refuses larger files
    try:
        with pytest.raises(OSError, match="File too large"):
            write_report([lost], page)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert page.read_text() == "old"
    assert list(page.parent.iterdir()) == [page]


def test_a_page_that_cannot_be_written_is_one_message(checkout, monkeypatch):
    def execute(*_args):
        raise ValueError("too bad")

    monkeypatch.setattr(runs, "execute", execute)  # the bad notebook is tried again
    (checkout / "taken").touch()
    code, _, complained = redlab_says("report", "--out", "taken/report.html")
    assert code == 1
    assert complained.startswith("redlab: taken/report.html could not be written, an older page stays as it was: ")
    assert complained.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "."], "is a folder"),
        (["02"], "02"),
        (["--jobs", "0"], "at least 1"),
    ],
)
def test_wrong_usage_exits_with_2_before_anything_runs(checkout, monkeypatch, words, message):
    monkeypatch.setattr(runs, "execute", None)
    code, _, complained = redlab_says("report", *words)
    assert code == 2
    assert message in complained


def test_notebooks_run_side_by_side(tmp_path, monkeypatch):
    wait = """
import time
from pathlib import Path
Path(f"../{own}").touch()
end = time.monotonic() + 60
while not Path(f"../{other}").exists():
    assert time.monotonic() < end, "the other did not come"
    time.sleep(0.05)
"""
    for name, own, other in (("01_one", "one", "two"), ("02_two", "two", "one")):
        write_notebook(tmp_path / "notebooks" / f"{name}.ipynb", f"# {name}", f'own = "{own}"\nother = "{other}"', wait)
    monkeypatch.setattr(paths, "PACKAGE", tmp_path / "redlab")
    monkeypatch.chdir(tmp_path)
    code, said, complained = redlab_says("report", "--jobs", "2")
    assert (code, complained) == (0, "")
    assert {line[:13] for line in said.splitlines()[:2]} == {"[1/2] 01_one:", "[2/2] 02_two:"}
    page = (tmp_path / "runs" / "report.html").read_text()
    assert 0 < page.index('id="01_one"') < page.index('id="02_two"')
