"""A network's tensors as they are stored: tied ones once, weights of few values as codes and codebook."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

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
    tensors, first, tied, packed = {}, {}, {}, []
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
    state = OrderedDict((name, tensor.clone()) for name, tensor in tensors.items())  # no longer the file's own pages
    try:
        for name in packed:
            state[name] = _decode(state.pop(name + _CODES), state.pop(name + _CODEBOOK))
        state |= {alias: state[name] for alias, name in tied.items()}
        state._metadata = network.state_dict()._metadata  # some architectures (MNASNet) refuse weights without it
        network.load_state_dict(state, strict=True, assign=True)
    except (KeyError, TypeError, IndexError, RuntimeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"the tensors in {source} do not fit {type(network).__name__}: {reason}") from error
    for alias, name in tied.items():
        module, leaf = _owner(network, alias)
        setattr(module, leaf, getattr(*_owner(network, name)))


def _owner(network: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return network.get_submodule(path), leaf


def _encode(tensor: Tensor) -> tuple[Tensor, Tensor] | None:
    """(codes, codebook) of a tensor, or None where they take more bytes than the tensor itself.

    Values are told apart by their bits, so that -0.0 and every NaN come back as they were.
    """
    bits = tensor.view(_BITS[tensor.element_size()]).numpy()
    values = np.unique(bits)
    dtype = np.min_scalar_type(max(len(values) - 1, 0))
    if dtype.itemsize * bits.size + values.nbytes >= bits.nbytes:
        return None
    codes = np.searchsorted(values, bits).astype(dtype)
    return torch.from_numpy(codes), torch.from_numpy(values).view(tensor.dtype)


def _decode(codes: Tensor, codebook: Tensor) -> Tensor:
    if codes.dtype not in (torch.uint8, torch.uint16, torch.uint32) or codebook.ndim != 1:
        raise TypeError(f"codes of {codes.dtype} for a codebook of shape {tuple(codebook.shape)}")
    return codebook[codes.long()]
