"""pyproject.toml, environment.yml and constraints.txt say the same, and no file names a package registry."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
CONDA_NAMES = {"pytorch": "torch"}  # conda-forge's name: ours
# Put together here, so that this file does not name them either.
REGISTRIES = [
    "pypi" + ".org",
    "python" + "hosted",
    "ana" + "conda.org",
    "download.pytorch" + ".org/whl",
    "index" + "-url",
    "extra-" + "index",
]


def ranges(lines: list[str]) -> dict[str, SpecifierSet]:
    """{name: range} of requirement lines, names in canonical form."""
    found = {}
    for requirement in map(Requirement, lines):
        name = canonicalize_name(requirement.name)
        found[CONDA_NAMES.get(name, name)] = requirement.specifier
    return found


@pytest.fixture(scope="module")
def wanted() -> dict[str, SpecifierSet]:
    """What `.[dev]` asks for: dependencies, dev and, through dev, the other extras but ui."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert "redlab[cluster,coreml,docs,export,hf,lab,openvino,timm]" in extras["dev"]
    own = [
        line
        for extra in ("dev", "cluster", "coreml", "docs", "export", "lab", "hf", "openvino", "timm")
        for line in extras[extra]
    ]
    listed = project["dependencies"] + own
    return ranges([line for line in listed if not line.startswith("redlab[")])


@pytest.fixture(scope="module")
def conda() -> dict:
    return yaml.safe_load((ROOT / "environment.yml").read_text())


@pytest.fixture(scope="module")
def pins() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_conda_users_get_the_same_packages_in_the_same_ranges(wanted, conda):
    by_pip = [line for line in conda["dependencies"][-1]["pip"] if line != "-e ."]  # what conda-forge doesn't have
    got = ranges([line for line in conda["dependencies"] if isinstance(line, str)] + by_pip)
    python = got.pop("python")
    got.pop("pip")
    assert got == wanted
    assert python == SpecifierSet(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"])


def test_conda_installs_this_checkout_last(conda):
    assert conda["name"] == "redlab"
    assert conda["channels"] == ["conda-forge", "nodefaults"]
    assert conda["dependencies"][-1]["pip"][-1] == "-e ."


def test_a_drift_between_the_two_files_would_be_seen(wanted):
    assert ranges(["pytorch>=2.10,<3"])["torch"] == wanted["torch"]
    assert ranges(["pytorch>=2.11,<3"])["torch"] != wanted["torch"]
    assert ranges(["KDEpy <2, >=1.1.12"])["kdepy"] == wanted["kdepy"]


def test_constraints_are_plain_pins(pins):
    assert not [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)]
    names = [canonicalize_name(line.split("==")[0]) for line in pins]
    assert len(names) == len(set(names))
    assert "redlab" not in names


def test_constraints_hold_every_dependency_within_its_range(wanted, pins):
    pinned = {canonicalize_name(name): Version(pin) for name, pin in (line.split("==") for line in pins)}
    assert set(wanted) <= set(pinned)
    assert not {name: str(pinned[name]) for name, allowed in wanted.items() if pinned[name] not in allowed}


def test_no_tracked_file_names_a_package_registry():
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    texts = {path.relative_to(ROOT): path.read_bytes().decode("utf-8", "ignore").lower() for path in files}
    assert not [(str(path), host) for path, text in texts.items() for host in REGISTRIES if host in text]


def test_torch_and_torchvision_are_a_pair_that_works():
    import torch
    import torchvision

    with torch.no_grad():
        assert torchvision.models.resnet18().eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
    assert len(torchvision.ops.nms(torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1), 0.5)) == 1
