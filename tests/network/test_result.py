import copy
import json

import pandas as pd
import torch
from torch import nn

from redlab import Recipe, Result, fold_batchnorm, hash_network, load_network, weight_layers
from redlab.network.recipe import append_step, recipe_of
from redlab.network.result import report_once


def test_a_result_says_what_was_asked_achieved_and_skipped():
    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(64, 8)))
    text = str(hash_network(network, bandwidth="silverman/4", contrast=0.1))
    assert text.splitlines()[0] == "hash(rule='kde', bandwidth='silverman/4', contrast=0.1)"
    before = sum(len(layer.weight.unique()) for layer in weight_layers(network))  # two random numbers may be equal
    assert f"distinct values: {before:,} -> " in text
    assert "2 layers, 1 skipped: 2 (its weight is parametrized" in text
    assert len(text.splitlines()) <= 6  # one more with a random twin


def test_the_notebook_view_holds_the_table():
    result = hash_network(load_network("digits/mlp"))
    html = result._repr_html_()
    assert "<table" in html
    assert all(layer in html for layer in result.layers["layer"])


def test_steps_are_plain_data_and_accumulate():
    network = hash_network(fold_batchnorm(load_network("digits/resnet")).network).network
    assert [step["step"] for step in network.redlab.steps] == ["fold", "hash"]
    assert json.loads(json.dumps(network.redlab.steps)) == list(network.redlab.steps)


def test_a_network_without_a_recipe_gets_one_with_its_first_step():
    network = nn.Linear(2, 2)
    append_step(network, {"step": "hash"})
    assert recipe_of(network) == Recipe(None, None, ({"step": "hash"},))
    network.redlab = Recipe("mine", (2,))
    append_step(network, {"step": "hash"})
    assert recipe_of(network).steps == ({"step": "hash"},)


def test_layers_are_every_conv_and_linear_in_order():
    network = nn.Sequential(
        nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2), nn.ConvTranspose2d(2, 3, 1), nn.Embedding(3, 3), nn.Linear(3, 1)
    )
    assert [(layer.name, layer.kind) for layer in weight_layers(network)] == [
        ("0", "Conv1d"),
        ("2", "ConvTranspose2d"),
        ("4", "Linear"),
    ]


def test_a_bare_layer_is_named_after_its_class():
    (layer,) = weight_layers(nn.Linear(2, 2))
    assert (layer.name, layer.kind) == ("Linear", "Linear")
    assert layer.weight is layer.module.weight


def test_separate_attention_projections_have_a_row_each():
    names = [layer.name for layer in weight_layers(nn.MultiheadAttention(8, 2, kdim=4, vdim=4))]
    assert names == ["q_proj", "k_proj", "v_proj", "out_proj"]


def test_empty_layers_are_skipped():
    network = nn.Sequential(nn.Linear(3, 0), nn.Linear(3, 2))
    rows = hash_network(network).layers
    assert rows["skipped"].tolist()[0] == "its weight is empty"
    assert not rows.isna().any().any()


def test_an_empty_network_gives_an_empty_table():
    result = hash_network(nn.Sequential(nn.ReLU()))
    assert isinstance(result, Result)
    assert "0 layers" in str(result)
    assert torch.equal(result.network(torch.tensor([-1.0, 1.0])), torch.tensor([0.0, 1.0]))


def test_a_reason_is_told_once_with_a_count_and_three_names():
    layer = nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight.fill_(1)
    network = nn.Sequential(*(copy.deepcopy(layer) for _ in range(50)))
    reason = hash_network(network).layers["skipped"].iloc[0]
    for text in (str(hash_network(network)), hash_network(network)._repr_html_().split("<table")[0]):
        assert text.count(reason) == 1
        assert f"50 skipped: 0, 1, 2 and 47 more ({reason})" in text


def test_of_many_reasons_the_most_frequent_are_told():
    names, reasons = [f"n{k}" for k in range(30)], [f"r{max(0, k - 10)}" for k in range(30)]
    text = report_once(names, reasons)
    assert text.startswith("n0, n1, n2 and 8 more (r0); n11 (r1)")
    assert text.endswith("; 14 more for 14 other reasons")
    assert report_once([], []) == ""


def test_what_html_would_take_for_a_tag_is_text():
    network = nn.Sequential(nn.Linear(3, 3))
    result = Result(network, pd.DataFrame({"layer": ["0"], "kind": ["Linear"], "skipped": ["<locals> & more"]}))
    assert "&lt;locals&gt; &amp; more" in result._repr_html_()
