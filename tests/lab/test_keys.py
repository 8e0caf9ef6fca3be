"""The key of a run: it follows the content of all that a parameter names, and nothing that does not matter."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tiny import write_notebook

from redlab.lab import keys as keys_of
from redlab.lab import runs
from redlab.lab.keys import named_files, run_key
from redlab.lab.kinds import absolute
from redlab.lab.notebooks import list_notebooks, read_cells
from redlab.lab.parameters import typed_parameters
from redlab.lab.runs import run_notebook
from redlab.lab.signatures import benchmarks_read
from redlab.paths import checkout

NETS = {"net.py": "import a.b\ndef make():\n    from c import d\n", "a/__init__.py": "", "a/b.py": "from . import e"}
NETS |= {"a/e.py": "from ..outside import x\nimport os", "c.py": "", "other.py": "", "a/unused.py": "", "os.txt": ""}


@pytest.fixture
def notebook(tmp_path) -> Path:
    defaults = 'network = "digits/mlp"\nplaces = []\ntold = ""'
    cells = 'with open(told, "a") as file:\n    pass', "import redlab"
    return write_notebook(tmp_path / "notebooks" / "01_reads.ipynb", defaults, *cells)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current one, with a network, images and sources."""
    here = tmp_path / "here"
    for name, text in {"mine/redlab.json": "{}", "images/0/a.png": "a", **NETS}.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(text)
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def executed(monkeypatch) -> list:
    done: list = []
    monkeypatch.setattr(runs, "execute", lambda *call: done.append(call))
    return done


FORMS = [
    ("network", "mine", "mine/redlab.json"),
    ("places", ["./mine"], "mine/redlab.json"),
    ("places", [{"deep": ["folder:images"]}], "images/0/a.png"),
    ("places", ["./c.py", "./other.py:NAME"], "other.py"),
    ("places", ["net.py:make"], "net.py"),
    ("places", ["net.py:make"], "a/b.py"),
    ("places", ["net.py:make"], "a/e.py"),
    ("places", ["net.py:make"], "c.py"),
    ("places", ["hf/mine"], "mine/redlab.json"),
]


@pytest.mark.parametrize(("name", "value", "file"), FORMS)
def test_what_a_parameter_names_is_run_again_after_it_changed_and_not_before(
    notebook, folder, executed, name, value, file
):
    def run() -> bool:
        return run_notebook(notebook, {name: value}, notebooks=notebook.parent).cached

    assert [run(), run()] == [False, True]
    before = (folder / file).read_bytes()
    os.utime(folder / file, (1, 1))
    assert run()
    (folder / file).write_bytes(before + b"\n# more")
    assert [run(), run()] == [False, True]
    (folder / file).write_bytes(before)
    assert run()  # what it was before is done
    assert len(executed) == 2


def test_a_file_that_comes_or_goes_or_is_renamed_is_a_change(notebook, folder):
    def key() -> str:
        return run_key(notebook, {"places": [str(folder / "images")]})

    first = key()
    (folder / "images" / "0" / "b.png").write_text("b")
    more = key()
    (folder / "images" / "0" / "b.png").rename(folder / "images" / "0" / "c.png")
    assert len({first, more, key()}) == 3
    (folder / "images" / "0" / "c.png").unlink()
    (folder / "images" / "__pycache__").mkdir()
    (folder / "images" / "__pycache__" / "x.pyc").touch()
    (folder / "images" / "loop").symlink_to(folder / "images")
    assert key() == first


def test_what_a_source_does_not_import_is_no_part_of_it(notebook, folder):
    found = {path.relative_to(folder).as_posix() for path in named_files(f"{folder}/net.py:make", notebook.parent)}
    assert found == {"net.py", "a/__init__.py", "a/b.py", "a/e.py", "c.py"}
    assert {path.name for path in named_files(str(folder / "other.py"), folder)} == {"other.py"}


PACKAGE = {"mine/__init__.py": "from mine import extra", "mine/extra.py": "", "mine/nets/__init__.py": ""}
PACKAGE |= {"mine/nets/resnet.py": "from ..layers import conv\nfrom beside import x", "mine/layers.py": ""}
PACKAGE |= {"mine/unused.py": "", "beside.py": ""}
RUNS_CODE = "raise SystemExit('it was run')\n"


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A package on Python's path; importing any of it ends the test."""
    for name, text in PACKAGE.items():
        file = tmp_path / "code" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(RUNS_CODE + text)
    monkeypatch.syspath_prepend(tmp_path / "code")
    return tmp_path / "code"


def test_a_module_counts_with_what_it_imports_and_nothing_of_it_is_run(notebook, package):
    found = {path.relative_to(package).as_posix() for path in named_files("mine.nets.resnet:Net", notebook.parent)}
    assert found == set(PACKAGE) - {"mine/unused.py"}
    key = run_key(notebook, {"network": "mine.nets.resnet:Net"})
    assert run_key(notebook, {"network": "mine.nets.resnet:Net"}) == key
    (package / "mine" / "layers.py").write_text("x = 1")
    assert run_key(notebook, {"network": "mine.nets.resnet:Net"}) != key


