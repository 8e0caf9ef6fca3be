"""Codes as bytes, near their entropy.

The codes of a tensor, in its own (C) order, are one stream of bytes by zlib's Huffman coder. It takes about 1 % more
than the Shannon entropy if there are many values, and never less than a bit a symbol. So codes of few values share a
byte; codes of more than a byte are written in digits, and each digit is coded apart.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy import ndarray

# Matches (Z_FILTERED) win if most codes are equal or filters repeat. Both are read alike.
_STRATEGIES = (zlib.Z_HUFFMAN_ONLY, zlib.Z_FILTERED)
# The most bytes that a byte of deflate can stand for, and the most codes that share a byte.
_EXPANSION, _MOST_SHARED = 1032, 8
_FOREIGN = "it holds a code beyond its codebook"


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
