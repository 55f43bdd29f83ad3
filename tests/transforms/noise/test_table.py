from __future__ import annotations

from bisect import bisect_right
from decimal import Decimal, localcontext
from fractions import Fraction
from math import log2, sqrt

import numpy as np
import pytest

from eventveil.transforms.noise.draw import draws
from eventveil.transforms.noise.table import Table, gaussian, laplace

TOP = 1 << 63
KEY = bytes(range(32))


def exact_laplace(scale: Fraction, reach: int) -> dict[int, Fraction]:
    """P(x) = (1 - r) / (1 + r) r^|x|, in 90 digits, from the formula and not by recurrence."""
    with localcontext() as context:
        context.prec = 90
        ratio = (Decimal(-scale.denominator) / Decimal(scale.numerator)).exp()
        weights = {x: (1 - ratio) / (1 + ratio) * ratio ** abs(x) for x in range(-reach, reach + 1)}
    return {x: Fraction(weight) for x, weight in weights.items()}


def exact_gaussian(sigma: Fraction, reach: int) -> dict[int, Fraction]:
    square = 2 * sigma * sigma
    with localcontext() as context:
        context.prec = 90
        bell = [(Decimal(-x * x * square.denominator) / Decimal(square.numerator)).exp() for x in range(3 * reach)]
        total = 2 * sum(bell) - bell[0]
        weights = {x: bell[abs(x)] / total for x in range(-reach, reach + 1)}
    return {x: Fraction(weight) for x, weight in weights.items()}


def drawn(table: Table) -> dict[int, Fraction]:
    """What the table really gives: words out of 2^63 per integer."""
    blocks = np.diff(np.array([0, *map(int, table.thresholds), TOP], object)).tolist()
    places = np.diff(np.array([0, *map(int, table.places), TOP], object)).tolist()
    found = {}
    for block, words in enumerate(blocks, start=table.low):
        for place, more in enumerate(places):
            x = block * table.width + place if block >= 0 else (block + 1) * table.width - 1 - place
            found[x] = Fraction(words, TOP) * Fraction(more, TOP)
    return found


def distance(table: Table, exact: dict[int, Fraction]) -> Fraction:
    given = drawn(table)
    inside = sum(abs(exact.get(x, Fraction(0)) - given.get(x, Fraction(0))) for x in exact.keys() | given.keys())
    return (inside + (1 - sum(exact.values()))) / 2


def random_words(number: int, key: bytes = KEY) -> np.ndarray:
    ids = np.arange(2 * number, dtype=np.uint64).reshape(-1, 2)
    return draws([key], None, ids, None, None)


def too_large(statistic: float, freedom: int) -> bool:
    """Beyond the 0.9999 quantile of chi-square, by Wilson and Hilferty."""
    spread = 2 / (9 * freedom)
    return statistic > freedom * (1 - spread + 3.72 * sqrt(spread)) ** 3


def chi_square_rejects(sample: np.ndarray, exact: dict[int, Fraction]) -> bool:
    number = len(sample)
    cells: list[tuple[int, float]] = []
    counted = dict(zip(*(part.tolist() for part in np.unique(sample, return_counts=True))))
    seen, expected, left_seen, left = 0, 0.0, number, float(number)
    for x in sorted(exact):
        seen += counted.get(x, 0)
        expected += float(exact[x]) * number
        if expected >= 50 and left - expected >= 50:
            cells.append((seen, expected))
            left_seen -= seen
            left -= expected
            seen, expected = 0, 0.0
    cells.append((left_seen, left))
    return too_large(sum((found - wanted) ** 2 / wanted for found, wanted in cells), len(cells) - 1)


