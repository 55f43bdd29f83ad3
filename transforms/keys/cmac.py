"""AES-CMAC (RFC 4493, NIST SP 800-38B) over whole columns: one AES call per key and block position.

A digest is two unsigned 64-bit words: its 16 bytes, read little-endian.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from cryptography.hazmat.primitives import cmac
from cryptography.hazmat.primitives.ciphers import AEADEncryptionContext, Cipher, CipherContext, algorithms, modes

__all__ = ["LONGEST_IN_BULK", "Cmac", "ecb_runs", "words_each"]

Words = npt.NDArray[np.uint64]
Int64s = npt.NDArray[np.int64]

# Longer values go one by one: in bulk every block position costs a pass, and an attacker chooses the longest value.
LONGEST_IN_BULK = 256

_ROWS_AT_ONCE = 1 << 16  # what stays in the processor's cache: a million at once cost four times as much each

_WORD = np.dtype("<u8")


def _last_block_tables() -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """For a last block of 0..16 bytes: what to keep of what was read there, and the padding bit behind it."""
    keep, pad = np.zeros((17, 16), np.uint8), np.zeros((17, 16), np.uint8)
    for length in range(17):
        keep[length, :length] = 255
        if length < 16:
            pad[length, length] = 0x80
    return keep.view(_WORD), pad.view(_WORD)


_KEEP, _PAD = _last_block_tables()


def _doubled(block: bytes) -> bytes:
    """Multiplication by x in GF(2^128), as in RFC 4493 section 2.3."""
    value = int.from_bytes(block, "big") << 1
    return (((value ^ 0x87) & ((1 << 128) - 1)) if value >> 128 else value).to_bytes(16, "big")


class Cmac:
    """AES-CMAC under one key, for columns. Reuse it: making one costs ten microseconds.

    May be used by several threads at once. Shows no key bytes and cannot be pickled.

    Args:
        key: 16 or 32 bytes (AES-128 or AES-256).
    """

    __slots__ = ("_idle", "_key", "_pads")

    def __init__(self, key: bytes) -> None:
        if len(key) not in (16, 32):
            raise ValueError("AES-CMAC takes a key of 16 or 32 bytes")
        self._key = bytes(key)
        self._idle: list[AEADEncryptionContext | CipherContext] = []
        zero = bytearray(31)
        self._encrypt(bytes(16), zero)
        whole = _doubled(bytes(zero[:16]))
        padded = np.frombuffer(_doubled(whole), _WORD)
        # By the length of the last block: what is XORed onto it (padding bit and sub-key K2, or K1 for a whole block).
        self._pads = _PAD ^ padded
        self._pads[16] = np.frombuffer(whole, _WORD)

    def __repr__(self) -> str:
        return "Cmac(...)"

    def __reduce__(self) -> Any:
        raise TypeError("a key is never pickled")

    def _encrypt(self, given: bytes | memoryview, taken: bytearray | memoryview) -> None:
        """AES of whole blocks. `taken` has room for 15 bytes more."""
        # A context refuses a second thread while it works, so whoever finds none idle makes another; pop and append are
        # atomic. ECB is the bare block cipher that CMAC is built of; over whole blocks it keeps nothing between calls.
        try:
            encryptor = self._idle.pop()
        except IndexError:
            encryptor = Cipher(algorithms.AES(self._key), modes.ECB()).encryptor()  # noqa: S305
        encryptor.update_into(given, taken)
        self._idle.append(encryptor)

    def ecb(self, blocks: Words) -> Words:
        """AES of each row of (n, 2) words."""
        return ecb_runs([self], None, blocks)

    def words(self, values: pa.Array[Any]) -> Words:
        """The CMAC of each value, as (n, 2) words. `values` is binary or text, large or not, without nulls."""
        return words_each([self], None, values)

    def _one(self, value: bytes) -> npt.NDArray[np.uint64]:
        mac = cmac.CMAC(algorithms.AES(self._key))
        mac.update(value)
        return np.frombuffer(mac.finalize(), _WORD)


def ecb_runs(ciphers: Sequence[Cmac], bounds: Int64s | None, blocks: Words) -> Words:
    """AES of each row of (n, 2) words; rows `bounds[i]` to `bounds[i + 1]` belong to cipher i. None: one cipher."""
    source = np.ascontiguousarray(blocks, _WORD)
    size = source.nbytes
    out = np.empty(size + 15, np.uint8)  # update_into asks for room for one block less a byte more
    if size:
        given, taken = source.reshape(-1).view(np.uint8).data, out.data
        if bounds is None:
            ciphers[0]._encrypt(given, taken)
        else:
            ends = (bounds * 16).tolist()
            # One call per key, as each has its own AES schedule; a window, not a row.
            for cipher, start, end in zip(ciphers, ends, ends[1:], strict=False):
                if start < end:
                    cipher._encrypt(given[start:end], taken[start : end + 15])
    return out[:size].view(_WORD).reshape(-1, 2)


def words_each(ciphers: Sequence[Cmac], codes: Int64s | None, values: pa.Array[Any]) -> Words:
    """The CMAC of each value under its own key, as (n, 2) words.

    Args:
        codes: for each value the index into `ciphers`; None where there is just one.
        values: binary or text, large or not, without nulls.
    """
    if values.null_count:
        raise ValueError("values without nulls are needed")
    starts, lengths, data = _parts(values)
    out = np.empty((len(values), 2), _WORD)
    long = lengths > LONGEST_IN_BULK
    rows = None if not long.any() else np.flatnonzero(~long)
    if codes is not None and len(ciphers) > 1:
        codes = np.asarray(codes, np.int64)
        chosen = codes if rows is None else codes[rows]
        if (chosen[1:] < chosen[:-1]).any():
            # Sixteen bits are sorted by radix.
            order = np.argsort(chosen.astype(np.uint16) if len(ciphers) <= 1 << 16 else chosen, kind="stable")
            rows = order if rows is None else rows[order]
        in_order = codes if rows is None else codes[rows]
    else:
        in_order = None
    if rows is None:
        _bulk(ciphers, in_order, starts, lengths, data, out)
    else:
        some = np.empty((len(rows), 2), _WORD)
        _bulk(ciphers, in_order, starts[rows], lengths[rows], data, some)
        out[rows] = some
        for row in np.flatnonzero(long).tolist():  # value by value: long ones are rare, see LONGEST_IN_BULK
            cipher = ciphers[0 if in_order is None or codes is None else int(codes[row])]
            out[row] = cipher._one(data[starts[row] : starts[row] + lengths[row]].tobytes())
    return out


def _parts(values: pa.Array[Any]) -> tuple[Int64s, Int64s, npt.NDArray[np.uint8]]:
    """Start and length of each value, and the bytes they lie in, with 16 bytes of room behind."""
    kind = values.type
    width: np.dtype[Any]
    if pa.types.is_binary(kind) or pa.types.is_string(kind):
        width = np.dtype(np.int32)
    elif pa.types.is_large_binary(kind) or pa.types.is_large_string(kind):
        width = np.dtype(np.int64)
    else:
        raise TypeError(f"binary or text is needed, not {kind}")
    count = len(values)
    if not count:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(16, np.uint8)
    buffers: Any = values.buffers()
    _, offsets_buffer, data_buffer = buffers
    offsets = np.frombuffer(offsets_buffer, width, count + 1, values.offset * width.itemsize).astype(np.int64)
    first, last = int(offsets[0]), int(offsets[-1])
    data = np.zeros(last - first + 16, np.uint8)
    if last > first:
        data[: last - first] = np.frombuffer(data_buffer, np.uint8, last - first, first)
    return offsets[:-1] - first, np.diff(offsets), data


def _bulk(ciphers: Sequence[Cmac], codes: Int64s | None, starts: Int64s, lengths: Int64s, data: npt.NDArray[np.uint8], out: Words) -> None:
    """CMAC of values of at most LONGEST_IN_BULK bytes, where those of one key stand together."""
    for start in range(0, len(starts), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        _chained(ciphers, None if codes is None else codes[rows], starts[rows], lengths[rows], data, out[rows])


def _chained(
    ciphers: Sequence[Cmac], codes: Int64s | None, starts: Int64s, lengths: Int64s, data: npt.NDArray[np.uint8], out: Words
) -> None:
    """CBC-MAC with the padding of CMAC, block position by block position."""
    # Every 16 bytes of `data`, from every start: a view, nothing is copied before it is picked.
    windows = np.lib.stride_tricks.as_strided(data, (len(data) - 15, 16), (1, 1), writeable=False)
    last = np.maximum((lengths + 15) >> 4, 1) - 1
    rest = lengths - (last << 4)
    everyone = np.arange(len(ciphers) + 1)
    for position in range(int(last.max(initial=-1)) + 1):
        rows = None if position == 0 else np.flatnonzero(last >= position)
        at = starts if rows is None else starts[rows] + (position << 4)
        blocks = windows[at].view(_WORD)
        ends = np.flatnonzero((last if rows is None else last[rows]) == position)
        row_ends = ends if rows is None else rows[ends]
        if len(ends) == len(blocks):
            blocks = _closed(ciphers, codes, row_ends, rest, blocks)
        elif len(ends):
            blocks[ends] = _closed(ciphers, codes, row_ends, rest, blocks[ends])
        if rows is not None:
            blocks ^= out[rows]
        bounds = None if codes is None else np.searchsorted(codes if rows is None else codes[rows], everyone)
        done = ecb_runs(ciphers, bounds, blocks)
        if rows is None:
            out[:] = done
        else:
            out[rows] = done


def _closed(ciphers: Sequence[Cmac], codes: Int64s | None, rows: Int64s, rest: Int64s, blocks: Words) -> Words:
    """Last blocks, cut to their value, padded, and XORed with the sub-key of their kind."""
    left = rest[rows]
    blocks &= _KEEP[left]
    if codes is None:
        blocks ^= ciphers[0]._pads[left]
    else:
        # Only K1 or K2 differs by key: two tables with a row per key, not seventeen.
        partial = np.stack([cipher._pads[0] ^ _PAD[0] for cipher in ciphers])
        whole = np.stack([cipher._pads[16] for cipher in ciphers])
        own = codes[rows]
        blocks ^= _PAD[left] ^ np.where((left == 16)[:, None], whole[own], partial[own])
    return blocks
