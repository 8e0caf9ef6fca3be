"""The chapters of the report: the summary, one a notebook, the benchmarks, and what it was made with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from redlab.lab.commands import command_of
from redlab.lab.notebooks import scrub, without_paths
from redlab.lab.refresh import private_paths
from redlab.lab.report.html import Chapter, markdown_chapter, notebook_chapter
from redlab.lab.report.outputs import say_left_out
from redlab.lab.report.pictures import embed_figures
from redlab.lab.report.points import Recorded
from redlab.lab.report.sources import Source, left_out_words
from redlab.lab.report.tables import grouped_table, summary, whole_frame
from redlab.lab.runs import Run, RunFailed

if TYPE_CHECKING:
    from nbformat import NotebookNode

Sources = Mapping[str, Sequence[Source]]


def summary_chapter(sources: Sources, titles: Mapping[str, str], left_out: Counter) -> Chapter:
    """Networks by methods, out of all that the runs recorded; ``titles`` are those of the notebooks."""
    recorded = [
        Recorded(frame, source.notebook.stem, source.command)
        for own in sources.values()
        for source in own
        if (frame := source.frame()) is not None
    ]
    words = left_out_words(left_out)
    body = summary(recorded, titles) + (f"\n<p>{words}</p>" if words else "")
    sections = [("summary.methods", "Networks by methods")] if "summary.methods" in body else []
    return Chapter("summary", "Summary", body, sections)


def chapter_of(
    outcome: Run | RunFailed, notebooks: Path, sources: Sequence[Source], known: Collection[str] = ()
) -> Chapter:
    """A notebook as it was executed, with the command and the whole frames of its runs; a failed one as far as it came.

    Arguments:
        sources: its finished runs, with other parameters too.
        known: the notebooks that have a chapter of their own.

    Raises:
        ValueError: the executed notebook of a finished run is missing or damaged.
    """
    path = notebooks / f"{outcome.name}.ipynb"
    private = private_paths(outcome.folder, notebooks.parent)
    book = _as_far_as_it_came(outcome, path) if isinstance(outcome, RunFailed) else _executed(outcome)
    day = str(book.metadata.get("papermill", {}).get("end_time") or "")[:10]
    say_left_out(book)  # first, for widgets are scrubbed
    book = scrub(book, private)
    embed_figures(book, outcome.folder)
    chapter = notebook_chapter(book, outcome.name, known)
    before = _failure(outcome, path, private) if isinstance(outcome, RunFailed) else _made(sources[0], day)
    frames = [_whole(source) for source in sources]
    return replace(chapter, body="\n".join([before, chapter.body, *filter(None, frames)]))


def benchmark_chapters(folder: Path) -> list[Chapter]:
    """The tables that the benchmarks left as markdown; each names its command."""
    found = sorted(folder.glob("*.md"))
    chapters = [markdown_chapter(path.read_text(encoding="utf-8"), f"benchmark.{path.stem}") for path in found]
    return [replace(chapter, title=f"Benchmark · {chapter.title}") for chapter in chapters]


def closing_chapter(sources: Sources) -> Chapter:
    """The command, seconds and commit of every run, and what was installed."""
    runs = [source for own in sources.values() for source in own]
    rows = [
        [f"<code>{escape(source.command)}</code>", f"{source.run.seconds:.1f}", _commit(source.facts.get("commit"))]
        for source in runs
    ]
    body = grouped_table(["command", "seconds", "commit"], [("", rows)], numbers=[1])
    again = "<p>In a checkout of redlab, each of these makes its numbers and figures again.</p>"
    return Chapter("made", "How this was made", "\n".join([again, body, *_installed(runs)]))


def _installed(runs: Sequence[Source]) -> list[str]:
    """A sentence for each machine and set of packages that runs were made with."""
    sentences = []
    for facts in (source.facts for source in runs if "python" in source.facts):
        packages = ", ".join(f"{name} {number}" for name, number in facts.get("versions", {}).items())
        threads = f"{facts.get('threads')} thread{'s' * (facts.get('threads') != 1)}"
        sentences.append(f"Python {facts.get('python')} on {facts.get('platform')}, {threads}: {packages}.")
    return [f"<p>{escape(sentence)}</p>" for sentence in dict.fromkeys(sentences)]


def _commit(name: str | None) -> str:
    if not name:
        return ""
    changed = ", with changes" if name.endswith("-dirty") else ""
    return f"<code>{escape(name.removesuffix('-dirty')[:12])}</code>{changed}"


def _made(source: Source, day: str) -> str:
    when = f" on {escape(day)}" if day else ""
    return f'<p class="made"><code>{escape(source.command)}</code>{when}, {source.run.seconds:.1f} s</p>'


def _whole(source: Source) -> str:
    frame = source.frame()
    if frame is None:
        return ""
    count = f"{len(frame):,} row{'s' * (len(frame) != 1)}"
    title = f"Recorded by <code>{escape(source.command)}</code>: {count}"
    return whole_frame(frame, title, f"runs/{source.run.name}/{source.run.folder.name}/results.parquet")


def _failure(failed: RunFailed, notebook: Path, private: dict[str, str]) -> str:
    said = without_paths(f"{failed.error}: {failed.message}", private).strip()
    cell = f"<pre>{escape(without_paths(failed.cell, private))}</pre>" if failed.cell else ""
    where = " in this cell" if cell else ""
    tail = " What follows is what was executed before." if cell else ""
    again = f"<code>{escape(command_of(notebook, {}))}</code> tries again.{tail}"
    return f'<div class="failed"><p>This notebook failed{where}: {escape(said)}</p>{cell}<p>{again}</p></div>'


def _read(path: Path) -> NotebookNode:
    import nbformat

    return nbformat.read(path, as_version=4)


def _executed(run: Run) -> NotebookNode:
    try:
        return _read(run.folder / "executed.ipynb")
    except (OSError, ValueError) as error:
        raise ValueError(f"{run.folder} is damaged ({error}): delete it, and run it again") from None


def _as_far_as_it_came(failed: RunFailed, notebook: Path) -> NotebookNode:
    """The cells that were started, without what papermill adds; the first one, where none was."""
    try:
        book = _read(failed.folder / "executed.ipynb")
    except (OSError, ValueError):  # no kernel started, or it was cut off while it was written
        book = _read(notebook)
    started = [k for k, cell in enumerate(book.cells) if cell.metadata.get("papermill", {}).get("start_time")]
    cells = book.cells[: max(started, default=0) + 1]
    book.cells = [cell for cell in cells if "papermill-error-cell-tag" not in cell.metadata.get("tags", [])]
    return book
