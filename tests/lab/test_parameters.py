"""Parameters: each takes what the functions take that it is handed to, from Python, from YAML, and from a shell."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import numpy as np
import pytest
from tiny import write_notebook

from redlab.lab.notebooks import list_notebooks
from redlab.lab.parameters import changed_parameters, command_of, read_parameters, typed_parameters
from redlab.lab.sweeps import read_spec
from redlab.paths import PACKAGE, checkout

NOTEBOOKS = checkout() / "notebooks"
DEFAULTS = """
bandwidth = "silverman/8"
keep = 0.5
limit = 10
error = None
widths = ["silverman/8"]
said: int | list[int] | None = 3
own = "kde"
"""
USES = """
import redlab as red
from redlab import compare_hashes, hash_network, load_dataset
from redlab.dpp.sparsifying import sparsify
images = load_dataset("digits", limit=5 if own else limit)
red.hash_weights(weights, "kde", bandwidth, max_error=error)
sparsify(network, keep)
compare_hashes(network, images, [{"bandwidth": width} for width in widths[:2]])
print(own)
"""


FORMS = {
    "import redlab as rl": "rl.hash_network(network, bandwidth=width)",
    "import redlab": "redlab.hash_network(network, bandwidth=width)",
    "from redlab import hash_network as hashed": "hashed(network, bandwidth=width)",
    "import redlab as rl, numpy as np": "rl.hashing.networks.hash_network(network, bandwidth=width)",
    "from redlab.hashing.networks import hash_network": "hash_network(network, bandwidth=width)",
    "from redlab.hashing import networks as own": "own.hash_network(network, bandwidth=width)",
    "import redlab.hashing.networks": "redlab.hashing.networks.hash_network(network, bandwidth=width)",
    "import redlab.hashing.networks as own": "own.hash_network(network, bandwidth=width)",
    "from redlab.studies.hashing import compare_hashes": 'compare_hashes(network, images, [{"bandwidth": width}])',
    "from redlab.studies import hashing": 'hashing.compare_hashes(network, images, [{"bandwidth": width}])',
    "import redlab as rl  # settings": 'rl.compare_hashes(network, images, [{"bandwidth": width}])',
}


@pytest.mark.parametrize("form", FORMS)
def test_a_function_is_found_however_it_is_imported(tmp_path, form):
    path = write_notebook(tmp_path / "01_form.ipynb", 'width = "silverman/8"', form, FORMS[form])
    assert changed_parameters(path, {"width": 0.05}) == {"width": 0.05}
    with pytest.raises(TypeError, match="is str or float"):
        changed_parameters(path, {"width": [0.05]})


@pytest.mark.parametrize("form", ["rl.plots.plot_density", "rl.studies.plots.hashing.plot_density", "rl.none"])
def test_a_figure_and_an_unknown_name_are_read_too(tmp_path, form):
    path = write_notebook(tmp_path / "01_form.ipynb", 'frame = "a"', "import redlab as rl", f"{form}(frame)")
    assert changed_parameters(path, {"frame": "b"}) == {"frame": "b"}


@pytest.mark.parametrize("form", ["import numpy as rl", "from other import redlab as rl", "rl = 3"])
def test_what_is_not_of_redlab_says_nothing(tmp_path, form):
    path = write_notebook(tmp_path / "01_form.ipynb", 'width = "a"', form, "rl.hash_network(network, bandwidth=width)")
    with pytest.raises(TypeError, match="is str like 'a'"):
        changed_parameters(path, {"width": 0.05})


@pytest.fixture(scope="module")
def notebook(tmp_path_factory) -> Path:
    return write_notebook(tmp_path_factory.mktemp("kinds") / "01_uses.ipynb", DEFAULTS, USES, "%matplotlib inline")


TAKEN = [
    ("bandwidth", "0.05", 0.05),
    ("bandwidth", "5e-2", 0.05),
    ("bandwidth", "1", 1.0),
    ("bandwidth", "scott", "scott"),
    ("bandwidth", "off", "off"),
    ("keep", "0.25", 0.25),
    ("keep", "3", 3),  # of weights, not the share 3.0
    ("limit", "null", None),
    ("limit", "7", 7),
    ("error", "0.1", 0.1),
    ("error", "1e-3", 1e-3),
    ("widths", "[0.05, silverman/4, 1e-3]", [0.05, "silverman/4", 1e-3]),
    ("said", "[1, 2]", [1, 2]),
    ("said", "null", None),
    ("own", "0.05", "0.05"),
    ("own", "null", None),
]


@pytest.mark.parametrize(("name", "text", "value"), TAKEN)
def test_a_parameter_takes_what_its_functions_take(notebook, name, text, value):
    exact = json.dumps({name: value})  # 3 is not 3.0
    assert json.dumps(typed_parameters(notebook, [f"{name}={text}"])) == exact
    assert json.dumps(changed_parameters(notebook, {name: value})) == exact
    (point,) = read_spec({"notebook": notebook, "grid": {name: [value]}}).points
    assert json.dumps(point) == exact
    assert command_of(notebook, point).startswith(f"redlab run 01 -p {name} ")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("bandwidth", None, "'bandwidth' of 01_uses is str or float like 'silverman/8'; got None"),
        ("bandwidth", [0.05], "is str or float"),
        ("bandwidth", True, "is str or float"),
        ("limit", 0.5, "'limit' of 01_uses is int like 10"),
        ("error", "much", "'error' of 01_uses is float like None"),
        ("widths", [None], "is list of str"),
        ("said", 0.5, "is int or list of int"),
        ("own", 0.5, "'own' of 01_uses is str like 'kde'"),
    ],
)
def test_what_its_functions_refuse_is_refused_before_anything_runs(notebook, name, value, message):
    with pytest.raises(TypeError, match=message):
        changed_parameters(notebook, {name: value})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["keep", "error", "bandwidth", "widths"])
def test_a_number_that_json_does_not_know_is_refused(notebook, name, value):
    given = [value] if name == "widths" else value
    with pytest.raises(ValueError, match=f"'{name}' of 01_uses must be finite: JSON, which keeps it"):
        changed_parameters(notebook, {name: given})
    with pytest.raises(ValueError, match=f"the sweep: parameter '{name}' of 01_uses must be finite"):
        read_spec({"notebook": notebook, "points": [{name: given}]})


@pytest.mark.parametrize("text", ["nan", ".nan", "inf", "-.inf", "1e999"])
def test_a_number_that_json_does_not_know_is_refused_in_a_shell_too(notebook, text):
    with pytest.raises((ValueError, TypeError), match="'keep' of 01_uses "):
        typed_parameters(notebook, [f"keep={text}"])


def test_a_default_that_json_does_not_know_is_refused(notebook):
    odd = write_notebook(notebook.with_name("02_odd.ipynb"), "n = 1e999", "")
    with pytest.raises(ValueError, match="default of parameter 'n' of 02_odd is no literal that JSON can hold"):
        read_parameters(odd)


def is_strict(call: ast.Call) -> bool:
    return any(word.arg == "allow_nan" and ast.literal_eval(word.value) is False for word in call.keywords)


def test_whatever_the_package_writes_as_json_any_program_can_read():
    """json alone writes NaN and Infinity, which JSON does not know, without a word."""
    loose = {"state.py", "runs.py", "parameters.py", "sweeps.py", "results.py"}  # compare only
    writers = 0
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.dumps", "json.dump"):
                assert is_strict(node) or path.name in loose, (path.name, node.lineno)
                writers += is_strict(node)
    assert writers >= 5


def test_numbers_of_numpy_and_paths_are_what_they_stand_for(notebook, tmp_path):
    given = {"bandwidth": np.float32(0.5), "keep": np.int64(2), "own": tmp_path}
    assert json.dumps(changed_parameters(notebook, given)) == json.dumps(
        {"bandwidth": 0.5, "keep": 2, "own": str(tmp_path)}
    )


@pytest.mark.parametrize("name", list_notebooks(NOTEBOOKS))
def test_every_bandwidth_of_a_notebook_is_a_rule_or_a_number_where_its_functions_take_one(name):
    known = read_parameters(NOTEBOOKS / f"{name}.ipynb")
    one, many = "bandwidth" in known, "bandwidths" in known
    given = {"bandwidth": 0.05} if one else {"bandwidths": [0.05, "scott"]} if many else {}
    if name == "11_redundancy_atlas":  # noise is drawn at a rule, which no number is
        with pytest.raises(TypeError, match="'bandwidth' of 11_redundancy_atlas is str"):
            changed_parameters(NOTEBOOKS / f"{name}.ipynb", given)
    else:
        assert changed_parameters(NOTEBOOKS / f"{name}.ipynb", given) == given
