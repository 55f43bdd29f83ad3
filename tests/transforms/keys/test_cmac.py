"""AES-CMAC over columns: equal to the standard, for every length, position and key."""

from __future__ import annotations

import pickle
import random
import threading
import tracemalloc
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from eventveil.transforms.keys.cmac import LONGEST_IN_BULK, Cmac, ecb_runs, words_each

KEYS = [bytes([number]) * 32 for number in range(5)]
SEEDED = random.Random(5)
VALUES = [SEEDED.randbytes(length) for length in (*range(LONGEST_IN_BULK + 40), 0, 16, 1, 1000, 100_000)]
SEEDED.shuffle(VALUES)


def macs(words: np.ndarray[Any, Any]) -> list[bytes]:
    return [row.tobytes() for row in words]


class TestTheStandard:
    def test_rfc_4493(self, vectors: Callable[[str], Any]) -> None:
        given = vectors("cmac")
        column = pa.array([bytes.fromhex(case["message"]) for case in given["cases"]])
        expected = [bytes.fromhex(case["mac"]) for case in given["cases"]]

        assert expected == macs(Cmac(bytes.fromhex(given["key"])).words(column))

    @pytest.mark.parametrize("size", [16, 32], ids=["aes-128", "aes-256"])
    def test_every_length(self, plain: ModuleType, size: int) -> None:
        key = bytes(range(size))
        expected = [plain.mac("aes-cmac", key, value, 16) for value in VALUES]

        assert expected == macs(Cmac(key).words(pa.array(VALUES)))

    @pytest.mark.parametrize("size", [0, 15, 24, 33])
    def test_other_key_sizes_are_refused(self, size: int) -> None:
        with pytest.raises(ValueError, match="16 or 32 bytes"):
            Cmac(bytes(size))

    def test_ecb_is_the_block_cipher(self) -> None:
        blocks = np.frombuffer(random.Random(1).randbytes(160), np.uint64).reshape(-1, 2)
        cipher = Cipher(algorithms.AES(KEYS[1]), modes.ECB()).encryptor()

        assert cipher.update(blocks.tobytes()) == Cmac(KEYS[1]).ecb(blocks).tobytes()


class TestColumns:
    @pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()], ids=str)
    def test_a_slice_gives_the_slice(self, plain: ModuleType, kind: pa.DataType) -> None:
        expected = [plain.mac("aes-cmac", KEYS[0], value, 16) for value in VALUES[7:-3]]

        assert expected == macs(Cmac(KEYS[0]).words(pa.array(VALUES, kind).slice(7, len(VALUES) - 10)))

    @pytest.mark.parametrize("kind", [pa.string(), pa.large_string()], ids=str)
    def test_text_counts_as_its_utf8(self, plain: ModuleType, kind: pa.DataType) -> None:
        texts = ["", "Zoë", "ann@example.org"]
        expected = [plain.mac("aes-cmac", KEYS[0], text.encode(), 16) for text in texts]

        assert expected == macs(Cmac(KEYS[0]).words(pa.array(texts, kind)))

    @pytest.mark.parametrize("values", [[], [b""], [b"", b""], [bytes(LONGEST_IN_BULK + 1)]], ids=["none", "empty", "two-empty", "long"])
    def test_borders(self, plain: ModuleType, values: list[bytes]) -> None:
        expected = [plain.mac("aes-cmac", KEYS[0], value, 16) for value in values]

        assert expected == macs(Cmac(KEYS[0]).words(pa.array(values, pa.binary())))

    def test_more_rows_than_are_done_at_once(self) -> None:
        cipher, column = Cmac(KEYS[0]), pa.array([str(number) * (1 + number % 7) for number in range(70_000)])
        halves = [cipher.words(column.slice(0, 33_000)), cipher.words(column.slice(33_000))]

        assert (np.concatenate(halves) == cipher.words(column)).all()

    def test_nulls_are_refused(self) -> None:
        with pytest.raises(ValueError, match="without nulls"):
            Cmac(KEYS[0]).words(pa.array([b"a", None]))

    def test_other_types_are_refused(self) -> None:
        with pytest.raises(TypeError, match="binary or text"):
            Cmac(KEYS[0]).words(pa.array([1]))

    def test_one_long_value_does_not_make_its_neighbours_expensive(self) -> None:
        column = pa.array([b"x" * 1_000_000, *[b"short"] * 1000])
        tracemalloc.start()
        Cmac(KEYS[0]).words(column)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

        assert peak < 5_000_000


class TestManyKeys:
    @pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "shuffled"])
    def test_each_value_has_its_own(self, plain: ModuleType, ordered: bool) -> None:
        codes = np.random.default_rng(2).integers(0, len(KEYS), len(VALUES))
        if ordered:
            codes.sort()
        expected = [plain.mac("aes-cmac", KEYS[code], value, 16) for code, value in zip(codes, VALUES)]

        assert expected == macs(words_each([Cmac(key) for key in KEYS], codes, pa.array(VALUES)))

    def test_keys_without_values(self, plain: ModuleType) -> None:
        codes = np.array([4, 1, 4])
        expected = [plain.mac("aes-cmac", KEYS[code], b"same", 16) for code in codes]

        assert expected == macs(words_each([Cmac(key) for key in KEYS], codes, pa.array([b"same"] * 3)))

    def test_ecb_of_runs(self) -> None:
        blocks = np.arange(20, dtype=np.uint64).reshape(10, 2)
        ciphers = [Cmac(key) for key in KEYS[:3]]
        expected = np.concatenate([ciphers[0].ecb(blocks[:4]), ciphers[2].ecb(blocks[4:])])

        assert (expected == ecb_runs(ciphers, np.array([0, 4, 4, 10]), blocks)).all()


class TestUse:
    def test_two_threads_may_share_one(self) -> None:
        cipher, column = Cmac(KEYS[0]), pa.array([b"%d" % number for number in range(20_000)])
        expected = cipher.words(column)
        wrong: list[object] = []

        def run() -> None:
            try:
                wrong.extend("other words" for _ in range(20) if not (expected == cipher.words(column)).all())
            except Exception as error:
                wrong.append(error)

        threads = [threading.Thread(target=run) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert [] == wrong

    def test_shows_no_key_and_is_never_pickled(self) -> None:
        cipher = Cmac(b"canary-canary-canary-canary-cana")

        assert "canary" not in repr(cipher) + str(cipher)
        with pytest.raises(TypeError):
            pickle.dumps(cipher)
