"""How often a network is right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from os import PathLike

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from redlab.network.evaluating import in_eval_mode
from redlab.network.example import Inputs, answer, place_of
from redlab.network.layers import unwrap
from redlab.network.onnx_network import OnnxNetwork, is_onnx
from redlab.network.samples import Labelled, as_dataset, batches, first_of, whole
from redlab.options import check_whole, plain_options
from redlab.progress import progress

# Input values in one batch on a CPU, 100 images of CIFAR-10. With larger activations the system takes the memory back
# after every layer, and the next one has to ask for it again.
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
        >>> print(str(evaluation).split(", ")[0])
        accuracy 100.00 % of 100 images (95 % interval 96.3 to 100.0 %)
    """

    accuracy: float
    loss: float
    count: int

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the accuracy, in percent."""
        return accuracy_interval(self.accuracy, self.count)

    def columns(self) -> dict[str, float]:
        """The accuracy as columns of a frame: ``accuracy``, ``images``, ``accuracy_low``, ``accuracy_high``."""
        low, high = self.interval
        return {"accuracy": self.accuracy, "images": self.count, "accuracy_low": low, "accuracy_high": high}

    def __str__(self) -> str:
        low, high = self.interval
        interval = f"(95 % interval {low:.1f} to {high:.1f} %)"
        return f"accuracy {self.accuracy:.2f} % of {self.count:,} images {interval}, cross-entropy {self.loss:.4f}"


def accuracy_interval(accuracy: float, count: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy in percent that was measured on ``count`` images (Wilson 1927).

    Example:
        >>> low, high = accuracy_interval(99.44, 360)
        >>> round(low, 1), round(high, 1)
        (98.0, 99.8)
    """
    share, z = accuracy / 100, 1.959964
    middle, shrink = share + z**2 / (2 * count), 1 + z**2 / count
    reach = z * sqrt(share * (1 - share) / count + (z / count) ** 2 / 4)
    return max(0.0, 100 * (middle - reach) / shrink), min(100.0, 100 * (middle + reach) / shrink)


@plain_options
def evaluate(network: nn.Module | str | PathLike, dataset: Labelled, batch_size: int = 256) -> Evaluation:
    """Accuracy and loss of ``network`` on ``dataset``, in eval mode, on the network's own device.

    The network is not changed: every module's training flag is restored, nothing is moved or converted. Images are
    converted to the network's floating dtype, whole numbers stay as they are. torch's global random state is not used.

    Arguments:
        network: answers (images, classes), in a tensor or under the name ``logits``; or the path of an .onnx file,
            which ONNX Runtime runs.
        dataset: map-style, of (inputs, label) or dicts with "labels"; a DataLoader; or a pair (inputs, labels) of
            tensors. Inputs are a tensor, a tuple of positional inputs or a dict of keyword inputs.
        batch_size: images at once, at most. On a CPU larger batches are divided, down to 100 images of 3x32x32 or 2
            of 3x224x224. Measured on one core: ResNet-20 is a fifth slower at 256 than at 100, and MobileNetV1 takes
            45 ms an image at 64 and 18 ms at 2.

    Raises:
        ValueError: the dataset is empty, of another kind, or not what the network takes; the batch size is below 1; the
            output is not (images, classes), or a label has no class in the output.

    Example:
        >>> round(evaluate(load_network("digits/resnet"), load_dataset("digits")).accuracy, 1)
        99.4
    """
    right, loss, count = 0, 0.0, 0
    for logits, labels in _answers(network, dataset, batch_size):
        right += int(_is_right(logits, labels).sum())
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        count += len(labels)
    return Evaluation(100 * right / count, loss / count, count)


def right_images(network: nn.Module | str | PathLike, dataset: Labelled, batch_size: int = 256) -> Tensor:
    """Which images the network is right on: bool (images,). Arguments and errors as in ``evaluate``.

    Example:
        >>> right_images(load_network("digits/mlp"), load_dataset("digits", limit=3))
        tensor([True, True, True])
    """
    return torch.cat([_is_right(logits, labels) for logits, labels in _answers(network, dataset, batch_size)])


def agreement(one: nn.Module | str | PathLike, other: nn.Module | str | PathLike, dataset: Labelled) -> float:
    """The share of the images that two networks, or .onnx files, give the same class.

    Raises: as ``evaluate``.

    Example:
        >>> from redlab.network.evaluation import agreement
        >>> agreement(load_network("digits/mlp"), load_network("digits/resnet"), load_dataset("digits", limit=50))
        1.0
    """
    # One after the other: both hold inference mode while they run, and must leave it in turn.
    classes = [torch.cat([own.argmax(1) for own, _ in _answers(each, dataset, 100)]) for each in (one, other)]
    return float((classes[0] == classes[1]).double().mean())


def as_network(given: nn.Module | str | PathLike) -> nn.Module:
    """A network without wrappers, or the one that an .onnx file holds.

    Raises:
        TypeError: it is neither.
    """
    if is_onnx(given):
        return OnnxNetwork(given)
    if isinstance(given, nn.Module):
        return unwrap(given)
    raise TypeError(f"a network or the path of an .onnx file is needed, not {given!r}; load_network opens others")


_Batches = Iterator[tuple[Tensor, Tensor]]


def _answers(network: nn.Module | str | PathLike, dataset: Labelled, batch_size: int) -> _Batches:
    """Logits and labels, batch by batch."""
    network, dataset = as_network(network), as_dataset(dataset)
    if len(dataset) == 0:
        raise ValueError("the dataset is empty: nothing to evaluate on")
    with in_eval_mode(network), torch.inference_mode():
        for inputs, labels in progress(batches(dataset, _batch(network, dataset, batch_size)), "evaluate"):
            labels = whole(labels)
            yield _logits(network, inputs, labels), labels


def _batch(network: nn.Module, dataset: Dataset, batch_size: int) -> int:
    check_whole("batch_size", batch_size)
    if place_of(network).get("device", torch.device("cpu")).type != "cpu":
        return batch_size
    values = sum(tensor.numel() for tensor in first_of(dataset, 1).tensors)
    return max(1, min(batch_size, _VALUES_AT_ONCE // max(1, values)))


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
    """The layout in which convolutions of images are faster, on CPU too."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _is_right(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(1) == labels) & ~logits.isnan().any(1)
