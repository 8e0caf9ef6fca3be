"""Chromium, for the tests that look at a page in a real browser."""

from __future__ import annotations

import os
import shutil

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
# Headless, and nothing fetched in the background.
_QUIET = ("--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars")
_QUIET += ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions")


def find_chromium() -> str:
    """The program, by any of its names on PATH.

    Raises:
        FileNotFoundError: there is none.
    """
    for name in _NAMES:
        if found := shutil.which(name):
            return found
    raise FileNotFoundError("no Chromium or Chrome here: install it (Debian and Ubuntu: apt install chromium)")


def chromium_options() -> list[str]:
    """What Chromium is started with here."""
    # As root, as in a container, it starts without its sandbox or not at all.
    return [*_QUIET, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
