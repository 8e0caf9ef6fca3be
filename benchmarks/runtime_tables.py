"""Tables of times, ranges and bytes: from runtimes.csv, ranges.csv and sizes.csv."""

from __future__ import annotations

import pandas as pd

from benchmarks import runtimes
from benchmarks.intervals import with_interval
from benchmarks.markdown import markdown
from benchmarks.measures import MINILM

SHORT = {
    "cifar10/resnet20": "ResNet-20",
    "cifar10/resnet56": "ResNet-56",
    "imagenet/mobilenet_v1_0.75": "MobileNetV1 0.75",
    "imagenet/efficientnet_lite0": "EfficientNet-Lite0",
    **{f"{MINILM}, {tokens} tokens": f"{MINILM}, {tokens} tokens" for tokens in runtimes.TOKENS},
}
ENGINES = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
FORMS = ("redlab folder", "float32 ONNX", "float32 ONNX, deflated", "int8 ONNX", "int8 ONNX, deflated")


def runtimes_table() -> str:
    """Batch 1, one thread: each variant's speed in each engine, its score and its bytes."""
    rows = pd.read_csv(runtimes.ROWS)
    rows = rows[(rows["batch"] == 1) & (rows["threads"] == 1)]
    body = []
    for (network, variant, precision), own in rows.groupby(["network", "variant", "precision"], sort=False):
        if precision == "bf16" and not variant.startswith("float32"):
            continue
        speeds = own.set_index("engine")["speedup"].map("{:.2f}".format).to_dict()
        first = own.iloc[0]
        title = "bf16".join(variant.split("float32")) if precision == "bf16" else variant
        size = f"{first['bytes']:,.0f}" if first["bytes"] else ""
        body.append([SHORT[network], title, *(speeds.get(engine, "") for engine in ENGINES), _score(first), size])
    return markdown(["network", "variant", *ENGINES.values(), "score", "bytes"], body)


def _score(row: pd.Series) -> str:
    """An accuracy with its interval; Spearman's correlation with the interval of its difference, in words."""
    if row["network"].startswith(MINILM):
        ends = f"{row['difference_low']:+.2f} to {row['difference_high']:+.2f}"
        return f"{row['score']:.2f}, {row['difference']:+.2f} ({ends})"
    return with_interval(pd.Series([row["score"]]), int(row["count"]))


def ranges_table() -> str:
    """By how many deviations a layer's output reaches: the score on the sets to choose on."""
    rows = pd.read_csv(runtimes.RANGES)
    reaches = sorted(rows["deviations"].unique())
    body = []
    for network, own in rows.groupby("network", sort=False):
        scores = own.set_index("deviations")["difference"]
        body.append([SHORT[network], f"{own['count'].iloc[0]:,}", *(f"{scores[reach]:+.2f}" for reach in reaches)])
    return markdown(["difference to float32, in points", "images", *(f"{reach:g} s" for reach in reaches)], body)


def sizes_table() -> str:
    """Every form of every network, in percent of the tensors in float32."""
    rows = pd.read_csv(runtimes.SIZES)
    body = []
    for (network, weights), own in rows.groupby(["network", "weights"], sort=False):
        ratio = own.set_index("form")["ratio"]
        body.append([SHORT[network], weights, *(f"{100 * ratio[form]:.1f} %" for form in FORMS)])
    return markdown(["network", "weights", *FORMS], body)
