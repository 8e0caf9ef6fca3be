"""A figure written to files: PNG, PDF, and in words."""

from __future__ import annotations

import os
from pathlib import Path

from matplotlib.figure import Figure

from redlab.paths import checkout
from redlab.studies.plots.captions import keep_caption
from redlab.studies.plots.pdf import write_pdf
from redlab.studies.plots.style import style


def save_figure(figure: Figure, name: str, folder: Path | None = None) -> None:
    """Write ``figure`` as NAME.png (300 dpi) and NAME.pdf: to the run's folder under a runner, else to ``figures/``.

    The same figure gives the same bytes again, on any processor: no dates are stored, and a PDF's coordinates have five
    digits. A runner's folder also gets what it shows in words.

    Arguments:
        folder: where to, instead.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import matplotlib.pyplot as plt
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_figure(plt.figure(), "empty", Path(folder))
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['empty.pdf', 'empty.png']
    """
    out = os.environ.get("REDLAB_OUT") if folder is None else None
    folder = folder or (Path(out) / "figures" if out else checkout() / "figures")
    folder.mkdir(parents=True, exist_ok=True)
    with style():
        figure.savefig(folder / f"{name}.png", dpi=300, metadata={"Software": None})
        write_pdf(figure, folder / f"{name}.pdf", dpi=100)
    if out:
        keep_caption(Path(out), name, figure)
