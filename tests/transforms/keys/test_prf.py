"""Keyed hashes: equal to plain Python, whatever repeats, however many windows."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from types import ModuleType
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest

from eventveil.transforms.keys.prf import LONGEST, Prf, base32, macs, pseudonym_bytes, pseudonym_texts

PRFS: tuple[Prf, ...] = get_args(Prf)
KEYS = [bytes([number]) * 32 for number in range(40)]
SEEDED = random.Random(3)
COLUMNS = {
    "distinct": [SEEDED.randbytes(9) for _ in range(3000)],
    "repeated": [b"%d" % SEEDED.randrange(50) for _ in range(3000)],
    "one": [b"same"] * 100,
    "long": [b"", b"x" * 300, b"", b"x" * 300, b"x" * 5000],
    "none": [],
}


@pytest.mark.parametrize("prf", PRFS)
@pytest.mark.parametrize("values", COLUMNS.values(), ids=COLUMNS)
class TestAgainstPlainPython:
    def test_one_window(self, plain: ModuleType, prf: Prf, values: list[bytes]) -> None:
        expected = [plain.mac(prf, KEYS[3], value, 12) for value in values]

        found = macs(prf, [KEYS[3]], None, pa.array(values, pa.binary()), 12)

        assert expected == [row.tobytes() for row in found]
        assert (len(values), 12) == found.shape

    def test_many_windows(self, plain: ModuleType, prf: Prf, values: list[bytes]) -> None:
        codes = np.random.default_rng(1).integers(0, len(KEYS), len(values))
        expected = [plain.mac(prf, KEYS[code], value, 16) for code, value in zip(codes, values)]
        column = pa.array(values, pa.binary())

        assert expected == [row.tobytes() for row in macs(prf, KEYS, codes, column, 16)]
        assert expected == pseudonym_bytes(prf, KEYS, codes, column, 16).to_pylist()
        assert ["p" + plain.base32(mac) for mac in expected] == pseudonym_texts(prf, KEYS, codes, column, 16, "p").to_pylist()

    def test_a_slice_gives_the_slice(self, prf: Prf, values: list[bytes]) -> None:
        column, codes = pa.array(values, pa.binary()), np.arange(len(values)) % 3
        whole = pseudonym_texts(prf, KEYS, codes, column, 16)

        assert whole.slice(2, 50).equals(pseudonym_texts(prf, KEYS, codes[2:52], column.slice(2, 50), 16))


class TestWindows:
    @pytest.mark.parametrize("prf", PRFS)
    def test_keys_that_are_used_by_no_value(self, plain: ModuleType, prf: Prf) -> None:
        codes = np.array([7, 7, 2], np.int64)

        found = pseudonym_bytes(prf, KEYS, codes, pa.array([b"a", b"a", b"a"]), 16).to_pylist()

        assert [plain.mac(prf, KEYS[code], b"a", 16) for code in codes] == found

    @pytest.mark.parametrize("prf", PRFS)
    def test_codes_of_a_single_key(self, plain: ModuleType, prf: Prf) -> None:
        found = macs(prf, KEYS[:1], np.zeros(2, np.int64), pa.array([b"a", b"b"]), 16)

        assert [plain.mac(prf, KEYS[0], value, 16) for value in (b"a", b"b")] == [row.tobytes() for row in found]


class TestSizes:
    @pytest.mark.parametrize("prf", PRFS)
    def test_the_longest(self, prf: Prf) -> None:
        column = pa.array([b"a"])

        assert (1, LONGEST[prf]) == macs(prf, KEYS[:1], None, column, LONGEST[prf]).shape
        for size in (0, LONGEST[prf] + 1):
            with pytest.raises(ValueError, match="bytes"):
                macs(prf, KEYS[:1], None, column, size)

    @pytest.mark.parametrize("prf", PRFS)
    def test_nulls_are_refused(self, prf: Prf) -> None:
        with pytest.raises(ValueError, match="without nulls"):
            macs(prf, KEYS[:1], None, pa.array([b"a", None]), 16)


class TestBase32:
    def test_rfc_4648(self, vectors: Callable[[str], Any]) -> None:
        for case in vectors("base32")["cases"]:
            given = np.frombuffer(bytes.fromhex(case["bytes"]), np.uint8).reshape(1, -1)

            assert [case["text"]] == base32(given).to_pylist()

    @pytest.mark.parametrize("size", range(1, 33))
    def test_every_size(self, size: int) -> None:
        given = np.random.default_rng(size).integers(0, 256, (50, size), dtype=np.uint8)
        given[0], given[1] = 0, 255
        expected = ["ü-" + base64.b32encode(row.tobytes()).decode().rstrip("=").lower() for row in given]

        found = base32(given, "ü-")

        found.validate(full=True)
        assert expected == found.to_pylist()

    def test_no_rows(self) -> None:
        assert [] == base32(np.empty((0, 16), np.uint8)).to_pylist()
