"""What to say of a name that is not known, and of a package that is not installed."""

from __future__ import annotations

from difflib import get_close_matches
from importlib.util import find_spec


def unknown(what: str, name: str, known: list[str]) -> str:
    """The message for an unknown name: what it may have meant, and every name that is known."""
    # A topic is compared without its number too, so that "hash_colapse" is near "02_hash_collapse".
    topics = {alias: full for full in known for alias in (full, full.lstrip("0123456789_"))}
    close = get_close_matches(name, topics, n=1)
    hint = f" (did you mean {topics[close[0]]}?)" if close else ""
    return f"unknown {what} {name!r}{hint}; known: {', '.join(known) or 'none'}"


def needs(extra: str, *packages: str) -> None:
    """Refuse to go on without ``packages``, which are installed by an extra of redlab.

    Raises:
        ModuleNotFoundError: one is missing; the message says which, and how to install it.

    Example:
        >>> needs("lab", "numpy")
        >>> needs("lab", "no_such_package")
        Traceback (most recent call last):
        ModuleNotFoundError: no_such_package is missing: pip install 'redlab[lab]'
    """
    for package in packages:
        if not _is_installed(package):
            raise ModuleNotFoundError(f"{package} is missing: pip install 'redlab[{extra}]'", name=package)


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # what blocks an import raises these
        return False
