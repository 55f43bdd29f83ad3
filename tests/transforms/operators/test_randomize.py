from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from math import exp
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from eventveil.transforms.context import Context, RowContext, SubKeys
from eventveil.transforms.operators.randomize import Randomize
from eventveil.transforms.registry import Setting

KEY = bytes(range(32))
PAYMENT = ["card", "cash", "invoice", "voucher"]
SETTING = Setting("payment", "UTC", False, None, pa.string(), True, lambda name: b"")


class Refusals:
    def __init__(self) -> None:
        self.codes: dict[int, str] = {}

    def refuse_rows(self, rows: np.ndarray, code: str, path: str, rule: str) -> None:
        for row in rows.tolist():
            self.codes.setdefault(row, code)


def randomize(**parameters: Any) -> Randomize:
    return Randomize.model_validate({"per": "event", "epsilon": 1, "choices": PAYMENT, **parameters})


def surroundings(rows: int, events: Sequence[int] | None = None, subjects: Sequence[int] | None = None, key: bytes = KEY) -> Context:
    ids = np.array([(n, 7) for n in (range(rows) if events is None else events)], np.uint64)
    people = np.array([(n, 9) for n in (range(rows) if subjects is None else subjects)], np.uint64)
    return Context(RowContext(rows, ids, people), Refusals(), "payment", "fields.payment", sub_keys=SubKeys([key]))


def run(operator: Randomize, values: pa.Array[Any], context: Context | None = None) -> list[Any]:
    result = operator.apply(values, context or surroundings(len(values)))
    result.validate(full=True)
    assert result.type == values.type
    return result.to_pylist()


