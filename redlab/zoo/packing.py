"""A network's tensors as they are stored: tied ones once, weights of few values as codes and codebook.

The codes of a tensor, in its own (C) order, are one stream of bytes by zlib's Huffman coder. It takes about 1 % more
than the Shannon entropy if there are many values, and never less than a bit a symbol. So codes of few values share a
byte; codes of more than a byte are written in digits, and each digit is coded apart.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor, nn

# No name in a state dict holds a colon.
_CODES, _CODEBOOK = ":codes", ":codebook"
# Matches (Z_FILTERED) win if most codes are equal or filters repeat. Both are read alike.
_STRATEGIES = (zlib.Z_HUFFMAN_ONLY, zlib.Z_FILTERED)
# The most bytes that a byte of deflate can stand for, and the most codes that share a byte.
_EXPANSION, _MOST_SHARED = 1032, 8
# Codes that a folder may unpack to: so many for each of its bytes, as a bit a symbol allows no more. Weights that
# are nearly all zero take less: more are allowed while they fit into any memory.
_CODES_A_BYTE, _CODES_AT_LEAST = 64, 10**8
_FOREIGN = "it holds a code beyond its codebook"
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def pack(network: nn.Module, hashed: bool) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """What to store of ``network``: contiguous tensors on the CPU that share no memory.

    Arguments:
        hashed: store weights of few distinct values as codes and codebook if that is smaller.

    Returns:
        The tensors by name; the name of the stored tensor for each one tied to it; the names that are packed.

    Raises:
        ValueError: an item of the state dict is no dense tensor with values.
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
        codes = _as_codes(plain) if hashed and plain.is_floating_point() and plain.ndim > 1 else None
        packed += [name] if codes else []
        tensors |= {name: plain} if codes is None else {name + _CODES: codes[0], name + _CODEBOOK: codes[1]}
    return tensors, tied, packed


def unpack(network: nn.Module, tensors: dict[str, Tensor], tied: dict, packed: list, source: Path) -> None:
    """Put stored tensors into ``network``, on any device. Names and shapes must agree; the stored dtypes are kept.

    Raises:
        ValueError: they do not fit the network or each other; the message names ``source``.
    """
    # Clones are no longer the file's own pages.
    state: Any = OrderedDict((name, tensor.clone()) for name, tensor in tensors.items())
    try:
        blank = network.state_dict()
        _check_expansion(tensors, sum(blank[name].numel() for name in packed))
        for name in packed:
            state[name] = _from_codes(name, state.pop(name + _CODES), state.pop(name + _CODEBOOK), blank[name].shape)
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


def _check_expansion(tensors: dict[str, Tensor], codes: int) -> None:
    """Refuse codes that would fill the memory from a small file."""
    most = max(_CODES_AT_LEAST, _CODES_A_BYTE * sum(tensor.nbytes for tensor in tensors.values()))
    if codes > most:
        raise ValueError(
            f"they are packed, and would unpack to {codes:,} numbers; from a file of its size {most:,} may"
        )


