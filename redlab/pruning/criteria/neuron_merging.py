"""Neuron merging (Kim et al., NeurIPS 2020): small filters are removed, and the next layer
reads the nearest kept one in their place.

    score(c) = (sum over the weights w of filter c of |w|^p)^(1/p), as magnitude;
    a_j ~ s a_k,  k the kept filter with the largest cosine to j,  s = ||row_j|| / ||row_k||

Rows are as batch norm scales them, bias included: one cosine for both, our choice (the paper weighs two).
"""

from __future__ import annotations

from redlab.pruning.criteria.magnitude import magnitude
from redlab.pruning.subject import Scored, Subject


def neuron_merging(subject: Subject, p: float = 1, folded: bool = True, reduction: str = "mean") -> Scored:
    """The scores of magnitude (arguments as there); only the compensation differs."""
    return magnitude(subject, p, folded, reduction)
