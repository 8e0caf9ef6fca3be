"""What the README prints works as printed."""

import re

import pytest
import torch
import yaml

import redlab
from redlab import fold_batchnorm, load_network, score_channels
from redlab.paths import checkout
from redlab.pruning.criteria.registry import CRITERIA
from redlab.studies.real import read_real, summarise_real

README = (checkout() / "README.md").read_text()


def test_the_example_prints_what_the_readme_says(capsys):
    example, output = re.search(r"```python\n(.*?)```\s*```text\n(.*?)```", README, re.S).groups()
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    # Sums of distinct values may differ by one where another processor rounds otherwise; the shape of the text may not.
    assert re.sub(r"[\d.,]+", "#", printed).strip() == re.sub(r"[\d.,]+", "#", output).strip()
    assert len([line for line in example.splitlines() if line.strip()]) <= 6


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([\w/.-]+)\)", README))))
def test_every_link_leads_to_a_file(path):
    assert (checkout() / path).is_file()


def test_the_two_commands_are_targets_of_make():
    makefile = (checkout() / "Makefile").read_text()
    for target in re.findall(r"^    make ([\w-]+)", README, re.M):
        assert re.search(rf"^{target}:", makefile, re.M)


def test_a_criterion_of_ones_own_is_as_short_as_the_readme_says(capsys):
    example = re.search(r"## A criterion of your own.*?```python\n(.*?)```", README, re.S)[1]
    before = dict(CRITERIA)
    try:
        known: dict = {}
        exec(compile(example, "README.md", "exec"), known)
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


def test_the_results_are_those_of_the_benchmark():
    section = re.search(r"## Results\n(.*?)\n## ", README, re.S)[1]
    networks = ("cifar10/resnet20", "cifar10/resnet56", "imagenet/mobilenet_v1_0.75")
    summary, shown = summarise_real(read_real()), 0
    needs = {"nothing": "nothing", "images": "data", "training": "fine-tuning"}
    for need, method, setting, *cells in table(section):
        wanted = summary[(summary["needs"] == needs[need]) & (summary["method"] == method)]
        settings = ["50% of products", "47% of products"] if "half" in setting else [setting.replace(" %", "%")]
        for network, cell in zip(networks, cells, strict=True):
            own = wanted[(wanted["network"] == network) & wanted["setting"].isin(settings)]
            assert len(own) == bool(cell), (method, network)
            for row in own.itertuples():
                spread = f" ± {row.sd:.2f}" if row.seeds > 1 else ""
                left = f"{100 * row.products:.1f} / {100 * row.bytes:.1f} %"
                assert cell == f"{row.accuracy:.2f}{spread} ({left})"
                shown += 1
    assert shown > 40
    assert f"all {summary['method'].nunique()} methods" in " ".join(section.split())


def beside_other_tools():
    section = re.search(r"## Beside other tools\n(.*?)\n## ", README, re.S)[1]
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
    text = (checkout() / "docs/peers.md").read_text()
    recorded = {(f, tool): (cell, how) for f, tool, cell, how in table(text[text.index("| feature |") :])}
    for feature, *cells in rows:
        for tool, cell in zip(tools, cells, strict=True):
            if not feature.startswith("**"):
                found, how = recorded[feature, tool]
                assert found == cell, (feature, tool)
                assert how, (feature, tool)
    assert len(recorded) == 5 * sum(not row[0].startswith("**") for row in rows)


def test_redlab_s_own_cells_name_functions_and_tests_that_exist():
    text = (checkout() / "docs/peers.md").read_text()
    tests = "".join(path.read_text() for path in (checkout() / "tests").glob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", text))
    assert len(named) >= 10
    assert {name for name in named if f"def {name}(" not in tests} == set()
    for path in set(re.findall(r"`((?:tests|benchmarks)/\w+\.(?:py|csv))`", text)):
        assert (checkout() / path).is_file(), path


def test_the_citation_is_valid_and_of_this_version():
    cited = yaml.safe_load((checkout() / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(cited)  # those that version 1.2.0 requires
    assert cited["cff-version"] == "1.2.0"
    assert cited["type"] == "software"
    assert [set(author) for author in cited["authors"]] == [{"name"}]
    assert cited["version"] == redlab.__version__
    assert cited["license"] == "MIT"


def test_every_paper_of_the_readme_can_be_cited():
    entries = (checkout() / "CITATION.bib").read_text()
    papers = re.findall(r"arXiv (\d{4}\.\d{5})", README[README.index("## Papers") : README.index("## Citing")])
    assert len(papers) == 6
    for number in papers:
        assert f"arXiv {number}" in entries
    assert f"version = {{{redlab.__version__}}}" in entries
    assert entries.count("{") == entries.count("}")
