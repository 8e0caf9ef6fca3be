"""The report: every notebook's prose, figures and tables, and the command behind each number, in one HTML file.

It holds everything that it shows, and tells the browser to fetch nothing. The one script on the page is ``report.js``,
which its policy names by its hash: the browser runs no other.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from redlab.files.atomic import replaced_file
from redlab.lab.report.chapters import benchmark_chapters, chapter_of
from redlab.lab.report.sources import left_out_words, sources_of
from redlab.lab.report.tables import TOLERANCE, installed, made, points_of, summary
from redlab.lab.runs import Run, RunFailed
from redlab.paths import PACKAGE, checkout

_FOLDER = PACKAGE / "lab" / "report"


def write_report(outcomes: Sequence[Run | RunFailed], out: Path, notebooks: Path | None = None) -> Path:
    """Write the report of these runs, one for each notebook, to the file ``out``, and return it.

    Runs with other parameters that lie beside them join the tables, if they are of the same package and cells. A failed
    notebook is shown as far as it was executed, with the reason.

    Arguments:
        notebooks: their folder; default the checkout's. ``benchmarks/`` lies beside it.

    Raises:
        OSError: ``out`` can't be written, say because the disk is full; an older page stays as it was.
        ValueError: the folder of a finished run is damaged.
    """
    notebooks = (notebooks or checkout() / "notebooks").resolve()
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    page = _page(outcomes, notebooks)
    with replaced_file(out) as part:
        part.write_text(page, encoding="utf-8")
    return out


def _page(outcomes: Sequence[Run | RunFailed], notebooks: Path) -> str:
    from jinja2 import Environment

    from redlab import __version__

    left_out: Counter = Counter()
    sources = sources_of(outcomes, notebooks, left_out)
    known = [outcome.name for outcome in outcomes]
    chapters = [chapter_of(outcome, notebooks, sources[outcome.name], known) for outcome in outcomes]
    runs = [source for own in sources.values() for source in own]
    frames = [(source, frame) for source in runs if (frame := source.frame()) is not None]
    points = [points_of(frame, source.notebook.stem, source.command) for source, frame in frames]
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_read("report.html.j2"))
    return template.render(
        version=__version__,
        total=len(outcomes),
        failed=[chapter.anchor for chapter in chapters if chapter.failure],
        summary=summary(points, {chapter.anchor: chapter.title for chapter in chapters}),
        tolerance=f"{TOLERANCE:g}",
        left_out=left_out_words(left_out),
        chapters=[*chapters, *benchmark_chapters(notebooks.parent / "benchmarks")],
        made=made(runs),
        installed=installed(runs),
        style=_style(),
        script=_read("report.js"),
        script_hash=base64.b64encode(hashlib.sha256(_read("report.js").encode()).digest()).decode(),
    )


def _style() -> str:
    """The page's own style, and that of the code in daylight and in the dark."""
    from pygments.formatters import HtmlFormatter

    day, night = (HtmlFormatter(style=style).get_style_defs(".highlight") for style in ("default", "github-dark"))
    return f"{day}\n@media screen and (prefers-color-scheme: dark) {{\n{night}\n}}\n{_read('report.css')}"


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")
