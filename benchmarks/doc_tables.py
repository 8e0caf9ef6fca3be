"""The tables of README.md and docs/ that come from benchmarks/*.csv, written anew.

    python -m benchmarks.doc_tables

A page says where a table belongs: ``<!-- table: NAME -->`` above it and ``<!-- end -->`` below. A test compares.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pandas as pd

from benchmarks import dpp, oracle, pruning, runtime_tables, scales
from benchmarks.intervals import with_interval
from benchmarks.markdown import markdown
from redlab.paths import checkout
from redlab.studies.real import read_real, title_of

NETWORKS = ("cifar10/resnet20", "cifar10/resnet56", "imagenet/mobilenet_v1_0.75")
LITE, CHOOSE = "imagenet/efficientnet_lite0", 3.0  # points of accuracy that a chosen setting may lose
SHORT = {NETWORKS[0]: "ResNet-20", NETWORKS[1]: "ResNet-56", NETWORKS[2]: "MobileNetV1 0.75"}
SHORT[LITE] = "EfficientNet-Lite0"
# Groups of scales.csv, and what a row of them is.
TEXTBOOK = {
    "defaults": "RED++, ours (uniform codes), by default",
    "before": "RED++, ours (uniform codes), {}",
    "textbook": "textbook, {}",
    "k-means": "{}, entropy-coded",
}
HALF = ("50% of products", "47% of products")
QUARTER = ("75% of products",)
# Method and settings of each row, by what they need.
ROWS: dict[str, list[tuple[str, tuple[str, ...]]]] = {
    "nothing": [
        ("RED as published", ("silverman/8",)),
        ("RED++ as published", ("silverman/8",)),
        ("RED as published, a scale a row", ("silverman/8",)),
        ("RED++ as published, a scale a row", ("silverman/8",)),
        ("RED++ by default", ("noise 0.075",)),
        *(("RED++", (f"error {error}",)) for error in ("0.05", "0.1", "0.15", "0.3")),
        *(("output merging", (f"alpha {alpha}",)) for alpha in ("0", "0.02", "0.05")),
        ("reconstruction (ours)", QUARTER),
        ("reconstruction without compensation", QUARTER),
        ("Srinivas-Babu", QUARTER),
        ("neuron merging, same share of each layer", QUARTER),
        ("redundancy, merged (RED)", QUARTER),
        ("magnitude L1, same share of each layer", QUARTER),
        ("magnitude L1, all layers together", QUARTER),
    ],
    "data": [
        ("RED++, biases from images", ("error 0.15",)),
        ("RED++, biases from images", ("error 0.3",)),
        ("Taylor, channels reconstructed", QUARTER),
        ("Taylor, first order", QUARTER),
        ("SInGE", QUARTER),
        ("FlexRel", QUARTER),
    ],
    "fine-tuning": [
        ("reconstruction (ours)", HALF),
        ("Taylor, channels reconstructed", HALF),
        ("Taylor, first order", HALF),
        ("magnitude L1, same share of each layer", HALF),
        ("random, same share of each layer", HALF),
        ("SPP", HALF),
        ("DPP", HALF),
        ("DPP, a tenth of the noise", HALF),
    ],
}
README = [
    ("nothing", "RED++ by default", ("noise 0.075",)),
    ("nothing", "reconstruction (ours)", QUARTER),
    ("nothing", "magnitude L1, same share of each layer", QUARTER),
    ("data", "Taylor, channels reconstructed", QUARTER),
    ("fine-tuning", "reconstruction (ours)", HALF),
    ("fine-tuning", "magnitude L1, same share of each layer", HALF),
]
GROUPS = {"nothing": "data-free", "data": "needs images", "fine-tuning": "needs training"}
PAGES = ("README.md", *(f"docs/{name}.md" for name in ("results", "pruning", "masks", "deploy")))


def main() -> None:
    for page in PAGES:
        path = checkout() / page
        path.write_text(rewritten(path.read_text()))


def rewritten(text: str) -> str:
    """A page with each of its tables as the benchmarks have it."""

    def table(match: re.Match) -> str:
        return f"{match[1]}\n{TABLES[match['name']]()}\n<!-- end -->"

    return re.sub(r"(<!-- table: (?P<name>[\w -]+) -->)\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def real_table(need: str) -> str:
    """Every network, a row a method and setting: accuracy, and what is left of multiplications and bytes."""
    rows = _real()
    rows = rows[rows["needs"] == need]
    networks = [name for name in NETWORKS if name in set(rows["network"])]
    body = []
    for method, settings in ROWS[need]:
        own = rows[(rows["method"] == method) & rows["setting"].isin(settings)]
        body.append([title_of(method), _setting(settings), *(_left(own[own["network"] == name]) for name in networks)])
    return markdown(["method", "setting", *map(_head, networks)], body)


def lite_table() -> str:
    """EfficientNet-Lite0: every setting on the images to choose by and on those to report on; the chosen ones are bold.

    Of each method the setting with the fewest bytes is chosen that loses at most ``CHOOSE`` points on the former.
    """
    rows = _real()
    rows = rows[rows["network"] == LITE]
    before = rows.loc[rows["method"] == "batch norm folded", "choice"].item()
    good = rows[rows["choice"] >= before - CHOOSE]
    chosen = set(good.loc[good.groupby(good["method"].map(title_of))["bytes"].idxmin()].index)
    body = []
    for row in rows.itertuples():
        setting = row.setting.replace("% of products", " % of the multiplications")
        accuracy = with_interval(pd.Series([row.accuracy]), row.images)
        shares = [f"{100 * row.products:.1f} %", f"{100 * row.bytes:.1f} %", f"{row.time_ratio:.2f}"]
        body.append(
            [
                title_of(row.method),
                f"**{setting}**" if row.Index in chosen else setting,
                f"{row.choice:.2f}",
                accuracy,
                *shares,
            ]
        )
    heads = ["method", "setting", "val250, to choose", "val750", "multiplications", "bytes", "time"]
    return markdown(heads, body)


def readme_table() -> str:
    """Six rows of the two ResNets; MobileNetV1 was measured on too few images for a first table."""
    rows = _real()
    body = []
    for need, method, settings in README:
        own = rows[(rows["needs"] == need) & (rows["method"] == method) & rows["setting"].isin(settings)]
        cells = [_left(own[own["network"] == name]) for name in NETWORKS[:2]]
        body.append([GROUPS[need], title_of(method), _setting(settings), *cells])
    return markdown(["group", "method", "setting", *map(_head, NETWORKS[:2])], body)


def textbook_table() -> str:
    """RED++ with its defaults and textbook quantization under the same counter, on the images to report on."""
    rows = pd.read_csv(scales.ROWS)
    rows = rows[(rows["stage"] == "report") & rows["group"].isin(TEXTBOOK)]
    names = [name for name in scales.NETWORKS if name in set(rows["network"])]
    firsts = [rows[rows["network"] == name].iloc[0] for name in names]
    heads = [f"{SHORT.get(row['network'], row['network'])}, before {scales.before(row)}" for row in firsts]
    body = []
    for (group, setting), own in rows.groupby(["group", "setting"], sort=False):
        at = own.set_index("network")
        cells = [scales.cell(at.loc[name]) if name in at.index else "" for name in names]
        body.append([TEXTBOOK[group].format(setting), *cells])
    return markdown(["what", *heads], sorted(body, key=lambda row: (not row[0].startswith("RED++"), row[0])))


def criteria_table() -> str:
    """Every criterion at two budgets, on both ResNets, without fine-tuning."""
    rows = pd.read_csv(pruning.ROWS)
    rows = rows[rows["stage"] == "pruned"]
    columns = [(name, keep) for name in NETWORKS[:2] for keep in pruning.KEEPS[name]]
    heads = [f"{_head(name)}: {keep:.0%} of the multiplications" for name, keep in columns]
    body = [
        [method, *(pruning.accuracy_of(part[part["network"] == name], keep, "pruned") for name, keep in columns)]
        for method, part in rows.groupby("method", sort=False)
    ]
    return markdown(["method", *heads], body)


def oracle_table() -> str:
    """Taylor's scores against the loss without a channel, on ResNet-20, by the size of the minibatch."""
    rows = pd.read_csv(oracle.TABLE)
    rows = rows[rows["network"] == NETWORKS[0]]
    sizes = list(dict.fromkeys(rows["batch"]))
    body = []
    for split, part in rows.groupby("split", sort=False):
        for column, title in (
            ("pearson", "Pearson, change over all images"),
            ("spearman", "Spearman, change over all images"),
            ("pearson_minibatch", "Pearson, change over minibatches"),
        ):
            found = part.set_index("batch")[column]
            body.append([{"train": "training"}.get(split, split), title, *(f"{found[size]:.2f}" for size in sizes)])
    return markdown(["images", "correlation", *(f"batch {size:,}" for size in sizes)], body)


