"""A page as a PDF, printed by Chromium."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from redlab.files.atomic import open_to_others

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
# Headless, nothing fetched in the background, and no line with the file's address on every page.
_QUIET: tuple[str, ...] = ("--headless", "--disable-gpu", "--disable-quic", "--no-first-run")
_QUIET += ("--disable-background-networking", "--disable-component-update", "--disable-sync")
_QUIET += ("--disable-extensions", "--hide-scrollbars")
_PRINT = ("--no-pdf-header-footer", "--generate-pdf-document-outline")


def find_chromium() -> str:
    """The program, by any of its names on PATH.

    Raises:
        FileNotFoundError: there is none; the message says how to get it.
    """
    for name in _NAMES:
        if found := shutil.which(name):
            return found
    raise FileNotFoundError(
        "a PDF is printed by Chromium (or Chrome), which is not here: install it (Debian and Ubuntu: apt install "
        "chromium), or open the report in any browser and print it from there"
    )


def chromium_options() -> list[str]:
    """What Chromium is started with here."""
    # As root, as in a container, it starts without its sandbox or not at all.
    return [*_QUIET, *(["--no-sandbox"] if os.geteuid() == 0 else [])]


def print_pdf(page: Path, out: Path, timeout: float = 300) -> Path:
    """Print the file ``page`` to ``out``; what was there before stays whole until the new one is.

    Raises:
        FileNotFoundError: as ``find_chromium``.
        RuntimeError: Chromium failed, with what it said.
        OSError: ``out`` can't be written.
    """
    program, out = find_chromium(), Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:  # its profile goes there too
        draft = Path(folder) / "draft.pdf"
        own = [f"--user-data-dir={folder}/profile", f"--print-to-pdf={draft}", page.resolve().as_uri()]
        _call([program, *chromium_options(), *_PRINT, *own], draft, timeout)
        open_to_others(draft)
        os.replace(draft, out)
    return out


def _call(command: list[str], draft: Path, timeout: float) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"Chromium had not printed the report after {timeout:g} s") from None
    if done.returncode or not draft.is_file():
        said = done.stderr.strip().splitlines()[-3:]
        raise RuntimeError(f"Chromium ended with code {done.returncode} and no PDF: {' '.join(said)}")
