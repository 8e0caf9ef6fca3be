"""Specifications: the points that a sweep has, and what is refused before anything runs."""

from __future__ import annotations

import json
import time
from datetime import date
from itertools import pairwise, product
from math import prod
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import write_notebook

from redlab.lab.sweeps import KEYS, read_spec

PARAMETERS = """
n = 1
rate = 0.5
name = "kde"
flag = False
levels = [0.1, 0.2]
network = "digits/resnet"
networks = ["digits/resnet"]
free = None
seed = 0
"""


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("specs") / "notebooks"
    write_notebook(folder / "01_all.ipynb", PARAMETERS)
    write_notebook(folder / "02_seeds.ipynb", "seeds = [0, 1]\nn = 1")
    write_notebook(folder / "03_none.ipynb", "n = 1")
    return folder


@pytest.fixture
def points(notebooks):
    return lambda notebook="01", **keys: list(read_spec({"notebook": notebook, **keys}, notebooks).points)


def test_a_file_and_a_dict_say_the_same(notebooks, tmp_path):
    content = {"notebook": "all", "grid": {"n": [2, 3], "rate": [0.1]}, "points": [{"name": "a"}], "seeds": [4]}
    (tmp_path / "spec.yml").write_text(yaml.safe_dump(content))
    spec = read_spec(tmp_path / "spec.yml", notebooks)
    assert spec == read_spec(content, notebooks)
    assert spec.notebook == notebooks / "01_all.ipynb"
    assert spec.points == tuple({"name": "a", "n": n, "rate": 0.1, "seed": 4} for n in (2, 3))


def test_without_anything_that_varies_there_is_the_default_point(points):
    assert points() == [{}]
    assert points(grid=None, points=None, seeds=None) == [{}]
    assert points(grid={}, points=[{}]) == [{}]


def test_a_number_is_the_notebook_that_begins_with_it(tmp_path):
    notebook = write_notebook(tmp_path / "00_first.ipynb", "n = 1")
    (tmp_path / "spec.yml").write_text("notebook: 00")  # a number to YAML, and a falsy one
    assert read_spec(tmp_path / "spec.yml", tmp_path).notebook == notebook


def test_each_point_is_taken_with_each_combination_and_each_seed(points):
    found = points(points=[{"name": "a"}, {"name": "b", "flag": True}], grid={"n": [2, 3], "rate": [0.1]}, seeds=[7, 8])
    given_points = ({"name": "a"}, {"name": "b", "flag": True})
    wanted = [{**point, "n": n, "rate": 0.1, "seed": seed} for point, n, seed in product(given_points, (2, 3), (7, 8))]
    assert found == wanted


def test_seeds_are_a_list_or_a_count_for_whichever_parameter_there_is(points):
    assert points(seeds=3) == [{}, {"seed": 1}, {"seed": 2}]  # 0 is its default
    assert points(seeds=[5, 3]) == [{"seed": 5}, {"seed": 3}]
    assert points("02", seeds=2) == [{"seeds": [0]}, {"seeds": [1]}]


def test_a_point_that_comes_twice_is_taken_once(points):
    assert points(grid={"n": [1, 2, 2, 1]}) == [{}, {"n": 2}]
    assert points(points=[{"n": 1}, {}, {"rate": 0.5}, {"rate": 1}, {"rate": 1.0}]) == [{}, {"rate": 1.0}]


def test_values_take_the_type_of_the_default_as_yaml_reads_them(notebooks, tmp_path):
    text = "notebook: '01'\ngrid: {rate: [1e-3, 2], levels: [[1e-3, 5E2], [1]], free: ['1e-3']}"
    (tmp_path / "spec.yml").write_text(text)
    found = read_spec(tmp_path / "spec.yml", notebooks).points
    assert [(point["rate"], point["levels"]) for point in found] == [
        (1e-3, [1e-3, 500.0]),
        (1e-3, [1.0]),
        (2.0, [1e-3, 500.0]),
        (2.0, [1.0]),
    ]
    assert all(type(value) is float for point in found for value in [point["rate"], *point["levels"]])
    assert found[0]["free"] == "1e-3"  # a quoted word stays one where the default says nothing


