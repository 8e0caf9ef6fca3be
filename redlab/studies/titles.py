"""What a network is called in titles and tables."""

from __future__ import annotations

from pathlib import Path


def short_name(network: str | Path) -> str:
    """A network's name for titles: of a file or a folder only the last part, the same on every machine.

    Arguments:
        network: what ``load_network`` takes.

    Example:
        >>> [short_name(own) for own in ("digits/resnet", "/home/me/nets/mine.py:Net", "/home/me/small")]
        ['digits/resnet', 'mine.py:Net', 'small']
        >>> short_name("hf//home/me/all-minilm")
        'hf/all-minilm'
    """
    text = str(network)
    before = "hf/" if text.startswith("hf/") else ""
    rest = text.removeprefix(before)
    return before + Path(rest).name if Path(rest).is_absolute() or ".py:" in rest else text
