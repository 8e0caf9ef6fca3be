"""Core ML packages: what is stored is what was hashed, to the bit. What they predict can be seen on Apple's devices only."""

from __future__ import annotations

import copy
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from nets import Net
from scaled import scale_rows
from torch import nn

from redlab import fold_batchnorm, hash_network, load_network, split_inputs, weight_layers
from redlab.export.coreml import export_coreml
from redlab.export.extras import need
from redlab.export.palettes import BITS, Palette
from redlab.network.layers import count_distinct

RULES = {
    "kde": {},
    "lloyd": {"rule": "lloyd", "levels": 5},
    "power": {"rule": "power"},
    "residual": {"rule": "residual", "levels": 9},
    "uniform": {"rule": "uniform", "levels": 3},
}


@pytest.fixture
def tools():
    """The half of our own that needs coremltools."""
    pytest.importorskip("coremltools")
    from redlab.export import mlpackage

    return mlpackage


@pytest.fixture(scope="module")
def folded() -> nn.Module:
    return fold_batchnorm(load_network("digits/resnet")).network


def small(*layers: nn.Module) -> nn.Module:
    return hash_network(nn.Sequential(*layers), rule="uniform", levels=3).network


def stored_of(found: dict[str, Palette], name: str) -> Palette:
    return found[f"p_{name.replace('.', '_')}_weight"]


@pytest.mark.parametrize("rule", RULES)
def test_the_file_holds_the_values_of_every_hash(rule, folded, tools, tmp_path):
    network = hash_network(folded, **RULES[rule]).network
    export = export_coreml(network, tmp_path / "net.mlpackage")
    found = tools.read_palettes(export.path)
    rows = export.layers.set_index("layer")
    for layer in weight_layers(network):
        distinct = count_distinct(layer.weight)
        assert rows.loc[layer.name, "distinct"] == distinct
        assert rows.loc[layer.name, "bits"] == min(bits for bits in BITS if distinct <= 2**bits)
        np.testing.assert_array_equal(stored_of(found, layer.name).values, layer.weight.detach().numpy())
    assert set(rows["stored"]) == {"palette"}
    assert len(found) == len(rows)


def test_bytes_are_those_of_the_files(folded, tools, tmp_path):
    export = export_coreml(hash_network(folded, rule="uniform", levels=3), tmp_path / "net.mlpackage")
    files = [file.stat().st_size for file in export.path.rglob("*") if file.is_file()]
    assert export.bytes == sum(files) > export.layers["bytes"].sum()
    # Three values take 2 of 32 bits; what else is there: biases, the operations, a table a layer.
    assert export.layers["bytes"].sum() < 4 * export.layers["weights"].sum() / 15
    assert "read back" in str(export)
    assert "Apple's devices only" in str(export)


def test_batch_norm_stays_and_weights_do_too(tools, tmp_path):
    network = load_network("digits/mlp")
    export = export_coreml(network, tmp_path / "net.mlpackage")
    assert set(export.layers["skipped"]) == {"more than 256 values"}
    held = tools.read_weights(export.path)
    for name, parameter in network.named_parameters():
        np.testing.assert_array_equal(held[f"p_{name.replace('.', '_')}"], parameter.detach().numpy())


@pytest.mark.parametrize("target", ["iOS18", "iOS26"])
def test_scaled_rows_are_stored_to_the_bit(target, tools, tmp_path):
    torch.manual_seed(0)
    layers = nn.Conv2d(30, 16, 3), nn.ReLU(), nn.ConvTranspose2d(16, 8, 3, groups=2), nn.Flatten(), nn.Linear(200, 9)
    network = scale_rows(nn.Sequential(*layers))
    export = export_coreml(network, tmp_path / "net.mlpackage", torch.zeros(1, 30, 5, 5), target)
    found = tools.read_palettes(export.path)
    for layer in weight_layers(network):
        np.testing.assert_array_equal(stored_of(found, layer.name).values, layer.weight.detach().numpy())
    assert (export.layers["tables"] == 1).all() == (target == "iOS26")
    assert {palette.scales is not None for palette in found.values()} == {target == "iOS26"}


def test_a_split_network_is_written_as_an_ordinary_one(folded, tools, tmp_path):
    hashed = hash_network(folded).network
    one = export_coreml(hashed, tmp_path / "hashed.mlpackage")
    two = export_coreml(split_inputs(hashed), tmp_path / "split.mlpackage")
    pd.testing.assert_frame_equal(one.layers, two.layers)


