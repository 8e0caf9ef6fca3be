"""A network's tensors as they are stored: tied ones once, weights of few values as codes and codebook.

The codes of a tensor, in its own (C) order, are one stream of bytes that ``entropy.encode`` wrote.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from redlab.zoo.entropy import decode, encode, shannon

# No name in a state dict holds a colon.
_CODES, _CODEBOOK = ":codes", ":codebook"
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def pack(network: nn.Module, hashed: bool) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """What to store of ``network``: contiguous tensors on the CPU that share no memory.

    Arguments:
        hashed: store weights of few distinct values as codes and codebook, where that is smaller.

    Returns:
        The tensors by name; the name of the stored tensor for each one tied to it; the names that are packed.

    Raises:
        ValueError: the state dict holds something else than dense tensors with values.
    """
    tensors: dict[str, Tensor] = {}
    first: dict[int, str] = {}  # by the id of a tensor, its first name
    tied, packed = {}, []
    for name, tensor in network.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise ValueError(f"{name} cannot be saved: it is no dense tensor with values")
        if (owner := first.setdefault(id(tensor), name)) != name:
            tied[name] = owner
            continue
        plain = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        codes = _encode(plain) if hashed and plain.is_floating_point() and plain.ndim > 1 else None
        packed += [name] if codes else []
        tensors |= {name: plain} if codes is None else {name + _CODES: codes[0], name + _CODEBOOK: codes[1]}
    return tensors, tied, packed


def unpack(network: nn.Module, tensors: dict[str, Tensor], tied: dict, packed: list, source: Path) -> None:
    """Put stored tensors into ``network``, whatever its device: every name and shape must agree, dtypes are theirs.

    Raises:
        ValueError: they don't fit the network or each other; the message names ``source``.
    """
    # Clones are no longer the file's own pages.
    state: Any = OrderedDict((name, tensor.clone()) for name, tensor in tensors.items())
    try:
        blank = network.state_dict()
        for name in packed:
            state[name] = _decode(name, state.pop(name + _CODES), state.pop(name + _CODEBOOK), blank[name].shape)
        state |= {alias: state[name] for alias, name in tied.items()}
        state._metadata = blank._metadata  # some architectures (MNASNet) refuse weights without it
        network.load_state_dict(state, strict=True, assign=True)
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"the tensors in {source} do not fit {type(network).__name__}: {reason}") from error
    for alias, name in tied.items():
        module, leaf = _owner(network, alias)
        setattr(module, leaf, getattr(*_owner(network, name)))


def measure(network: nn.Module, tensors: dict[str, Tensor], packed: list[str]) -> list[dict]:
    """What each packed tensor takes: one row a tensor, its columns those of ``storage.stored_bits``.

    Arguments:
        network: that ``tensors`` were unpacked into.
        tensors, packed: as ``pack`` returns them.
    """
    state, rows = network.state_dict(), []
    for name in packed:
        values, parts = _bits(state[name]), (tensors[name + _CODES], tensors[name + _CODEBOOK])
        row = {"layer": name.removesuffix(".weight"), "weights": values.size, "distinct": len(parts[1])}
        stored = 8 * sum(part.nbytes for part in parts)
        rows.append(row | {"bits": stored / values.size, "entropy": shannon(values)})
    return rows


def _owner(network: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return network.get_submodule(path), leaf


def _bits(tensor: Tensor) -> np.ndarray:
    """The bits of floating numbers, as whole numbers of the same shape: they tell -0.0 and every NaN apart."""
    return tensor.detach().view(_BITS[tensor.element_size()]).numpy()


def _encode(tensor: Tensor) -> tuple[Tensor, Tensor] | None:
    """(stream of codes, codebook) of a tensor, or None where they take more bytes than the tensor itself."""
    bits = _bits(tensor)
    values = np.unique(bits)
    if values.nbytes >= bits.nbytes:
        return None
    stream = encode(np.searchsorted(values, bits), len(values))
    if len(stream) + values.nbytes >= bits.nbytes:
        return None
    return torch.frombuffer(bytearray(stream), dtype=torch.uint8), torch.from_numpy(values).view(tensor.dtype)


def _decode(name: str, codes: Tensor, codebook: Tensor, shape: torch.Size) -> Tensor:
    if codebook.ndim != 1 or not codebook.is_floating_point():
        raise TypeError(f"the codebook of {name} is {codebook.dtype} of shape {tuple(codebook.shape)}")
    if codes.ndim > 1:  # format 1 stored the codes as they are
        return codebook[codes.long()]
    if codes.dtype != torch.uint8 or codes.ndim != 1:
        raise TypeError(f"the stream of codes of {name} is {codes.dtype} of shape {tuple(codes.shape)}")
    try:
        found = decode(codes.numpy().tobytes(), shape.numel(), len(codebook))
    except ValueError as error:
        raise ValueError(f"the stream of codes of {name} cannot be read: {error}") from error
    return codebook.index_select(0, torch.from_numpy(found.view(np.int32))).reshape(shape)
