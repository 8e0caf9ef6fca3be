"""Codes written in about their Shannon entropy, by the Huffman coder of zlib.

Huffman coding spends about 1 % more than the entropy where there are many values, and never less than a bit a symbol.
So codes of few values share a byte; those of more than a byte are written in digits, each coded apart.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy import ndarray

# Matches (Z_FILTERED) win where most codes are equal or filters repeat; a reader need not know which it was.
_STRATEGIES = (zlib.Z_HUFFMAN_ONLY, zlib.Z_FILTERED)
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

    The low digits are as few as can be (even or odd, for 300 values): neighbours share the high one, which then tells
    nearly nothing about the low one, so that nothing is lost by coding them apart.
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
    # Raw, for the checksum stands elsewhere; 9 is the longest block, so that the fewest tables are written.
    packer = zlib.compressobj(6, zlib.DEFLATED, -15, 9, strategy)
    return packer.compress(content) + packer.flush()


def _expand(stream: bytes, count: int, base: int) -> tuple[ndarray, bytes]:
    """One digit of every code, (count,), and what follows in the stream."""
    per_byte = stream[0] if stream else 0
    if per_byte not in _shares(base):
        raise ValueError(f"it is truncated or damaged ({per_byte} codes in a byte)")
    size, unpacker = -(-count // per_byte), zlib.decompressobj(-15)
    try:  # a few bytes can expand to gigabytes: never more than one beyond what is due
        content = unpacker.decompress(stream[1:], size + 1)
    except zlib.error as error:
        raise ValueError(f"it is damaged ({error})") from error
    if len(content) > size:
        raise ValueError(f"it expands beyond the {count:,} codes that are due")
    if len(content) < size or not unpacker.eof:
        raise ValueError(f"it ends before the {count:,} codes that are due")
    together = np.frombuffer(content, np.uint8)
    if together.max(initial=0) >= base**per_byte:
        raise ValueError(_FOREIGN)
    digits = together[:, None] // _powers(base, per_byte) % np.uint16(base)
    return digits.ravel()[:count], unpacker.unused_data
