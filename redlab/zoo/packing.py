"""A network's tensors as they are stored: tied ones once, weights of few values as codes and codebook.

Where rows were hashed up to a scale, the codebook is that of their codes, and each row is the multiple of its codes by
the scale that the network keeps in a buffer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor, nn

from redlab.network.layers import OUT_SCALE
from redlab.network.row_scales import factor_rows, multiply_rows, rows_first
from redlab.zoo.entropy import decode, encode, shannon

# No name in a state dict holds a colon.
_CODES, _CODEBOOK = ":codes", ":codebook"
# Codes that a folder may unpack to: so many for each of its bytes, as a bit a symbol allows no more. Weights that
# are nearly all zero take less: more are allowed while they fit into any memory.
_CODES_A_BYTE, _CODES_AT_LEAST = 64, 10**8
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Packed(NamedTuple):
    """What to store of a network.

    Attributes:
        tensors: by name, contiguous, on the CPU, sharing no memory.
        tied: the name of the stored tensor for each one tied to it.
        packed: the names of the weights that are codes and codebook.
        scales: of the packed weights whose rows are codes times the layer's scales, the rows that are not: they are
            stored as they are, among the codes.
    """

    tensors: dict[str, Tensor]
    tied: dict[str, str]
    packed: list[str]
    scales: dict[str, list[int]]


def pack(network: nn.Module, hashed: bool) -> Packed:
    """What to store of ``network``.

    Arguments:
        hashed: store weights of few distinct values (or codes) as codes and codebook if that is smaller.

    Raises:
        ValueError: an item of the state dict is no dense tensor with values.
    """
    found = Packed({}, {}, [], {})
    first: dict[int, str] = {}  # by the id of a tensor, its first name
    state = network.state_dict(keep_vars=True)
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise ValueError(f"{name} cannot be saved: it is no dense tensor with values")
        if (owner := first.setdefault(id(tensor), name)) != name:
            found.tied[name] = owner
            continue
        plain = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        may = hashed and plain.is_floating_point() and plain.ndim > 1
        if not may or not _pack_weight(found, name, plain, _without_scales(network, state, name, plain)):
            found.tensors[name] = plain
    for name in found.scales:
        key = _scales_of(name)
        key = found.tied.get(key, key)
        found.tensors[key] = _short(found.tensors[key])
    return found


def _pack_weight(found: Packed, name: str, weight: Tensor, scaled: tuple[Tensor, list[int]] | None) -> bool:
    """Add to what is ``found`` the codes of a weight, or of its rows without their ``scaled``, whichever is smaller."""
    ways: list[tuple[tuple[Tensor, Tensor] | None, list[int] | None]] = [(_as_codes(weight), None)]
    if scaled is not None:
        ways.append((_as_codes(scaled[0]), scaled[1]))
    codes, own = min(ways, key=lambda way: sum(part.nbytes for part in way[0]) if way[0] else weight.nbytes)
    if codes is None:
        return False
    found.tensors.update({name + _CODES: codes[0], name + _CODEBOOK: codes[1]})
    found.packed.append(name)
    if own is not None:
        found.scales[name] = own
    return True


def _without_scales(
    network: nn.Module, state: dict[str, Any], name: str, weight: Tensor
) -> tuple[Tensor, list[int]] | None:
    """A weight with its rows' scales taken off, and the rows that keep their own values; None if it has no scales."""
    scales = state.get(_scales_of(name))
    if scales is None or _why_no_scales(scales, weight.dtype):
        return None
    module = _owner(network, name)[0]
    rows = rows_first(weight, module)
    codes, used = factor_rows(rows, scales)
    if used is None or not torch.equal(_bits_of(multiply_rows(codes, used)), _bits_of(rows)):
        return None
    own = (used == 1) & (scales.cpu() != 1) & rows.flatten(1).any(1)
    return rows_first(codes, module).contiguous(), own.nonzero().flatten().tolist()


def _scales_of(name: str) -> str:
    """The name in the state dict of the scales of a weight's rows: "conv1.out_scale" for "conv1.weight"."""
    path, dot, leaf = name.rpartition(".")
    return path + dot + leaf.removesuffix("weight") + OUT_SCALE


def _why_no_scales(scales: Tensor, dtype: torch.dtype) -> str:
    """Why no weight of this dtype can be a multiple of such scales, or ""."""
    if scales.dtype != dtype or scales.ndim != 1:
        return f"they are {scales.dtype} of shape {tuple(scales.shape)}"
    return "" if bool((scales.isfinite() & (scales > 0)).all()) else "they must be finite and above 0"


def _short(scales: Tensor) -> Tensor:
    """Scales of eight significant bits in two bytes each."""
    short = scales.bfloat16()
    return short if scales.element_size() > 2 and torch.equal(short.to(scales.dtype), scales) else scales