class TestDistance:
    @pytest.mark.parametrize("scale", [Fraction(1), Fraction(1, 2), Fraction(7, 3), Fraction(40), Fraction(1, 20)], ids=str)
    def test_laplace_states_its_exact_distance(self, scale: Fraction) -> None:
        table = laplace(scale)
        exact = distance(table, exact_laplace(scale, int(60 * scale) + 200))

        assert table.total_variation == pytest.approx(float(exact), rel=1e-9, abs=0)
        assert table.total_variation >= exact

    @pytest.mark.parametrize("sigma", [Fraction(1), Fraction(1, 3), Fraction(5, 2), Fraction(30)], ids=str)
    def test_gaussian_states_its_exact_distance(self, sigma: Fraction) -> None:
        table = gaussian(sigma)
        exact = distance(table, exact_gaussian(sigma, int(20 * sigma) + 40))

        assert table.total_variation == pytest.approx(float(exact), rel=1e-9, abs=0)
        assert table.total_variation >= exact

    def test_two_parts_are_at_most_as_far_as_they_state(self) -> None:
        scale = Fraction(300)
        table = laplace(scale)
        exact = distance(table, exact_laplace(scale, 60 * 300))

        assert table.width == 2
        assert exact <= table.total_variation < 4 * exact

    def test_two_parts_state_the_sum_of_both_distances(self) -> None:
        """Block b holds the integers from width * b on, or down to it: a sum of the exact weights of its integers."""
        scale = Fraction(300)
        table = laplace(scale)
        exact = exact_laplace(scale, 60 * 300)
        blocks: dict[int, Fraction] = {}
        for x, weight in exact.items():
            block = x // table.width if x >= 0 else -1 - (-1 - x) // table.width
            blocks[block] = blocks.get(block, Fraction(0)) + weight
        first = exact[0] + exact[1]
        places = {0: exact[0] / first, 1: exact[1] / first}
        of_blocks = distance(Table(table.thresholds, table.low, 0.0), blocks)
        of_places = distance(Table(table.places, 0, 0.0), places)

        assert table.width == 2
        assert table.total_variation == pytest.approx(float(of_blocks + of_places), rel=1e-9, abs=0)
        assert of_places > of_blocks / 10**6

    @pytest.mark.parametrize(("scale", "bits"), [(1, 59), (10, 55), (1_000, 51), (1_000_000, 50)])
    def test_laplace_is_as_near_as_documented(self, scale: int, bits: int) -> None:
        assert log2(laplace(Fraction(scale)).total_variation) < -bits

    @pytest.mark.parametrize(("sigma", "bits"), [(1, 61), (1_000, 51), (10_000, 48)])
    def test_gaussian_is_as_near_as_documented(self, sigma: int, bits: int) -> None:
        assert log2(gaussian(Fraction(sigma)).total_variation) < -bits

    @pytest.mark.parametrize("scale", [Fraction(1), Fraction(7, 3)], ids=str)
    def test_every_threshold_is_the_nearest_to_the_exact_one(self, scale: Fraction) -> None:
        table = laplace(scale)
        exact = exact_laplace(scale, 400)
        below = sum(weight for x, weight in exact.items() if x < table.low) + (1 - sum(exact.values())) / 2

        for x, threshold in enumerate(table.thresholds.tolist(), start=table.low):
            below += exact[x]
            assert abs(below * TOP - threshold) <= Fraction(1, 2) + Fraction(1, 10**9)

    @pytest.mark.parametrize(
        "table", [laplace(Fraction(1)), laplace(Fraction(300)), gaussian(Fraction(3))], ids=["laplace", "wide", "gaussian"]
    )
    def test_the_support_ends_where_tails_are_negligible(self, table: Table) -> None:
        support = [x for x, weight in drawn(table).items() if weight]

        assert max(map(abs, support)) == table.bound
        assert max(support) >= table.bound - 1
        assert max(support) >= (43 * 300 if table.width > 1 else 43 if table.bound > 30 else 27)


