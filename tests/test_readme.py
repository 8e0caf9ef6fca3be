"""What the README prints works as printed."""

import re

import pytest
import torch

from redlab import fold_batchnorm, load_network, score_channels
from redlab.baselines import CRITERIA
from redlab.paths import checkout

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
