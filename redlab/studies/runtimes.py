"""Measured times of files in their engines, read from ``benchmarks/runtimes.csv``; and what sharing could save."""

from __future__ import annotations

import pandas as pd

from redlab.paths import checkout
from redlab.studies.sentences import Takeaways

# How many multiply-adds, or additions, one instruction of AVX-512 does: 512 bits hold 16 numbers of 32 bits. VNNI sums
# four products of bytes in 32 bits, the dot product of bfloat16 two.
LANES = {"float32": 16, "bf16": 32, "int8": 64, "additions in 16 bits": 32}


def read_runtimes() -> pd.DataFrame:
    """The rows of ``benchmarks/runtimes.csv``; ``python -m benchmarks.runtimes`` made them.

    Returns:
        A row for each ``network``, ``variant``, ``engine``, ``precision``, ``batch`` and ``threads``: times as
        ``compare_runtimes`` has them, ``score`` in percent (Spearman's correlation x 100 for sentences) with its 95 %
        interval ``low`` to ``high``, the paired ``difference`` to the network, ``bytes``, and the share of the
        multiplications, ``products``.

    Example:
        >>> {"variant", "speedup", "score", "bytes"} <= set(read_runtimes().columns)
        True
    """
    return pd.read_csv(checkout() / "benchmarks" / "runtimes.csv")


def fastest(rows: pd.DataFrame, batch: int = 1, threads: int = 1) -> pd.DataFrame:
    """The faster engine of each variant and precision of each network; torch is one of them.

    Example:
        >>> rows = fastest(read_runtimes())
        >>> bool(rows.groupby(["network", "variant", "precision"]).size().max() == 1)
        True
    """
    rows = rows[(rows["batch"] == batch) & (rows["threads"] == threads) & rows["median"].notna()]
    best = rows.groupby(["network", "variant", "precision"], sort=False)["median"].idxmin()
    return rows.loc[best].reset_index(drop=True)


def sharing_limits(shares: pd.Series, taps: int = 9) -> pd.DataFrame:
    """How fast a layer can be at most where equal products are computed once, relative to dense float32.

    It is arithmetic: a CPU that does nothing but vector instructions, without a load or a look-up between them. A
    multiply-add costs one instruction, as an addition alone does, so that sharing the products of weights (unit
    channel) leaves as many instructions as there were. Only where whole kernels are shared (unit kernel) additions
    go too: one is left of each kernel's.

    Arguments:
        shares: of the multiplications that are left, above 0.
        taps: of a kernel.

    Returns:
        A row a share and ``way``, with its ``speedup``.

    The 9 multiply-adds of a 3x3 kernel cost 9 instructions. Shared by all, one addition is left: 9 times faster.

    Example:
        >>> limits = sharing_limits(pd.Series([0.001]))
        >>> limits.set_index("way")["speedup"].round(1).to_dict()
        {'equal weights, float32': 1.0, 'equal weights, 16 bits': 2.0, 'equal kernels of 9, float32': 8.9}
    """
    wide = LANES["additions in 16 bits"] / LANES["float32"]
    ways = {
        "equal weights, float32": 1 / (1 + shares),
        "equal weights, 16 bits": wide / (1 + shares),
        f"equal kernels of {taps}, float32": taps / (1 + taps * shares),
    }
    return pd.concat([pd.DataFrame({"share": shares, "way": way, "speedup": own}) for way, own in ways.items()])


def takeaways(rows: pd.DataFrame, sizes: pd.DataFrame) -> Takeaways:
    """What notebook 12 shows, from the rows of ``read_runtimes`` and of ``compare_sizes``: three sentences."""
    best = fastest(rows)
    fast = best[best["variant"] == "int8"]
    lost = fast["difference"].min()
    split = best[best["variant"] == "split, channel"]
    whole, hashed = sizes["network"].iloc[0], sizes["network"].iloc[-1]
    ratio = sizes.set_index(["network", "form"])["ratio"]
    return Takeaways(
        f"int8 files made without data are {fast['speedup'].min():.1f} to {fast['speedup'].max():.1f} times as fast as "
        f"the best float32, over {len(fast)} networks, one image, one thread; the score moves by {lost:+.2f} points at "
        f"worst.",
        f"Splitting leaves {split['products'].min():.1%} to {split['products'].max():.1%} of the multiplications and "
        f"runs at {split['speedup'].min():.2g} to {split['speedup'].max():.2g} times the speed of the best float32: "
        f"the additions stay, and no CPU instruction multiplies less.",
        f"{hashed} takes {ratio[hashed, 'redlab folder']:.1%} of the bytes as a redlab folder, "
        f"{ratio[hashed, 'float32 ONNX']:.1%} as float32 ONNX and {ratio[hashed, 'int8 ONNX, deflated']:.1%} as int8 "
        f"ONNX, deflated ({whole}: 100 %).",
    )