def unpack(network: nn.Module, tensors: dict[str, Tensor], facts: Mapping[str, Any], source: Path) -> None:
    """Put stored tensors into ``network``, on any device. Names and shapes must agree; the stored dtypes are kept.

    Arguments:
        facts: ``tied``, ``packed`` and ``scales`` of what was ``Packed``; older folders have no scales.

    Raises:
        ValueError: they do not fit the network or each other; the message names ``source``.
    """
    # Clones are no longer the file's own pages.
    state: Any = OrderedDict((name, tensor.clone()) for name, tensor in tensors.items())
    packed, tied, scaled = facts["packed"], facts["tied"], facts.get("scales") or {}
    try:
        blank = network.state_dict()
        _check_expansion(tensors, sum(blank[name].numel() for name in packed))
        for name in packed:
            state[name] = _from_codes(name, state.pop(name + _CODES), state.pop(name + _CODEBOOK), blank[name].shape)
        if strangers := set(scaled) - set(packed):
            raise ValueError(f"there are scales for {min(strangers)}, which is not packed")
        for name, own in scaled.items():
            _scale(network, state, name, own, tied)
        state |= {alias: state[name] for alias, name in tied.items()}
        state._metadata = blank._metadata  # some architectures (MNASNet) refuse weights without it
        network.load_state_dict(state, strict=True, assign=True)
    except MemoryError as error:
        raise ValueError(f"the tensors in {source} do not fit into the memory: {error}") from error
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"the tensors in {source} do not fit {type(network).__name__}: {reason}") from error
    for alias, name in tied.items():
        module, leaf = _owner(network, alias)
        setattr(module, leaf, getattr(*_owner(network, name)))


def _scale(network: nn.Module, state: dict[str, Tensor], name: str, own: list[int], tied: Mapping[str, str]) -> None:
    """Multiply the codes of a weight by the scales of its rows, but the ``own`` ones; in place of both in ``state``."""
    module, key = _owner(network, name)[0], _scales_of(name)
    key = tied.get(key, key)
    codes, scales = rows_first(state[name], module), state[key]
    scales = scales.to(codes.dtype) if scales.is_floating_point() else scales
    if why := _why_no_scales(scales, codes.dtype) or ("" if len(scales) == len(codes) else f"they are {len(scales)}"):
        raise ValueError(f"the scales of {name} don't fit: {why}")
    used = scales.clone()
    used[own] = 1
    state[name], state[key] = rows_first(multiply_rows(codes, used), module).contiguous(), scales


def _check_expansion(tensors: dict[str, Tensor], codes: int) -> None:
    """Refuse codes that would fill the memory from a small file."""
    most = max(_CODES_AT_LEAST, _CODES_A_BYTE * sum(tensor.nbytes for tensor in tensors.values()))
    if codes > most:
        raise ValueError(
            f"they are packed, and would unpack to {codes:,} numbers; from a file of its size {most:,} may"
        )


def measure(network: nn.Module, tensors: dict[str, Tensor], facts: Mapping[str, Any]) -> list[dict]:
    """The bits of each packed tensor: one row a tensor, with the columns of ``saving.stored_bits``.

    Arguments:
        network: that ``tensors`` were unpacked into.
        tensors, facts: as ``unpack`` takes them.
    """
    state, rows, scaled = network.state_dict(), [], facts.get("scales") or {}
    for name in facts["packed"]:
        size, parts = state[name].numel(), [tensors[name + _CODES], tensors[name + _CODEBOOK]]
        codes, distinct = _codes(name, parts[0], parts[1], state[name].shape), len(parts[1])
        if name in scaled:
            key = _scales_of(name)
            parts.append(tensors[facts["tied"].get(key, key)])
        row = {"layer": name.removesuffix(".weight"), "weights": size, "distinct": distinct}
        stored = 8 * sum(part.nbytes for part in parts)
        rows.append(row | {"bits": stored / size, "entropy": shannon(codes)})
    return rows


def _owner(network: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return network.get_submodule(path), leaf


def _bits_of(tensor: Tensor) -> Tensor:
    """The bits of floating numbers as whole numbers of the same shape: -0.0 and every NaN stay distinct."""
    return tensor.detach().view(_BITS[tensor.element_size()])


def _as_codes(tensor: Tensor) -> tuple[Tensor, Tensor] | None:
    """(stream of codes, codebook) of a tensor, or None where they take more bytes than the tensor itself."""
    bits = _bits_of(tensor).numpy()
    values = np.unique(bits)
    if values.nbytes >= bits.nbytes:
        return None
    stream = encode(np.searchsorted(values, bits), len(values))
    if len(stream) + values.nbytes >= bits.nbytes:
        return None
    return torch.frombuffer(bytearray(stream), dtype=torch.uint8), torch.from_numpy(values).view(tensor.dtype)


def _from_codes(name: str, codes: Tensor, codebook: Tensor, shape: torch.Size) -> Tensor:
    found = torch.from_numpy(_codes(name, codes, codebook, shape))
    return codebook.index_select(0, found.flatten()).reshape(found.shape)


def _codes(name: str, codes: Tensor, codebook: Tensor, shape: torch.Size) -> ndarray:
    """The places in the codebook, of ``shape``."""
    if codebook.ndim != 1 or not codebook.is_floating_point():
        raise TypeError(f"the codebook of {name} is {codebook.dtype} of shape {tuple(codebook.shape)}")
    if codes.ndim > 1:  # format 1 stored the codes as they are
        return codes.long().numpy()
    if codes.dtype != torch.uint8 or codes.ndim != 1:
        raise TypeError(f"the stream of codes of {name} is {codes.dtype} of shape {tuple(codes.shape)}")
    try:
        found = decode(codes.numpy().tobytes(), shape.numel(), len(codebook))
    except ValueError as error:
        raise ValueError(f"the stream of codes of {name} cannot be read: {error}") from error
    return found.view(np.int32).reshape(shape)
