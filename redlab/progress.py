"""Progress bars on a terminal and in a live notebook; nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar

from tqdm.auto import tqdm

Watcher = Callable[[str, float], None]
_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


def progress(items: Iterable, title: str, total: int | None = None) -> Iterable:
    """Iterate over ``items`` behind a bar: on a terminal and in a live notebook.

    A kernel under papermill sets TQDM_DISABLE=1, so that no widget state is stored in the notebook; a pipe gets none.
    Inside ``watched`` there is no bar: the watcher is called instead.
    """
    if watcher := _watcher.get():
        return _told(items, title, total, watcher)
    live = "ipykernel" in sys.modules or sys.stderr.isatty()
    return tqdm(items, desc=title, total=total, disable=None if live else True, leave=False)


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Inside, in this thread, call ``watcher`` before each item with the title of the loop and the share that is done.

    Raise from the callback to cancel.
    """
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def _told(items: Iterable, title: str, total: int | None, watcher: Watcher) -> Iterator:
    total = total or (len(items) if isinstance(items, Sized) else 0)
    for done, item in enumerate(items):
        watcher(title, done / total if total else 0.0)
        yield item
