"""Core ML's packages: torch programs converted by coremltools, weights put in as look-up tables, and read back.

Coremltools takes a table also from buffers of the network (``_COREML_/weight/lut``). It then looks for the nearest
entry of each weight, in arrays of weights times entries: 2 GB for a layer of two million weights. So the table and the
indices are put into its program here, between torch's operations and its own simplifications.
"""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray
from torch import Tensor, nn

from redlab.export.mil_trace import trace_for_coreml
from redlab.export.palettes import Palette
from redlab.files.atomic import move_folder, open_to_others, part_of
from redlab.names import needs
from redlab.network.evaluating import refusal
from redlab.network.example import Inputs

# They multiply the weights of convolutions by what follows, and what is exported are the network's own weights.
_CHANGE_WEIGHTS = {"common::fuse_conv_batchnorm", "common::fuse_conv_scale"}
_READERS = {"conv", "conv_transpose", "linear", "matmul", "gather"}  # of weights, which may be look-up tables
_LUT, _SCALED = "_lut", "_scaled"  # behind the name of a weight
# The oldest system that runs a package. Before iOS 26 codes cannot be scaled behind their table: coremltools would give
# each row a table of its own.
TARGETS = ("iOS18", "iOS26")


class MlProgram:
    """A network as a program of coremltools, its weights under their names.

    Arguments:
        network: on the CPU, in float32, in eval mode.
        inputs: the program takes inputs of these shapes only.
        target: the oldest system that is to run it.

    Raises:
        ModuleNotFoundError: coremltools is not installed.
        ValueError: the network cannot be traced, or has an operation that coremltools doesn't convert.
    """

    def __init__(self, network: nn.Module, inputs: Inputs, target: str) -> None:
        needs("coreml", "coremltools")
        self.target = target
        with silent():
            self.tools = import_module("coremltools")
            traced = trace_for_coreml(network, inputs)
            try:
                self.program = self._convert(traced, "milinternal", self.tools.PassPipeline.EMPTY)
            except Exception as error:  # coremltools has no class of its own for what it cannot convert
                raise ValueError(refusal(network, inputs, "be converted to Core ML", error)) from error
        self.block = next(iter(self.program.functions.values()))
        self.palettes: dict[str, Palette] = {}  # by the names of the weights in the program
        self._constants = self._constants_of(network, traced.graph_signature)

    def _constants_of(self, network: nn.Module, signature: Any) -> dict[int, list[Any]]:
        """By the ``id`` of a parameter or buffer, the operations that hold it: a module of two names may have two."""
        constants = {op.name: op for op in self.block.operations if op.op_type == "const"}
        own = dict([*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)])
        found: dict[int, list[Any]] = {}
        for constant, name in {**signature.inputs_to_parameters, **signature.inputs_to_buffers}.items():
            if constant in constants and name in own:
                found.setdefault(id(own[name]), []).append(constants[constant])
        return found

    def _convert(self, program: Any, to: str, passes: Any, **options: Any) -> Any:
        """What coremltools makes of a program of torch's or of its own."""
        ct = self.tools
        options |= {"compute_precision": ct.precision.FLOAT32, "minimum_deployment_target": ct.target[self.target]}
        return ct.convert(program, convert_to=to, pass_pipeline=passes, **options)

    def calls(self, weight: Tensor) -> bool:
        """Whether anything reads this parameter of the network: what nothing reads is not in the file."""
        return bool(self._readers(weight))

    def why_not(self, weight: Tensor) -> str:
        """Why this parameter of the network cannot be a look-up table, or ""."""
        others = sorted(self._readers(weight) - _READERS)
        return f"its weight is read by {', '.join(others)}" if others else ""

    def _readers(self, weight: Tensor) -> set[str]:
        held = self._constants.get(id(weight), [])
        return {reader.op_type for constant in held for reader in constant.outputs[0].child_ops}

    def put(self, weight: Tensor, palette: Palette) -> None:
        """Store this parameter of the network as look-up tables."""
        from coremltools.converters.mil import Builder
        from coremltools.converters.mil.mil.scope import ScopeInfo

        held = self._constants[id(weight)]
        first, self.palettes[held[0].name] = held[0], palette
        scopes = [ScopeInfo(source=source, data=list(data)) for source, data in first.scopes.items()]
        with self.block, Builder.scope(*scopes):
            new = Builder.constexpr_lut_to_dense(
                indices=palette.indices.astype(_index_type(palette.bits)),
                lut=palette.table[..., None],
                before_op=first,
                name=first.name + _LUT,
            )
            if palette.scales is not None:
                new = Builder.constexpr_blockwise_shift_scale(
                    data=new, scale=palette.scales, before_op=first, name=first.name + _SCALED
                )
        for old in held:
            self.block.replace_uses_of_var_after_op(anchor_op=old, old_var=old.outputs[0], new_var=new)

    def save(self, path: Path) -> None:
        """Write the package, read it back, and move it to ``path`` if it holds the look-up tables put into it.

        Raises:
            RuntimeError: a look-up table in the file is not the one that was put into it; ``path`` is left as it was.
        """
        part = part_of(path).with_suffix(".mlpackage")
        passes = self.tools.PassPipeline()
        passes.remove_passes(_CHANGE_WEIGHTS)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with silent():
                model = self._convert(self.program, "mlprogram", passes, source="milinternal", skip_model_load=True)
                model.save(str(part))
            (part / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)  # for ExecuTorch only
            _open(part)
            _check(self.palettes, read_palettes(part))
            move_folder(part, path)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _index_type(bits: int) -> Any:
    """Coremltools' type of numpy for whole numbers of so many bits."""
    from coremltools.converters.mil.mil import types

    return types.nptype_from_builtin(types.string_to_builtin(f"uint{bits}"))


