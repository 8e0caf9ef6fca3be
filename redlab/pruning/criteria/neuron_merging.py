"""Neuron merging (Kim et al., NeurIPS 2020): small filters go, and the next layer reads their nearest kept one instead.

    score(c) = (sum over the weights w of filter c of |w|^p)^(1/p), as magnitude;
    a_j ~ s a_k,  k the kept filter with the largest cosine to j,  s = ||row_j|| / ||row_k||

Rows are those that batch norm makes, bias included: one cosine for both, our choice (the paper weighs two).
"""

from __future__ import annotations

from redlab.pruning.criteria.magnitude import magnitude
from redlab.pruning.scores import Scored
from redlab.pruning.subject import Subject


def neuron_merging(subject: Subject, p: float = 1, folded: bool = True, reduction: str = "mean") -> Scored:
    """Which filters go is magnitude's choice (arguments as there); what sets it apart is the compensation."""
    return magnitude(subject, p, folded, reduction)