def measure(network: nn.Module, tensors: dict[str, Tensor], packed: list[str]) -> list[dict]:
    """The bits of each packed tensor: one row a tensor, with the columns of ``saving.stored_bits``.

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


def _bits(tensor: Tensor) -> ndarray:
    """The bits of floating numbers as whole numbers of the same shape: -0.0 and every NaN stay distinct."""
    return tensor.detach().view(_BITS[tensor.element_size()]).numpy()


def _as_codes(tensor: Tensor) -> tuple[Tensor, Tensor] | None:
    """(stream of codes, codebook) of a tensor, or None where they take more bytes than the tensor itself."""
    bits = _bits(tensor)
    values = np.unique(bits)
    if values.nbytes >= bits.nbytes:
        return None
    stream = encode(np.searchsorted(values, bits), len(values))
    if len(stream) + values.nbytes >= bits.nbytes:
        return None
    return torch.frombuffer(bytearray(stream), dtype=torch.uint8), torch.from_numpy(values).view(tensor.dtype)


def _from_codes(name: str, codes: Tensor, codebook: Tensor, shape: torch.Size) -> Tensor:
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


def shannon(values: ndarray) -> float:
    """The Shannon entropy of ``values``, any shape but empty, in bits a value."""
    counts = np.unique(values, return_counts=True)[1]
    return float(counts @ np.log2(values.size / counts)) / values.size


def encode(codes: ndarray, distinct: int) -> bytes:
    """Whole numbers from 0 to ``distinct - 1``, any shape, as bytes: what ``decode`` reads.

    For each digit of the codes, the lowest first: a byte that says how many of them share a byte, then a raw deflate
    stream. All ways of sharing are tried, the shortest is kept.
    """
    stream, rest = b"", codes.ravel().astype(np.uint32)
    for base in _bases(distinct):
        rest, digits = np.divmod(rest, np.uint32(base))
        stream += min((_squeeze(digits, base, per_byte) for per_byte in _shares(base)), key=len)
    return stream


def decode(stream: bytes, count: int, distinct: int) -> ndarray:
    """The (count,) uint32 codes of a ``stream`` that ``encode`` wrote, in memory of about a dozen bytes a code.

    Raises:
        ValueError: it is damaged, holds another number of codes, or one that is not below ``distinct``.
    """
    if distinct < 1:
        raise ValueError("its codebook is empty")
    if not stream:
        raise ValueError("it is truncated or damaged (it is empty)")
    if count > (most := len(stream) * _EXPANSION * _MOST_SHARED):  # before memory is taken for them
        raise ValueError(f"it ends before the {count:,} codes expected: its {len(stream)} bytes hold {most:,} at most")
    codes, place = np.zeros(count, np.uint32), 1
    for base in _bases(distinct):
        digits, stream = _expand(stream, count, base)
        codes += digits * np.uint32(place)
        place *= base
    if stream:
        raise ValueError(f"{len(stream)} bytes follow its last code")
    if codes.max(initial=0) >= distinct:
        raise ValueError(_FOREIGN)
    return codes


def _bases(distinct: int) -> list[int]:
    """The bases of the digits, the lowest first, none above 256.

    The lowest digit takes as few values as possible (2 for 300 values). Neighbours then share the high digit, which
    says nearly nothing about the low one, so that coding them apart loses nothing.
    """
    bases = []
    while distinct > 256:
        bases.append(min(-(-distinct // 256), 256))
        distinct = -(-distinct // bases[-1])
    return [*bases, distinct]


def _shares(base: int) -> list[int]:
    """How many digits can share a byte."""
    return [per_byte for per_byte in range(1, 9) if base**per_byte <= 256]


def _squeeze(digits: ndarray, base: int, per_byte: int) -> bytes:
    """One digit of every code, ``per_byte`` in a byte, the last one filled up with zeros."""
    padded = np.pad(digits.astype(np.uint16), (0, -len(digits) % per_byte)).reshape(-1, per_byte)
    content = (padded @ _powers(base, per_byte)).astype(np.uint8).tobytes()
    return bytes([per_byte]) + min((_deflate(content, strategy) for strategy in _STRATEGIES), key=len)


def _powers(base: int, per_byte: int) -> ndarray:
    return (base ** np.arange(per_byte)).astype(np.uint16)


def _deflate(content: bytes, strategy: int) -> bytes:
    # Raw: the checksum is elsewhere. 9 is the longest block, which writes the fewest tables.
    packer = zlib.compressobj(6, zlib.DEFLATED, -15, 9, strategy)
    return packer.compress(content) + packer.flush()


def _expand(stream: bytes, count: int, base: int) -> tuple[ndarray, bytes]:
    """One digit of every code, (count,), and what follows in the stream."""
    per_byte = stream[0] if stream else 0
    if per_byte not in _shares(base):
        raise ValueError(f"it is truncated or damaged ({per_byte} codes in a byte)")
    size, unpacker = -(-count // per_byte), zlib.decompressobj(-15)
    try:  # a few bytes can expand to gigabytes: read one byte more than expected at most
        content = unpacker.decompress(stream[1:], size + 1)
    except zlib.error as error:
        raise ValueError(f"it is damaged ({error})") from error
    if len(content) > size:
        raise ValueError(f"it expands beyond the {count:,} codes expected")
    if len(content) < size or not unpacker.eof:
        raise ValueError(f"it ends before the {count:,} codes expected")
    together = np.frombuffer(content, np.uint8)
    if together.max(initial=0) >= base**per_byte:
        raise ValueError(_FOREIGN)
    digits = together[:, None] // _powers(base, per_byte) % np.uint16(base)
    return digits.ravel()[:count], unpacker.unused_data
