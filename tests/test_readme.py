"""What README.md and the pages of docs/ print works as printed, and their numbers are those of the benchmarks."""

import ast
import re

import pandas as pd
import pytest
import torch
import yaml

import redlab
from benchmarks import doc_tables
from benchmarks.intervals import wilson
from redlab import fold_batchnorm, hash_network, load_network, score_channels
from redlab.paths import checkout
from redlab.pruning.criteria.registry import CRITERIA
from redlab.studies.atlas import read_atlas, summarise_atlas
from redlab.studies.real import read_real, summarise_real

PAGES = {
    str(path.relative_to(checkout())): path.read_text(encoding="utf-8")
    for path in [checkout() / "README.md", *sorted((checkout() / "docs").glob("*.md"))]
}
README = PAGES["README.md"]
BLOCKS = [(page, code) for page, text in PAGES.items() for code in re.findall(r"```python\n(.*?)```", text, re.S)]
# An accuracy in percent with its Wilson interval, ``91.49 % [90.93, 92.02]`` or ``80.75 ± 1.50 [79.97, 81.51]``.
ACCURACY = re.compile(r"(\d+\.\d\d)(?: %)?(?: ± \d+\.\d+)? \[(\d+\.\d\d), (\d+\.\d\d)\]")


def test_the_readme_is_short():
    assert len(README.encode()) <= 10_240
    assert len(re.findall(r"^\|(?: ?-+ ?\|)+$", README, re.M)) <= 2


def test_the_example_prints_what_the_readme_says(capsys):
    example, output = re.search(r"```python\n(.*?)```\s*```text\n(.*?)```", README, re.S).groups()
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    # Sums of distinct values may differ by one where another processor rounds otherwise; the shape of the text may not.
    assert re.sub(r"[\d.,]+", "#", printed).strip() == re.sub(r"[\d.,]+", "#", output).strip()
    assert len([line for line in example.splitlines() if line.strip()]) <= 6


def test_a_random_network_collapses_as_much_as_the_readme_says():
    left = {}
    for weights in ("default", None):
        torch.manual_seed(0)
        folded = fold_batchnorm(load_network("digits/resnet", weights)).network
        printed = str(hash_network(folded, bandwidth="silverman/10"))
        left[weights] = float(re.search(r"\(([\d.]+)% left\)", printed)[1])
        left[f"{weights} twin"] = float(re.search(r"random weights of these sizes: ([\d.]+)%", printed)[1])
    said = re.search(r"leaves ([\d.]+) % .* trained .* leave ([\d.]+) %, and .* about ([\d.]+) %\.", README)
    trained, gaussian, uniform = said.groups()
    assert f"{left['default']:.2f}" == trained
    assert f"{left['default twin']:.2f}" == gaussian
    assert f"{left[None]:.1f}" == uniform


