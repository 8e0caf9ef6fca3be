"""Core ML packages hold what was hashed, to the bit. What they predict can be seen on Apple's devices only."""

from __future__ import annotations

import copy
import gc
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch
from nets import Net
from scaled import scale_rows
from torch import nn

from redlab import hash_network, load_network, split_inputs, weight_layers
from redlab.export.coreml import export_coreml
from redlab.export.palettes import BITS, Palette
from redlab.network.layers import count_distinct

RULES = {
    "kde": {},
    "lloyd": {"rule": "lloyd", "levels": 5},
    "power": {"rule": "power", "levels": 9},
    "residual": {"rule": "residual", "levels": 9},
    "uniform": {"rule": "uniform", "levels": 3},
}


@pytest.fixture
def tools():
    """The half of our own that needs coremltools."""
    pytest.importorskip("coremltools")
    from redlab.export import mlpackage

    gc.freeze()  # coremltools collects garbage at every conversion, which takes half of a small one
    yield mlpackage
    gc.unfreeze()


@pytest.fixture(scope="module")
def hashed() -> nn.Module:
    """A layer a rule, by its name."""
    torch.manual_seed(0)
    layers = {rule: hash_network(nn.Linear(30, 30), **options).network for rule, options in RULES.items()}
    return nn.Sequential(OrderedDict(layers))


def small(*layers: nn.Module) -> nn.Module:
    return hash_network(nn.Sequential(*layers), rule="uniform", levels=3).network


def stored_of(found: dict[str, Palette], name: str) -> Palette:
    return found[f"p_{name.replace('.', '_')}_weight"]


def test_the_file_holds_the_values_of_every_hash(hashed, tools, tmp_path):
    export = export_coreml(hashed, tmp_path / "net.mlpackage")
    found, rows = tools.read_palettes(export.path), export.layers.set_index("layer")
    for layer in weight_layers(hashed):
        distinct = count_distinct(layer.weight)
        assert rows.loc[layer.name, "distinct"] == distinct
        assert rows.loc[layer.name, "bits"] == min(bits for bits in BITS if distinct <= 2**bits)
        np.testing.assert_array_equal(stored_of(found, layer.name).values, layer.weight.detach().numpy())
    assert set(rows["stored"]) == {"palette"}
    assert len(found) == len(rows)

    files = [file.stat().st_size for file in export.path.rglob("*") if file.is_file()]
    assert export.bytes == sum(files) > rows["bytes"].sum()
    assert "read back and are ours bit for bit" in str(export)
    assert "Apple's devices only" in str(export)


@pytest.mark.slow
def test_batch_norm_stays_and_weights_do_too(tools, tmp_path):
    network = load_network("digits/mlp")
    export = export_coreml(network, tmp_path / "net.mlpackage")
    assert set(export.layers["skipped"]) == {"more than 256 values"}
    held = tools.read_weights(export.path)
    for name, parameter in network.named_parameters():
        np.testing.assert_array_equal(held[f"p_{name.replace('.', '_')}"], parameter.detach().numpy())


@pytest.mark.parametrize("target", ["iOS18", pytest.param("iOS26", marks=pytest.mark.slow)])
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


@pytest.mark.slow
def test_a_split_network_is_written_as_an_ordinary_one(tools, tmp_path):
    network = small(nn.Linear(20, 20))
    export = export_coreml(split_inputs(network), tmp_path / "net.mlpackage")
    assert export.layers["kind"].tolist() == ["Linear"]
    stored = stored_of(tools.read_palettes(export.path), "0")
    np.testing.assert_array_equal(stored.values, network[0].weight.detach().numpy())


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_attention_has_tables_and_operations_that_coremltools_lacks_are_made_of_others(tools, tmp_path):
    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        answered = net.attention(x, x, x, need_weights=False)[0]
        return answered * x.new_ones(16) * ((x > 0) & (x < 1))

    attention = hash_network(nn.MultiheadAttention(16, 2, batch_first=True), rule="uniform", levels=3).network
    export = export_coreml(Net(forward, attention=attention), tmp_path / "net.mlpackage", torch.zeros(1, 5, 16))
    assert export.layers["layer"].tolist() == ["attention.in_proj", "attention.out_proj"]
    assert export.layers["stored"].tolist() == ["palette", "palette"]


@pytest.mark.slow
def test_half_precision_is_widened_exactly(tools, tmp_path):
    network = small(nn.Linear(20, 20)).half()
    export = export_coreml(network, tmp_path / "net.mlpackage")
    stored = stored_of(tools.read_palettes(export.path), "0")
    np.testing.assert_array_equal(stored.values, network[0].weight.detach().float().numpy())
    assert network[0].weight.dtype == torch.float16


def test_a_file_that_differs_is_refused_and_the_old_one_stays(tools, tmp_path, monkeypatch):
    path = tmp_path / "net.mlpackage"
    path.mkdir()
    (path / "old").write_text("whole")

    def misread(file):
        return {name: Palette(own.table, own.indices ^ 1) for name, own in found(file).items()}

    found = tools.read_palettes
    monkeypatch.setattr(tools, "read_palettes", misread)
    with pytest.raises(RuntimeError, match="other look-up tables than it was given: p_0_weight"):
        export_coreml(small(nn.Linear(20, 20)), path)
    assert (path / "old").read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_what_cannot_be_converted_says_so(tools, tmp_path):
    network = Net(lambda net, x: torch.linalg.eigvalsh(net.layer(x)), layer=nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"cannot be converted to Core ML on an input of shape.*linalg_eigh"):
        export_coreml(network, tmp_path / "net.mlpackage", torch.zeros(4, 4))
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
    with pytest.raises(ImportError, match=r"coremltools is missing: pip install 'redlab\[coreml\]'"):
        export_coreml(nn.Linear(3, 2), tmp_path / "net.mlpackage")
