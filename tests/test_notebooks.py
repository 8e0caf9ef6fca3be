"""Every notebook, headlessly through papermill: quick, with its results read back, and once more with one change."""

import re
import shlex
from pathlib import Path

import nbformat
import own_network
import pytest

import redlab
from redlab import list_networks, run_notebook
from redlab.lab.kinds import from_text
from redlab.lab.notebooks import list_notebooks, read_cells
from redlab.lab.parameters import changed_parameters, default_parameters, read_parameters
from redlab.paths import checkout

NOTEBOOKS = list_notebooks()
# For each notebook: one parameter to change, and the column of the results that must then change.
CHANGES = {
    "00_start_here": ({"networks": ["digits/mlp"]}, "network"),
    "01_weight_density": ({"rule": "uniform"}, "error"),
    "02_hash_collapse": ({"max_errors": [0.5]}, "share"),
    "03_output_merging": ({"alphas": [0.4]}, "accuracy"),
    "04_input_splitting": ({"max_error": 0.4}, "share"),
    "05_red_and_red_plus_plus": ({"max_errors": [0.6]}, "share"),
    "06_taylor_importance": ({"keeps": [0.8]}, "products"),
    "07_flexrel": ({"ratios": [0.4]}, "accuracy"),
    "08_dpp_mask_entropy": ({"keeps": [0.5, 0.5]}, "sparsity"),
    "09_pruning_vs_accuracy": ({"keeps": [0.8]}, "products"),
    "10_real_networks": ({"max_error": 0.4}, "products"),
    "11_redundancy_atlas": ({"bandwidth": "silverman/4"}, "distinct"),
    "12_milliseconds": ({"network": "digits/mlp"}, "bytes"),
}