def test_of_an_installed_package_only_its_own_files_count(notebook, package, monkeypatch):
    monkeypatch.setattr(keys_of, "_INSTALLED", {os.path.realpath(package)})
    found = {path.relative_to(package).as_posix() for path in named_files("mine.nets.resnet:Net", notebook.parent)}
    assert found == set(PACKAGE) - {"mine/unused.py", "beside.py"}


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("torchvision.models.resnet:resnet18", ["resnet.py"]),
        ("nowhere.net:Net", []),
        ("sys:Net", []),
        ("mine.absent:Net", []),
        ("beside:Net", ["beside.py"]),
    ],
)
def test_of_a_library_the_module_counts_and_of_what_is_not_there_nothing(notebook, package, name, files):
    assert [path.name for path in named_files(name, notebook.parent)] == files


def test_a_large_file_counts_by_its_time_and_size(notebook, folder, monkeypatch):
    file = folder / "mine" / "big"
    file.write_bytes(bytes(100))
    os.utime(file, (1, 1))
    monkeypatch.setattr(keys_of, "LARGE", 99)
    key = run_key(notebook, {"network": str(file)})
    file.write_bytes(b"x" * 100)
    os.utime(file, (1, 1))
    assert run_key(notebook, {"network": str(file)}) == key
    os.utime(file, (2, 2))
    assert run_key(notebook, {"network": str(file)}) != key


def test_what_the_notebook_writes_itself_is_no_part_of_the_key(notebook, folder):
    changed = {"told": str(folder / "log")}
    key = run_key(notebook, changed)
    (folder / "log").write_text("more")
    assert run_key(notebook, changed) == key


def test_the_shell_and_python_name_the_same_files(notebook, folder):
    own = typed_parameters(notebook, ["network=mine", "places=[folder:images, net.py:make, absent/x, mine, /]"])
    places = [f"folder:{folder}/images", f"{folder}/net.py:make", "absent/x", "mine", "/"]
    assert own == {"network": str(folder / "mine"), "places": places}
    assert absolute("mine", (Path,)) == str(folder / "mine")
    assert list(named_files(["/", ".", "", "\0", "a" * 5000, 3, None], folder)) == []


def test_images_under_the_data_root_count(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("REDLAB_DATA", str(tmp_path / "data"))
    for name, value in (("val250", "imagenet_folder"), ("val750", "imagenet_folder:val750")):
        image = tmp_path / "data" / "imagenet" / name / "0" / "a.png"
        image.parent.mkdir(parents=True)
        keys = {run_key(notebook, {"network": value})}
        for text in ("a", "b"):
            image.write_text(text)
            keys.add(run_key(notebook, {"network": value}))
        assert len(keys) == 3


@pytest.mark.parametrize("library", ["torch", "torchvision", "timm", "transformers"])
def test_other_libraries_are_another_run(notebook, monkeypatch, library):
    found = {run_key(notebook, {})}
    for installed in ({library: "0.0.1"}, {library: "absent"}):
        monkeypatch.setattr(keys_of, "version_of", lambda name, own=installed: own.get(name, "1"))
        found.add(run_key(notebook, {}))
    assert len(found) == 3


@pytest.mark.parametrize("name", ["page.css", "cells.html.j2", "labconfig/page.json", "new.py"])
def test_every_file_of_the_package_counts(notebook, tmp_path, monkeypatch, name):
    file = tmp_path / "package" / name
    file.parent.mkdir(parents=True)
    monkeypatch.setattr(keys_of, "PACKAGE", tmp_path / "package")
    keys = {run_key(notebook, {})}
    for text in ("one", "two"):
        file.write_text(text)
        keys.add(run_key(notebook, {}))
    assert len(keys) == 3


READ = {
    "00": ["atlas.parquet", "real.csv"],
    "04": ["results.parquet"],
    "05": ["results.parquet"],
    "09": ["results.parquet"],
}
READ["12"] = ["runtimes.csv"]
READ |= {"10": ["left_out.csv", "published.csv", "real.csv"], "11": ["atlas.parquet"]}


@pytest.mark.parametrize("name", list_notebooks(checkout() / "notebooks"))
def test_the_benchmarks_that_a_notebook_reads_are_found(name):
    cells = read_cells(checkout() / "notebooks" / f"{name}.ipynb")
    code = tuple(cell["source"] for cell in cells if cell["cell_type"] == "code")
    assert list(benchmarks_read(code)) == READ.get(name[:2], [])


def test_a_benchmark_that_a_notebook_reads_is_part_of_its_key_and_no_other_one(tmp_path):
    reads = write_notebook(
        tmp_path / "notebooks" / "01.ipynb", "n = 1", "from redlab.studies.real import read_real\nread_real()"
    )
    table, other = tmp_path / "benchmarks" / "real.csv", tmp_path / "benchmarks" / "atlas.parquet"
    table.parent.mkdir()
    keys = []
    for path, text in ((table, "a"), (other, "b"), (table, "c")):
        path.write_text(text)
        keys.append(run_key(reads, {}))
    assert keys[0] == keys[1] != keys[2]
