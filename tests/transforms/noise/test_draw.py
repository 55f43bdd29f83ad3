"""Draws: the exact construction, and that every component of its input counts.

Each property is checked twice: on the real draw, where it must hold, and on mutants that leave one component out, where
exactly the check of that component must fail.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC

from eventveil.transforms.keys.canonical import canonical
from eventveil.transforms.keys.derive import HeldKeys, context, expand
from eventveil.transforms.noise.draw import draws, scaled, uniform, uniform_distance, value_words
from eventveil.transforms.noise.table import laplace
from eventveil.transforms.operators.noise import Noise

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "draws.json").read_text())
TOP = 1 << 63
KEY, OTHER_KEY = bytes(range(32)), bytes(range(32, 64))


# -- AES-256 and CBC-MAC once more, in plain Python, value by value -----------------------------------------------------


def _times(a: int, b: int) -> int:
    """Multiplication in GF(2^8), FIPS 197 section 4.2."""
    product = 0
    while b:
        product ^= a if b & 1 else 0
        a = (a << 1) ^ (0x11B if a & 0x80 else 0)
        b >>= 1
    return product


def _s_box() -> list[int]:
    box = []
    for value in range(256):
        inverse = next((x for x in range(256) if _times(value, x) == 1), 0)
        rotated = [((inverse << n) | (inverse >> (8 - n))) & 0xFF for n in range(5)]
        box.append(rotated[0] ^ rotated[1] ^ rotated[2] ^ rotated[3] ^ rotated[4] ^ 0x63)
    return box


S = _s_box()


def plain_aes(key: bytes, block: bytes) -> bytes:
    """AES-256 as FIPS 197 writes it down: 14 rounds over a column-major state."""
    words = [list(key[i : i + 4]) for i in range(0, 32, 4)]
    constant = 1
    for i in range(8, 60):
        word = list(words[-1])
        if i % 8 == 0:
            word = [S[b] for b in word[1:] + word[:1]]
            word[0] ^= constant
            constant = _times(constant, 2)
        elif i % 8 == 4:
            word = [S[b] for b in word]
        words.append([a ^ b for a, b in zip(words[i - 8], word)])
    rounds = [[byte for word in words[i : i + 4] for byte in word] for i in range(0, 60, 4)]
    state = [a ^ b for a, b in zip(block, rounds[0])]
    for number in range(1, 15):
        state = [S[b] for b in state]
        state = [state[(i + 4 * (i % 4)) % 16] for i in range(16)]
        if number < 14:
            mixed = []
            for at in range(0, 16, 4):
                a, b, c, d = state[at : at + 4]
                for w, x, y, z in ((a, b, c, d), (b, c, d, a), (c, d, a, b), (d, a, b, c)):
                    mixed.append(_times(w, 2) ^ _times(x, 3) ^ y ^ z)
            state = mixed
        state = [a ^ b for a, b in zip(state, rounds[number])]
    return bytes(state)


def plain_draw(key: bytes, release_id: bytes, value: bytes, element: int, number: int) -> tuple[int, int]:
    second = value + element.to_bytes(4, "big") + number.to_bytes(4, "big")
    mac = plain_aes(key, bytes(a ^ b for a, b in zip(plain_aes(key, release_id), second)))
    return int.from_bytes(mac[:8], "little") >> 1, int.from_bytes(mac[8:], "little") >> 1


class TestVectors:
    def test_plain_aes_is_aes(self) -> None:
        """FIPS 197 appendix C.3."""
        block = bytes.fromhex("00112233445566778899aabbccddeeff")

        assert plain_aes(bytes(range(32)), block).hex() == "8ea2b7ca516745bfeafc49904b496089"

    @pytest.mark.parametrize("case", VECTORS["draws"], ids=lambda case: case["id"])
    def test_draws(self, case: dict[str, Any]) -> None:
        key, release_id, value = (bytes.fromhex(case[name]) for name in ("key", "release_id", "value"))
        words = np.frombuffer(release_id, "<u8").reshape(1, 2)
        given = draws([key], None, words, np.frombuffer(value, "<u8"), np.array([case["element"]]), case["number"])

        assert given.tolist() == [case["words"]]
        assert list(plain_draw(key, release_id, value, case["element"], case["number"])) == case["words"]

    @pytest.mark.parametrize("case", VECTORS["value_words"], ids=lambda case: case["id"])
    def test_value_words(self, case: dict[str, Any]) -> None:
        kind = {"int64": pa.int64(), "double": pa.float64(), "text": pa.string(), "decimal": pa.decimal128(9, 2)}[case["type"]]
        values = pa.array([case["value"]]).cast(kind)

        assert value_words(values, [bytes.fromhex(case["key"])], None).tobytes().hex() == case["word"]

    def test_every_draw_of_a_column(self) -> None:
        source = random.Random(1)
        rows = [(source.randbytes(16), source.randbytes(8), source.randrange(2**32)) for _ in range(40)]
        ids = np.frombuffer(b"".join(row[0] for row in rows), "<u8").reshape(-1, 2)
        values = np.frombuffer(b"".join(row[1] for row in rows), "<u8")

        given = draws([KEY], None, ids, values, np.array([row[2] for row in rows]), 7)

        assert given.tolist() == [list(plain_draw(KEY, *row, 7)) for row in rows]


# -- the components of a draw -------------------------------------------------------------------------------------------

Draw = Callable[["Place"], tuple[int, int]]


@dataclass(frozen=True)
class Place:
    """Everything that tells one draw from another."""

    root: bytes = KEY
    window: int = 0
    path: str = "lines[].quantity"
    position: int = 0
    scale: str = "1"
    release_id: tuple[int, int] = (11, 22)
    value: int = 5
    element: int = 0
    number: int = 0


# What a check changes, and what becomes indistinguishable if the component is left out.
COMPONENTS: dict[str, list[Place]] = {
    "key": [Place(), Place(root=OTHER_KEY), Place(window=86_400_000_000)],
    "rule: leaf": [Place(), Place(path="lines[].price"), Place(path="lines[]")],
    "rule: position": [Place(), Place(position=1), Place(position=2)],
    "rule: parameters": [Place(), Place(scale="2"), Place(scale="1.5")],
    "release id": [Place(), Place(release_id=(11, 23)), Place(release_id=(22, 11)), Place(release_id=(12, 22))],
    "value": [Place(), Place(value=6), Place(value=-5)],
    "element": [Place(), Place(element=1), Place(element=2)],
    "draw number": [Place(), Place(number=1), Place(number=2)],
}
SAME = Place()
WITHOUT: dict[str, Callable[[Place], Place]] = {
    "key": lambda place: replace(place, root=SAME.root, window=SAME.window),
    "rule: leaf": lambda place: replace(place, path=SAME.path),
    "rule: position": lambda place: replace(place, position=SAME.position),
    "rule: parameters": lambda place: replace(place, scale=SAME.scale),
    "release id": lambda place: replace(place, release_id=SAME.release_id),
    "value": lambda place: replace(place, value=SAME.value),
    "element": lambda place: replace(place, element=SAME.element),
    "draw number": lambda place: replace(place, number=SAME.number),
}


def real(place: Place) -> tuple[int, int]:
    """A draw as the engine makes it: from root to word."""
    operator = Noise.model_validate({"laplace_scale": place.scale, "per": "event"})
    info = operator.key_info(place.path, place.position, pa.int64())
    key = HeldKeys(place.root).domain("research").for_window(place.window, "1d", "UTC", "noise", *info)
    values = value_words(pa.array([place.value]), [key], None)
    words = draws([key], None, np.array([place.release_id], np.uint64), values, np.array([place.element]), place.number)
    return words[0, 0].item(), words[0, 1].item()


def mutant(component: str) -> Draw:
    return lambda place: real(WITHOUT[component](place))


def holds(component: str, draw: Draw) -> bool:
    """Whether no two draws that differ in the component alone are equal, in either word, and each is repeatable."""
    places = COMPONENTS[component]
    found = [draw(place) for place in places]
    return found == [draw(place) for place in places] and all(len({words[i] for words in found}) == len(places) for i in (0, 1))


class TestComponents:
    @pytest.mark.parametrize("component", COMPONENTS)
    def test_counts(self, component: str) -> None:
        assert holds(component, real)

    @pytest.mark.parametrize("left_out", COMPONENTS)
    def test_a_draw_without_it_is_caught_by_its_own_check(self, left_out: str) -> None:
        assert [component for component in COMPONENTS if not holds(component, mutant(left_out))] == [left_out]

    def test_a_draw_from_the_systems_generator_is_caught(self) -> None:
        assert not any(holds(component, lambda _: (random.randrange(TOP), random.randrange(TOP))) for component in COMPONENTS)

    def test_neighbouring_parts_do_not_run_into_each_other(self) -> None:
        places = [
            Place(value=1, element=0),
            Place(value=0, element=1),
            Place(value=0, number=1),
            Place(value=1 << 32),
            Place(path="a.b", position=1),
        ]
        places += [Place(path="a", position=1), Place(path="a1", position=0), Place(path="a", position=10)]

        assert len({real(place) for place in places}) == len(places)

    def test_the_parts_of_a_together_label_are_no_leaf(self) -> None:
        of_leaf = Noise.model_validate({"laplace_scale": 1, "per": "event"}).key_info("stay", 0, pa.int64())
        of_label = Noise.model_validate({"laplace_scale": 1, "per": "event", "together": "stay"}).key_info("stay", 0, pa.int64())

        assert of_leaf != of_label


class TestWhatALeftOutComponentWouldLeak:
    """The same mutants, at the output: why the components are there."""

    def noisy(self, draw: Draw, places: list[Place]) -> list[int]:
        words = np.array([draw(place) for place in places], np.uint64)
        return [place.value + noise for place, noise in zip(places, laplace(Fraction(3)).sample(words).tolist())]

    def differences(self, draw: Draw, one: Callable[[int], Place], other: Callable[[int], Place]) -> set[int]:
        events = range(60)
        return {a - b for a, b in zip(self.noisy(draw, [one(n) for n in events]), self.noisy(draw, [other(n) for n in events]))}

    @pytest.mark.parametrize(
        ("left_out", "one", "other"),
        [
            ("value", lambda n: Place(release_id=(n, 1), value=5), lambda n: Place(release_id=(n, 1), value=12)),
            ("rule: leaf", lambda n: Place(release_id=(n, 1), path="net"), lambda n: Place(release_id=(n, 1), path="gross")),
            ("element", lambda n: Place(release_id=(n, 1), element=0), lambda n: Place(release_id=(n, 1), element=1)),
            ("release id", lambda n: Place(release_id=(n, 1), value=n), lambda n: Place(release_id=(n, 2), value=n)),
            ("key", lambda n: Place(release_id=(n, 1)), lambda n: Place(release_id=(n, 1), root=OTHER_KEY)),
            ("draw number", lambda n: Place(release_id=(n, 1)), lambda n: Place(release_id=(n, 1), number=1)),
        ],
        ids=["a correction", "two rules", "two elements", "two events", "two domains", "two draws"],
    )
    def test_exact_difference(self, left_out: str, one: Callable[[int], Place], other: Callable[[int], Place]) -> None:
        assert len(self.differences(mutant(left_out), one, other)) == 1
        assert len(self.differences(real, one, other)) > 10


class TestColumns:
    def column(self, rows: int, keys: int, seed: int = 3) -> tuple[list[bytes], np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        source = np.random.default_rng(seed)
        ids = source.integers(0, 2**64, (rows, 2), dtype=np.uint64)
        values = source.integers(0, 2**64, rows, dtype=np.uint64)
        return [source.bytes(32) for _ in range(keys)], source.integers(0, keys, rows), ids, values, source.integers(0, 9, rows)

    @pytest.mark.parametrize("keys", [1, 2, 300])
    def test_each_row_has_its_own_key(self, keys: int) -> None:
        ring, codes, ids, values, elements = self.column(500, keys)
        whole = draws(ring, codes, ids, values, elements)
        alone = [draws([ring[codes[i]]], None, ids[i : i + 1], values[i : i + 1], elements[i : i + 1])[0].tolist() for i in range(500)]

        assert whole.tolist() == alone

    @pytest.mark.parametrize("size", [1, 7, 100, 499])
    def test_batch_boundaries_do_not_matter(self, size: int) -> None:
        ring, codes, ids, values, elements = self.column(500, 20)
        parts = [slice(start, start + size) for start in range(0, 500, size)]
        cut = [draws(ring, codes[part], ids[part], values[part], elements[part]) for part in parts]

        assert np.array_equal(np.concatenate(cut), draws(ring, codes, ids, values, elements))

    def test_order_does_not_matter(self) -> None:
        ring, codes, ids, values, elements = self.column(500, 20)
        order = np.random.default_rng(4).permutation(500)
        shuffled = draws(ring, codes[order], ids[order], values[order], elements[order])

        assert np.array_equal(shuffled, draws(ring, codes, ids, values, elements)[order])

    def test_more_keys_than_sixteen_bits(self) -> None:
        ring = [n.to_bytes(32, "big") for n in range(70_000)]
        codes = np.array([69_999, 3, 65_539, 3])
        ids = np.zeros((4, 2), np.uint64)
        found = draws(ring, codes, ids, None, None)

        assert found.tolist() == [draws([ring[code]], None, ids[:1], None, None)[0].tolist() for code in codes]

    def test_no_rows(self) -> None:
        assert draws([], None, np.zeros((0, 2), np.uint64), None, None).shape == (0, 2)
        assert value_words(pa.array([], pa.int64()), [], None).shape == (0,)

    def test_words_have_63_bits(self) -> None:
        ring, codes, ids, values, elements = self.column(5_000, 1)
        found = draws(ring, codes, ids, values, elements)

        assert found.dtype == np.uint64
        assert TOP > int(found.max()) > TOP * 0.99
        assert int(found.min()) < TOP * 0.01

    def test_the_two_words_are_not_related(self) -> None:
        ring, codes, ids, values, elements = self.column(20_000, 1)
        cells = (draws(ring, codes, ids, values, elements) >> np.uint64(60)).astype(np.int64)
        counts = np.bincount(cells[:, 0] * 8 + cells[:, 1], minlength=64)

        assert ((counts - 312.5) ** 2 / 312.5).sum() < 115  # chi-square, 63 degrees of freedom, 0.9999


class TestValueWords:
    @pytest.mark.parametrize(
        "values",
        [
            pa.array([0, 1, -1, 2**63 - 1, -(2**63)]),
            pa.array([1, -2], pa.int32()),
            pa.array([0.5, -0.0, 1e300]),
            pa.array([0.5], pa.float32()),
            pa.array([10**15], pa.timestamp("us", "UTC")),
            pa.array([16_000], pa.date32()),
        ],
        ids=lambda values: str(values.type),
    )
    def test_eight_bytes_enter_as_they_are(self, values: pa.Array[Any]) -> None:
        assert value_words(values, [KEY], None).tobytes() == b"".join(canonical(values).to_pylist())

    @pytest.mark.parametrize(
        "values",
        [pa.array(["", "12345678", "é" * 9, "x" * 300]), pa.array([True, False]), pa.array(["1.50", "-0.25"]).cast(pa.decimal128(9, 2))],
        ids=lambda values: str(values.type),
    )
    def test_others_enter_as_their_cmac(self, values: pa.Array[Any]) -> None:
        found = value_words(values, [KEY], None)
        expected = []
        for form in canonical(values).to_pylist():
            mac = CMAC(AES(expand(KEY, context("noise-value"))))
            mac.update(form)
            expected.append(mac.finalize()[:8])

        assert found.tobytes() == b"".join(expected)

    @pytest.mark.parametrize("values", [pa.array(range(200)), pa.array([f"text {n // 3}" for n in range(200)])], ids=["numbers", "text"])
    def test_keys_and_slices(self, values: pa.Array[Any]) -> None:
        ring = [n.to_bytes(32, "big") for n in range(9)]
        codes = np.arange(200) * 7 % 9
        whole = value_words(values, ring, codes)
        alone = [value_words(values.slice(i, 1), [ring[codes[i]]], None)[0] for i in range(200)]

        assert whole.tolist() == alone
        assert value_words(values.slice(11, 50), ring, codes[11:61]).tolist() == alone[11:61]


class TestUniform:
    BOUNDS = (1, 2, 3, 7, 1_000_003, 2**32, 2**40 + 1, 2**56 - 1, 2**63 - 1)

    @pytest.mark.parametrize("bound", BOUNDS)
    def test_is_exact_integer_multiplication(self, bound: int) -> None:
        source = random.Random(bound)
        words = [(0, 0), (TOP - 1, TOP - 1), (TOP - 1, 0), (0, TOP - 1), (2**32, 2**32 - 1)] + [
            (source.randrange(TOP), source.randrange(TOP)) for _ in range(500)
        ]
        given = np.array(words, np.uint64)

        assert uniform(given, bound).tolist() == [((a * TOP + b) * bound) >> 126 for a, b in words]
        assert scaled(given[:, 0], bound).tolist() == [(a * bound) >> 63 for a, _ in words]

    def test_a_carry_between_the_words_is_kept(self) -> None:
        bound = 3 * 2**60 + 1
        edges = [-(-(n << 126) // bound) for n in random.Random(2).sample(range(1, bound), 300)]
        words = [divmod(edge + step, TOP) for edge in edges for step in (-1, 0)]

        assert uniform(np.array(words, np.uint64), bound).tolist() == [((a * TOP + b) * bound) >> 126 for a, b in words]

    @pytest.mark.parametrize("bound", BOUNDS)
    def test_states_its_exact_distance(self, bound: int) -> None:
        more = (1 << 126) % bound
        fewer = Fraction((1 << 126) // bound, 1 << 126)
        exact = (more * abs(fewer + Fraction(1, 1 << 126) - Fraction(1, bound)) + (bound - more) * abs(fewer - Fraction(1, bound))) / 2

        assert uniform_distance(bound) == pytest.approx(float(exact), rel=1e-9, abs=0)
        assert uniform_distance(bound) < 2.0**-64