class TestDistribution:
    NUMBER = 60_000

    @pytest.mark.parametrize("epsilon", ["0.1", "1", "2.5"])
    @pytest.mark.parametrize(
        ("choices", "kind"),
        [(PAYMENT, pa.string()), ([True, False], pa.bool_()), ([3, 1, -4], pa.int32()), ([2**40, 0], pa.int64())],
        ids=["text", "bool", "int32", "int64"],
    )
    def test_chi_square_for_every_true_value(self, epsilon: str, choices: list[Any], kind: pa.DataType) -> None:
        operator = randomize(epsilon=epsilon, choices=choices)
        others = len(choices) - 1
        keep = exp(float(epsilon)) / (exp(float(epsilon)) + others)
        for value in choices:
            counted = Counter(run(operator, pa.array([value] * self.NUMBER, kind)))
            expected = {choice: self.NUMBER * (keep if choice == value else (1 - keep) / others) for choice in choices}
            statistic = sum((counted[choice] - number) ** 2 / number for choice, number in expected.items())

            assert set(counted) == set(choices)
            assert statistic < {1: 15.2, 2: 18.5, 3: 21.2}[others]  # 0.9999

    def test_probability_of_keeping_is_exact(self) -> None:
        assert float(randomize().keeps()) == pytest.approx(exp(1) / (exp(1) + 3), rel=1e-15)
        assert float(randomize(epsilon=32).keeps()) == pytest.approx(1 / (1 + 3 * exp(-32)), rel=1e-15)

    @pytest.mark.parametrize("choices", [PAYMENT, ["a", "b"], [str(n) for n in range(101)]], ids=["4", "2", "101"])
    def test_total_variation_is_that_of_the_words(self, choices: list[str]) -> None:
        operator = randomize(choices=choices)
        others = len(choices) - 1
        top = 1 << 63
        keep = Fraction(operator._threshold(), top)
        # How many second words give each of the others: floor(word * others / 2^63) = j.
        bounds = [-(-j * top // others) for j in range(others + 1)]
        drawn = [keep] + [(1 - keep) * Fraction(b - a, top) for a, b in pairwise(bounds)]
        exact = [operator.keeps()] + [(1 - operator.keeps()) / others] * others
        distance = sum(abs(one - other) for one, other in zip(drawn, exact)) / 2

        assert sum(drawn) == 1
        assert operator.total_variation() == pytest.approx(float(distance), rel=1e-9, abs=0)
        assert operator.total_variation() < 2.0**-59

    def test_spent_epsilon_is_the_largest_ratio(self) -> None:
        operator = randomize(epsilon="0.7")
        keep = operator.keeps()

        assert float(keep / ((1 - keep) / 3)) == pytest.approx(exp(0.7), rel=1e-15)


class TestDraws:
    OF = pa.array(PAYMENT * 100)

    def test_a_replay_is_equal_whatever_the_batch_and_its_order(self) -> None:
        operator = randomize()
        whole = run(operator, self.OF)
        cut = [
            run(operator, self.OF[n : n + 7], surroundings(len(self.OF[n : n + 7]), range(n, min(n + 7, 400)))) for n in range(0, 400, 7)
        ]

        assert run(operator, self.OF) == whole
        assert [value for part in cut for value in part] == whole
        assert run(operator, self.OF.take(pa.array(range(399, -1, -1))), surroundings(400, range(399, -1, -1))) == whole[::-1]

    def test_the_value_enters_the_draw(self) -> None:
        """Else a correction would be kept or replaced just as the first value was."""
        operator = randomize(choices=["a", "b"])
        kept = [value == "a" for value in run(operator, pa.array(["a"] * 2000))]
        corrected = [value == "b" for value in run(operator, pa.array(["b"] * 2000))]
        alike = sum(a == b for a, b in zip(kept, corrected))
        keep = float(operator.keeps())

        assert alike == pytest.approx(2000 * (keep**2 + (1 - keep) ** 2), abs=110)

    def test_together_leaves_it_out(self) -> None:
        operator = randomize(choices=["a", "b"], together="stay")
        kept = [value == "a" for value in run(operator, pa.array(["a"] * 500))]

        assert kept == [value == "b" for value in run(operator, pa.array(["b"] * 500))]
        assert operator.key_info("x", 0, pa.string()) == operator.key_info("y", 1, pa.string())
        assert operator.key_info("x", 0, pa.string()) != randomize(choices=["b", "a"], together="stay").key_info("x", 0, pa.string())

    def test_per_subject_repeats_for_equal_values_of_one_subject(self) -> None:
        operator = randomize(per="subject", epsilon="0.01")
        found = run(operator, pa.array(["card"] * 200), surroundings(200, subjects=[n % 20 for n in range(200)]))

        assert found == found[:20] * 10
        assert len(set(found[:20])) > 2
        assert operator.needs() == {"subject"}

    def test_another_key_or_event_is_another_draw(self) -> None:
        operator = randomize(epsilon="0.01")
        first = run(operator, self.OF)
        others = [run(operator, self.OF, surroundings(400, key=bytes(32))), run(operator, self.OF, surroundings(400, range(1000, 1400)))]

        assert all(sum(a == b for a, b in zip(first, other)) < 200 for other in others)


class TestPlaces:
    def test_what_is_no_choice_is_refused(self) -> None:
        context = surroundings(5)
        found = run(randomize(), pa.array(["card", "Card", "", None, "cash"]), context)

        assert context.refusals.codes == {1: "EV527", 2: "EV527", 3: "EV526"}  # type: ignore[attr-defined]
        assert set(found) <= set(PAYMENT)

    def test_a_null_becomes_a_choice_before_the_draw(self) -> None:
        context = surroundings(300)
        operator = randomize(null="cash")

        assert run(operator, pa.nulls(300, pa.string()), context) == run(operator, pa.array(["cash"] * 300))
        assert context.refusals.codes == {}  # type: ignore[attr-defined]

    def test_false_is_a_choice_that_a_null_may_become(self) -> None:
        operator = randomize(choices=[True, False], null=False, epsilon=32)

        assert run(operator, pa.array([None, True])) == [False, True]

    def test_the_result_is_never_null(self) -> None:
        assert not randomize().nullable(True)

    @pytest.mark.parametrize(
        ("choices", "accepted"),
        [(PAYMENT, [pa.string()]), ([1, 2], [pa.int32(), pa.int64()]), ([True, False], [pa.bool_()])],
        ids=["text", "numbers", "booleans"],
    )
    def test_accepts_the_type_of_its_choices(self, choices: list[Any], accepted: list[pa.DataType]) -> None:
        kinds = [pa.string(), pa.int32(), pa.int64(), pa.bool_(), pa.float64(), pa.binary()]

        assert [kind for kind in kinds if randomize(choices=choices).returns(kind) is not None] == accepted

    def test_a_choice_beyond_int32_is_no_policy(self) -> None:
        with pytest.raises(ValueError, match=r"^EV217 a choice lies outside int32"):
            randomize(choices=[1, 2**31]).settle(Setting("n", "UTC", False, None, pa.int32(), True, lambda name: b""))


class TestParameters:
    @pytest.mark.parametrize(
        ("given", "fact"),
        [
            ({"epsilon": 0}, "EV103 epsilon"),
            ({"epsilon": 33}, "EV103 epsilon"),
            ({"choices": ["a"]}, "choices"),
            ({"choices": ["a", "a"]}, "EV103 a choice stands twice"),
            ({"choices": ["a", 1]}, "EV103 choices are of one kind"),
            ({"choices": [True, 1]}, "EV103 choices are of one kind"),
            ({"choices": [0.5, 1.5]}, "choices"),
            ({"null": "cheque"}, "EV103 null is refuse or one of the choices"),
            ({"choices": [1, 2], "null": True}, "EV103 null is refuse or one of the choices"),
            ({"per": "batch"}, "per"),
        ],
        ids=[
            "no epsilon",
            "huge epsilon",
            "one choice",
            "twice",
            "two kinds",
            "true is not 1",
            "floats",
            "null",
            "true is not null: 1",
            "per",
        ],
    )
    def test_wrong_ones(self, given: dict[str, Any], fact: str) -> None:
        with pytest.raises(ValidationError, match=fact):
            randomize(**given)


class TestWarnings:
    def test_says_what_is_spent_and_kept(self) -> None:
        said = "\n".join(randomize(epsilon=1, choices=["a", "b"]).warnings(SETTING))

        assert "spends epsilon 1 and delta " in said and "73% of values stay as they are" in said
        assert "averaging discloses it" in said

    def test_per_subject_does_not_average_out(self) -> None:
        assert "averaging" not in "\n".join(randomize(per="subject").warnings(SETTING))
