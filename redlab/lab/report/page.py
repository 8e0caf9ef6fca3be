"""The report: every notebook's prose, figures and tables, and the command behind each number, in one HTML file.

It holds all that it shows, and tells the browser to fetch nothing.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from html import escape
from pathlib import Path

from redlab.lab.report.chapters import benchmark_chapters, chapter_of, closing_chapter, summary_chapter
from redlab.lab.report.html import Chapter
from redlab.lab.report.sources import sources_of
from redlab.lab.runs import Run, RunFailed
from redlab.paths import PACKAGE, checkout

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<a class="skip" href="#summary">To the summary</a>
<header>
<h1>{title}</h1>
{lead}
</header>
<nav aria-label="Contents">
<h2>Contents</h2>
<ol>
{contents}
</ol>
</nav>
<main>
{body}
</main>
</body>
</html>
"""


def write_report(outcomes: Sequence[Run | RunFailed], out: Path, notebooks: Path | None = None) -> Path:
    """Write the report of these runs, one a notebook, to the file ``out``, and return it.

    Runs with other parameters that lie beside them join the tables, if they are of the same package and cells. A failed
    notebook is shown as far as it came, with the reason.

    Arguments:
        notebooks: their folder; default the checkout's. ``benchmarks/`` lies beside it.

    Raises:
        OSError: ``out`` can't be written, say because the disk is full; what was there before is whole.
        ValueError: the folder of a finished run is damaged.
    """
    notebooks = (notebooks or checkout() / "notebooks").resolve()
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    _replace(out, _page(outcomes, notebooks))
    return out


def _page(outcomes: Sequence[Run | RunFailed], notebooks: Path) -> str:
    left_out: Counter = Counter()
    sources = sources_of(outcomes, notebooks, left_out)
    known = [outcome.name for outcome in outcomes]
    chapters = [chapter_of(outcome, notebooks, sources[outcome.name], known) for outcome in outcomes]
    titles = {chapter.anchor: chapter.title for chapter in chapters}
    last = [*benchmark_chapters(notebooks.parent / "benchmarks"), closing_chapter(sources)]
    chapters = [summary_chapter(sources, titles, left_out), *chapters, *last]
    failed = [outcome.name for outcome in outcomes if isinstance(outcome, RunFailed)]
    return _PAGE.format(
        title="Redundancy in trained networks",
        style=_style(),
        lead=_lead(len(outcomes), failed),
        contents="\n".join(_entry(chapter, chapter.anchor in failed) for chapter in chapters),
        body="\n".join(chapter.html() for chapter in chapters),
    )


def _style() -> str:
    """The page's own style, and that of the code in daylight and in the dark."""
    from pygments.formatters import HtmlFormatter

    day, night = (HtmlFormatter(style=style).get_style_defs(".highlight") for style in ("default", "github-dark"))
    own = (PACKAGE / "lab" / "report" / "report.css").read_text(encoding="utf-8")
    return f"{day}\n@media screen and (prefers-color-scheme: dark) {{\n{night}\n}}\n{own}"


def _lead(total: int, failed: Sequence[str]) -> str:
    from redlab import __version__

    made = f"What redlab {__version__} found: {total} notebook{'s' * (total != 1)}, executed with default parameters."
    lead = f"<p>{made} Code is folded away but there to open; beside every number stands the command that makes it.</p>"
    if not failed:
        return lead
    names = ", ".join(f'<a href="#{escape(name)}">{escape(name)}</a>' for name in failed)
    return f'{lead}\n<p class="failed">{len(failed)} of {total} notebooks failed: {names}.</p>'


def _entry(chapter: Chapter, failed: bool) -> str:
    """A line of the contents, its sections below."""
    mark = ' <span class="mark">failed</span>' if failed else ""
    entry = f'<a href="#{chapter.anchor}">{chapter.title}</a>{mark}'
    below = "".join(f'<li><a href="#{anchor}">{title}</a></li>' for anchor, title in chapter.sections)
    return f"<li>{entry}<ol>{below}</ol></li>" if below else f"<li>{entry}</li>"


def _replace(out: Path, text: str) -> None:
    """Write under a temporary name, and move it: whoever opens ``out`` finds the old file or the new one."""
    draft = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, out)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