@pytest.mark.parametrize("page", ["README.md", "docs/networks.md"])
def test_a_network_of_ones_own_takes_the_steps_that_the_page_shows(page, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = [code for name, code in BLOCKS if name == page and "nn.Sequential" in code]
    known: dict = {}
    for example in examples:
        exec(compile(example, page, "exec"), known)
    assert "reached" in capsys.readouterr().out
    assert len(examples) == {"README.md": 1, "docs/networks.md": 2}[page]


@pytest.mark.parametrize(("page", "code"), BLOCKS)
def test_every_name_that_an_example_takes_from_redlab_is_there(page, code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "rl":
            assert node.attr in redlab.__all__, node.attr
        if isinstance(node, ast.ImportFrom) and node.module == "redlab":
            assert {alias.name for alias in node.names} <= set(redlab.__all__)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file(page):
    made = "docs/reference/"  # by `make docs`
    for target in set(re.findall(r"\]\(([\w/.+-]+)(?:#[\w-]+)?\)", PAGES[page])):
        path = (checkout() / page).parent / target
        assert path.is_file() or made in path.as_posix(), target


def test_the_two_commands_are_targets_of_make():
    makefile = (checkout() / "Makefile").read_text()
    named = re.findall(r"^    make ([\w-]+)", README, re.M)
    assert named == ["figures", "test"]
    for target in named + re.findall(r"`make ([\w-]+)`", "".join(PAGES.values())):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_a_criterion_of_ones_own_is_as_short_as_the_page_says(capsys):
    (example,) = [code for page, code in BLOCKS if page == "docs/criterion.md"]
    before = dict(CRITERIA)
    try:
        known: dict = {}
        exec(compile(example, "docs/criterion.md", "exec"), known)
        network = load_network("digits/resnet")
        weight = fold_batchnorm(network).network.layer1[0].conv1.weight.detach().flatten(1)
        scores = score_channels(network, "geometric_median").values["layer1.0.conv1"]
        assert scores == pytest.approx(torch.cdist(weight, weight).sum(1).numpy(), rel=1e-4)
    finally:
        CRITERIA.clear()
        CRITERIA.update(before)
    assert len([line for line in example.splitlines() if line.strip()]) < 30
    assert "channels" in capsys.readouterr().out


def table(text):
    """The rows of the first table of a text, without its head and the line below; cells without their blanks."""
    lines = [line.strip().strip("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")] for line in lines[2:]]


@pytest.mark.parametrize("page", doc_tables.PAGES)
def test_the_tables_are_those_of_the_benchmarks(page):
    assert doc_tables.rewritten(PAGES[page]) == PAGES[page], "run python -m benchmarks.doc_tables"


def test_every_table_of_the_benchmarks_stands_on_a_page_and_is_full():
    named = [name for page in doc_tables.PAGES for name in re.findall(r"<!-- table: ([\w -]+) -->", PAGES[page])]
    assert sorted(named) == sorted(doc_tables.TABLES)
    written = "".join(make() for make in doc_tables.TABLES.values())
    assert len(ACCURACY.findall(written)) > 150
    (first,) = re.findall(r"<!-- table: readme -->\n(.*?)<!-- end -->", README, re.S)
    assert len(table(first)) == 6


def test_the_results_are_the_means_that_the_studies_show():
    """Cells are written from the rows of real.csv; here they are compared with what notebook 10 shows of the same."""
    summary = summarise_real(read_real())
    for need, rows in doc_tables.ROWS.items():
        shown = table(doc_tables.real_table(need))
        for (method, settings), (_, _, *cells) in zip(rows, shown, strict=True):
            own = summary[(summary["needs"] == need) & (summary["method"] == method)]
            own = own[own["setting"].isin(settings)]
            for network, cell in zip(doc_tables.NETWORKS, cells, strict=False):
                found = own[own["network"] == network]
                assert bool(len(found)) == bool(cell), (method, network)
                for row in found.itertuples():
                    assert cell.startswith(f"{row.accuracy:.2f}"), (method, network)
                    assert cell.endswith(f"({100 * row.products:.1f} / {100 * row.bytes:.1f} %)")
    assert f"all {summary['method'].nunique()} methods" in PAGES["docs/results.md"]


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if ACCURACY.search(text)])
def test_every_interval_is_wilsons_for_a_number_of_images_that_the_page_names(page):
    counts = {int(n.replace(",", "")) for n in re.findall(r"([\d,]+) (?:test )?images\b", PAGES[page])}
    for accuracy, low, high in ACCURACY.findall(PAGES[page]):
        # A mean over seeds is printed to a hundredth, from which its interval may differ by as much.
        fits = [pytest.approx(wilson(float(accuracy), n), abs=0.011) == (float(low), float(high)) for n in counts]
        assert any(fits), (accuracy, low, high)


def measured():
    """Every accuracy that benchmarks/*.csv holds or averages, as it is printed."""
    groups = {
        "defaults": ["question", "network", "setting", "keep"],
        "real": ["network", "method", "setting", "stage", "count"],
        "pruning": ["network", "method", "keep", "stage"],
        "dpp": ["network", "method"],
        "scales": ["stage", "group", "network", "setting"],
        "runtimes": ["network", "variant", "precision"],
    }
    for name, columns in groups.items():
        rows = pd.read_csv(checkout() / "benchmarks" / f"{name}.csv").rename(columns={"score": "accuracy"})
        rows = rows.dropna(subset="accuracy")
        yield from (f"{value:.2f}" for value in rows.groupby(columns, dropna=False)["accuracy"].mean())
        yield from (f"{value:.2f}" for value in rows["before"].dropna())


