"""What a network weighs, form by form: as redlab stores it, as ONNX files, and packed."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from torch import nn

from redlab.export.onnx import export_onnx
from redlab.network.example import Example
from redlab.studies.splitting import folder_bytes
from redlab.zoo.saving import bytes_of


def compare_sizes(networks: Mapping[str, nn.Module], example: Example | None = None) -> pd.DataFrame:
    """The bytes of each network in each form, beside its parameters and buffers in memory.

    Arguments:
        networks: by name; the first is the one that all are compared with.
        example: as ``export_onnx`` takes it.

    Returns:
        A row for each ``network`` and ``form``, with ``bytes`` and their ``ratio`` to the first network's tensors. The
        forms: "tensors"; "redlab folder", whose hashed layers are codes near their entropy; "float32 ONNX" and
        "int8 ONNX", and both "deflated" (zlib, level 9).

    Example:
        >>> frame = compare_sizes({"as trained": load_network("digits/mlp")})
        >>> frame["form"].tolist()[:3], frame["ratio"][0].item()
        (['tensors', 'redlab folder', 'float32 ONNX'], 1.0)
    """
    rows = [
        {"network": title, "form": form, "bytes": count}
        for title, network in networks.items()
        for form, count in _forms(network, example).items()
    ]
    frame = pd.DataFrame(rows, columns=["network", "form", "bytes"])
    return frame.assign(ratio=frame["bytes"] / frame["bytes"].iloc[0])


def _forms(network: nn.Module, example: Example | None) -> dict[str, int]:
    sizes = {"tensors": bytes_of(network), "redlab folder": folder_bytes(network)}
    with TemporaryDirectory() as folder:
        for precision in ("float32", "int8"):
            path = export_onnx(network, Path(folder) / "net.onnx", precision, example=example).path
            sizes[f"{precision} ONNX"] = path.stat().st_size
            sizes[f"{precision} ONNX, deflated"] = len(zlib.compress(path.read_bytes(), 9))
    return sizes
