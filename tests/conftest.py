"""What every test starts from: shapes checked in signatures, figures drawn into memory, one absolute data root."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jaxtyping
import matplotlib
import pytest

# Before anything imports them: every jaxtyping shape in their signatures is checked, here and nowhere else.
SHAPED = [f"redlab.hashing.{name}" for name in ("density", "extrema", "contrast", "cells", "networks")]
jaxtyping.install_import_hook(SHAPED, "typecheck.typechecker")

# The same examples in every run, so that a failure belongs to a change; HYPOTHESIS_PROFILE=explore looks for new ones.
hypothesis.settings.register_profile("steady", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))

# Not MPLBACKEND, which the kernels of executed notebooks would inherit.
matplotlib.use("Agg")

# A relative data root means something else once a test has changed the folder.
if os.environ.get("REDLAB_DATA"):
    os.environ["REDLAB_DATA"] = str(Path(os.environ["REDLAB_DATA"]).expanduser().resolve())


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """No figure of one test is open in the next; tests that draw nothing need not load pyplot for it."""
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The data root with real networks and images (CIFAR-10, ImageNet); the test is skipped where there is none."""
    root = os.environ.get("REDLAB_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("needs real data: set REDLAB_DATA to a folder that holds cifar10/, imagenet/ and weights/")
    return Path(root)
