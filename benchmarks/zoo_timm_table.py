"""The table of the zoo of timm: zoo_timm.md from the rows of zoo_timm.csv."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

TARGET, EXACT, LIMIT = 0.70, 1e-4, 60
CONVOLUTIONAL = "convolutional"
COLUMNS = {
    "name": "network",
    "kind": "kind",
    "size": "image",
    "parameters": "parameters",
    "left": "left",
    "difference": "difference",
    "seconds": "seconds",
    "planted": "planted",
    "merged": "duplicates merged, difference",
    "dead": "dead removed, difference",
    "sole": "norms behind a layer: folded",
    "norms": "all norms: folded",
    "fold_difference": "difference",
    "peer_left": "torch-pruning: left",
    "peer_difference": "difference",
    "peer_seconds": "seconds",
    "why": "what stays (share of the parameters), and errors",
}
HEAD = """# One small network of every family of timm

Made by `python -m benchmarks.zoo_timm` (`make zoo`), torch {torch}, timm {timm}: the smallest member of each family by
parameters, random weights and statistics, images of 64 pixels or the smallest that it takes.

- *left*: the share of the parameters after `prune_channels` by magnitude at the smallest ratio that leaves at most
  {target:.0%}; *difference*: of its output from that of the network in which those channels are zeroed, the largest
  over the largest output, in float64 where float32 alone makes it above 1e-6; *seconds*: of one core, to trace, couple,
  score and prune (and to prepare, where weights are computed: *prepared* in the last column).
  Where one order over all groups leaves an output that does not depend on the image, each group loses the same share.
- *duplicates merged*, *dead removed*: a quarter of the channels of every group are made copies of others, or zero.
- *norms*: batch norms that `prepare` folds, of those that alone read what a conv or linear layer makes, and of all.
- torch-pruning: uniform ratio by magnitude, the smallest of four that leaves at most {target:.0%}; its output is
  compared with that of the network in which what it removed is zero. It got 30 to 60 s of one core, and no table of
  attention heads. Networks without a number or an error in its columns were not tried with it.
- convolutional: no matrix product of two activations and no LSTM, and three or more convolutions over neighbours.
"""


def page(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """zoo_timm.md."""
    import timm

    head = HEAD.format(torch=torch.__version__.split("+")[0], timm=timm.__version__, target=TARGET)
    done = {family: row for family, row in sorted(rows.items()) if "done" in row}
    lines = [head, *totals(list(done.values())), ""]
    lines += ["| family | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    lines += ["| " + " | ".join([family, *(cell(row, key) for key in COLUMNS)]) + " |" for family, row in done.items()]
    return "\n".join(lines) + "\n"


def number(row: Mapping[str, Any], key: str) -> float:
    """NaN where the row lacks it."""
    return float(row.get(key, "nan"))


def prunes(row: Mapping[str, Any], before: str = "") -> bool:
    """Whether the target is reached, with the output of the zeroed network."""
    return number(row, before + "left") <= TARGET + 5e-4 and number(row, before + "difference") <= EXACT


def totals(rows: list[Mapping[str, Any]]) -> Iterable[str]:
    conv = [row for row in rows if row.get("kind") == CONVOLUTIONAL]
    kinds = (rows, conv, [row for row in rows if row.get("kind") != CONVOLUTIONAL])
    peers = [[row for row in own if {"peer_left", "peer_error"} & row.keys()] for own in (rows, conv)]
    yield "| | all | convolutional | transformers and hybrids | torch-pruning, all | torch-pruning, convolutional |"
    yield "|---|---|---|---|---|---|"
    yield line("networks tried", [str(len(own)) for own in (*kinds, *peers)])
    reach = [(sum(map(prunes, own)), len(own)) for own in kinds]
    reach += [(sum(prunes(row, "peer_") for row in own), len(own)) for own in peers]
    what = f"at most {TARGET:.0%} of the parameters left, output of the zeroed network"
    yield line(what, [f"{count} ({share(count, whole)})" for count, whole in reach])
    wrong = [sum(number(row, "difference") > EXACT for row in own) for own in kinds]
    wrong += [sum(number(row, "peer_difference") > EXACT for row in own) for own in peers]
    yield line("another output", map(str, wrong))
    failed = [sum("prune_error" in row or "ended" in row for row in own) for own in kinds]
    failed += [sum("peer_error" in row for row in own) for own in peers]
    yield line("an error, or out of time", map(str, failed))
    late = [
        sum(number(row, "seconds") > LIMIT or "over" in str(row.get("prune_error", "")) for row in own) for own in kinds
    ]
    yield line(f"over {LIMIT} s", [*map(str, late), "", ""])
    for key, what in (("merged", "planted duplicates merged exactly"), ("dead", "dead channels removed exactly")):
        exact = [
            f"{sum(number(row, key) <= EXACT for row in own)} of {sum(key in row for row in own)}" for own in kinds
        ]
        yield line(what, [*exact, "", ""])
    for key, what in (("sole", "norms that alone read a layer, folded"), ("norms", "all batch norms, folded")):
        yield line(what, [*(folded(own, key) for own in kinds), "", ""])
    worst = [
        max((number(row, "fold_difference") for row in own if "fold_difference" in row), default=0) for own in kinds
    ]
    yield line("largest difference after `prepare`", [*(f"{one:.0e}" for one in worst), "", ""])


def line(name: str, values: Iterable[str]) -> str:
    return f"| {name} | " + " | ".join(values) + " |"


def share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else ""


def folded(rows: list[Mapping[str, Any]], key: str) -> str:
    """How many norms fold, of how many."""
    which = "sole_folded" if key == "sole" else "folded"
    known = [row for row in rows if which in row]
    done, whole = (int(sum(number(row, name) for row in known)) for name in (which, key))
    return f"{done:,} of {whole:,} ({share(done, whole)})"


def cell(row: Mapping[str, Any], key: str) -> str:
    if key in ("sole", "norms"):
        return (
            f"{int(number(row, 'sole_folded' if key == 'sole' else 'folded'))} of {int(number(row, key))}"
            if key in row
            else ""
        )
    if key == "parameters" and key in row:
        return f"{number(row, key) / 1e6:.1f} M"
    if key == "why":
        return notes(row)
    value = row.get(key, "")
    if key in ("planted", "size") and key in row:
        return f"{int(number(row, key))}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def notes(row: Mapping[str, Any]) -> str:
    """What stays and why; what was needed; what went wrong."""
    found = ["prepared" if "prepared" in row else "", "the same share of each group" if "scope" in row else ""]
    found += [str(row.get("why", ""))]
    found += [f"{stage}: {row[f'{stage}_error']}" for stage in ("prune", "plant", "fold") if f"{stage}_error" in row]
    found += [f"torch-pruning: {row['peer_error']}"] if "peer_error" in row else []
    found += [f"ended: {row['ended']}"] if "ended" in row else []
    return "; ".join(filter(None, found)).replace("|", "/")
