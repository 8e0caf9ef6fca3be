"""An ONNX file as a network that can be called, by ONNX Runtime on the CPU."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from redlab.names import needs
from redlab.network.evaluating import first_line
from redlab.options import check_whole

_TYPES = {
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(float16)": torch.float16,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(bool)": torch.bool,
}


def is_onnx(given: Any) -> TypeGuard[str | PathLike]:
    """Whether it is the path of an ONNX file, by its name."""
    return isinstance(given, str | PathLike) and Path(given).suffix == ".onnx"


class OnnxNetwork(nn.Module):
    """Runs an ONNX file; it is called as the network that the file was made of.

    Attributes:
        inputs: name, dtype and shape of each; a length that may vary is None.
        batch: inputs at once, where the file takes no other number; else None.

    Arguments:
        path: of the file. It holds no code: ONNX Runtime reads operations that it knows, and tensors.
        threads: of ONNX Runtime; by default as many as PyTorch has.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no ONNX file that this version of ONNX Runtime can run.
        ModuleNotFoundError: onnxruntime is missing.
    """

    def __init__(self, path: str | PathLike, threads: int | None = None) -> None:
        super().__init__()
        needs("export", "onnxruntime")
        import onnxruntime

        if not Path(path).is_file():
            raise FileNotFoundError(f"no file {path}")
        if threads is not None:
            check_whole("threads", threads)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common class
            raise ValueError(f"{path} is no ONNX file that onnxruntime can run: {first_line(error)}") from error
        self.inputs = [(own.name, _TYPES.get(own.type), _lengths(own.shape)) for own in self._session.get_inputs()]
        self.batch = next((shape[0] for _, _, shape in self.inputs if shape and shape[0] is not None), None)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, ...]:
        """The answers as tensors in the CPU's memory: one, or a tuple."""
        feed = self.feed(*args, **kwargs)
        try:
            answers = self._session.run(None, feed)
        except Exception as error:
            raise RuntimeError(first_line(error)) from error
        tensors = tuple(torch.from_numpy(answer) for answer in answers)
        return tensors[0] if len(tensors) == 1 else tensors

    def feed(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What the session takes, numpy arrays by name, of inputs by position or name."""
        names = [name for name, _, _ in self.inputs]
        placed = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        if len(placed) > len(names):
            raise ValueError(f"the file takes {', '.join(names)}; {len(placed)} tensors were given")
        given = dict(zip(names, placed, strict=False))
        given |= {name: leaf for name, leaf in kwargs.items() if isinstance(leaf, Tensor)}
        if missing := [name for name in names if name not in given]:
            raise ValueError(f"the file takes {', '.join(names)}; {', '.join(missing)} is missing")
        return {name: _fit(given[name], dtype) for name, dtype, _ in self.inputs}


def _lengths(shape: list) -> tuple[int | None, ...]:
    return tuple(length if isinstance(length, int) else None for length in shape)


def _fit(tensor: Tensor, dtype: torch.dtype | None) -> Any:
    """A numpy array as the file takes it: floating numbers in its floating type, whole ones in its whole type."""
    tensor = tensor.detach().cpu()
    return (tensor.to(dtype) if dtype is not None and _alike(tensor.dtype, dtype) else tensor).contiguous().numpy()


def _alike(one: torch.dtype, other: torch.dtype) -> bool:
    """Whether both hold floating, or both whole numbers."""
    return one.is_floating_point == other.is_floating_point and torch.bool not in (one, other)
