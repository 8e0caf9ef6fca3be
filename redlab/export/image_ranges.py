"""How far activations go on images: the smallest and largest value of each, by ONNX Runtime's calibration."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from redlab.export.ranges import Ranges
from redlab.export.static import quiet_logs
from redlab.network.onnx_network import OnnxNetwork
from redlab.network.samples import Labelled, as_dataset, batches
from redlab.progress import progress

IMAGES = 500
_AT_ONCE = 10  # images


def measured_ranges(model: Any, dataset: Labelled, images: int = IMAGES) -> Ranges:
    """The ranges of all floating values of a float32 model over the first images of a dataset; 0 lies inside."""
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    with tempfile.TemporaryDirectory() as folder, quiet_logs():
        path = Path(folder) / "float32.onnx"
        path.write_bytes(model.SerializeToString())
        network = OnnxNetwork(path)
        calibrator = create_calibrator(
            str(path), None, str(Path(folder) / "ranges.onnx"), CalibrationMethod.MinMax, use_external_data_format=False
        )
        calibrator.collect_data(_Reader(network, dataset, images))
        found = calibrator.compute_data()
    # A number, or several of batches that were not reduced together.
    ends = {name: data.range_value for name, data in found.items()}
    return {name: (min(0.0, float(low.min())), max(0.0, float(high.max()))) for name, (low, high) in ends.items()}


class _Reader:
    """Hands batches to ONNX Runtime's calibrator, whose class for it needs the package to be there."""

    def __init__(self, network: OnnxNetwork, dataset: Labelled, images: int) -> None:
        self._feeds = self._batches(network, dataset, images)

    def get_next(self) -> dict[str, Any] | None:
        """The inputs of one batch by name; None at the end."""
        return next(self._feeds, None)

    def _batches(self, network: OnnxNetwork, dataset: Labelled, images: int) -> Iterator[dict[str, Any]]:
        samples = as_dataset(dataset)
        size = _AT_ONCE if all(shape[:1] == (None,) for _, _, shape in network.inputs) else 1
        count = -(-min(images, len(samples)) // size)
        for _, (inputs, _) in zip(progress(range(count), "ranges"), batches(samples, size), strict=False):
            yield network.feed(*inputs.args, **inputs.kwargs)