def test_what_has_no_table_says_why(tools, tmp_path):
    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        standardised = net.own.weight - net.own.weight.mean()
        return net.tiny(net.computed(nn.functional.linear(net.twice(net.twice(x)), standardised)))

    torch.manual_seed(0)
    parts = {"twice": small(nn.Linear(20, 20)), "own": nn.Linear(20, 20), "tiny": nn.Linear(20, 1)}
    parts |= {"computed": nn.utils.parametrizations.weight_norm(nn.Linear(20, 20)), "unused": nn.Linear(20, 20)}
    export = export_coreml(Net(forward, **parts), tmp_path / "net.mlpackage", torch.zeros(1, 20))
    skipped = export.layers.set_index("layer")["skipped"]
    assert skipped["twice.0"] == ""
    assert skipped["own"] == "its weight is read by reduce_mean, sub"
    assert skipped["tiny"] == "tables would take more bytes"
    assert skipped["computed"].startswith("its weight is parametrized")
    assert skipped["unused"] == "is not called: not in the file"
    assert all(reason in str(export) for reason in skipped)


def test_tied_and_equal_weights_are_in_the_file_once(tools, tmp_path):
    torch.manual_seed(0)
    embedding, head, first = nn.Embedding(20, 20), nn.Linear(20, 20), small(nn.Linear(20, 20))
    head.weight = embedding.weight
    parts = {"embedding": embedding, "first": first, "equal": copy.deepcopy(first), "head": head, "again": head}
    network = hash_network(
        Net(lambda net, x: net.head(net.equal(net.first(net.embedding(x)))), **parts), rule="uniform", levels=3
    ).network
    export = export_coreml(network, tmp_path / "net.mlpackage", torch.zeros(1, 4, dtype=torch.long))
    assert export.layers["stored"].tolist() == ["palette"] * 3
    assert len(tools.read_palettes(export.path)) == 2


def test_attention_has_tables(tools, tmp_path):
    attention = hash_network(nn.MultiheadAttention(16, 2, batch_first=True), rule="uniform", levels=3).network
    network = Net(lambda net, x: net.attention(x, x, x, need_weights=False)[0], attention=attention)
    export = export_coreml(network, tmp_path / "net.mlpackage", torch.zeros(1, 5, 16))
    assert export.layers[["layer", "stored"]].to_numpy().tolist() == [
        ["attention.in_proj", "palette"],
        ["attention.out_proj", "palette"],
    ]


def test_operations_that_coremltools_lacks_are_made_of_others(tools, tmp_path):
    layer = small(nn.Linear(20, 20))
    network = Net(lambda net, x: net.layer(x) * x.new_ones(20) * ((x > 0) & (x < 1)), layer=layer)
    assert export_coreml(network, tmp_path / "net.mlpackage", torch.zeros(1, 20)).layers["stored"].tolist() == [
        "palette"
    ]


def test_half_precision_is_widened_exactly(tools, tmp_path):
    network = small(nn.Linear(20, 20)).half()
    export = export_coreml(network, tmp_path / "net.mlpackage")
    stored = stored_of(tools.read_palettes(export.path), "0")
    np.testing.assert_array_equal(stored.values, network[0].weight.detach().float().numpy())
    assert network[0].weight.dtype == torch.float16


def test_a_file_that_differs_is_refused_and_the_old_one_stays(tools, tmp_path, monkeypatch):
    path = tmp_path / "net.mlpackage"
    export_coreml(small(nn.Linear(20, 20)), path)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}

    def misread(file):
        return {name: Palette(own.table, own.indices ^ 1) for name, own in found(file).items()}

    found = tools.read_palettes
    monkeypatch.setattr(tools, "read_palettes", misread)
    with pytest.raises(RuntimeError, match="other look-up tables than it was given: p_0_weight"):
        export_coreml(small(nn.Linear(20, 20)), path)
    assert before == {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_converted_says_so(tools, tmp_path):
    network = Net(lambda net, x: net.lstm(x)[0], lstm=nn.LSTM(4, 4, batch_first=True))
    with pytest.raises(ValueError, match="cannot be converted to Core ML on an input of shape.*lstm"):
        export_coreml(network, tmp_path / "net.mlpackage", torch.zeros(1, 5, 4))
    with pytest.raises(ValueError, match="cannot be traced"):
        export_coreml(nn.Linear(3, 2), tmp_path / "net.mlpackage", torch.zeros(1, 4))
    assert not list(tmp_path.iterdir())


def test_impossible_requests_are_refused(tmp_path):
    network, path = nn.Linear(3, 2), tmp_path / "net.mlpackage"
    with pytest.raises(ValueError, match=r"path must end in \.mlpackage"):
        export_coreml(network, tmp_path / "net")
    with pytest.raises(ValueError, match="target must be one of iOS18, iOS26"):
        export_coreml(network, path, target="iOS17")
    with pytest.raises(ValueError, match=r"weight is of float64.*network\.float\(\)"):
        export_coreml(nn.Linear(3, 2).double(), path)
    with torch.no_grad():
        network.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="layer Linear: NaN or inf"):
        export_coreml(network, path)


def test_without_coremltools_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(ImportError, match=r"coremltools needs the extra coreml: pip install 'redlab\[coreml\]'"):
        export_coreml(nn.Linear(3, 2), tmp_path / "net.mlpackage")
    assert need("json", "coreml").__name__ == "json"
