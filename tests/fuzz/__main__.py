"""``make fuzz``, or ``python -m tests.fuzz --help``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import count, takewhile
from pathlib import Path

from redlab.progress import progress

from .runner import Tally, fuzz
from .targets import TARGETS, Target

OUT = Path("build") / "fuzz"


def main(words: Sequence[str] | None = None, targets: Sequence[Target] = TARGETS, out: Path = OUT) -> int:
    """Fuzz the targets; 1 where there is a finding."""
    asked = _parse(words, [target.name for target in targets])
    targets = [target for target in targets if asked.only in (None, target.name)]
    print(f"seed {asked.seed}; what is found is kept in {out}")
    tallies = []
    for target in progress(targets, "fuzzing"):
        numbers = _until(asked.seconds / len(targets)) if asked.number is None else [asked.number]
        tallies.append(fuzz(target, out.resolve(), asked.seed, numbers))
    for line in report(tallies, asked.seed, out):
        print(line)
    return int(any(tally.findings for tally in tallies))


def _until(seconds: float) -> Iterator[int]:
    """0, 1, ... from the first call on for so long."""
    end = time.monotonic() + seconds
    yield from takewhile(lambda _: time.monotonic() < end, count())


def _parse(words: Sequence[str] | None, names: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.fuzz", description="Open damaged files, whatever opens files.")
    parser.add_argument("--seconds", type=float, default=600, help="for all targets together")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="another one each time by default")
    parser.add_argument("--only", choices=names, help="one target")
    parser.add_argument("--number", type=int, help="one input of it")
    return parser.parse_args(words)


def report(tallies: list[Tally], seed: int, out: Path) -> list[str]:
    """A table of the targets, then each kind of finding with the command that shows it again."""
    lines = [f"{'target':12} {'inputs':>8} {'opened':>8} {'refused':>8} {'findings':>8}"]
    for tally in tallies:
        found = sum(count for _, count in tally.findings.values())
        lines.append(f"{tally.target.name:12} {tally.inputs:8,} {tally.opened:8,} {tally.refused:8,} {found:8,}")
    for tally in tallies:
        for what, (number, times) in tally.findings.items():
            name = tally.target.name
            lines.append(f"{name}: {what} ({times} times, the first in {out / f'{name}-{number}'}); again:")
            lines.append(f"    {sys.executable} -m tests.fuzz --only {name} --seed {seed} --number {number}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
