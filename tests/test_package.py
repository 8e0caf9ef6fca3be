"""The package as a whole: what importing it costs, and what it offers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

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
    assert dir(redlab) == sorted([*redlab.__all__, *redlab._ROOMS, "plots"])
    assert all(getattr(redlab, name) is not None for name in ("load_network", "__version__"))


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'hash_netwrok'.*hash_network"):
        redlab.hash_netwrok  # noqa: B018


@pytest.mark.parametrize(("name", "home"), [("compare_masks", "studies.masks"), ("plot_alphas", "plots")])
def test_a_name_that_is_elsewhere_says_where(name, home):
    with pytest.raises(AttributeError, match=rf"no attribute '{name}': it is in redlab.{home}"):
        getattr(redlab, name)


def test_the_version_is_that_of_pyproject():
    assert redlab.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


MODULES = {"beautifulsoup4": "bs4", "pyyaml": "yaml"}
BLOCK = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Block())
"""
BASE = """
import sys, tempfile
from redlab import evaluate, hash_network, load_dataset, load_network, merge_neurons, red_plus_plus, save_network
network, images = load_network("digits/mlp"), load_dataset("digits", limit=50)
smaller = merge_neurons(hash_network(network).network, alpha=0.2)
with tempfile.TemporaryDirectory() as folder:
    save_network(red_plus_plus(network), f"{folder}/own")
    print(evaluate(load_network(f"{folder}/own"), images).count, evaluate(smaller.network, images).count)
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Runs Python, in an empty folder, without the packages of the extras."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = [Requirement(line).name for line in (*extras["lab"], *extras["cluster"], *extras["timm"], *extras["hf"])]
    absent = {MODULES.get(name, name.replace("-", "_")) for name in names if name != "redlab"}
    empty = tmp_path_factory.mktemp("base")

    def run(code: str) -> subprocess.CompletedProcess:
        own = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", BLOCK.format(absent=absent) + code]
        return subprocess.run(command, cwd=empty, env=own, capture_output=True, text=True, check=False)

    return run


def command(*words: object) -> str:
    return f"from redlab.cli.main import app\napp({[str(word) for word in words]!r}, prog_name='redlab')"


def test_the_base_needs_no_package_of_an_extra(base):
    done = base(BASE)
    assert done.stdout == "50 50\n", done.stderr


@pytest.mark.slow
def test_without_the_extra_compress_works(base):
    done = base(command("compress", "digits/mlp", "--alpha", "0.1", "--limit", "20"))
    assert done.returncode == 0, done.stderr
    assert "saved to" in done.stdout


@pytest.mark.slow
def test_without_the_extra_inspect_prints_its_table_and_says_what_is_missing(base):
    done = base(command("inspect", ROOT / "data" / "digits" / "mlp.safetensors"))
    assert "hidden.0.linear.weight" in done.stdout
    assert (done.returncode, done.stderr) == (1, "redlab: pyarrow is missing: pip install 'redlab[lab]'\n")


@pytest.mark.parametrize("words", [["run", "02"], ["refresh"], ["report"], ["sweep", "a.yml"]])
def test_a_command_says_which_extra_it_needs(base, words):
    done = base(command(*words))
    assert done.returncode == 2
    assert re.fullmatch(r"redlab: \w+ is missing: pip install 'redlab\[lab\]'\n", done.stderr)


def test_networks_of_an_extra_say_how_to_install_it(base):
    code = "import redlab\nfor name in ('timm/resnet18', 'hf/bert'):\n"
    code += "    try:\n        redlab.load_network(name, None)\n"
    code += "    except ModuleNotFoundError as error:\n        print(error)"
    said = base(code).stdout.splitlines()
    assert said == [
        "timm is missing: pip install 'redlab[timm]'",
        "transformers is missing: pip install 'redlab[hf]'",
    ]


@pytest.mark.parametrize(
    ("code", "package"),
    [
        ("import redlab; redlab.plot_density", "matplotlib"),
        ("import redlab; redlab.plots.plot_density", "matplotlib"),
        ("from redlab.studies.plots.hashing import plot_density", "matplotlib"),
        ("import redlab; redlab.explore_density()", "\\w+"),
        ("import redlab; redlab.run_notebook('02')", "\\w+"),
    ],
)
def test_a_name_of_an_extra_says_how_to_install_it(base, code, package):
    last = base(code).stderr.splitlines()[-1]
    assert re.fullmatch(rf"ModuleNotFoundError: {package} is missing: pip install 'redlab\[lab\]'", last)


def test_help_and_completion_need_no_extra(base):
    done = base("from redlab.cli.completion import complete_notebooks\nprint(complete_notebooks('0'))")
    assert done.stdout == "[]\n", done.stderr
    assert "compress" in base(command("--help")).stdout


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
