"""What ``measure_redundancy`` counts agrees with what hashing, splitting and merging do, and finds what was planted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from nets import Net
from numpy.testing import assert_allclose
from torch import nn
from torch.nn.utils import parametrizations
from torchvision.models.swin_transformer import ShiftedWindowAttention

from redlab import expected_unique, fold_batchnorm, hash_network, list_networks, load_network, measure_redundancy
from redlab.compression.similarity import dendrogram
from redlab.studies.atlas import (
    atlas_rows,
    by_bins,
    compare_atlas,
    compared_layers,
    join_atlas,
    measure_atlas,
    measure_noise,
    missing_networks,
    modes_of_noise,
    read_atlas,
    summarise_atlas,
    twin_layers,
)
from redlab.studies.plots.atlas import (
    draw_twins,
    plot_atlas_filters,
    plot_atlas_kinds,
    plot_atlas_products,
    plot_atlas_values,
    plot_predictors,
)
from redlab.studies.predictors import explain_atlas, explain_redundancy
from redlab.studies.splitting import distinct_products

DIGITS = ["digits/resnet", "digits/mobilenet", "digits/mlp"]


@pytest.fixture(scope="module")
def atlas():
    return measure_atlas(DIGITS)


def own(atlas, name, trained=True):
    return atlas[(atlas["network"] == name) & (atlas["trained"] == trained)].reset_index(drop=True)


def one(layer, **options):
    """The row of a network of one layer."""
    (row,) = measure_redundancy(nn.Sequential(layer), **options).itertuples()
    return row


@pytest.mark.parametrize("name", DIGITS)
def test_it_agrees_with_hashing_the_folded_network(atlas, name):
    wanted, got = hash_network(fold_batchnorm(load_network(name)).network).layers, own(atlas, name)
    for column in ("layer", "weights", "distinct_before", "distinct", "modes", "skipped"):
        assert got[column].tolist() == wanted[column].tolist()
    assert_allclose(got["error"], wanted["error"], rtol=1e-6)


@pytest.mark.parametrize("name", DIGITS)
def test_it_agrees_with_splitting_the_hashed_network(atlas, name):
    hashed = hash_network(fold_batchnorm(load_network(name)).network).network
    wanted = distinct_products(hashed).query("unit == 'channel'").set_index("layer")
    got = own(atlas, name).set_index("layer").loc[wanted.index]
    assert_allclose(got["products_measured"], wanted["measured"] / wanted["weights"], rtol=1e-12)
    assert_allclose(got["products_expected"], wanted["expected"] / wanted["weights"], rtol=1e-9)


def test_it_agrees_with_hashing_at_another_bandwidth():
    network = fold_batchnorm(load_network("digits/mlp")).network
    for bandwidth in ("silverman/3", 0.01):
        wanted = hash_network(network, bandwidth=bandwidth).layers
        assert measure_redundancy(network, bandwidth)["distinct"].tolist() == wanted["distinct"].tolist()


def test_closeness_is_that_of_the_dendrogram_of_the_filters(atlas):
    folded = fold_batchnorm(load_network("digits/resnet")).network
    for row in own(atlas, "digits/resnet").itertuples():
        rows = folded.get_submodule(row.layer).weight.detach().flatten(1).numpy()
        assert row.closeness == pytest.approx(dendrogram(rows).closeness, rel=1e-5)


def test_the_network_is_left_untouched():
    network = load_network("digits/resnet")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    measure_redundancy(network)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("name", DIGITS)
def test_a_trained_network_and_its_untrained_twin_have_the_same_rows(atlas, name):
    shape = ["layer", "kind", "depth", "outputs", "inputs", "taps", "groups", "weights"]
    pd.testing.assert_frame_equal(own(atlas, name)[shape], own(atlas, name, trained=False)[shape])


def test_no_cell_is_empty_and_shares_are_shares(atlas):
    assert not atlas.isna().any(axis=None)
    shares = atlas[["depth", "near", "alike", "closeness", "products_measured", "products_expected"]]
    assert ((shares >= 0) & (shares <= 1)).all(axis=None)


def test_exact_duplicates_are_counted_exactly():
    layer = nn.Conv2d(4, 12, 3)
    with torch.no_grad():
        layer.weight[[3, 7, 11]] = layer.weight[[0, 0, 5]]
    row = one(layer)
    assert row.duplicates == 3
    assert row.closeness == 1
    assert row.near == pytest.approx(5 / 12)


def test_orthogonal_filters_are_not_near_and_planted_pairs_are():
    matrix = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))[0]
    layer = nn.Linear(16, 16)
    layer.weight = nn.Parameter(matrix)
    assert one(layer).near == one(layer).alike == 0
    layer.weight = nn.Parameter(torch.cat([matrix[:8], matrix[:8] + 0.05 * matrix[8:]]))
    assert one(layer).near == one(layer).alike == 1
    assert one(layer).duplicates == 0


def test_short_filters_are_near_but_not_alike():
    matrix = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))[0]
    matrix[:4] *= 0.01
    layer = nn.Linear(16, 16)
    layer.weight = nn.Parameter(matrix)
    assert one(layer).near == pytest.approx(4 / 16)
    assert one(layer).alike == 0


def test_alike_is_near_of_the_filters_scaled_to_length_one():
    rows = torch.randn(30, 4, generator=torch.Generator().manual_seed(1))
    scaled, layer = nn.Linear(4, 30), nn.Linear(4, 30)
    layer.weight, scaled.weight = nn.Parameter(rows), nn.Parameter(rows / rows.norm(dim=1, keepdim=True))
    assert 0 < one(layer).alike == one(scaled).near < 1


def test_filters_of_zeros_are_duplicates_and_nothing_else_is():
    layer = nn.Linear(6, 8)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(8, 6))
    row = one(layer, bandwidth=0.01)
    assert (row.duplicates, row.near, row.alike) == (1, 0.25, 0.25)


def test_only_filters_of_one_group_are_compared():
    layer = nn.Conv2d(8, 8, 3, groups=4)
    with torch.no_grad():
        layer.weight[2:] = layer.weight[:2].repeat(3, 1, 1, 1)  # equal, but of other groups
    assert (one(layer).kind, one(layer).duplicates) == ("grouped", 0)
    with torch.no_grad():
        layer.weight[1] = layer.weight[0]
    assert one(layer).duplicates == 1
    row = one(nn.Conv2d(8, 8, 3, groups=8))
    assert (row.kind, row.duplicates, row.near, row.closeness) == ("depthwise", 0, 0, 0)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 9, 3, groups=3),
        nn.Conv2d(8, 16, 3, groups=8),
        nn.ConvTranspose2d(6, 4, 3),
        nn.ConvTranspose2d(6, 9, 2, groups=3),
        nn.Conv1d(5, 7, 3),
        nn.Conv3d(2, 4, 2),
        nn.Linear(9, 20),
    ],
    ids=str,
)
def test_products_are_the_distinct_values_that_an_input_channel_meets(layer):
    row = one(layer, bandwidth="silverman/2")
    hashed = hash_network(nn.Sequential(layer), bandwidth="silverman/2").network[0]
    met = [_met(hashed, channel) for channel in range(row.inputs)]
    assert row.products_measured == pytest.approx(sum(len(np.unique(own)) for own in met) / row.weights)
    counts = np.unique(hashed.weight.detach().numpy(), return_counts=True)[1]
    expected = row.inputs * expected_unique(counts, row.weights // row.inputs) / row.weights
    assert row.products_expected == pytest.approx(expected)


def _met(layer, channel):
    """The weights that an input channel meets."""
    groups, weight = getattr(layer, "groups", 1), layer.weight.detach().numpy()
    if getattr(layer, "transposed", False):
        return weight[channel]
    per_group, outputs = weight.shape[1], len(weight) // groups
    group = channel // per_group
    return weight[group * outputs : (group + 1) * outputs, channel % per_group]


def test_products_of_shuffled_weights_are_what_chance_says():
    layer, draws, rows = nn.Linear(200, 50), torch.Generator().manual_seed(0), []
    with torch.no_grad():
        layer.weight.uniform_(-0.07, 0.07, generator=draws)
    for _ in range(20):
        with torch.no_grad():
            layer.weight.copy_(layer.weight.flatten()[torch.randperm(10_000, generator=draws)].view(50, 200))
        rows.append(one(layer))
    measured = np.mean([row.products_measured for row in rows])
    assert measured == pytest.approx(rows[0].products_expected, rel=2e-3)


def test_kinds_are_told_apart():
    network = Net(
        lambda net, x: x,
        conv=nn.Conv2d(4, 8, 3),
        grouped=nn.Conv2d(8, 8, 1, groups=2),
        depthwise=nn.Conv2d(8, 8, 3, groups=8),
        transposed=nn.ConvTranspose2d(8, 4, 2),
        pointwise=nn.Conv2d(4, 8, 1),
        linear=nn.Linear(8, 16),
        attention=nn.MultiheadAttention(16, 2),
        other=nn.MultiheadAttention(16, 2, kdim=8, vdim=8),
    )
    frame = measure_redundancy(network)
    attention = ["attention.in_proj", "attention.out_proj", *(f"other.{name}_proj" for name in ("q", "k", "v", "out"))]
    assert frame.loc[frame["kind"] == "attention", "layer"].tolist() == attention
    others = frame[frame["kind"] != "attention"]
    assert others["kind"].tolist() == others["layer"].tolist()
    assert frame["depth"].tolist() == pytest.approx(np.linspace(0, 1, 12))
    assert frame.loc[6, ["outputs", "inputs", "weights"]].tolist() == [48, 16, 768]


def test_the_projections_of_swin_are_attention():
    attention = ShiftedWindowAttention(dim=32, window_size=[7, 7], shift_size=[0, 0], num_heads=2)
    frame = measure_redundancy(nn.Sequential(attention, nn.Linear(32, 8)))
    assert dict(zip(frame["layer"], frame["kind"], strict=True)) == {
        "0.qkv": "attention",
        "0.proj": "attention",
        "1": "linear",
    }


def test_rows_that_are_not_measured_or_not_hashed_say_why():
    network = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5)))
    network[1].weight = network[0].weight
    parametrizations.orthogonal(network[2])
    with torch.no_grad():
        network[3].weight.zero_()
        network[4].weight[0, 0] = float("nan")
    frame = measure_redundancy(network)
    assert [reason.split(":")[0] for reason in frame["skipped"]] == [
        "",
        "shares its weight with 0",
        "its weight is parametrized",
        "all its weights are equal",
        "it holds 1 NaN and 0 infinite values",
    ]
    assert not frame.isna().any(axis=None)
    assert (frame["weights"] == 64).all()
    assert (frame.loc[1:, "error"] == 0).all()
    assert frame.loc[3, "duplicates"] == 7


def test_a_network_without_weights_has_no_rows():
    assert measure_redundancy(nn.Sequential(nn.ReLU())).empty


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_measured(dtype):
    row = one(nn.Linear(30, 20).to(dtype))
    assert row.distinct > 5
    assert 1.5 < row.kurtosis < 2.2


def test_kurtosis_tells_uniform_from_normal_and_does_not_depend_on_scale():
    draws = torch.Generator().manual_seed(0)
    for drawn, wanted in ((torch.rand(200, 500, generator=draws), 1.8), (torch.randn(200, 500, generator=draws), 3.0)):
        for scale in (1, 1e-15):
            layer = nn.Linear(500, 200)
            layer.weight = nn.Parameter(drawn * scale)
            assert one(layer).kurtosis == pytest.approx(wanted, abs=0.05)


def test_zeros_of_a_pruned_layer_change_nothing_for_what_is_left():
    live, sparse = nn.Linear(60, 40), nn.Linear(60, 80)
    with torch.no_grad():
        sparse.weight.zero_()
        sparse.weight[::2] = live.weight
    rows = pd.concat([measure_redundancy(nn.Sequential(layer)) for layer in (live, sparse)], ignore_index=True)
    assert rows["zeros"].tolist() == [0, 2400]
    layers = compared_layers(rows.assign(network="one", bandwidth="silverman/8"))
    same = layers[["modes", "error", "kurtosis", "products_measured", "noise"]].to_numpy()
    assert_allclose(same[0], same[1], rtol=1e-12)
    assert layers["distinct"].diff().iloc[1] == 1


def test_uniform_noise_keeps_as_many_values_as_the_formula_says():
    noise = measure_noise((1000, 10_000, 100_000)).query("shape == 'uniform'")
    assert_allclose(noise["distinct"], modes_of_noise(noise["weights"]), rtol=0.15)
    finer = measure_noise((100_000,), "silverman/16").query("shape == 'uniform'")
    assert_allclose(finer["distinct"], modes_of_noise(finer["weights"], "silverman/16"), rtol=0.15)
    with pytest.raises(ValueError, match="median_gap"):
        modes_of_noise(1000, "median_gap")


def test_untrained_rows_depend_on_the_seed_alone_and_leave_the_generator_alone():
    state = torch.get_rng_state()
    rows = [atlas_rows("digits/mlp", False, seed) for seed in (0, 0, 1)]
    assert torch.equal(state, torch.get_rng_state())
    pd.testing.assert_frame_equal(rows[0], rows[1])
    assert (rows[0]["entropy"] != rows[2]["entropy"]).all()


def test_a_sweep_read_back_agrees_with_what_is_measured_live(atlas, tmp_path):
    path = tmp_path / "atlas.parquet"
    kept = atlas[atlas["network"] != "digits/mlp"]
    small = dict.fromkeys(kept.select_dtypes("float"), "float32") | {"layer": "category", "weights": "int32"}
    kept.astype(small).to_parquet(path, index=False)
    read = read_atlas(path)
    compared = compare_atlas(read, atlas)
    assert compared["layers"].tolist() == compared["agreeing"].tolist() == [8, 8, 14, 14]
    assert (compared["difference"] < 1e-6).all()
    assert len(join_atlas(read, atlas)) == len(atlas)
    assert read_atlas(path, "silverman/4").empty
    assert len(join_atlas(read_atlas(path, "silverman/4"), atlas)) == len(atlas)


def test_the_committed_sweep_holds_our_networks_and_agrees_with_them(atlas):
    kept = read_atlas()
    compared = compare_atlas(kept, atlas)
    assert len(compared) == 6
    assert (compared["agreeing"] >= 0.8 * compared["layers"]).all()  # another processor rounds otherwise
    missing = missing_networks(kept)
    assert set(missing["at all"]) <= set(missing["trained"]) <= set(list_networks())
    assert not {"cifar10/resnet20", "imagenet/mobilenet_v1_0.75", *DIGITS} & set(missing["trained"])


def test_the_summary_adds_layers_up(atlas):
    row = summarise_atlas(atlas).iloc[0]
    layers = own(atlas, "digits/resnet")
    assert (row["network"], row["trained"], row["layers"], row["skipped"]) == ("digits/resnet", True, 8, 0)
    assert row["share"] == pytest.approx(layers["distinct"].sum() / layers["weights"].sum())
    assert row["products"] == pytest.approx((layers["products_measured"] * layers["weights"]).sum() / row["weights"])


def test_twins_stand_side_by_side(atlas):
    twins = twin_layers(atlas)
    assert len(twins) == len(atlas) / 2
    assert (twins["weights"] == twins["weights untrained"]).all()


def test_least_squares_finds_what_was_planted():
    draws = np.random.default_rng(0)
    layers = pd.DataFrame(
        {
            "network": np.repeat([f"n{k}" for k in range(20)], 30),
            "trained": np.repeat(np.arange(20) % 2 == 0, 30),
            "kind": draws.choice(["conv", "linear"], 600),
            "depth": draws.uniform(size=600),
            "weights": 10 ** draws.uniform(3, 6, 600),
            "unit": 10 ** draws.uniform(1, 3, 600),
        }
    )
    layers["products_measured"] = 10 ** (-0.7 * np.log10(layers["unit"]) + 0.1 * layers["trained"])
    found = explain_redundancy(layers, "products", 50).set_index("predictor")
    assert found["r2"].iloc[0] == pytest.approx(1)
    assert found.loc["unit (log)", ["slope", "slope_low", "slope_high"]].tolist() == pytest.approx([-0.7] * 3)
    assert found.loc["trained", "slope"] == pytest.approx(0.1)
    assert found["drop"].sort_values().index[-2:].tolist() == ["trained", "unit (log)"]
    assert found.loc[["depth", "kind", "weights (log)"], "drop"].abs().max() < 1e-9


def test_a_drop_is_that_of_two_fits_by_numpy(atlas):
    layers = compared_layers(atlas)
    found = explain_redundancy(layers, "values", 10).set_index("predictor")
    columns = [np.log10(layers["weights"]), np.log10(layers["unit"]), layers["depth"], layers["trained"] * 1.0]
    kinds = [(layers["kind"] == kind) * 1.0 for kind in ("depthwise", "pointwise", "linear")]
    target = np.log10(layers["distinct"] / layers["weights"])

    def r2(of):
        table = np.column_stack([np.ones(len(layers)), *of])
        left = target - table @ np.linalg.lstsq(table, target, rcond=None)[0]
        return 1 - left.var() / target.var()

    assert found["r2"].iloc[0] == pytest.approx(r2([*columns, *kinds]))
    assert found.loc["depth", "drop"] == pytest.approx(r2([*columns, *kinds]) - r2([*columns[:2], columns[3], *kinds]))
    assert found.loc["kind", "drop"] == pytest.approx(r2([*columns, *kinds]) - r2(columns))


@pytest.mark.slow
def test_six_figures_are_drawn_of_many_networks_and_of_one(atlas):
    for part in (atlas, atlas[atlas["network"] == "digits/mlp"]):
        layers = compared_layers(part)
        axes = [
            plot_atlas_values(layers, measure_noise((100, 1000))),
            plot_atlas_products(layers),
            plot_atlas_filters(compared_layers(part, filters=True)),
            plot_atlas_kinds(layers),
            plot_predictors(explain_atlas(part, 20)),
            *draw_twins(twin_layers(part)).axes,
        ]
        for ax in axes:
            ax.figure.canvas.draw()
            assert ax.has_data()
            assert ax.get_xlabel()


def test_medians_of_bins_have_an_interval_that_knows_networks():
    layers = pd.DataFrame({"network": np.repeat(list("abcdef"), 50), "value": np.repeat(np.arange(6.0), 50)})
    found = by_bins(layers, pd.Series(0, layers.index), layers["value"])
    assert (found["middle"].item(), found["layers"].item()) == (2.5, 300)
    # Fifty layers of a network say no more than one: the interval is that of six numbers.
    assert found["high"].item() - found["low"].item() > 2
    means = by_bins(layers, layers["network"], layers["value"], "mean")
    assert means["middle"].tolist() == means["low"].tolist() == [0, 1, 2, 3, 4, 5]
