"""Keyed draws: the same event, value and rule under the same key give the same noise, wherever and whenever they meet.

A draw is a fixed-length CBC-MAC with AES-256, two blocks, under the rule's sub-key:

| bytes | |
|---|---|
| 16 | release id of the event; subject digest where a rule draws per subject |
| 8 | value word (see `value_words`); 0 where the value is left out |
| 4 | number of the element within its event, big-endian; 0 for the event itself |
| 4 | number of the draw, big-endian |

Every message has 32 bytes, which is what makes a plain CBC-MAC a pseudorandom function (Bellare, Kilian, Rogaway 2000).
The MAC's two halves are read little-endian and lose their lowest bit: two independent words of 63 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from eventveil.transforms.keys.canonical import canonical, canonical_tag
from eventveil.transforms.keys.cmac import Cmac, words_each
from eventveil.transforms.keys.derive import context, expand
from eventveil.transforms.noise.table import BITS, rounded_up

__all__ = ["draws", "scaled", "uniform", "uniform_distance", "value_words"]

Int64s = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

_WORD = np.dtype("<u8")
_EIGHT_BYTES = frozenset({"i", "u", "f", "t", "tn", "l", "ln", "c", "cn", "D"})
_VALUE_KEY = context("noise-value")
_LOW = np.uint64(0xFFFFFFFF)


def draws(keys: Sequence[bytes], codes: Int64s | None, ids: Words, values: Words | None, elements: Int64s | None, number: int = 0) -> Words:
    """Random words of 63 bits, two per row: (n, 2).

    Args:
        keys: finished sub-keys of the rule, 32 bytes each.
        codes: for each row the index into `keys`; None where there is just one.
        ids: (n, 2) release ids or subject digests.
        values: value words; None where the value is left out.
        elements: numbers of the elements within their events; None for 0.
        number: of the draw, where one value needs several.
    """
    rows = len(ids)
    if not rows:
        return np.zeros((0, 2), np.uint64)
    second = np.zeros((rows, 2), _WORD)
    if values is not None:
        second[:, 0] = values
    counters = second.view(">u4")
    if elements is not None:
        counters[:, 2] = elements
    counters[:, 3] = number
    used, places = _used(keys, codes)
    order = None if places is None else _order(places, len(used))
    ends = [0, rows] if places is None else [0, *np.cumsum(np.bincount(places)).tolist()]
    # A cipher costs three microseconds, what it encrypts here next to nothing: made once, used for both blocks.
    mode = modes.ECB()  # noqa: S305 - the chaining of CBC-MAC is ours, in bulk
    ciphers = [Cipher(algorithms.AES256(key), mode).encryptor() for key in used]
    mac = _encrypted(ciphers, ends, ids if order is None else ids[order])
    mac ^= second if order is None else second[order]
    mac = _encrypted(ciphers, ends, mac)
    if order is not None:
        sorted_mac, mac = mac, np.empty_like(mac)
        mac[order] = sorted_mac
    return mac.astype(np.uint64, copy=False) >> np.uint64(64 - BITS)


def value_words(values: pa.Array[Any], keys: Sequence[bytes], codes: Int64s | None) -> Words:
    """The word by which a value enters its draw.

    Numbers, dates and times enter as the 8 bytes of their canonical form. Text, bytes, decimals and booleans enter as
    the first 8 bytes of the AES-CMAC of theirs, under a key expanded from the rule's sub-key (HKDF-Expand, context
    `noise-value`).

    Args:
        values: without nulls.
        keys, codes: as in `draws`.
    """
    if not len(values):
        return np.zeros(0, np.uint64)
    form = canonical(values)
    if canonical_tag(values.type) in _EIGHT_BYTES:
        data: Any = form.buffers()[2]
        words: Words = np.frombuffer(data, _WORD, len(form), form.offset * 8)
        return words
    used, places = _used(keys, codes)
    return words_each([Cmac(expand(key, _VALUE_KEY)) for key in used], places, form)[:, 0]


def scaled(words: Words, bound: int) -> Words:
    """floor(word / 2^63 * bound): a whole number below `bound`, for words and a bound below 2^63."""
    high, low = _product(words, bound)
    return (high << np.uint64(1)) | (low >> np.uint64(63))


def uniform(words: Words, bound: int) -> Int64s:
    """A whole number from 0 to bound - 1 per row of (n, 2) words, by multiplying 126 random bits."""
    high, low = _product(words[:, 0], bound)
    total = low + scaled(words[:, 1], bound)
    high = high + (total < low)  # the carry
    return ((high << np.uint64(1)) | (total >> np.uint64(63))).astype(np.int64)


def uniform_distance(bound: int) -> float:
    """Total variation between `uniform` and the exact uniform distribution: below bound * 2^-127."""
    # 2^126 words over `bound` numbers: `more` of them get one word more than the others.
    more = (1 << (2 * BITS)) % bound
    return rounded_up(Fraction(more * (bound - more), bound << (2 * BITS)))


def _product(words: Words, bound: int) -> tuple[Words, Words]:
    """The 128-bit product as (high, low) words: numpy has none wider than 64 bits."""
    shift = np.uint64(32)
    a1, a0 = words >> shift, words & _LOW
    b1, b0 = np.uint64(bound >> 32), np.uint64(bound & 0xFFFFFFFF)
    middle = a1 * b0 + ((a0 * b0) >> shift)
    other = (middle & _LOW) + a0 * b1
    return a1 * b1 + (middle >> shift) + (other >> shift), words * np.uint64(bound)


def _used(keys: Sequence[bytes], codes: Int64s | None) -> tuple[Sequence[bytes], Int64s | None]:
    """Only the keys that occur, and the codes that go with them: a batch of few rows may come with many keys."""
    if codes is None or len(keys) == 1:
        return keys[:1], None
    occurs = np.bincount(codes, minlength=len(keys)) > 0
    if occurs.all():
        return keys, codes
    renumbered = np.cumsum(occurs) - 1
    used = [keys[i] for i in np.flatnonzero(occurs).tolist()]
    return used, None if len(used) == 1 else renumbered[codes]


def _order(places: Int64s, keys: int) -> npt.NDArray[np.intp] | None:
    """The order in which the rows of one key stand together; None if they do already."""
    if not (places[1:] < places[:-1]).any():
        return None
    # Sixteen bits are sorted by radix.
    return np.argsort(places.astype(np.uint16) if keys <= 1 << 16 else places, kind="stable")


def _encrypted(ciphers: Sequence[CipherContext], ends: Sequence[int], blocks: Words) -> Words:
    """AES of each row of (n, 2) words; rows `ends[i]` to `ends[i + 1]` belong to cipher i."""
    source = np.ascontiguousarray(blocks, _WORD)
    out = np.empty(source.nbytes + 15, np.uint8)  # update_into asks for room for one block less a byte more
    given, taken = source.reshape(-1).view(np.uint8).data, out.data
    # One call per key, as each has its own AES schedule: a window, not a row.
    for cipher, start, end in zip(ciphers, ends, ends[1:], strict=False):
        cipher.update_into(given[start * 16 : end * 16], taken[start * 16 : end * 16 + 15])
    return out[: source.nbytes].view(_WORD).reshape(-1, 2)
