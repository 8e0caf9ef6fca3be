"""How often a network is right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from redlab.network.example import Inputs, answer, place_of
from redlab.network.layers import unwrap
from redlab.network.samples import Labelled, as_dataset, batches, first_of, whole
from redlab.options import plain_options
from redlab.progress import progress

# Input values that a CPU takes at once, 100 images of CIFAR-10: activations much larger than theirs are given back to
# the system after every layer and asked for again.
_VALUES_AT_ONCE = 100 * 3 * 32 * 32


@dataclass(frozen=True)
class Evaluation:
    """What a network scores on a dataset.

    Attributes:
        accuracy: percent of images whose largest output is the label's; an output with a NaN in it is wrong.
        loss: mean cross-entropy in nats; NaN or inf where the network's outputs make it so.
        count: images.

    Example:
        >>> evaluation = evaluate(load_network("digits/mlp"), load_dataset("digits", limit=100))
        >>> evaluation.accuracy, evaluation.count
        (100.0, 100)
    """

    accuracy: float
    loss: float
    count: int

    def __str__(self) -> str:
        return f"accuracy {self.accuracy:.2f} % of {self.count:,} images, cross-entropy {self.loss:.4f}"


@plain_options
def evaluate(network: nn.Module, dataset: Labelled, batch_size: int = 256) -> Evaluation:
    """Accuracy and loss of ``network`` on ``dataset``, in eval mode, on the network's own device.

    The network is left as it was: every module's training flag comes back, nothing is moved or converted. Images are
    handed over in the network's floating dtype, whole numbers in their own. torch's global random state is not touched.

    Arguments:
        network: answers (images, classes), in a tensor or under the name ``logits``.
        dataset: map-style, of (inputs, label) or dicts with "labels"; a DataLoader; or a pair (inputs, labels) of
            tensors. Inputs are a tensor, a tuple of positional inputs or a dict of keyword inputs.
        batch_size: images at once, at most. A CPU takes larger batches apart, down to 100 images of 3x32x32 or 2 of
            3x224x224: measured on one core, ResNet-20 is a fifth slower at 256 than at 100, and MobileNetV1 takes
            45 ms an image at 64 and 18 at 2, the difference being fresh memory from the system for every layer.

    Raises:
        ValueError: an empty dataset, or none of these; a batch size below 1, an output that is not (images, classes),
            or a label that the output has no class for.

    Example:
        >>> round(evaluate(load_network("digits/resnet"), load_dataset("digits")).accuracy, 1)
        99.4
    """
    network, dataset = unwrap(network), as_dataset(dataset)
    if len(dataset) == 0:
        raise ValueError("the dataset is empty: nothing to evaluate on")
    right, loss = 0, 0.0
    with in_eval_mode(network), torch.inference_mode():
        for inputs, labels in progress(batches(dataset, _batch(network, dataset, batch_size)), "evaluate"):
            labels = whole(labels)
            logits = _logits(network, inputs, labels)
            right += int(_is_right(logits, labels).sum())
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
    return Evaluation(100 * right / len(dataset), loss / len(dataset), len(dataset))


def _batch(network: nn.Module, dataset: Dataset, batch_size: int) -> int:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size!r}")
    if place_of(network).get("device", torch.device("cpu")).type != "cpu":
        return batch_size
    values = sum(tensor.numel() for tensor in first_of(dataset, 1).tensors)
    return max(1, min(batch_size, _VALUES_AT_ONCE // max(1, values)))


@contextmanager
def in_eval_mode(network: nn.Module) -> Iterator[None]:
    """``network`` in eval mode inside, every module's training flag as it was afterwards."""
    before = [(module, module.training) for module in network.modules()]
    try:
        network.eval()
        yield
    finally:
        for module, training in before:
            module.training = training


def _logits(network: nn.Module, inputs: Inputs, labels: Tensor) -> Tensor:
    """float32 (n, classes) on the CPU, checked."""
    output = answer(network, inputs.to(network).each(_channels_last))
    if output.dim() != 2 or len(output) != len(labels):
        got = tuple(output.shape)
        raise ValueError(f"the network must answer (images, classes), here ({len(labels)}, classes); it gave {got}")
    if not 0 <= int(labels.min()) <= int(labels.max()) < output.shape[1]:
        raise ValueError(
            f"the labels run from {int(labels.min())} to {int(labels.max())}, the network has {output.shape[1]} classes"
        )
    return output.float().cpu()


def _channels_last(tensor: Tensor) -> Tensor:
    """Convolutions of images are faster so, on CPU too."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _is_right(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(1) == labels) & ~logits.isnan().any(1)
