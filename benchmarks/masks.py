"""Drawing a mask and its gradient, against a plain top-k mask and the k-step loop; ``python -m benchmarks.masks``.

512 x 4,608 logits, as in the last layers of a ResNet-50. The plain mask has no noise, and a gradient that is copied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from benchmarks.timing import interleaved, store
from redlab.dpp.draws import draw_mask, gumbel_like

ROWS, N, TEMPERATURE = 512, 4_608, 1.0
PLAIN = "plain top-k mask"


def main() -> None:
    torch.manual_seed(0)
    logits, gradient = torch.randn(ROWS, N, requires_grad=True), torch.randn(ROWS, N)
    for k, rounds, loop in ((46, 3, True), (460, 15, False)):
        contestants = {PLAIN: lambda k=k: _Plain.apply(logits, k)}
        for estimator in ("one_shot", "k_step"):
            contestants[estimator] = lambda k=k, own=estimator: draw_mask(logits, k, TEMPERATURE, 1.0, own)
        contestants |= {"loop of k softmaxes": lambda k=k: k_step_loop(logits, k)} if loop else {}
        runs = {name: _both_ways(make, logits, gradient) for name, make in contestants.items()}
        table = interleaved(runs, rounds, PLAIN).assign(threads=torch.get_num_threads())
        print(f"\n{k} of {N} in {ROWS} rows, forward and backward\n{table.to_string(index=False)}")
        store(f"masks, {k} of {N} in {ROWS} rows", table)


def _both_ways(make: Callable[[], Tensor], logits: Tensor, gradient: Tensor) -> Callable[[], None]:
    def run() -> None:
        logits.grad = None
        make().backward(gradient)

    return run


class _Plain(Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, k: int) -> Tensor:
        return torch.zeros_like(logits).scatter_(1, logits.topk(k).indices, 1.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.clone(), None


def k_step_loop(logits: Tensor, k: int) -> Tensor:
    """The k-step relaxation as the formula has it: k softmaxes that autograd remembers."""
    noise = gumbel_like(logits.detach())
    order = (logits.detach() + noise).topk(k).indices
    taken, mask = torch.zeros_like(noise), 0.0
    for j in range(k):
        soft = torch.softmax((logits + torch.log(1 - taken + 1e-20) + noise) / TEMPERATURE, 1)
        hard = torch.zeros_like(noise).scatter_(1, order[:, j : j + 1], 1.0)
        mask = mask + (hard - soft).detach() + soft
        taken = taken + hard
    return mask


if __name__ == "__main__":
    main()
