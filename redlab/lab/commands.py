"""The command that makes a run again."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from redlab.lab.kinds import Kind
from redlab.lab.notebooks import find_notebook
from redlab.lab.parameters import changed_parameters, read_parameters


def command_of(notebook: Path, params: dict[str, Any]) -> str:
    """``redlab run 05 -p network cifar10/resnet20``: a notebook, and those parameters that differ from the defaults.

    Pasted into a shell it gives the same parameters again, and so the same run.

    Raises:
        ValueError, TypeError: as ``changed_parameters``, where the notebook has no such parameters (any more).
    """
    words, known = ["redlab", "run", _shortest(notebook)], read_parameters(notebook)
    for name, value in changed_parameters(notebook, params).items():
        words += ["-p", name, _text(value, known[name].kind)]
    return shlex.join(words)


def _shortest(notebook: Path) -> str:
    """Its number where that means this notebook, its name otherwise."""
    number = re.sub(r"\D.*", "", notebook.stem)
    try:
        return number if find_notebook(number, notebook.parent) == notebook.resolve() else notebook.stem
    except ValueError:
        return notebook.stem


def _text(value: Any, kind: Kind) -> str:
    """``value`` as the command line reads it: text where text is taken, otherwise YAML."""
    import yaml

    if isinstance(value, str) and str in kind:
        return value
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
    # 1e-3 is a word to YAML and a number to the command line, unless it is quoted.
    return f"'{text}'" if isinstance(value, str) and _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
        return True
    except ValueError:
        return False
