"""Write the reference of the public names, from their docstrings, into a folder: ``python docs/build.py [FOLDER]``.

One page and its search, which ask the network for nothing. A warning is an error.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pdoc
import pdoc.docstrings

import redlab

ROOT = Path(__file__).resolve().parent.parent


def build(folder: Path) -> None:
    """Write the pages into ``folder``."""
    # pdoc looks into the module's own names, where the public ones only are once they were asked for.
    vars(redlab).update({name: getattr(redlab, name) for name in redlab.__all__})
    if "Defaults" not in pdoc.docstrings.GOOGLE_LIST_SECTIONS:
        pdoc.docstrings.GOOGLE_LIST_SECTIONS.append("Defaults")  # a section of ours, one item an argument
    pdoc.render.configure(docformat="google", footer_text=f"redlab {redlab.__version__}")
    with warnings.catch_warnings(action="error"):
        pdoc.pdoc("redlab", "!redlab.", output_directory=folder)


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "docs"
    build(folder)
    print(f"{folder / 'index.html'}")