# A subclass of the convolution, two inputs, a dict of logits, and images with labels: FILE.py:NAME.
IN_A_FILE = {"network": f"{own_network.__file__}:make", "dataset": f"{own_network.__file__}:images"}
# Where nothing else is said these run on it, which costs no kernel more, and all others on the shipped network.
IN_FILE = ("01_weight_density", "02_hash_collapse", "04_input_splitting")
MORE_IN_FILE = (
    "03_output_merging",
    "05_red_and_red_plus_plus",
    "06_taylor_importance",
    "09_pruning_vs_accuracy",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Quick runs by name, made when asked for and kept for the module."""
    made, out = {}, tmp_path_factory.mktemp("runs")

    def run(name, **params):
        params = {**IN_A_FILE, **params} if name in IN_FILE else params
        key = (name, str(params))
        if key not in made:
            made[key] = run_notebook(name, {"quick": True, **params}, out)
        return made[key]

    return run


def test_every_notebook_has_a_change_to_try():
    assert set(CHANGES) <= set(NOTEBOOKS)
    assert [name for name in NOTEBOOKS if name not in CHANGES] == []


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_quick_run_records_a_frame_without_gaps(runs, name):
    frame = runs(name).results
    assert len(frame) > 0
    if name != "11_redundancy_atlas":  # of most of its networks there is no accuracy: their weights are untrained
        assert frame["accuracy"].between(0, 100).all()
    if "share" in frame:
        assert frame["share"].between(0, 1).all()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_run_leaves_the_figures_that_are_committed(runs, name):
    drawn = {path.name for path in runs(name).figures}
    assert drawn
    assert all(file.startswith(name[:3]) for file in drawn)
    committed = {path.name for path in (checkout() / "figures").glob(f"{name[:3]}*")}
    assert drawn == committed


LONG = (
    "00_start_here",
    "01_weight_density",
    "02_hash_collapse",
    "03_output_merging",
    "04_input_splitting",
    "05_red_and_red_plus_plus",
    "06_taylor_importance",
    "07_flexrel",
    "08_dpp_mask_entropy",
    "09_pruning_vs_accuracy",
    "10_real_networks",
    "11_redundancy_atlas",
    "12_milliseconds",
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in CHANGES]
)
def test_one_changed_parameter_changes_the_results(runs, name):
    params, column = CHANGES[name]
    before, after = runs(name).results, runs(name, **params).results
    assert list(before[column]) != list(after[column])


@pytest.mark.parametrize("name", [*IN_FILE, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE_IN_FILE)])
def test_a_network_and_images_in_a_file_are_shown_by_their_short_name_without_a_path(runs, name):
    run = runs(name, **IN_A_FILE)
    assert set(run.results["network"]) == {"own_network.py:make"}
    assert run.results["before"].iloc[0] == 100  # its labels are its own answers
    assert run.results["accuracy"].between(0, 100).all()
    assert {path.name for path in run.figures} == {path.name for path in (checkout() / "figures").glob(f"{name[:3]}*")}
    book = nbformat.read(run.folder / "executed.ipynb", as_version=4)
    assert not [cell for cell in book.cells if str(Path(own_network.__file__).parent) in str(cell.get("outputs"))]


def test_the_collapse_notebook_shows_what_hashing_does(runs):
    frame = runs("02_hash_collapse").results
    bounded = frame.dropna(subset=["max_error"])
    assert (bounded["error"] <= bounded["max_error"]).all()
    assert bounded.groupby("method")["share"].apply(lambda s: s.is_monotonic_decreasing).all()
    assert set(bounded["method"]) == {"kde, mode", "kde, mean", "uniform", "uniform, a scale a row", "lloyd"}


def test_the_splitting_notebook_saves_products_and_nothing_else(runs):
    frame = runs("04_input_splitting").results.set_index("unit")
    assert frame.loc["channel", "share"] < frame.loc["tap", "share"] < frame.loc["kernel", "share"] <= 1
    assert (frame["difference"] < 1e-4).all()
    assert (frame["additions_after"] > 0.5 * frame["products_before"]).all()


def test_the_budget_of_products_leaves_fewest_products_at_each_error_and_noise_is_told(runs):
    frame = runs("05_red_and_red_plus_plus").results
    channel = frame[(frame["section"] == 2) & (frame["unit"] == "channel")]
    shares = channel.pivot_table(index="max_error", columns="method", values="share")
    assert (shares.idxmin(axis=1) == "ours, budget products").all()
    default = channel.dropna(subset=["max_noise"])
    assert set(default["method"]) == {"ours, budget noise (default)"}
    assert (default["noise"] > 0).all()
    scaled = channel[channel["method"] == "kde, as published, a scale a row"]
    assert (scaled["scales"] > 0).all()
    ladder = frame[frame["section"] == 3]
    assert list(dict.fromkeys(ladder["method"]))[-1] == "+ w and -w share (the default)"


def test_the_density_notebook_finds_more_modes_under_narrower_kernels(runs):
    modes = runs("01_weight_density").results.set_index("bandwidth")["modes"]
    widths = ["silverman", "silverman/2", "silverman/4", "silverman/8", "silverman/16", "median_gap"]
    assert modes[widths].is_monotonic_increasing


def test_the_taylor_notebook_measures_itself_against_the_oracle(runs):
    frame = runs("06_taylor_importance").results.groupby("method").first()
    assert frame["spearman"].drop("oracle").between(-1, 1).all()
    assert frame.loc["second order", "spearman"] > frame.loc["magnitude", "spearman"]


def test_the_mask_notebook_keeps_as_many_weights_as_it_says(runs):
    frame = runs("08_dpp_mask_entropy").results.set_index("method")
    assert frame.loc["DPP, weights", "sparsity"] == pytest.approx(0.8, abs=0.005)
    assert frame.loc["DPP, 1 bit", "bits"] < frame.loc["DPP, 8 bits", "bits"] < frame.loc["DPP, weights", "bits"]


def test_the_pruning_notebook_compares_all_criteria_at_equal_products(runs):
    frame = runs("09_pruning_vs_accuracy").results
    assert (frame["products"] <= frame["keep"] + 1e-9).all()
    assert {"Taylor, iterative", "SPP", "DPP", "reconstruction", "SInGE", "FlexRel"} <= set(frame["method"])
    assert set(frame["stage"]) == {"pruned", "fine-tuned"}


def test_the_atlas_notebook_has_each_of_our_networks_trained_and_untrained(runs):
    frame = runs("11_redundancy_atlas").results
    states = frame[~frame["network"].str.startswith("torchvision/")].groupby("network")["trained"].apply(sorted)
    assert len(states) == 6
    assert all(own == [False, True] for own in states)
    assert (frame["products"] <= 1).all()
    assert frame["duplicates"].ge(0).all()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_committed_notebook_is_thin_clean_and_executed(name):
    book = nbformat.read(checkout() / "notebooks" / f"{name}.ipynb", as_version=4)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert book.metadata.kernelspec.name == "python3"
    assert not any(line.startswith(("def ", "class ")) for cell in code for line in cell.source.splitlines())
    outputs = [output for cell in code for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    drawn = [cell for cell in code if "save_figure(" in cell.source]
    assert all(any("image/png" in output.get("data", {}) for output in cell.outputs) for cell in drawn)
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert kinds <= {"text/plain", "text/html", "text/markdown", "image/png"}
    text = nbformat.writes(book)
    assert len(text) < 550_000
    assert "widget-view" not in text
    assert str(checkout()) not in text
    assert not re.search(r"(?<![\w/.])/(home|root|tmp|usr|Users|var)/", text)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_parameter_says_what_it_is_in_words_that_are_known(name):
    source = next(
        cell["source"]
        for cell in read_cells(checkout() / "notebooks" / f"{name}.ipynb")
        if "parameters" in cell["metadata"].get("tags", [])
    )
    helps = dict(re.findall(r"^(\w+) = .*?  # (.+)$", source, re.M))
    assert list(helps) == list(default_parameters(checkout() / "notebooks" / f"{name}.ipynb"))
    # A word with an underscore or in backticks is a name: of ours, or of another parameter.
    names = set(re.findall(r"`([^`]+)`|(\w+_\w+)", " ".join(helps.values())))
    assert {a or b for a, b in names} <= {*redlab.__all__, *helps}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_imports_redlab_in_few_lines_and_takes_figures_from_its_plots(name):
    cells = read_cells(checkout() / "notebooks" / f"{name}.ipynb")
    lines = [line for cell in cells if cell["cell_type"] == "code" for line in cell["source"].splitlines()]
    assert "import redlab as rl" in lines
    assert not [line for line in lines if line.startswith("from redlab import") or ".studies.plots" in line]
    assert len([line for line in lines if line.startswith("from redlab.studies")]) <= 2


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_below_each_figure_a_sentence_says_how_to_read_it(name):
    cells = read_cells(checkout() / "notebooks" / f"{name}.ipynb")
    for k, cell in enumerate(cells):
        if "save_figure(" in cell["source"]:
            below = next(own["source"] for own in cells[k + 1 :] if own["cell_type"] == "markdown")
            assert re.match("How to read|The figure shows", below), (name, k)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_closes_with_three_takeaways_and_a_command_to_try(name):
    path = checkout() / "notebooks" / f"{name}.ipynb"
    book = nbformat.read(path, as_version=4)
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    said = [output.data["text/markdown"] for output in outputs if "text/markdown" in output.get("data", {})]
    assert [text.count("\n- ") for text in said] == [2]
    assert any(cell.source.startswith("## What this shows") for cell in book.cells)
    number, *words = shlex.split(re.search(r"try\.\*\*.*?`redlab run (.+?)`", book.cells[-1].source, re.S)[1])
    assert number == name[:2]
    assert words[::3] == ["-p"] * (len(words) // 3)
    known = read_parameters(path)
    given = {own: from_text(text, known[own].kind) for own, text in zip(words[1::3], words[2::3], strict=True)}
    assert changed_parameters(path, given).keys() == given.keys()


def test_the_front_page_lists_every_notebook():
    prose = "".join(cell["source"] for cell in read_cells(checkout() / "notebooks" / "00_start_here.ipynb"))
    assert all(f"({name}.ipynb)" in prose for name in NOTEBOOKS if not name.startswith("00"))


def test_shipped_networks_are_what_the_notebooks_run_on():
    assert {"digits/resnet", "digits/mobilenet", "digits/mlp"} <= set(list_networks())
