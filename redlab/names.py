"""What to say of a name that is not known."""

from __future__ import annotations

from difflib import get_close_matches


def unknown(what: str, name: str, known: list[str]) -> str:
    """The message for an unknown name: what it may have meant, and every name that is known."""
    # A topic is compared without its number too, so that "hash_colapse" is near "02_hash_collapse".
    topics = {alias: full for full in known for alias in (full, full.lstrip("0123456789_"))}
    close = get_close_matches(name, topics, n=1)
    hint = f" (did you mean {topics[close[0]]}?)" if close else ""
    return f"unknown {what} {name!r}{hint}; known: {', '.join(known) or 'none'}"
