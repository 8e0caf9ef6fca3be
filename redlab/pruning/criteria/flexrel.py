"""FlexRel: magnitude, from training, mixed with relevance, from use (Chiasserini et al. 2024, arXiv 2405.13088; known
to us second-hand).

    weights:  score(w_kj) = (1 - delta) M + delta R
    channels: score(c) = mean of the scores of the weights of filter c

M is |w_kj| and R is rel(w_kj) = sum_i [rel(a_ik) + rel(b_ij)], with the layer as B = A W. Each is scaled to [0, 1]
within its layer. Relevance needs images but no labels: the network's own answers are used. By LRP it has a sign, and
what speaks against the answer scores lowest.

Ours are LRP as the default, the scaling by each layer's smallest and largest value, and the scores of channels. Equal
values become 1 if they are above zero, else 0. In a layer that no relevance reaches (its call is not seen, or it only
computes a gate: see ``relevance``) M alone is the score.
"""

from __future__ import annotations

import torch
from numpy import ndarray
from torch import Tensor

from redlab.channels.groups import Group
from redlab.pruning.relevance import check_options, layer_relevance
from redlab.pruning.subject import Scored, Subject, per_channel


def flexrel(
    subject: Subject,
    delta: float = 0.5,
    relevance: str = "lrp",
    epsilon: float = 1e-6,
    folded: bool = False,
    chunk: int = 128,
    reduction: str = "mean",
) -> Scored:
    """The mean score of the weights of every filter.

    With delta = 0, the channels of a group that one layer makes have the order of their L1 norms. If several layers
    make them, each layer's norms are scaled before they are averaged.

    Arguments:
        delta: the share of relevance, in [0, 1] (docs/defaults.md).
        relevance: "lrp" (docs/defaults.md), by the epsilon rule, or "gradient", |x dlogit/dx|.
        epsilon: of the epsilon rule, in units of a layer's output.
        folded: magnitudes of the weights as batch norm scales them; relevance is always that of the folded network.
        chunk: images at once; memory only, no score depends on it.
        reduction: over the layers of a coupled group.

    Raises:
        ValueError: a delta outside [0, 1], another ``relevance``, an epsilon that is not positive and finite.
    """
    scores = _scores(subject, delta, relevance, epsilon, folded, chunk)
    return Scored({group.name: per_channel(group, _averaged(scores, group), reduction) for group in subject.free})


def flexrel_of_weights(
    subject: Subject,
    delta: float = 0.5,
    relevance: str = "lrp",
    epsilon: float = 1e-6,
    folded: bool = False,
    chunk: int = 128,
) -> dict[str, ndarray]:
    """The score of every weight, in [0, 1]; arguments and errors as above.

    With delta = 0 a layer's weights have the order of their magnitudes: ``scope="layer"`` prunes what magnitude prunes.
    ``scope="global"`` then compares weights by their place between the smallest and the largest of their layer, so that
    layers of small weights lose no more than others.
    """
    scores = _scores(subject, delta, relevance, epsilon, folded, chunk)
    return {layer.name: scores[name].cpu().numpy() for name, layer in subject.layers.items()}


def _scores(
    subject: Subject, delta: float, relevance: str, epsilon: float, folded: bool, chunk: int
) -> dict[str, Tensor]:
    """By the dotted name of its weight, the scores of a layer's weights, float64."""
    check_options(relevance, epsilon)
    if not 0 <= delta <= 1:  # NaN too
        raise ValueError(f"delta must lie in [0, 1], not be {delta!r}")
    scores = {name: _to_unit(weight.abs().double()) for name, weight in subject.weights(folded).items()}
    reached = layer_relevance(subject, relevance, epsilon, chunk) if delta > 0 else {}
    for name in scores.keys() & reached.keys():
        own = reached[name].of_weights()
        if own.any():
            scores[name] = (1 - delta) * scores[name] + delta * _to_unit(own)
    return scores


def _to_unit(values: Tensor) -> Tensor:
    """Scaled to [0, 1] by the smallest and the largest value."""
    low, high = values.min(), values.max()
    return torch.full_like(values, float(high > 0)) if low == high else (values - low) / (high - low)


def _averaged(scores: dict[str, Tensor], group: Group) -> dict[str, Tensor]:
    """Scores over the number of weights that a channel has in a layer: their sum is the mean score."""
    own = [member for member in group.producers if member.tensor in scores]
    each = {m.tensor: scores[m.tensor].numel() // m.width * m.index.shape[1] for m in own}
    return {name: scores[name] / count for name, count in each.items()}