def test_folders_of_networks_become_absolute(points, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    found = points(grid={"network": ["mine", "digits/mlp"], "networks": [["digits/mlp", "mine"]]})
    own = str(tmp_path / "mine")
    assert [point["network"] for point in found] == [own, "digits/mlp"]
    assert found[0]["networks"] == ["digits/mlp", own]


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ({"gird": {}}, ValueError, r"unknown key 'gird' \(did you mean grid\?\); known: notebook, grid, points, seeds"),
        ({"grid": {"ratee": [1]}}, ValueError, r"unknown parameter of 01_all 'ratee' \(did you mean rate\?\)"),
        ({"points": [{"n": 2}, {"sead": 2}]}, ValueError, r"'sead' \(did you mean seed\?\)"),
        ({"grid": {"n": [1, 0.5]}}, TypeError, "parameter 'n' of 01_all is int like 1; got 0.5"),
        ({"grid": {"rate": ["much"]}}, TypeError, "parameter 'rate' of 01_all is float like 0.5; got 'much'"),
        ({"points": [{"flag": 1}]}, TypeError, "parameter 'flag' of 01_all is bool"),
        ({"points": [{"levels": ["a"]}]}, TypeError, "parameter 'levels' of 01_all is list"),
        ({"grid": {"free": [date(2020, 1, 1)]}}, TypeError, "parameter 'free' of 01_all must be plain data"),
        ({"grid": {"network": ["digits/resnett"]}}, ValueError, "digits/resnet"),
        ({"grid": {"networks": [["digits/mlpp"]]}}, ValueError, "digits/mlp"),
        ({"grid": {"n": 3}}, ValueError, "grid must give each parameter a list of values"),
        ({"grid": {"n": []}}, ValueError, "grid must give each parameter a list of values"),
        ({"grid": [1]}, ValueError, "grid must give"),
        ({"grid": 0}, ValueError, "grid must give"),
        ({"points": {"n": 1}}, ValueError, "points must be a list of parameter sets"),
        ({"points": []}, ValueError, "points must be a list of parameter sets"),
        ({"points": [3]}, ValueError, "points must be a list of parameter sets"),
        ({"seeds": 0}, ValueError, "seeds must be a list of whole numbers, or how many, not 0"),
        ({"seeds": True}, ValueError, "not True"),
        ({"seeds": [0.5]}, ValueError, "seeds must be"),
        ({"seeds": "many"}, ValueError, "not 'many'"),
        ({"grid": {"n": [1]}, "points": [{"n": 1}]}, ValueError, "'n' is set twice: in grid, in points, or by seeds"),
        ({"points": [{}, {"seed": 1}], "seeds": 2}, ValueError, "'seed' is set twice"),
        ({"notebook": "03", "seeds": 2}, ValueError, "no parameter `seed` or `seeds`: leave seeds out"),
        ({"notebook": None}, ValueError, "it must name a notebook"),
        ({"notebook": "04_al"}, ValueError, "unknown notebook '04_al'"),
        ({"notebook": "n" * 5000 + ".ipynb"}, ValueError, "unknown notebook 'nnn"),
        ({"grid": {"network": ["n" * 5000]}}, ValueError, "unknown network 'nnn"),
        ({"grid": {"rate": [10**400]}}, TypeError, "parameter 'rate' of 01_all is float like 0.5; got 1000"),
        ({"grid": {name: list(range(50)) for name in ("n", "rate", "seed")}}, ValueError, "it has 125,000 points"),
        ({"seeds": 10**12}, ValueError, "points or more, and a sweep may have 100,000: leave values out"),
        ({"seeds": [0] * 10**6}, ValueError, "it holds more than 100,000 values"),
    ],
)
def test_what_is_wrong_is_said_with_what_would_be_right(points, keys, error, message):
    with pytest.raises(error, match=f"the sweep: .*{message}"):
        points(**{"notebook": "01", **keys})


