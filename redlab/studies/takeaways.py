"""What each notebook shows: three sentences computed from its frames, so that other parameters give other sentences.

Frames of accuracies are as in ``sentences``.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from redlab.network.evaluation import accuracy_interval
from redlab.studies.real import title_of
from redlab.studies.sentences import Takeaways, best_and_worst, fewest, in_words, percent


def tour(hashed: pd.DataFrame, chance: pd.DataFrame, steps: pd.DataFrame) -> Takeaways:
    """Of 00: a row a network after hashing, ``compare_with_random`` of the first, and the steps of RED++."""
    first, columns = hashed.iloc[0], ["products", "operations", "bytes"]
    left = (steps.iloc[-1][columns] / steps.iloc[0][columns]).map(percent)
    share = {drawn: percent(own) for drawn, own in chance.attrs["share"].items()}
    return Takeaways(
        f"Hashing leaves {share['trained']} of the distinct values of {first['network']}, and {share['random']} of "
        f"random weights of the same sizes. Only the difference says something about training.",
        f"Hashing moves the accuracy by at most {hashed['difference'].abs().max():.1f} points, over "
        f"{len(hashed)} network{'s' * (len(hashed) != 1)}. {first['network']} has "
        f"{in_words(first['accuracy'], first['images'])}.",
        f"RED++ leaves {left['products']} of the multiplications, {left['operations']} of all operations and "
        f"{left['bytes']} of the bytes, with {in_words(steps['accuracy'].iloc[-1], first['images'])}.",
    )


def density(costs: pd.DataFrame, counts: pd.DataFrame) -> Takeaways:
    """Of 01: a row a bandwidth with its accuracy, and the modes of each layer by bandwidth."""
    ends = costs.loc[costs["modes"].agg(["idxmin", "idxmax"])]
    few, many = (f"{row.modes:,.1f} at {row.bandwidth}" for row in ends.itertuples())
    narrow = counts[counts["bandwidth"].isin(sorted(counts["bandwidth"].unique())[:2])]
    modes = narrow.pivot_table(index="layer", columns="bandwidth", values="modes").to_numpy()
    halving = 2 ** (np.log(modes[:, 0] / modes[:, 1]) / np.log(narrow["bandwidth"].max() / narrow["bandwidth"].min()))
    return Takeaways(
        f"The bandwidth sets the number of modes. The mean over layers is {few} and {many}.",
        f"At the narrowest kernels, half the bandwidth gives {np.median(halving):.2f} times the modes (median over "
        f"layers). Sampling noise alone gives 2 times.",
        fewest(costs, "share", "distinct values", label="bandwidth"),
    )


def hashing(frame: pd.DataFrame) -> Takeaways:
    """Of 02: a row a rule and error allowed to each layer."""
    bounded = frame.dropna(subset=["max_error"])
    shares = bounded.pivot_table(index="max_error", columns="method", values="share")
    wins = shares.idxmin(axis=1).value_counts()
    largest = bounded["max_error"].max()
    return Takeaways(
        f"At the same error, **{wins.index[0]}** leaves the fewest distinct values: at {wins.iloc[0]} of "
        f"{len(shares)} errors.",
        fewest(bounded, "share", "distinct values"),
        best_and_worst(bounded[bounded["max_error"] == largest], f"With an error of at most {largest:g} a layer"),
    )


def merging(frame: pd.DataFrame) -> Takeaways:
    """Of 03: a row a start (as trained, hashed first), method and alpha."""
    starts, most = frame.groupby("start", sort=False), frame["alpha"].max()
    named = frame.assign(method=frame["method"] + ", alpha " + frame["alpha"].map("{:g}".format))
    first = frame["start"].iloc[0]
    last = frame[(frame["start"] == first) & (frame["alpha"] == most)]
    return Takeaways(
        *(
            f"{start.capitalize()}: {_lower(fewest(named.loc[own.index], 'share', 'channels'))}"
            for start, own in starts
        ),
        best_and_worst(last, f"{first.capitalize()}, at alpha {most:g}"),
    )


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def splitting(frame: pd.DataFrame, chance: pd.DataFrame) -> Takeaways:
    """Of 04: a row a unit, and the distinct multiplications of each layer beside those that chance leaves."""
    own = frame.set_index("unit")
    left = ", ".join(f"{percent(share)} with the unit {unit}" for unit, share in own["share"].items())
    channel = chance[chance["unit"] == "channel"]
    ratio = (channel["measured"] / channel["expected"]).median()
    return Takeaways(
        f"Multiplications left: {left}.",
        f"With the unit channel {percent(own.loc['channel', 'operations'])} of all operations are left, since the "
        f"additions stay. The outputs move by at most {own['difference'].max():.1g} of the largest: rounding.",
        f"A channel has {ratio:.2f} times the distinct values that shuffled weights have (median over layers).",
    )


def red(frame: pd.DataFrame, steps: pd.DataFrame, bound: pd.DataFrame) -> Takeaways:
    """Of 05: a row a setting of the frontier, the steps of each method, and the guarantee."""
    shares = ["products", "operations", "bytes"]
    ends = steps.groupby("method", sort=False)[shares].agg(lambda own: own.iloc[-1] / own.iloc[0])
    left = "; ".join(
        f"{row.Index}: {percent(row.products)} of the multiplications, {percent(row.operations)} of all operations, "
        f"{percent(row.bytes)} of the bytes"
        for row in ends.itertuples()
    )
    return Takeaways(
        f"All steps together leave this. {left}.",
        fewest(frame, "share", "multiplications"),
        f"The guarantee allows 10^{bound.attrs['log10_ratio']:.1f} times the change of the outputs that is "
        f"measured, on {bound.attrs['images']} images.",
    )


def taylor(found: pd.DataFrame, by_size: pd.DataFrame, pruned: pd.DataFrame) -> Takeaways:
    """Of 06: correlations with the oracle by method, the same by minibatch and images, and accuracies after pruning."""
    best, worst = (found.loc[found["spearman"].agg(which)] for which in ("idxmax", "idxmin"))
    sizes = by_size.sort_values("batch").groupby("images", sort=False)["spearman"]
    moves = "; ".join(f"{own.iloc[0]:.2f} to {own.iloc[-1]:.2f} on {images}" for images, own in sizes)
    keep = pruned["keep"].min()
    return Takeaways(
        f"**{best['method']}** ranks channels most like the oracle (Spearman {best['spearman']:.2f}), "
        f"{worst['method']} least ({worst['spearman']:.2f}).",
        f"From the smallest to the largest minibatch, Spearman's correlation changes from {moves}.",
        best_and_worst(pruned[pruned["keep"] == keep], f"At {percent(keep)} of the multiplications"),
    )


def flexrel(weights: pd.DataFrame, frame: pd.DataFrame, sizes: pd.DataFrame) -> Takeaways:
    """Of 07: magnitude and relevance of weights, accuracies by delta, and kilobytes at equal accuracy."""
    ranks = [stats.spearmanr(own["magnitude"], own["relevance"])[0] for _, own in weights.groupby("layer")]
    first = frame[frame["relevance"] == frame["relevance"].iloc[0]]
    ratio = first.groupby("ratio")["accuracy"].agg(np.ptp).idxmax()
    return Takeaways(
        f"Between magnitude and relevance, Spearman's correlation is {np.median(ranks):+.2f} (median over layers; "
        f"1 is the same order of weights).",
        best_and_worst(first[first["ratio"] == ratio], f"The methods differ most at {percent(ratio)} zeros. There"),
        " ".join(_smallest(own, relevance) for relevance, own in sizes.groupby("relevance", sort=False)),
    )


def _smallest(own: pd.DataFrame, relevance: str) -> str:
    if own["kilobytes"].isna().all():
        return f"With {relevance}, no share of zeros keeps the accuracy."
    best = own.loc[own["kilobytes"].idxmin()]
    saved = 1 - best["kilobytes"] / own.loc[own["delta"].isin([0, 1]), "kilobytes"].min()
    gain = f"{percent(saved)} fewer than the better end" if saved else "so that a mixture gains nothing"
    return f"With {relevance}, delta {best['delta']:g} needs fewest bytes, {gain}."


def masks(metrics: pd.DataFrame, frame: pd.DataFrame) -> Takeaways:
    """Of 08: the entropies of the learnt masks by epoch and layer, and accuracies by method and share kept."""
    last = metrics[metrics["epoch"] == metrics["epoch"].max()]
    way = ((last["inclusion_entropy"] - last["log_k"]) / (last["log_n"] - last["log_k"])).median()
    keep = frame["keep"].min()
    lean = frame.assign(share=frame["bits"] / 32, method=frame["method"] + ", keep " + frame["keep"].map("{:g}".format))
    return Takeaways(
        f"After training, the inclusion entropy is {percent(way)} of the way from log k (the mask is certain) to "
        f"log n (drawn at random): median over layers.",
        best_and_worst(frame[frame["keep"] == keep], f"With {percent(keep)} kept"),
        fewest(lean, "share", "bits a weight (1 is 32 bits)"),
    )


def pruning(frame: pd.DataFrame) -> Takeaways:
    """Of 09: a row a section, method, share, seed and stage."""
    alone, tuned = frame[frame["section"] == 1], frame[frame["section"] == 2]
    keep, short = alone["keep"].min(), tuned["keep"].min()
    stages = tuned[tuned["keep"] == short].groupby(["stage", "method"])["accuracy"].mean().groupby("stage").agg(np.ptp)
    columns = {"products": "mean", "accuracy": "mean", "images": "first", "p": "min"}
    means = alone.groupby(["method", "keep"], sort=False).agg(columns).reset_index()
    return Takeaways(
        fewest(means, "products", "multiplications"),
        best_and_worst(alone[alone["keep"] == keep], f"At {percent(keep)} of the multiplications, not fine-tuned"),
        f"At {percent(short)} of the multiplications the methods span {stages['pruned']:.1f} points of accuracy "
        f"before the last fine-tuning and {stages['fine-tuned']:.1f} after it.",
    )


def real(rows: pd.DataFrame) -> Takeaways:
    """Of 10: the stored rows, each with its number of ``images``; networks of the same test images stand together."""
    said: dict[int, list[str]] = {}
    for (images, name), own in rows.groupby(["images", "network"], sort=False):
        said.setdefault(images, []).append(_real(name, own))
    return Takeaways(*(" ".join(sentences) for sentences in said.values()))


def _real(name: str, rows: pd.DataFrame) -> str:
    images, before = int(rows["images"].iloc[0]), rows["before"].iloc[0]
    low, free = accuracy_interval(before, images)[0], rows[rows["needs"] == "nothing"]
    split, pruned = (free[free["split"] == own] for own in (True, False))
    seen = split["choice"].fillna(split["accuracy"])  # where other images are held back, those choose
    best = split[seen >= low].sort_values("products").head(1)
    said = [
        f"{title_of(row.method)} ({row.setting}) keeps {row.accuracy:.1f} % with {percent(row.products)} of the "
        f"multiplications and {percent(row.operations)} of all operations"
        for row in best.itertuples()
    ] or ["no split network stays in the interval"]
    top = pruned[pruned["keep"] == pruned["keep"].max()].sort_values("accuracy").iloc[-1]
    return (
        f"**{name}**, {in_words(before, images)}, without data: {said[0]}. Of the methods that remove channels, "
        f"{top['method']} keeps most: {in_words(top['accuracy'], images)} at {percent(top['keep'])} of the "
        "multiplications."
    )


def atlas(twins: pd.DataFrame, filters: pd.DataFrame, explained: pd.DataFrame) -> Takeaways:
    """Of 11: layers trained beside untrained (``twin_layers``), all layers with filters, and the predictors."""
    factor = np.exp(np.log(twins["distinct"] / twins["distinct untrained"]).mean())
    near = filters[filters["network"].isin(twins["network"])].groupby("trained")["near"].mean()
    tops = explained[~explained["predictor"].str.contains("added")]
    tops = tops.loc[tops.groupby("response", sort=False)["drop"].idxmax()]
    shares = [f"{percent(near.get(trained, np.nan))}" for trained in (True, False)]
    return Takeaways(
        f"A trained layer keeps {factor:.1f} times the distinct values of its random twin (geometric mean over "
        f"{len(twins)} layers).",
        f"Near filters, mean share over layers: {shares[0]} in trained layers, {shares[1]} in their twins. Exact "
        f"duplicates in the whole atlas: {int(filters['duplicates'].sum())}.",
        "Best predictor: " + "; ".join(f"{row.predictor} for {row.response}" for row in tops.itertuples()) + ".",
    )
