"""How certain masks are and how much they differ: entropies of logits, of inclusion, and between units.

The definitions are ours. Entropies are in nats. With p = softmax(Phi) of a row, H(p) = log n means that all n entries
are alike, and H(p) = log k that k of them share everything equally, as a mask of k ones should. Below log k, fewer than
k entries have nearly all of p, and p does not show whether the rest of the mask is settled. The probabilities pi that
an entry is drawn do show it, and H(pi / k) never falls below log k.
"""

from __future__ import annotations

from math import log

import pandas as pd
import torch
from torch import Tensor, nn

from redlab.dpp.draws import gumbel_like, largest
from redlab.dpp.masks import Mask, masks_in, sparsity_of
from redlab.network.layers import unwrap
from redlab.options import plain_options

_PARTS = 8  # of the draws: the spread over them gives the standard error


def mask_entropy(network: nn.Module) -> Tensor:
    """The sum over all rows of all masks in ``network`` of H(softmax(Phi)), in nats: DPP's penalty, times mu.

    A logit of minus infinity is never kept and adds nothing.

    Raises:
        FloatingPointError: a logit is NaN or plus infinity.

    Example:
        >>> masked = sparsify(load_network("digits/mlp"), keep=0.25)
        >>> most = sum(mask.logits.shape[0] * np.log(mask.logits.shape[1]) for mask in masked.dpp.masks.values())
        >>> bool(0.8 * most < mask_entropy(masked) < most)
        True
    """
    total = torch.stack([_entropy(mask.logits.log_softmax(1)).sum() for mask in masks_in(network)]).sum()
    if not total.isfinite():
        raise FloatingPointError("the logits of a mask are NaN or inf: try a lower learning rate, or finite ones")
    return total


@plain_options
@torch.no_grad()
def mask_metrics(network: nn.Module, draws: int = 64, seed: int = 0) -> pd.DataFrame:
    """How certain the masks of ``network``, made by ``sparsify``, are, and how much those of different units differ.

    Arguments:
        draws: of the Monte Carlo estimate of the inclusion probabilities, at least 8; 0 leaves it out.
        seed: of the draws; torch's global generator is left alone.

    Returns:
        A row a mask: ``layer`` (the coupled group, with granularity "filter"), granularity, ``rows``, ``k``, ``n``;

        - ``entropy``, the mean over the rows of H(softmax(Phi)), between 0 and ``log_n``, and ``log_k`` next to it;
        - ``confidence``, 1 - (entropy - log k) / (log n - log k): 0 if all entries are alike, 1 if k share everything,
          more than 1 if fewer do; 1 if k = n;
        - ``diversity``, H(mean p) - mean H(p) over the units (generalised Jensen-Shannon divergence): 0 if all prefer
          the same entries;
        - ``hamming``, the number of places where the hard masks of two units differ, mean over all pairs: at most 2 k;
        - ``inclusion_entropy``, mean over the rows of H(pi / k), pi the probabilities that an entry is drawn: log k if
          the mask is certain, log n if all are drawn alike; and its standard error ``inclusion_error``.

        Units are compared tile by tile.

    Raises:
        ValueError: a network without masks, too few draws.

    Example:
        >>> masked = sparsify(load_network("digits/mlp"), keep=0.25)
        >>> mask_metrics(masked, draws=0)[["layer", "rows", "k", "n"]]
                     layer  rows   k    n
        0  hidden.0.linear   256  16   64
        1  hidden.1.linear   128  64  256
        2       classifier    10  32  128
    """
    network = unwrap(network)
    sparsity = sparsity_of(network)
    if draws and draws < _PARTS:
        raise ValueError(f"draws must be at least {_PARTS}, or 0 for none, not {draws!r}")
    generator: dict[torch.device, torch.Generator] = {}
    rows = []
    for name, mask in sparsity.masks.items():
        device = mask.logits.device
        random = generator.setdefault(device, torch.Generator(device).manual_seed(seed))
        row = {"layer": name, "granularity": sparsity.options["granularity"]} | _measure(mask)
        rows.append(row | (_inclusion(mask, draws, random) if draws else {}))
    return pd.DataFrame(rows)


