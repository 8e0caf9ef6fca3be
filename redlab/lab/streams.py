"""What a cell printed, as its notebook keeps it: one text a stream, no line longer than a page can show."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbformat import NotebookNode

LONGEST = 10_000  # characters of a line


def tidy_streams(outputs: Sequence[NotebookNode]) -> list[NotebookNode]:
    """The outputs with all that went to one stream in the place of its first part, stdout before stderr beside it.

    How prints fall into messages differs from run to run. Of a line that was overwritten (``\\r``) the last state
    stays, of one longer than ``LONGEST`` the beginning, with how much was cut. The time is linear in the text: the
    pattern of nbclient, which does the same otherwise, takes a minute for a line of 200,000 characters.
    """
    parts: dict[str, list[str]] = {}
    kept = []
    for output in outputs:
        if output["output_type"] != "stream":
            kept.append(output)
        elif output["name"] in parts:
            parts[output["name"]].append(output["text"])
        else:
            parts[output["name"]] = [output["text"]]
            kept.append(output)
    for output in kept:
        if output["output_type"] == "stream":
            lines = "".join(parts[output["name"]]).split("\n")
            output["text"] = "\n".join(_cut(_last_state(line)) for line in lines)
    return _ordered(kept)


def _ordered(outputs: list[NotebookNode]) -> list[NotebookNode]:
    names = [output.get("name", "") if output["output_type"] == "stream" else "" for output in outputs]
    for k, pair in enumerate(pairwise(names)):
        if pair == ("stderr", "stdout"):  # which of them came first is chance
            outputs[k : k + 2] = outputs[k + 1], outputs[k]
    return outputs


def _last_state(line: str) -> str:
    """What a terminal shows of a line that goes back to its start; a return at its very end overwrites nothing."""
    return line[line.rfind("\r", 0, len(line) - 1) + 1 :] if line else line


def _cut(line: str) -> str:
    if len(line) <= LONGEST:
        return line
    return f"{line[:LONGEST]} [... cut: {len(line) - LONGEST:,} of {len(line):,} characters of this line]"
