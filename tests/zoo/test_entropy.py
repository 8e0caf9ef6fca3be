"""Codes as bytes: the same codes again, in about their entropy, and no stream that lies is believed."""

from __future__ import annotations

import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from redlab.zoo.entropy import decode, encode, shannon


def gaussian(count: int, distinct: int) -> np.ndarray:
    """Codes as a hashed layer has them: cells of one width over normal weights."""
    weights = np.random.default_rng(0).standard_normal(count)
    cells = np.clip((weights + 3.5) / 7 * distinct, 0, distinct - 1).astype(int)
    return np.unique(cells, return_inverse=True)[1]


def deflate(content: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(content) + packer.flush()


@settings(deadline=None)
@given(distinct=st.integers(1, 70_000), count=st.integers(0, 3000), seed=st.integers(0, 99), spread=st.floats(1, 50))
def test_decoded_codes_are_those_that_were_encoded(distinct, count, seed, spread):
    codes = (distinct * np.random.default_rng(seed).random(count) ** spread).astype(np.int64)
    codes[:1] = distinct - 1
    np.testing.assert_array_equal(decode(encode(codes, distinct), count, distinct), codes)


@pytest.mark.parametrize("distinct", [1, 2, 3, 4, 6, 7, 15, 16, 17, 255, 256, 257, 512, 513, 65_536, 65_537, 70_000])
def test_every_code_comes_back_whatever_the_number_of_values(distinct):
    codes = np.random.default_rng(0).permutation(distinct)
    for some in (codes, codes[::-1], codes[:1]):
        np.testing.assert_array_equal(decode(encode(some, distinct), some.size, distinct), some)


def test_codes_are_written_in_c_order():
    codes = np.arange(24).reshape(2, 3, 4)
    assert encode(codes.transpose(2, 0, 1), 24) == encode(codes.transpose(2, 0, 1).ravel(), 24)


@pytest.mark.parametrize("count", [500, 5000, 200_000])
@pytest.mark.parametrize("values", [2, 3, 4, 5, 7, 10, 13, 16, 17, 25, 40, 100, 256, 300])
def test_a_stream_takes_3_percent_more_than_the_entropy_at_most(values, count):
    codes = gaussian(count, values)
    assert len(encode(codes, codes.max() + 1)) < 1.03 * shannon(codes) * count / 8 + 64


def test_a_layer_that_is_mostly_one_value_takes_less_than_a_bit_a_code():
    codes = gaussian(40_000, 40) + 1
    codes[np.random.default_rng(1).random(codes.size) < 0.97] = 0
    assert len(encode(codes, codes.max() + 1)) < 0.7 * codes.size / 8


@pytest.mark.parametrize("values", [1, 2, 30])
def test_the_entropy_is_that_of_scipy(values):
    codes = gaussian(1000, values)
    assert shannon(codes.reshape(10, 100)) == pytest.approx(stats.entropy(np.bincount(codes), base=2), abs=1e-12)


CODES = gaussian(1000, 30)
STREAM = encode(CODES, 30)


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (b"", "truncated or damaged"),
        (STREAM[1:], "truncated or damaged"),
        (b"\2" + STREAM[1:], "truncated or damaged"),  # 30 * 30 values are more than a byte holds
        (STREAM[:1], "ends before the 1,000 codes"),
        (STREAM[:-1], "ends before the 1,000 codes"),
        (b"\1" + deflate(bytes(999)), "ends before the 1,000 codes"),
        (b"\1" + deflate(bytes(1001)), "expands beyond the 1,000 codes"),
        (STREAM + b"\0", "1 bytes follow"),
        (STREAM + STREAM, "bytes follow"),
        (b"\1" + b"\xff" * 99, "is damaged"),
        (b"\1" + deflate(bytes([30] + [0] * 999)), "beyond its codebook"),
    ],
)
def test_streams_that_lie_are_refused(stream, message):
    with pytest.raises(ValueError, match=message):
        decode(stream, CODES.size, 30)


@pytest.mark.parametrize(
    ("stream", "distinct"),
    [
        (b"\5" + deflate(bytes([3**5])), 3),  # five codes in a byte
        (encode(np.array([301]), 302), 301),  # both take two digits, one of 2 and one of 151 values
    ],
)
def test_codes_beyond_the_codebook_are_refused_where_bytes_are_shared_or_split(stream, distinct):
    with pytest.raises(ValueError, match="beyond its codebook"):
        decode(stream, 1, distinct)


def test_an_empty_codebook_is_refused():
    with pytest.raises(ValueError, match="codebook is empty"):
        decode(STREAM, CODES.size, 0)


def test_a_bomb_is_refused_before_it_takes_memory():
    bomb = b"\1" + deflate(bytes(2**26))
    tracemalloc.start()
    with pytest.raises(ValueError, match="expands beyond the 1,000 codes"):
        decode(bomb, 1000, 30)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * len(bomb)


def test_a_number_of_codes_that_the_stream_cannot_hold_takes_no_memory():
    with pytest.raises(ValueError, match=r"bytes hold .* at most"):
        decode(STREAM, 10**15, 30)


@settings(deadline=None)
@given(place=st.integers(0, len(STREAM) - 1), noise=st.binary(min_size=1, max_size=9))
def test_overwritten_streams_give_codes_of_the_codebook_or_are_refused(place, noise):
    try:
        codes = decode(STREAM[:place] + noise + STREAM[place + len(noise) :], CODES.size, 30)
    except ValueError:
        return
    assert codes.shape == CODES.shape
    assert codes.max() < 30