def masks_table() -> str:
    """DPP and its peers at a fifth of the weights."""
    rows = pd.read_csv(dpp.ROWS)
    networks = list(dict.fromkeys(rows["network"]))
    heads = [
        f"{name}, before {with_interval(part['before'].iloc[:1], dpp.TESTED[name])} % of {dpp.TESTED[name]:,} images"
        for name, part in rows.groupby("network", sort=False)
    ]
    body = []
    for method, part in rows.groupby("method", sort=False):
        own = [part[part["network"] == name] for name in networks]
        bits = part.loc[part["network"] == "digits/resnet", "bits"]
        cells = [with_interval(each["accuracy"], dpp.TESTED[name]) for name, each in zip(networks, own, strict=True)]
        body.append([method, *cells, f"{bits.mean():.2f}" if len(bits) else ""])
    return markdown(["method", *heads, "bits a weight, digits/resnet"], body)


def _real() -> pd.DataFrame:
    return read_real()


def _left(own: pd.DataFrame) -> str:
    """Accuracy, spread and interval, then the shares left of multiplications and of bytes."""
    if own.empty:
        return ""
    newest = own[own["count"] == own["count"].min()]  # "new" before "old"
    accuracy = with_interval(newest["accuracy"], newest["images"].iloc[0])
    return f"{accuracy} ({100 * newest['products'].mean():.1f} / {100 * newest['bytes'].mean():.1f} %)"


def _head(name: str) -> str:
    own = _real()
    own = own[own["network"] == name].iloc[0]
    before = with_interval(pd.Series([own["before"]]), own["images"])
    return f"{SHORT[name]}, before {before} % of {own['images']:,} images"


def _setting(settings: tuple[str, ...]) -> str:
    if settings == HALF:
        return "half of the multiplications"
    return settings[0].replace("75% of products", "75 % of the multiplications")


TABLES: dict[str, Callable[[], str]] = {
    "readme": readme_table,
    "EfficientNet-Lite0": lite_table,
    "textbook": textbook_table,
    "data-free": lambda: real_table("nothing"),
    "needs images": lambda: real_table("data"),
    "needs training": lambda: real_table("fine-tuning"),
    "criteria": criteria_table,
    "oracle": oracle_table,
    "masks": masks_table,
    "runtimes": runtime_tables.runtimes_table,
    "ranges": runtime_tables.ranges_table,
    "sizes": runtime_tables.sizes_table,
}

if __name__ == "__main__":
    main()
