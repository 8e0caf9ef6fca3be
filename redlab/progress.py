"""Progress bars where somebody watches, silence where nobody does."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from tqdm.auto import tqdm


def progress(items: Iterable, title: str, total: int | None = None) -> tqdm:
    """Iterate over ``items`` behind a bar: on a terminal and in a live notebook.

    A kernel under papermill sets TQDM_DISABLE=1, so that no widget state is stored in the notebook; a pipe gets none.
    """
    live = "ipykernel" in sys.modules or sys.stderr.isatty()
    return tqdm(items, desc=title, total=total, disable=None if live else True, leave=False)