@pytest.mark.parametrize(
    "page", ["README.md", "docs/defaults.md", "docs/results.md", "docs/pruning.md", "docs/masks.md"]
)
def test_every_accuracy_is_one_that_was_measured(page):
    # Those of two tables come from runs of notebooks 02 and 05, which the pages of these tables name.
    runs = {found[0] for name in ("hashing", "red") for found in ACCURACY.findall(PAGES[f"docs/{name}.md"])}
    assert {found[0] for found in ACCURACY.findall(PAGES[page])} - set(measured()) - runs == set()


def test_the_atlas_has_the_networks_and_near_filters_that_the_pages_say():
    atlas, page = read_atlas(), PAGES["docs/atlas.md"]
    size = (
        f"{atlas['network'].nunique()} networks, {len(atlas):,} layers and {atlas['weights'].sum() / 1e9:.1f} billion"
    )
    assert size in page
    found = summarise_atlas(atlas).set_index(["network", "trained"])["near"]
    near = [100 * found[name, True] for name in doc_tables.NETWORKS]
    assert all(found[name, False] == 0 for name in doc_tables.NETWORKS)
    shares = f"{min(near):.0f} to {max(near):.0f} % of"
    assert f"{shares} all filters" in README
    assert f"{shares} the filters, none in the twins" in page


def test_pages_say_what_may_be_compared_and_what_was_chosen_on_test_images():
    for page in ("README.md", "docs/results.md", "docs/methods.md"):
        assert "Compare methods only within a group: data-free, needs images, needs training." in PAGES[page]
    for page in ("README.md", "docs/results.md", "docs/defaults.md", "docs/red.md", "docs/masks.md", "docs/pruning.md"):
        assert re.search(r"chosen\s+on (these |these same )?test images", PAGES[page]), page


def beside_other_tools():
    section = re.search(r"# Beside other tools\n(.*?)\n## ", PAGES["docs/peers.md"], re.S)[1]
    head = next(line for line in section.splitlines() if line.startswith("|"))
    tools = [cell.strip() for cell in head.strip("|").split("|")][1:]
    return tools, table(section)


def test_every_feature_is_told_of_every_tool_in_a_few_words():
    tools, rows = beside_other_tools()
    assert len(tools) == 5
    for feature, *cells in rows:
        assert len(cells) == len(tools), feature
        if not feature.startswith("**"):  # the name of a group of features
            for cell in cells:
                assert re.match(r"(yes|no|partly|unverified|shuffle yes)\b", cell), feature
                assert len(cell.split()) <= 5, cell
    assert sum(not row[0].startswith("**") for row in rows) >= 20


def test_every_cell_is_recorded_with_how_it_was_checked():
    tools, rows = beside_other_tools()
    text = PAGES["docs/peers.md"]
    recorded = {(f, tool): (cell, how) for f, tool, cell, how in table(text[text.index("| feature |") :])}
    for feature, *cells in rows:
        for tool, cell in zip(tools, cells, strict=True):
            if not feature.startswith("**"):
                found, how = recorded[feature, tool]
                assert found == cell, (feature, tool)
                assert how, (feature, tool)
    assert len(recorded) == 5 * sum(not row[0].startswith("**") for row in rows)


def test_redlab_s_own_cells_name_functions_and_tests_that_exist():
    text = PAGES["docs/peers.md"]
    tests = "".join(path.read_text() for path in (checkout() / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", text))
    assert len(named) >= 10
    assert {name for name in named if f"def {name}(" not in tests} == set()
    for path in set(re.findall(r"`((?:tests|benchmarks)/[\w/]+\.(?:py|csv))`", text)):
        assert (checkout() / path).is_file(), path


def test_the_citation_is_valid_and_of_this_version():
    cited = yaml.safe_load((checkout() / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(cited)  # those that version 1.2.0 requires
    assert cited["cff-version"] == "1.2.0"
    assert cited["type"] == "software"
    assert [set(author) for author in cited["authors"]] == [{"name"}]
    assert cited["version"] == redlab.__version__
    assert cited["license"] == "MIT"


def test_every_paper_of_the_methods_can_be_cited():
    entries, methods = (checkout() / "CITATION.bib").read_text(), PAGES["docs/methods.md"]
    papers = re.findall(r"arXiv (\d{4}\.\d{5})", methods[methods.index("## Papers") :])
    assert len(papers) == 6
    for number in papers:
        assert f"arXiv {number}" in entries
    assert f"version = {{{redlab.__version__}}}" in entries
    assert entries.count("{") == entries.count("}")
