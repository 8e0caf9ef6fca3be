"""Times and bytes beside one another: what is drawn and said follows from the rows."""

import numpy as np
import pandas as pd
import pytest

from redlab import load_network, red_plus_plus
from redlab.studies.runtimes import fastest, read_runtimes, sharing_limits, takeaways
from redlab.studies.sizes import compare_sizes

ROWS = pd.DataFrame(
    [
        ("a", "float32", "torch", "float32", 2.0, 0.5, 1.0, 100),
        ("a", "float32", "openvino", "float32", 1.0, 1.0, 1.0, 100),
        ("a", "float32", "openvino", "bf16", 0.5, 2.0, 1.0, 100),
        ("a", "int8", "onnxruntime", "int8", 0.4, 2.5, 1.0, 30),
        ("a", "int8", "openvino", "int8", 0.3, 3.3, 1.0, 30),
        ("a", "split, channel", "torch", "float32", 20.0, 0.05, 0.03, 15),
        ("b", "float32", "torch", "float32", np.nan, np.nan, 1.0, 100),
    ],
    columns=["network", "variant", "engine", "precision", "median", "speedup", "products", "bytes"],
).assign(batch=1, threads=1, difference=-0.1, score=90.0)


def test_the_fastest_engine_of_each_variant_is_taken():
    best = fastest(ROWS)
    assert best["median"].tolist() == [1.0, 0.5, 0.3, 20.0]  # a row without a time is none
    assert fastest(ROWS, batch=32).empty


def test_sharing_is_limited_by_the_additions():
    shares = pd.Series([1e-9, 0.01, 0.14, 1.0])
    limits = sharing_limits(shares).pivot_table(index="share", columns="way", values="speedup")
    assert (np.diff(limits, axis=0) < 0).all()  # the more products are left, the slower
    assert (limits["equal weights, float32"] <= 1).all()  # never faster than dense
    assert (limits["equal weights, 16 bits"] <= 2).all()
    assert limits["equal kernels of 9, float32"].iloc[0] == pytest.approx(9)
    # Against int8's four times, kernels win below (9 / 4 - 1) / 9 of them distinct.
    assert limits["equal kernels of 9, float32"].loc[0.14] < 4 < sharing_limits(pd.Series([0.138]))["speedup"].max()


@pytest.mark.slow
def test_hashing_saves_bytes_only_where_codes_are_stored():
    pytest.importorskip("onnxscript")
    network = load_network("digits/mlp")
    frame = compare_sizes({"mlp": network, "hashed": red_plus_plus(network).network})
    ratio = frame.set_index(["network", "form"])["ratio"]
    assert ratio["mlp", "tensors"] == 1
    assert ratio["hashed", "float32 ONNX"] == pytest.approx(ratio["mlp", "float32 ONNX"], rel=0.02)
    assert ratio["hashed", "redlab folder"] < 0.3 < 0.9 < ratio["mlp", "redlab folder"]
    assert ratio["mlp", "int8 ONNX"] < 0.4
    assert ratio["hashed", "int8 ONNX, deflated"] < 0.75 * ratio["mlp", "int8 ONNX, deflated"]
    said = str(takeaways(ROWS, frame))
    assert "3.3 to 3.3 times as fast" in said
    assert "0.05 times" in said


def test_the_stored_rows_are_whole():
    rows = read_runtimes()
    assert rows["speedup"].gt(0).all()
    at = ["network", "variant", "engine", "precision", "batch", "threads"]
    assert not rows.duplicated(at).any()
    one = rows[(rows["batch"] == 1) & (rows["threads"] == 1)]
    best = one[(one["variant"] == "float32") & (one["precision"] == "float32")].groupby("network")["speedup"].max()
    assert (best == 1).all()  # the reference is among them
