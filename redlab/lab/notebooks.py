"""The notebooks: which there are, what parameters they take, and the form in which they are committed."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redlab.names import unknown
from redlab.paths import checkout
from redlab.zoo.dataset_names import check_dataset, is_here
from redlab.zoo.names import absolute_name

if TYPE_CHECKING:
    from nbformat import NotebookNode

KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
_WIDGET = "application/vnd.jupyter.widget-view+json"
# A warning names the cell that it came from by a file of the kernel's process, another one in every run.
_CELL_FILE = re.compile(r"(?<!\S)\S*/ipykernel_\d+/\d+\.py")  # tried once a word: linear time


def list_notebooks(folder: Path | None = None) -> list[str]:
    """The names of the notebooks in ``folder`` (default: the checkout's), in reading order."""
    return sorted(path.stem for path in (folder or checkout() / "notebooks").glob("[0-9]*.ipynb"))


def find_notebook(name: str | int | Path, folder: Path | None = None) -> Path:
    """The notebook that ``name`` means: its number, its file name, a path, or an unambiguous part of its name.

    Raises:
        ValueError: where none or several fit, with the names that are known.
    """
    wanted = str(name)
    if wanted.endswith(".ipynb") and os.path.isfile(wanted):  # which takes any text, one too long for a path, say
        return Path(wanted).resolve()
    folder = (folder or checkout() / "notebooks").resolve()
    known = list_notebooks(folder)
    wanted = wanted.removesuffix(".ipynb")  # a path that leads nowhere stays one, and fits no name
    found = _matches(wanted, known)
    if len(found) == 1:
        return folder / f"{found[0]}.ipynb"
    if found:
        raise ValueError(f"notebook {wanted!r} is ambiguous: {', '.join(found)}")
    raise ValueError(unknown("notebook", wanted, known))


def _matches(wanted: str, known: list[str]) -> list[str]:
    if wanted in known:
        return [wanted]
    if wanted.isdigit():
        return [name for name in known if int(re.sub(r"\D.*", "", name)) == int(wanted)]
    return [name for name in known if wanted and wanted.lower() in name.lower()]


def read_cells(notebook: Path) -> list[dict]:
    """The cells of a notebook file as plain data, each ``source`` as one string.

    Raises:
        ValueError: where the file is no notebook.
    """
    try:
        return [_cell(cell) for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{notebook.name} is no notebook of format 4: {error}") from None


def _cell(cell: dict) -> dict:
    """A cell with its source as one string; KeyError or TypeError where it lacks what every cell has."""
    metadata = cell.get("metadata", {}) if isinstance(cell, dict) else None
    if not isinstance(metadata, dict) or not isinstance(metadata.get("tags", []), list):
        raise TypeError(f"a cell needs metadata, with a list of tags or without, not {str(metadata)[:60]}")
    return {**cell, "cell_type": cell["cell_type"], "metadata": metadata, "source": "".join(cell["source"])}


def known_names(params: dict[str, Any]) -> dict[str, Any]:
    """``params`` with ``known_network`` of those called ``network``, ``networks`` and ``build``.

    Raises:
        ValueError: one of them, or ``dataset``, is not known, or there is no file of ``weights``.
    """
    found = dict(params)
    for name in ("network", "build"):
        if name in found:
            found[name] = known_network(found[name])
    if isinstance(found.get("networks"), list):
        found["networks"] = [known_network(name) for name in found["networks"]]
    weights, dataset = found.get("weights"), found.get("dataset")
    if isinstance(weights, str) and not os.path.isfile(weights):
        raise ValueError(f"there is no file of weights {weights!r}")
    if isinstance(dataset, str):
        check_dataset(dataset)
        if dataset.startswith("folder:") and not is_here(dataset):
            raise ValueError(f"{dataset}: there is no such folder")
    return found


def known_network(name: str | None) -> str | None:
    """``name`` where redlab knows it, with its paths made absolute: a kernel works in notebooks/. None stays None.

    Raises:
        ValueError: it is not known; the message holds the names that are known.
    """
    if name is None:
        return None
    try:
        return absolute_name(str(name))  # a number, say, where the default is null
    except ValueError:
        if not os.path.isdir(str(name)):
            raise
        return str(Path(name).resolve())  # of something else: the loader will say of what


def scrub(notebook: NotebookNode, paths: dict[str, str]) -> NotebookNode:
    """``notebook`` as it is committed: the same bytes in every run, on every machine. Changed in place, and returned.

    Outputs, their counts and the ids of cells stay. Times, widget state, injected parameters and the version of Python
    are removed. The local ``paths`` are replaced.
    """
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if not cell.metadata.get("tags", True):  # papermill gives every cell an empty list
            del cell.metadata["tags"]
        if cell.cell_type == "code":
            cell.outputs = [without_paths(out, paths) for out in cell.outputs if _WIDGET not in out.get("data", {})]
    notebook.metadata.pop("papermill", None)
    notebook.metadata.pop("widgets", None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    notebook.metadata["kernelspec"] = dict(KERNELSPEC)
    return notebook


def without_paths(value: Any, paths: dict[str, str]) -> Any:
    """Text, or plain data that holds it, with each of ``paths`` as what stands for it; data is changed in place."""
    if isinstance(value, dict):
        for key, item in value.items():
            value[key] = without_paths(item, paths)
    if isinstance(value, list):
        return [without_paths(item, paths) for item in value]
    if not isinstance(value, str):
        return value
    for path in sorted(paths, key=len, reverse=True):  # the innermost folder first
        value = re.sub(rf"{re.escape(path)}(/|(?![\w.-]))", _stand_in(paths[path]), value)
    return _CELL_FILE.sub("<cell>", value)


def _stand_in(alias: str):
    # `root/figures/a.png` becomes `figures/a.png` where nothing stands for root, and root itself `.`
    return lambda match: (f"{alias}/" if alias else "") if match[1] else (alias or ".")
