"""The package as a whole: what importing it costs, and what it offers."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import redlab

ROOT = Path(__file__).resolve().parent.parent


def test_importing_redlab_imports_nothing_heavy():
    heavy = {"torch", "torchvision", "pandas", "numpy", "matplotlib", "papermill", "typer"}
    code = f"import sys, redlab; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", redlab.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert (getattr(redlab, name).__doc__ or "").strip()


def test_public_names_are_listed_by_dir():
    assert dir(redlab) == [*redlab.__all__, *redlab._ROOMS, "plots"]
    assert all(getattr(redlab, name) is not None for name in ("load_network", "__version__"))


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'hash_netwrok'.*hash_network"):
        redlab.hash_netwrok  # noqa: B018


def test_the_version_is_that_of_pyproject():
    assert redlab.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this checkout, built without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Runs Python, in an empty folder, where redlab is the wheel and no checkout."""
    site, empty = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("empty")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    own = {name: value for name, value in os.environ.items() if not name.startswith("REDLAB_")}

    def run(*words: str, code: int = 0) -> str:
        command = [sys.executable, *words]
        done = subprocess.run(command, cwd=empty, env=own | {"PYTHONPATH": str(site)}, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    return run


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_the_networks_that_ship(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "redlab").rglob("*") if path.is_file()}
    package = {name for name in files if "__pycache__" not in name}
    assert held == package | {f"redlab/data/digits/{path.name}" for path in (ROOT / "data" / "digits").iterdir()}


@pytest.mark.slow
def test_an_installed_wheel_works_without_the_checkout(installed, wheel):
    assert installed("-m", "redlab.cli", "--version") == f"redlab {redlab.__version__}\n"
    assert "inspect" in installed("-m", "redlab.cli", "--help")
    code = "from redlab import *; print(evaluate(load_network('digits/resnet'), load_dataset('digits')))"
    assert "of 360 images" in installed("-c", code)
    shipped = installed("-c", "from redlab.paths import shipped; print(shipped('digits/mlp.safetensors'))").strip()
    assert str(ROOT) not in shipped
    assert "hidden.0.linear.weight" in installed("-m", "redlab.cli", "inspect", shipped)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "refresh", "report", "lab"])
def test_without_the_checkout_commands_that_need_notebooks_say_so(installed, command):
    assert "run this inside a checkout of redlab" in installed("-m", "redlab.cli", command, code=2)


@pytest.mark.slow
def test_without_the_checkout_a_sweep_says_that_it_needs_notebooks(installed, tmp_path):
    spec = tmp_path / "sweep.yml"
    spec.write_text("notebook: 02\ngrid: {contrast: [0.1]}\n")
    assert "run this inside a checkout of redlab" in installed("-m", "redlab.cli", "sweep", str(spec), code=2)
