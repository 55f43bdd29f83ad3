"""Keyed hashes of canonical values: what pseudonyms are made of.

| name | what it is | who holds the key |
|---|---|---|
| ``blake2b`` | keyed BLAKE2b (RFC 7693), digest of the size asked for | must guess values |
| ``hmac-sha256`` | HMAC with SHA-256 (RFC 2104, FIPS 198-1), cut | must guess values |
| ``aes-cmac`` | AES-256-CMAC (RFC 4493, SP 800-38B), cut | can invert a value of at most 16 bytes without guessing |

Under `blake2b` and `hmac-sha256` each distinct (window, value) pair of a batch is hashed once.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import repeat
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from eventveil.transforms.keys.cmac import Cmac, words_each

__all__ = ["LONGEST", "Prf", "base32", "macs", "pseudonym_bytes", "pseudonym_texts"]

Prf: TypeAlias = Literal["blake2b", "hmac-sha256", "aes-cmac"]
Bytes: TypeAlias = npt.NDArray[np.uint8]
Int64s: TypeAlias = npt.NDArray[np.int64]
_T = TypeVar("_T")

LONGEST = {"blake2b": 32, "hmac-sha256": 32, "aes-cmac": 16}
"""How many bytes a MAC can have."""

_SAMPLE = 4096
_ALPHABET = b"abcdefghijklmnopqrstuvwxyz234567"
# Ten bits -> two characters, so that one look-up writes two.
_TWO_CHARACTERS = np.frombuffer(b"".join(bytes((high, low)) for high in _ALPHABET for low in _ALPHABET), np.uint16)


class _Pairs(NamedTuple):
    """Distinct values with their keys, and for each row the pair it has; `rows` None: each row is a pair of its own."""

    values: Any
    codes: Int64s | None
    rows: Int64s | None


def macs(prf: Prf, keys: Sequence[bytes], codes: Int64s | None, values: pa.Array[Any], size: int) -> Bytes:
    """The MAC of each value under the key of its window, as (n, size) bytes.

    Args:
        keys: 32 bytes each.
        codes: for each value the index into `keys`; None when there is just one.
        values: canonical values (binary) without nulls.
        size: bytes, up to `LONGEST` of the function.
    """
    pairs = _pairs(prf, keys, codes, values)
    found = _hashed(prf, keys, pairs, size)
    return found if pairs.rows is None else found[pairs.rows]


def pseudonym_texts(
    prf: Prf, keys: Sequence[bytes], codes: Int64s | None, values: pa.Array[Any], size: int, prefix: str = ""
) -> pa.StringArray:
    """`prefix` and the MAC of each value in base32; each distinct pair is written once. Arguments as of `macs`."""
    pairs = _pairs(prf, keys, codes, values)
    texts: pa.StringArray = _spread(base32(_hashed(prf, keys, pairs, size), prefix), pairs)
    return texts


def pseudonym_bytes(prf: Prf, keys: Sequence[bytes], codes: Int64s | None, values: pa.Array[Any], size: int) -> pa.BinaryArray:
    """The MAC of each value as a binary column. Arguments as of `macs`."""
    pairs = _pairs(prf, keys, codes, values)
    column: pa.BinaryArray = _spread(_column(pa.binary(), _hashed(prf, keys, pairs, size)), pairs)
    return column


def base32(macs: Bytes, prefix: str = "") -> pa.StringArray:
    """Each row of bytes as `prefix` and lower-case base32 without padding. Source: RFC 4648 section 6."""
    count, size = macs.shape
    characters = -(-size * 8 // 5)
    # Ten bits never reach over more than two bytes, as they start at an even bit.
    padded: npt.NDArray[np.uint16] = np.zeros((count, size + 3), np.uint16)
    padded[:, :size] = macs
    pieces = np.empty((count, -(-characters // 2)), np.uint16)
    for piece in range(pieces.shape[1]):
        byte, bit = divmod(10 * piece, 8)
        both = (padded[:, byte] << 8) | padded[:, byte + 1]
        pieces[:, piece] = _TWO_CHARACTERS[(both >> (6 - bit)) & 1023]
    start = np.frombuffer(prefix.encode(), np.uint8)
    text = np.empty((count, len(start) + characters), np.uint8)
    text[:, : len(start)] = start
    text[:, len(start) :] = pieces.view(np.uint8)[:, :characters]
    column: pa.StringArray = _column(pa.string(), text)
    return column


def _column(kind: pa.DataType, rows: Bytes) -> Any:
    """Rows of one width as a binary or text column."""
    count, width = rows.shape
    offsets: Any = np.arange(0, (count + 1) * width, width, dtype=np.int32)
    data: Any = np.ascontiguousarray(rows)
    return pa.Array.from_buffers(kind, count, [None, pa.py_buffer(offsets), pa.py_buffer(data)], 0)


def _spread(column: Any, pairs: _Pairs) -> Any:
    return column if pairs.rows is None else column.take(pa.array(pairs.rows))


def _pairs(prf: Prf, keys: Sequence[bytes], codes: Int64s | None, values: Any) -> _Pairs:
    if values.null_count:
        raise ValueError("values without nulls are needed")
    if len(keys) < 2:
        codes = None
    # AES-CMAC over the column is cheaper than finding out which values are distinct.
    if prf == "aes-cmac" or _is_mostly_distinct(values):
        return _Pairs(values, codes, None)
    found = values.dictionary_encode()
    rows = found.indices.to_numpy()
    if codes is None:
        return _Pairs(found.dictionary, None, rows)
    many = len(found.dictionary)
    pairs = pa.array(codes * np.int64(many) + rows).dictionary_encode()
    pair_codes, pair_values = np.divmod(pairs.dictionary.to_numpy(), np.int64(many))
    return _Pairs(found.dictionary.take(pa.array(pair_values)), pair_codes, pairs.indices.to_numpy())


def _is_mostly_distinct(values: Any) -> bool:
    """Whether finding distinct values would cost more than hashing the repeated ones again; a guess from the first rows.

    The share of values that stood before grows with their number, so that of the sample is scaled up. A wrong
    guess costs time, nothing else.
    """
    sample = values.slice(0, _SAMPLE)
    repeated = len(sample) - len(sample.unique())
    return bool(repeated * len(values) < 0.2 * len(sample) ** 2)


def _hashed(prf: Prf, keys: Sequence[bytes], pairs: _Pairs, size: int) -> Bytes:
    if not 1 <= size <= LONGEST[prf]:
        raise ValueError(f"{prf} gives 1 to {LONGEST[prf]} bytes")
    if not len(pairs.values):  # a batch without rows may come without keys
        return np.empty((0, size), np.uint8)
    if prf == "aes-cmac":
        words = words_each([_cipher(key) for key in keys], pairs.codes, pairs.values)
        return words.view(np.uint8).reshape(-1, 16)[:, :size]
    found = _blake2b(keys, pairs, size) if prf == "blake2b" else _hmac_sha256(keys, pairs, size)
    return np.frombuffer(b"".join(found), np.uint8).reshape(-1, size)


# A job of minute windows meets 1,440 keys a day in every batch; a cipher costs ten microseconds.
_cipher = lru_cache(maxsize=4096)(Cmac)


def _blake2b(keys: Sequence[bytes], pairs: _Pairs, size: int) -> Iterable[bytes]:
    # One value per step, because hashlib has no call for a column. Copying a keyed state saves a third of
    # the time of making one for each value.
    copies = [hashlib.blake2b(key=key, digest_size=size).copy for key in keys]
    found: list[bytes] = []
    add = found.append
    for copy, value in zip(_own(copies, pairs.codes), pairs.values.to_pylist(), strict=False):
        state = copy()
        state.update(value)
        add(state.digest())
    return found


def _hmac_sha256(keys: Sequence[bytes], pairs: _Pairs, size: int) -> Iterable[bytes]:
    # One value per step, for the same reason.
    digest = hmac.digest
    return [digest(key, value, "sha256")[:size] for key, value in zip(_own(keys, pairs.codes), pairs.values.to_pylist(), strict=False)]


def _own(each: Sequence[_T], codes: Int64s | None) -> Iterable[_T]:
    """For each pair the one of its window."""
    return repeat(each[0]) if codes is None else map(each.__getitem__, codes.tolist())
