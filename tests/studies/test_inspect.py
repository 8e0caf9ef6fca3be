"""What is said of tensors whose numbers can be told by hand, and that it is what hashing and splitting do."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from redlab import estimate_density, expected_unique, hash_weights, inspect_checkpoint
from redlab.compression.similarity import exact_duplicates
from redlab.files.checkpoint import read_checkpoint
from redlab.hashing import values, vector
from redlab.hashing.values import count_products
from redlab.hashing.weights import relative_error
from redlab.paths import shipped
from redlab.studies.inspection import COLUMNS, summarise
from redlab.zoo.entropy import shannon

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


def inspected(tmp_path, **tensors) -> pd.DataFrame:
    """The rows of some tensors, by name."""
    save_file(tensors, tmp_path / "some.safetensors")
    return inspect_checkpoint(tmp_path / "some.safetensors").set_index("tensor")


def draw(*shape, seed=0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def numbers(tensor: torch.Tensor) -> np.ndarray:
    return (tensor if tensor.dtype == torch.float64 else tensor.float()).numpy()


def check(path, tensors: dict[str, torch.Tensor]) -> int:
    """Compare each row with hash_weights, estimate_density, expected_unique and plain counting; how many were."""
    frame = inspect_checkpoint(path).set_index("tensor")
    assert sorted(frame.index) == sorted(tensors)
    assert not frame.isna().any(axis=None)
    compared = 0
    for name, tensor in tensors.items():
        row = frame.loc[name]
        if row["skipped"]:
            continue
        assert row["modes"] == len(estimate_density(numbers(tensor)).modes), name
        assert row["zeros"] == (numbers(tensor) == 0).sum(), name
        assert row["distinct_before"] == len(np.unique(numbers(tensor))), name
        if tensor.ndim > 1:
            check_hashed(row, tensor)
            compared += 1
    return compared


def check_hashed(row: pd.Series, tensor: torch.Tensor) -> None:
    before, hashed = numbers(tensor), hash_weights(tensor)
    after, inputs = numbers(hashed.values), tensor.shape[1]
    values, counts = np.unique(after, return_counts=True)
    by_chance = expected_unique(counts[values != 0], tensor.numel() // inputs, total=tensor.numel())
    first = exact_duplicates(before.reshape(len(before), -1))
    assert row["unhashed"] == hashed.unchanged
    assert row["distinct"] == len(hashed.codebook) == len(values)
    assert row["error"] == pytest.approx(relative_error(before.ravel(), after.ravel()), rel=1e-9, abs=1e-12)
    assert row["duplicates"] == (first != np.arange(len(first))).sum()
    assert row["measured"] == sum(len(np.unique(part[part != 0])) for part in after.swapaxes(0, 1))
    assert row["expected"] == pytest.approx(inputs * by_chance, rel=1e-9)
    assert row["entropy"] == pytest.approx(shannon(after), rel=1e-9, abs=1e-12)


def test_an_alternating_tensor(tmp_path):
    row = inspected(tmp_path, a=torch.tensor([1.0, -1.0, 1.0, -1.0]).repeat(4, 1)).loc["a"]
    assert (row["shape"], row["dtype"], row["weights"], row["file"]) == ("4x4", "float32", 16, "some.safetensors")
    assert (row["distinct_before"], row["distinct"], row["modes"], row["error"]) == (2, 2, 2, 0.0)
    assert row["unhashed"] == "already hashed: 2 distinct values"
    assert (row["duplicates"], row["entropy"]) == (3, 1.0)
    assert row["measured"] == 4  # each channel, a column, meets one value
    # Four weights out of eight 1 and eight -1: all alike in 2 * C(8, 4) / C(16, 4) = 140 / 1820 of the cases.
    assert row["expected"] == pytest.approx(4 * (2 - 140 / 1820))


def test_a_constant_and_a_zero_tensor(tmp_path):
    frame = inspected(tmp_path, one=torch.full((3, 5, 2, 2), 0.5), zero=torch.zeros(4, 6))
    assert (frame["unhashed"] == "all its weights are equal").all()
    assert frame["distinct"].tolist() == frame["modes"].tolist() == [1, 1]
    assert frame["entropy"].tolist() == frame["error"].tolist() == [0.0, 0.0]
    assert frame["duplicates"].tolist() == [2, 3]
    assert frame["measured"].tolist() == [5, 0]  # a product with zero is none
    assert frame["expected"].tolist() == pytest.approx([5.0, 0.0])


def test_two_clusters_become_two_values(tmp_path):
    near = torch.tensor([-1.01, -1.0, -0.99, 0.99, 1.0, 1.01])
    weight = near.repeat(2, 1)[:, torch.randperm(6, generator=torch.Generator().manual_seed(0))].reshape(4, 3)
    row = inspected(tmp_path, a=weight).loc["a"]
    hashed = hash_weights(weight)
    assert row["modes"] == row["distinct"] == len(hashed.codebook)
    assert row["distinct_before"] == 6


def test_a_depthwise_weight_is_one_input_channel(tmp_path):
    row = inspected(tmp_path, a=draw(8, 1, 3, 3)).loc["a"]
    assert row["measured"] == row["distinct"]
    assert row["expected"] == pytest.approx(row["distinct"])


def test_one_axis_is_measured_and_not_hashed(tmp_path):
    row = inspected(tmp_path, bias=torch.tensor([0.0, 1.0, 1.0, 2.0])).loc["bias"]
    assert (row["distinct_before"], row["distinct"], row["entropy"]) == (3, 3, 1.5)
    assert row["modes"] == len(estimate_density(torch.tensor([0.0, 1.0, 1.0, 2.0])).modes)
    assert (row["duplicates"], row["measured"], row["expected"], row["error"]) == (0, 0, 0, 0)
    assert row["unhashed"] == "one axis, not hashed"
    assert row["skipped"] == ""


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.arange(6).reshape(2, 3), "no real floating-point numbers"),
        (torch.ones(2, 3, dtype=torch.bool), "no real floating-point numbers"),
        (torch.ones(2, 3, dtype=torch.uint8), "no real floating-point numbers"),
        (torch.ones(2, 3, dtype=torch.complex64), "no real floating-point numbers"),
        (torch.tensor(1.5), "a scalar"),
        (torch.empty(0, 3), "empty"),
        (torch.tensor([[1.0, float("nan")], [float("inf"), 2.0]]), "it holds 1 NaN and 1 infinite values"),
        (torch.tensor([float("-inf"), 2.0], dtype=torch.bfloat16), "it holds 0 NaN and 1 infinite values"),
        (torch.tensor([[float("nan")] * 3], dtype=torch.float64), "it holds 3 NaN and 0 infinite values"),
        (torch.tensor([[448.0, 1e9]]).to(torch.float8_e5m2), "it holds 0 NaN and 1 infinite values"),
    ],
)
def test_what_cannot_be_measured_has_a_row_with_the_reason(tmp_path, tensor, reason):
    row = inspected(tmp_path, a=tensor, b=torch.ones(2, 2)).loc["a"]
    assert row["skipped"] == reason
    assert row["weights"] == tensor.numel()
    assert (row[["distinct_before", "modes", "distinct", "error", "measured", "expected", "entropy"]] == 0).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_floating_type_is_hashed_as_hash_weights_does(tmp_path, dtype):
    heavy = draw(50, 40, 3, seed=1) ** 3
    heavy[heavy.abs() < 0.3] = 0
    heavy[10:20] = heavy[:10]
    half = draw(100, 60, seed=2)
    half[draw(100, 60, seed=3) < 0] = 0
    tensors = {
        "plain": 0.05 * draw(60, 50),
        "heavy": heavy,
        "half": half,
        "small": draw(5, 4),
        "one": torch.full((4, 5), 0.5),
        "bias": draw(30),
        "signs": torch.tensor([[0.0, -0.0, 1.0], [-0.0, 0.0, 1.0], [2.0, 3.0, 4.0]]),
    }
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "a.safetensors")
    assert check(tmp_path / "a.safetensors", tensors) == 6


def test_weights_that_cannot_be_squared(tmp_path):
    tensors = {name: draw(30, 20).double() * scale for name, scale in (("huge", 1e300), ("tiny", 1e-300))}
    tensors["subnormal"] = draw(30, 20) * 1e-41
    save_file(tensors, tmp_path / "a.safetensors")
    assert check(tmp_path / "a.safetensors", tensors) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shift", [0.0, 3.0])  # among the others, and beyond all of them
def test_two_zeros_in_four_change_nothing_for_the_other_two(tmp_path, dtype, shift):
    live = (draw(60, 20) + shift).to(dtype)
    sparse = torch.zeros(60, 40, dtype=dtype)
    sparse[:, ::2] = live
    frame = inspected(tmp_path, live=live, sparse=sparse)
    both = frame[["modes", "error", "measured", "unhashed"]].to_numpy().tolist()
    assert both[0] == both[1]
    assert frame.loc["sparse", "distinct"] == frame.loc["live", "distinct"] + 1
    assert frame.loc["sparse", "entropy"] == pytest.approx(1 + frame.loc["live", "entropy"] / 2)
    assert frame["zeros"].tolist() == [0, 1200]
    left = [
        next(line for line in summarise(part) if "multiplications left" in line) for _, part in frame.groupby("shape")
    ]
    assert left[0].split(", by chance")[0] == left[1].split(", by chance")[0]
    assert check(tmp_path / "some.safetensors", {"live": live, "sparse": sparse}) == 2


def test_small_pieces_change_nothing(tmp_path, monkeypatch):
    tensors = {"a": draw(40, 30, 3), "b": draw(30, 50).bfloat16(), "c": draw(7, 2, 100).double(), "d": draw(500)}
    tensors["e"] = torch.tensor([-1.0, 0.0, 1.0]).repeat(50, 4)
    save_file(tensors, tmp_path / "a.safetensors")
    whole = inspect_checkpoint(tmp_path / "a.safetensors")
    for module in (values, vector):
        monkeypatch.setattr(module, "AT_ONCE", 64)
    assert check(tmp_path / "a.safetensors", tensors) == 4
    pd.testing.assert_frame_equal(inspect_checkpoint(tmp_path / "a.safetensors"), whole, rtol=1e-12)


@pytest.mark.parametrize("pieces", [1 << 18, 64, 1])
def test_products_are_the_distinct_values_of_each_channel(monkeypatch, pieces):
    monkeypatch.setattr(values, "AT_ONCE", pieces)
    for weight in (draw(20, 30, 3).mul(4).round(), draw(40, 9).bfloat16(), draw(5, 4, 2, 3)):
        channels = [weight[:, channel].unique() for channel in range(weight.shape[1])]
        assert count_products(weight) == sum(int((own != 0).sum()) for own in channels) > 0


def test_a_large_tensor_of_far_more_modes_than_pay_is_not_hashed(tmp_path, monkeypatch):
    sparse = draw(60, 50) ** 3
    sparse[:, 25:] *= 1e-5  # half of it next to zero: so is a quartile, and with it the bandwidth
    monkeypatch.setattr(values, "_MANY", 1000)
    row = inspected(tmp_path, a=sparse).loc["a"]
    assert "hashing would keep most values" in row["unhashed"]
    assert row["modes"] <= len(estimate_density(sparse).modes) <= 1.1 * row["modes"]
    assert (row["distinct"], row["distinct_before"], row["error"]) == (3000, 3000, 0.0)
    assert row["measured"] == 50 * 60
    assert row["expected"] == pytest.approx(50 * 60)  # each weight has a value of its own
    assert row["entropy"] == pytest.approx(shannon(sparse.numpy()))


@pytest.mark.parametrize("name", ["digits/resnet", "digits/mobilenet", "digits/mlp"])
def test_the_networks_that_ship_agree_with_hashing(name):
    path = shipped(f"{name}.safetensors")
    assert check(path, read_checkpoint(path)) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("file", ["cifar10/resnet20-12fca82f.th", "imagenet/mobilenet_v1_0.75_224.pth"])
def test_real_networks_agree_with_hashing(real_data, file):
    path = real_data / "weights" / file
    assert check(path, read_checkpoint(path)) >= 20


def test_the_frame_has_its_columns_whatever_it_holds(tmp_path):
    frame = inspected(tmp_path, a=torch.arange(3)).reset_index()
    assert sorted(frame.columns) == sorted(COLUMNS)
    assert frame["weights"].dtype == frame["measured"].dtype == np.int64
    assert frame["error"].dtype == frame["expected"].dtype == np.float64