def _open(package: Path) -> None:
    """Give what coremltools wrote by temporary files and folders the permissions of new ones."""
    for path in package.rglob("*"):
        if path.is_dir():
            path.chmod(package.stat().st_mode & 0o777)
        else:
            open_to_others(path)


def _check(expected: Mapping[str, Palette], found: Mapping[str, Palette]) -> None:
    wrong = [name for name, palette in expected.items() if not _is_there(name, palette, found)]
    wrong += found.keys() - expected.keys()
    if wrong:
        raise RuntimeError(f"coremltools wrote other look-up tables than it was given: {', '.join(wrong)}")


def _is_there(name: str, palette: Palette, found: Mapping[str, Palette]) -> bool:
    if name in found:
        return found[name].same_as(palette)
    # Coremltools stores equal weights once, under the name of the first.
    return any(other.same_as(palette) for other in found.values())


def read_palettes(path: Path) -> dict[str, Palette]:
    """The look-up tables that a package holds, by the names of the weights in it.

    Raises:
        ModuleNotFoundError: coremltools is not installed.
    """
    found = {}
    for op in _operations(path):
        if op.op_type == "constexpr_lut_to_dense":
            scaled = [user for user in op.outputs[0].child_ops if user.op_type == "constexpr_blockwise_shift_scale"]
            indices = np.asarray(op.indices.val).astype(np.uint8)
            scales = scaled[0].scale.val if scaled else None
            found[op.name.removesuffix(_LUT)] = Palette(op.lut.val[..., 0], indices, scales)
    return found


def read_weights(path: Path) -> dict[str, ndarray]:
    """The other numbers that a package holds, by name.

    Raises:
        ModuleNotFoundError: coremltools is not installed.
    """
    constants = [op.outputs[0] for op in _operations(path) if op.op_type == "const"]
    return {constant.name: constant.val for constant in constants if isinstance(constant.val, ndarray)}


def _operations(path: Path) -> list[Any]:
    needs("coreml", "coremltools")
    with silent():
        import coremltools as ct
        from coremltools.converters.mil.frontend.milproto.load import load

        model = ct.models.MLModel(str(path), skip_model_load=True)
        spec = model.get_spec()
        program = load(spec, spec.specificationVersion, model.weights_dir)
    return [op for block in program.functions.values() for op in block.operations]


@contextmanager
def silent() -> Iterator[None]:
    """Inside, coremltools neither logs, warns nor draws its bars: our own errors and tables report."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    try:
        logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