def _entropy(logs: Tensor) -> Tensor:
    """(rows,) H of rows of log-probabilities."""
    return -(logs.exp() * logs.clamp(min=torch.finfo(logs.dtype).min)).sum(1)


def _measure(mask: Mask) -> dict[str, float]:
    logits, k = mask.logits.double(), mask.k
    rows, n = logits.shape
    logs = logits.log_softmax(1)
    entropy = float(_entropy(logs).mean())
    # Rows of one tile are compared with those of the same tile of other units: (tiles, units, n).
    by_tile = logs.exp().unflatten(0, (-1, mask.tiles)).transpose(0, 1)
    diversity = float(torch.special.entr(by_tile.mean(1)).sum(1).mean()) - entropy
    hard = largest(mask.logits, k).unflatten(0, (-1, mask.tiles)).transpose(0, 1)
    return {
        "rows": rows,
        "k": k,
        "n": n,
        "entropy": entropy,
        "log_k": log(k),
        "log_n": log(n),
        "confidence": 1.0 if k == n else 1 - (entropy - log(k)) / (log(n) - log(k)),
        "diversity": max(diversity, 0.0),
        "hamming": _hamming(hard, k),
    }


def _hamming(hard: Tensor, k: int) -> float:
    """The mean distance of two units' masks, of (tiles, units, n) with ``k`` ones a row; 0 for one unit."""
    units = hard.shape[1]
    counts = hard.sum(1).double()  # two units that share an entry agree there
    shared = float((counts * (counts - 1) / 2).sum(1).mean()) / max(units * (units - 1) / 2, 1)
    return 2 * (k - shared) if units > 1 else 0.0


def inclusion_probabilities(mask: Mask, draws: int, generator: torch.Generator) -> Tensor:
    """(parts, rows, n) estimates of the probability that each entry is among the k, from ``draws`` / parts draws each.

    An entry is drawn if Phi + c G exceeds the k-th largest of the others. Given those, its probability is
    1 - exp(-exp((Phi - threshold) / c)). The mean of that is estimated: it varies far less than the masks do.
    """
    logits = mask.logits.double() if mask.logits.dtype == torch.float64 else mask.logits.float()
    rows, n = logits.shape
    if mask.k == n or mask.noise == 0:
        return largest(logits, mask.k).to(logits.dtype).expand(_PARTS, rows, n)
    logits, parts = logits / mask.noise, []
    for _ in range(_PARTS):
        total = torch.zeros_like(logits)
        for _ in range(draws // _PARTS):
            perturbed = logits + gumbel_like(logits, generator)
            above = perturbed.topk(mask.k + 1).values
            threshold = torch.where(perturbed >= above[:, -2:-1], above[:, -1:], above[:, -2:-1])
            total -= torch.expm1(-torch.exp((logits - threshold).clamp(max=50)))
        parts.append(total / (draws // _PARTS))
    return torch.stack(parts)


def _inclusion(mask: Mask, draws: int, generator: torch.Generator) -> dict[str, float]:
    """Mean entropy of pi / k and its standard error, both by the jackknife over the parts."""
    pi = inclusion_probabilities(mask, draws, generator).double()
    total = pi.sum(0)
    whole = _scaled_entropy(total)
    without = torch.stack([_scaled_entropy(total - part) for part in pi])
    error = ((_PARTS - 1) / _PARTS * (without - without.mean()).square().sum()).sqrt()
    # An entropy of estimated probabilities is too low by about 1 / draws, which the jackknife takes out.
    value = _PARTS * whole - (_PARTS - 1) * without.mean()
    return {"inclusion_entropy": float(value.clamp(log(mask.k), log(pi.shape[2]))), "inclusion_error": float(error)}


def _scaled_entropy(pi: Tensor) -> Tensor:
    """Mean over the rows of the entropy of ``pi`` over its sum."""
    return torch.special.entr(pi / pi.sum(1, keepdim=True)).sum(1).mean()
