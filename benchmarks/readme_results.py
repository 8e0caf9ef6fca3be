"""README's two tables of real networks, their cells written anew from real.csv and pruning.csv.

    python -m benchmarks.readme_results

The rows stay those that are there; what a cell says is what the benchmarks have found.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pandas as pd

from benchmarks import pruning
from redlab.paths import checkout
from redlab.studies.real import read_real, summarise_real

NETWORKS = ("cifar10/resnet20", "cifar10/resnet56", "imagenet/mobilenet_v1_0.75")
NEEDS = {"nothing": "nothing", "images": "data", "training": "fine-tuning"}


def main() -> None:
    readme, summary, criteria = checkout() / "README.md", summarise_real(read_real()), pd.read_csv(pruning.ROWS)
    text = _rewritten(readme.read_text(), "Results", 3, lambda *row: _results(summary, *row))
    text = _rewritten(text, "What pruning does to a real network", 1, lambda *row: _criterion(criteria, *row))
    readme.write_text(text)


def _rewritten(text: str, section: str, kept: int, cells: Callable[..., list[str]]) -> str:
    """``text`` with the cells behind the first ``kept`` of each row of the section's first table replaced."""
    head, body, tail = re.split(rf"(## {section}\n.*?(?=\n## ))", text, maxsplit=1, flags=re.DOTALL)
    lines = body.split("\n")
    start = next(number for number, line in enumerate(lines) if line.startswith("|---")) + 1
    for number in range(start, len(lines)):
        if not lines[number].startswith("|"):
            break
        row = [cell.strip() for cell in lines[number].strip("|").split("|")]
        lines[number] = f"| {' | '.join([*row[:kept], *cells(*row)])} |"
    return head + "\n".join(lines) + tail


def _results(summary: pd.DataFrame, needs: str, method: str, setting: str, *cells: str) -> list[str]:
    wanted = summary[(summary["needs"] == NEEDS[needs]) & (summary["method"] == method)]
    settings = ["50% of products", "47% of products"] if "half" in setting else [setting.replace(" %", "%")]
    wanted = wanted[wanted["setting"].isin(settings)]
    return [
        _cell(wanted[wanted["network"] == name]) if cell else "" for name, cell in zip(NETWORKS, cells, strict=True)
    ]


def _cell(rows: pd.DataFrame) -> str:
    (row,) = rows.itertuples()
    spread = f" ± {row.sd:.2f}" if row.seeds > 1 else ""
    return f"{row.accuracy:.2f}{spread} ({100 * row.products:.1f} / {100 * row.bytes:.1f} %)"


def _criterion(criteria: pd.DataFrame, method: str, *cells: str) -> list[str]:
    own = criteria[(criteria["method"] == method) & (criteria["stage"] == "pruned")]
    columns = [(name, keep) for name in NETWORKS[:2] for keep in pruning.KEEPS[name]]
    return [
        pruning.accuracy_of(own[own["network"] == name], keep, "pruned") if cell else ""
        for (name, keep), cell in zip(columns, cells, strict=True)
    ]


if __name__ == "__main__":
    main()