class TestSampling:
    @pytest.mark.parametrize("table", [laplace(Fraction(1)), gaussian(Fraction(5))], ids=["laplace", "gaussian"])
    def test_words_beside_every_threshold_fall_on_the_right_side(self, table: Table) -> None:
        thresholds = table.thresholds.tolist()
        words = [0, TOP - 1] + [threshold + step for threshold in thresholds for step in (-1, 0, 1)]
        expected = [table.low + bisect_right(thresholds, word) for word in words]
        given = np.array([[word, 0] for word in words], np.uint64)

        assert table.sample(given).tolist() == expected

    def test_two_parts_reach_every_integer_once(self) -> None:
        table = laplace(Fraction(600))
        first = np.array([0, *table.thresholds[:-1].tolist(), int(table.thresholds[-1])], np.uint64)
        second = np.array([0, *table.places.tolist()], np.uint64)
        words = np.stack([np.repeat(first, len(second)), np.tile(second, len(first))], axis=1)
        found = table.sample(words)

        assert table.width == 3
        # In the farthest tails some integers have less than half a word of 2^63.
        assert sorted(x for x in found.tolist() if abs(x) < 20_000) == list(range(-19_999, 20_000))

    def test_signed_words_are_refused(self) -> None:
        with pytest.raises(TypeError):
            laplace(Fraction(1)).sample(np.zeros((1, 2), np.int64))

    @pytest.mark.parametrize(
        ("table", "exact"),
        [
            (laplace(Fraction(1)), exact_laplace(Fraction(1), 60)),
            (laplace(Fraction(3, 2)), exact_laplace(Fraction(3, 2), 90)),
            (laplace(Fraction(700)), exact_laplace(Fraction(700), 20_000)),
            (gaussian(Fraction(2)), exact_gaussian(Fraction(2), 30)),
            (gaussian(Fraction(100)), exact_gaussian(Fraction(100), 1_000)),
        ],
        ids=["laplace", "laplace, a half", "laplace, two parts", "gaussian", "gaussian, wide"],
    )
    def test_keyed_draws_pass_chi_square(self, table: Table, exact: dict[int, Fraction]) -> None:
        assert not chi_square_rejects(table.sample(random_words(300_000)), exact)

    @pytest.mark.parametrize("scale", [Fraction(98, 100), Fraction(102, 100)], ids=["2 % too small", "2 % too large"])
    def test_chi_square_sees_a_scale_that_is_slightly_wrong(self, scale: Fraction) -> None:
        assert chi_square_rejects(laplace(scale).sample(random_words(300_000)), exact_laplace(Fraction(1), 60))

    def test_chi_square_sees_two_parts_joined_by_one_word(self) -> None:
        words = random_words(300_000)
        words[:, 1] = words[:, 0]

        assert chi_square_rejects(laplace(Fraction(700)).sample(words), exact_laplace(Fraction(700), 20_000))


class TestLimits:
    @pytest.mark.parametrize("make", [laplace, gaussian])
    @pytest.mark.parametrize("scale", [Fraction(1_000_001), Fraction(1, 100), Fraction(0), Fraction(-1)], ids=str)
    def test_a_scale_without_a_table_is_refused(self, make: object, scale: Fraction) -> None:
        with pytest.raises(ValueError, match=r"^EV217 .*grid"):
            make(scale)  # type: ignore[operator]

    def test_the_gaussian_limit_is_lower(self) -> None:
        with pytest.raises(ValueError, match=r"^EV217 sigma is more than 100,000 steps"):
            gaussian(Fraction(100_001))

    @pytest.mark.parametrize("scale", [10_000, 1_000_000])
    def test_tables_stay_small(self, scale: int) -> None:
        table = laplace(Fraction(scale))

        assert table.thresholds.nbytes + table.places.nbytes < 1 << 20
        assert table.bound > 43 * scale

    def test_a_table_is_built_once(self) -> None:
        assert laplace(Fraction(5)) is laplace(Fraction(10, 2))

    def test_a_shared_table_cannot_be_changed(self) -> None:
        with pytest.raises(ValueError, match="read-only"):
            laplace(Fraction(5)).thresholds[0] = 1
