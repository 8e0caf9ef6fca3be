"""How long ``redlab --help`` takes, against a Python that does nothing; ``python -m benchmarks.startup``.

A command line that imports PyTorch before it knows what it is asked takes seconds to say how it is used.
"""

from __future__ import annotations

import subprocess
import sys

from benchmarks.timing import interleaved, store

NOTHING = "python that does nothing"
COMMANDS = {
    NOTHING: ["-c", "pass"],
    "redlab --help": ["-m", "redlab.cli", "--help"],
    "redlab sweep --help": ["-m", "redlab.cli", "sweep", "--help"],
}


def main() -> None:
    runs = {name: lambda words=words: _run(words) for name, words in COMMANDS.items()}
    table = interleaved(runs, 15, NOTHING)
    print(table.to_string(index=False))
    store("redlab --help", table)


def _run(words: list[str]) -> None:
    subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)


if __name__ == "__main__":
    main()
