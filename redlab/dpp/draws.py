"""Drawing k of n by Gumbel noise, and two gradients for it (Gonzalez-Carabarin et al., arXiv 2105.12686).

The k largest of Phi + G, G standard Gumbel noise, are k draws without replacement from softmax(Phi). That is the
forward pass of both estimators. The mask has no gradient of its own, and they differ in what replaces it, with
x = (Phi + c G) / T:

    k_step     A = sum_j soft_j,  soft_j = softmax(x + log(1 - C_j + 1e-20) / T),  C_j what draws before j took
    one_shot   A = k softmax(x)

``k_step`` is the paper's. Its gradient is a sum over k softmaxes, each of which differs from the next in one entry.
Prefix sums give all of them at the cost of a few, O(rows (n + k)) in time and memory (our algorithm). ``one_shot`` is
ours: another, biased estimator that costs even less.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

ESTIMATORS = ("k_step", "one_shot")
_TAKEN = 1e-20  # what is left of the probability of an entry that an earlier draw took, as in the authors' code
_FAR = 600.0  # exp of much more is no double


def gumbel_like(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard Gumbel noise of the shape, dtype and place of ``logits``; by default from torch's global generator."""
    uniform = torch.rand(logits.shape, generator=generator, dtype=logits.dtype, device=logits.device)
    return uniform.clamp_(min=2.0**-25).log_().neg_().log_().neg_()  # never 0 and never 1: the noise is finite


def largest(values: Tensor, k: int) -> Tensor:
    """A mask (rows, n), true at exactly the ``k`` largest of each row; of equal ones at those that come first.

    Raises:
        FloatingPointError: ``values``, on the CPU, hold NaN or inf, which have no gradient.
    """
    smallest = values.topk(k, sorted=False).values.amin(1, keepdim=True)
    # On other devices a look at values costs more than it saves, or is refused.
    if type(values) in (Tensor, nn.Parameter) and values.device.type == "cpu":
        if not all(end.isfinite() for end in values.aminmax()):
            raise FloatingPointError("the logits of a mask are NaN or inf: try a lower learning rate, or finite ones")
        mask = values >= smallest
        if int(mask.count_nonzero()) == k * len(values):
            return mask
    above, tied = values > smallest, values == smallest
    return above | (tied & (tied.cumsum(1) <= k - above.sum(1, keepdim=True)))


def draw_mask(logits: Tensor, k: int, temperature: float, noise: float = 1.0, estimator: str = "one_shot") -> Tensor:
    """A mask of zeros and ones (rows, n), of the dtype of ``logits``, with exactly ``k`` ones in each row.

    Arguments:
        logits: Phi (rows, n). 16-bit ones are perturbed and compared in float32.
        temperature: T, of the gradient alone.
        noise: c, the scale of the Gumbel noise; 0 draws nothing: the k largest logits.
        estimator: "k_step" or "one_shot", how the gradient is made.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return _DRAWS[estimator].apply(wide, k, temperature, noise).to(logits.dtype)


class _Draw(Function):
    """The forward pass that both estimators share."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, k: int, temperature: float, noise: float) -> Tensor:
        perturbed = gumbel_like(logits).mul_(noise).add_(logits) if noise else logits
        mask = largest(perturbed, k)
        ctx.save_for_backward(perturbed, mask)
        ctx.k, ctx.temperature = k, temperature
        return mask.to(logits.dtype)


class _OneShot(_Draw):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        perturbed, _ = ctx.saved_tensors
        soft = torch.softmax(perturbed / ctx.temperature, 1)
        share = soft * gradient
        return share.sub_(soft.mul_(share.sum(1, keepdim=True))).mul_(ctx.k / ctx.temperature), None, None, None


class _KStep(_Draw):
    """With e = exp(x), q = 1e-20^(1/T) and r the draw that took an entry, Z_j = sum of e, q e for those taken before j:

        soft_j = e / Z_j, after draw r q e / Z_j
        gradient = 1/T sum_j soft_j (g - b_j),  b_j = sum(soft_j g) = N_j / Z_j

    So an entry needs the sums over j of 1 / Z_j and of b_j / Z_j up to its r, and q times those beyond.
    """

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        perturbed, mask = ctx.saved_tensors
        x, g = perturbed.double() / ctx.temperature, gradient.double()
        order = x.masked_fill(~mask, -math.inf).topk(ctx.k).indices
        q = math.exp(math.log(_TAKEN) / ctx.temperature)
        x = x - x.gather(1, order[:, -1:])
        made = (_by_loop if (x > _FAR).any() else _by_sums)(x, g, order, mask, q)
        return (made / ctx.temperature).to(perturbed.dtype), None, None, None


def _by_sums(x: Tensor, g: Tensor, order: Tensor, mask: Tensor, q: float) -> Tensor:
    """(rows, n) T times the gradient; ``x`` counts from the k-th largest, ``order`` (rows, k) is that of the draws."""
    e = x.exp()
    taken, own = e.gather(1, order), g.gather(1, order)
    e = e.masked_fill(mask, 0)
    z = e.sum(1, keepdim=True) + _remaining(taken, q)
    b = ((e * g).sum(1, keepdim=True) + _remaining(taken * own, q)) / z
    u, v = 1 / z, b / z
    made = e * (g * u.sum(1, keepdim=True) - v.sum(1, keepdim=True))
    return made.scatter(1, order, taken * (own * _until(u, q) - _until(v, q)))


def _by_loop(x: Tensor, g: Tensor, order: Tensor, _: Tensor, q: float) -> Tensor:
    """The same, draw by draw, for logits so far apart that their exponentials would overflow."""
    made = torch.zeros_like(x)
    for drawn in order.T[..., None]:
        soft = torch.softmax(x, 1)
        made += soft * (g - (soft * g).sum(1, keepdim=True))
        x = x.scatter_add(1, drawn, torch.full_like(x[:, :1], math.log(q)))
    return made


def _remaining(values: Tensor, q: float) -> Tensor:
    """(rows, k): at j the sum of ``values`` from j on, and q times those before; nothing cancels."""
    before = values.cumsum(1) - values
    return values.flip(1).cumsum(1).flip(1) + q * before


def _until(values: Tensor, q: float) -> Tensor:
    """(rows, k): at j the sum of ``values`` up to j, and q times those beyond."""
    after = values.flip(1).cumsum(1).flip(1) - values
    return values.cumsum(1) + q * after


_DRAWS: dict[str, type[_Draw]] = {"k_step": _KStep, "one_shot": _OneShot}