BOMB = "&a [1,1,1,1,1,1,1,1,1,1]"  # ten times ten times ... as many values, in a few hundred letters
for _before, _name in pairwise("abcdefghi"):
    BOMB += f", &{_name} [{','.join([f'*{_before}'] * 10)}]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("notebook: [", "is no YAML: "),
        (b"notebook: \xff", "is no YAML: "),
        ("notebook: '01'\ngrid: {free: [2020-13-01]}", "month must be in 1..12"),
        ("just words", "must hold the keys notebook, grid, points, seeds"),
        ("", "must hold the keys"),
        ("notebook: '01'\ngrid:\n  n: [1]\n  n: [2]", "'n' is set twice: again in line 4"),
        ("notebook: '01'\nseeds: 1\nseeds: 2", "'seeds' is set twice: again in line 3"),
        ("notebook: '01'\npoints:\n- {n: 1, n: 2}", "'n' is set twice: again in line 3"),
        ("notebook: !!bool x", "is no YAML that can be read .KeyError"),
        ("seeds: !!int ''", "is no YAML that can be read .IndexError"),
        ("seeds: !!timestamp x", "is no YAML that can be read .AttributeError"),
        ("seeds: " + "[" * 2000, "is no YAML that can be read .RecursionError"),
        ("notebook: '01'\ngrid: {free: [&a [*a]]}", "it holds more than 100,000 values, with its aliases written out"),
        (f"notebook: '01'\ngrid: {{free: [{BOMB}]}}", "it holds more than 100,000 values"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_by_name(notebooks, tmp_path, text, message):
    path = tmp_path / "spec.yml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ValueError, match=rf"spec\.yml.*{message}"):
        read_spec(path, notebooks)


def test_a_missing_file_is_named(notebooks, tmp_path):
    for path in (tmp_path / "none.yml", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"there is no file {path}"):
            read_spec(path, notebooks)


VALUES = {
    "n": st.integers(-3, 3),
    "rate": st.floats(-2, 2, allow_nan=False) | st.integers(-2, 2),
    "name": st.text(max_size=3),
    "flag": st.booleans(),
    "levels": st.lists(st.floats(0, 1), max_size=2),
    "free": st.none() | st.integers() | st.text(max_size=2),
}
DEFAULTS = {"n": 1, "rate": 0.5, "name": "kde", "flag": False, "levels": [0.1, 0.2], "free": None, "seed": 0}


@st.composite
def specs(draw) -> dict:
    """Specifications that are right: each parameter varies in the grid, in the points, or not at all."""
    names = draw(st.permutations(sorted(VALUES)))
    cut, end = sorted(draw(st.tuples(st.integers(0, 4), st.integers(0, 4))))
    spec = {"notebook": "01"}
    if cut:
        spec["grid"] = {name: draw(st.lists(VALUES[name], min_size=1, max_size=3)) for name in names[:cut]}
    if end > cut:
        sets = st.fixed_dictionaries({}, optional={name: VALUES[name] for name in names[cut:end]})
        spec["points"] = draw(st.lists(sets, min_size=1, max_size=3))
    if draw(st.booleans()):
        spec["seeds"] = draw(st.integers(1, 3) | st.lists(st.integers(0, 5), min_size=1, max_size=3))
    return spec


def whole(point: dict) -> str:
    """All parameters of a point, in a form that compares 1 with 1.0 and not with True."""
    filled = {**DEFAULTS, **point}
    return json.dumps({**filled, "rate": float(filled["rate"])}, sort_keys=True)


def wanted(spec: dict) -> set[str]:
    """The product, computed in another way than in the package: one parameter after the other."""
    seeds = spec.get("seeds", [0])
    found = [dict(point) for point in spec.get("points", [{}])]
    for name, values in {**spec.get("grid", {}), "seed": range(seeds) if isinstance(seeds, int) else seeds}.items():
        found = [{**point, name: value} for point in found for value in values]
    return {whole(point) for point in found}


@given(spec=specs())
def test_the_points_are_the_distinct_ones_of_the_product(notebooks, spec):
    found = read_spec(spec, notebooks).points
    assert {whole(point) for point in found} == wanted(spec)
    assert len(found) == len(wanted(spec))
    for point in found:  # nothing is told that is a default anyway
        assert all(json.dumps(value) != json.dumps(DEFAULTS[name]) for name, value in point.items())


WRONG = [
    lambda spec: {**spec, "grid": {**spec.get("grid", {}), "unheard": [1]}},
    lambda spec: {**spec, "points": [*spec.get("points", []), {"unheard": 1}]},
    lambda spec: {**spec, "points": [*spec.get("points", [{}]), {"network": 3}]},
    lambda spec: {**spec, "seeds": [0, "one"]},
    lambda spec: {**spec, "more": 1},
    lambda spec: {**spec, "notebook": "99"},
]


@given(spec=specs(), spoil=st.sampled_from(WRONG))
def test_one_wrong_thing_anywhere_stops_all_of_it(notebooks, spec, spoil):
    with pytest.raises((ValueError, TypeError), match="the sweep: "):
        read_spec(spoil(spec), notebooks)


DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.dates() | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=4),
    max_leaves=12,
)
ANY = st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), DATA, max_size=5)
GRIDS = st.dictionaries(st.sampled_from(list(DEFAULTS)), DATA | st.lists(DATA, max_size=4), max_size=3)


def counted(spec: dict, points: tuple[dict, ...]) -> bool:
    """Whether the points are different ones, and no more than the product has."""
    seeds = spec["seeds"] if spec.get("seeds") is not None else [0]
    most = len(spec.get("points") or [{}]) * (seeds if isinstance(seeds, int) else len(seeds))
    most *= prod(map(len, (spec.get("grid") or {}).values()))
    return 1 <= len({json.dumps(point, sort_keys=True) for point in points}) == len(points) <= most


@settings(max_examples=200)
@given(
    spec=st.one_of(ANY, specs(), st.builds(lambda spec, more: {**spec, **more}, specs(), ANY)), grid=st.none() | GRIDS
)
def test_any_mapping_is_points_that_can_be_counted_or_is_refused_in_words(notebooks, spec, grid):
    spec = spec if grid is None else {**spec, "grid": grid}
    points, said, start = None, "", time.process_time()
    try:
        points = read_spec(spec, notebooks).points
    except (ValueError, TypeError) as error:
        said = str(error)
    assert time.process_time() - start < 1
    assert said.startswith("the sweep: ") if points is None else counted(spec, points)
