"""renumber: 1..n within each event, by first appearance; within a window, the digests that wait to be numbered."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from eventveil.schemas.durations import Duration
from eventveil.transforms.context import Context, RowContext, SubKeys
from eventveil.transforms.operators.renumber import Renumber
from eventveil.transforms.registry import GroupOperator, Setting

RULE = Renumber(scope="event", **{"class": "thing"})
KEYS = (bytes(range(32)), bytes(range(32, 64)))


def setting(given: pa.DataType) -> Setting:
    return Setting("lines[].id", "UTC", False, Duration(1, "d"), given, True, lambda name: b"")


class _NoRefusals:
    def refuse_rows(self, rows: Any, code: str, path: str, rule: str) -> None:
        raise AssertionError("renumber refuses nothing")


def renumbered(*columns: tuple[Sequence[Any] | pa.Array[Any], Sequence[int] | None]) -> list[list[Any]]:
    """Columns with the event of each value; None where values are events themselves."""
    arrays = [values if isinstance(values, pa.Array) else pa.array(values, pa.string()) for values, _ in columns]
    contexts = [
        Context(RowContext(100), _NoRefusals(), "a", "fields.a", row=None if events is None else np.array(events, np.int64))
        for _, events in columns
    ]
    results = RULE.apply_together(arrays, contexts)
    for array, result in zip(arrays, results):
        result.validate(full=True)
        assert pa.int64() == result.type == RULE.returns(array.type)
    return [result.to_pylist() for result in results]


def one_by_one(columns: Sequence[tuple[Sequence[Any], Sequence[int]]]) -> list[list[int | None]]:
    """The same, in plain Python."""
    seen: dict[int, dict[Any, int]] = {}
    out: list[list[int | None]] = []
    for values, events in columns:
        out.append([])
        for value, event in zip(values, events):
            numbers = seen.setdefault(event, {})
            out[-1].append(None if value is None else numbers.setdefault(value, len(numbers) + 1))
    return out


class TestOneColumn:
    def test_by_first_appearance_in_each_event(self) -> None:
        assert [[1, 2, 1, 1, 2, 3]] == renumbered((["b", "a", "b", "a", "c", "b"], [0, 0, 0, 1, 1, 1]))

    def test_values_that_are_events_are_all_the_first(self) -> None:
        assert [[1, 1, None, 1]] == renumbered((["b", "a", None, "b"], None))

    def test_null_takes_no_number(self) -> None:
        assert [[None, 1, None, 2, 1]] == renumbered(([None, "a", None, "b", "a"], [0] * 5))

    def test_nothing_and_nothing_but_null(self) -> None:
        assert [[]] == renumbered(([], []))
        assert [[None, None]] == renumbered(([None, None], [0, 0]))

    def test_equal_canonical_values_are_one(self) -> None:
        assert [[1, 1, 2]] == renumbered((["Zo\u00eb", "Zoe\u0308", "Zoe"], [0] * 3))
        assert [[1, 1, 2]] == renumbered((pa.array([-0.0, 0.0, 1.0]), [0] * 3))

    @pytest.mark.parametrize(
        "values", [pa.array([3, 1, 3]), pa.array([True, False, True]), pa.array(["x", "y", "x"]).dictionary_encode()], ids=str
    )
    def test_other_types(self, values: pa.Array[Any]) -> None:
        assert [[1, 2, 1]] == renumbered((values, [0] * 3))

    def test_a_slice_gives_the_slice(self) -> None:
        assert [[1, 2, 1]] == renumbered((pa.array(["x", "b", "a", "b", "x"]).slice(1, 3), [4] * 3))


class TestSeveralColumns:
    def test_share_their_numbers_in_the_order_given(self) -> None:
        head, lines = renumbered((["b", "a"], None), (["a", "b", "c", "a", "c"], [0, 0, 0, 1, 1]))

        assert [1, 1] == head
        assert [2, 1, 3, 1, 2] == lines

    def test_all_null_in_one(self) -> None:
        assert [[None, None], [1, 1]] == renumbered(([None, None], None), (["a", "a"], None))

    def test_as_one_by_one(self) -> None:
        seeded = random.Random(7)
        for _ in range(50):
            columns = []
            for _ in range(seeded.randrange(1, 4)):
                events = sorted(seeded.randrange(6) for _ in range(seeded.randrange(30)))
                columns.append(([seeded.choice(["a", "b", "c", "", None]) for _ in events], events))

            assert one_by_one(columns) == renumbered(*columns)


class TestInItsPlace:
    def test_class_defaults_to_the_leaf(self) -> None:
        settled = [rule.settle(setting(pa.string())) for rule in (Renumber(scope="event"), RULE)]

        assert ["lines[].id", "thing"] == [rule.group() for rule in settled if isinstance(rule, GroupOperator)]

    def test_lists_are_not_accepted(self) -> None:
        assert RULE.returns(pa.list_(pa.string())) is None

    @pytest.mark.parametrize(
        "parameters", [{}, {"scope": "batch"}, {"scope": "event", "class": ""}, {"scope": "event", "start": 0}], ids=str
    )
    def test_wrong_parameters_are_refused(self, parameters: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            Renumber(**parameters)


def within_window(values: Any, keys: Sequence[bytes] = KEYS[:1], codes: Sequence[int] | None = None, class_: str = "thing") -> list[Any]:
    """The digests that stand in for values; `codes`: under which of the keys each is."""
    column = values if isinstance(values, pa.Array) else pa.array(values, pa.string())
    operator = Renumber(scope="window", **{"class": class_}).settle(setting(column.type))
    sub_keys = SubKeys(keys, None if codes is None else np.array(codes, np.int64))
    result = operator.apply(column, Context(RowContext(len(column)), _NoRefusals(), "a", "fields.a", sub_keys=sub_keys))
    result.validate(full=True)
    assert pa.binary(16) == result.type == operator.stands_in
    assert pa.int64() == operator.returns(column.type)
    return result.to_pylist()


class TestWithinAWindow:
    def test_a_digest_is_the_keyed_blake2b_of_the_canonical_value(self) -> None:
        expected = [hashlib.blake2b(value.encode(), key=KEYS[0], digest_size=16).digest() for value in ("Zo\u00eb", "", "b")]

        assert [*expected, None, expected[0]] == within_window(["Zoe\u0308", "", "b", None, "Zo\u00eb"])
        assert [hashlib.blake2b((7).to_bytes(8, "big"), key=KEYS[0], digest_size=16).digest()] == within_window(pa.array([7], pa.int32()))

    def test_each_key_window_has_its_own(self) -> None:
        one, other, again, nothing = within_window(["a", "a", "a", None], KEYS, [0, 1, 0, 1])

        assert one == again != other
        assert nothing is None

    def test_nothing_and_nothing_but_null(self) -> None:
        assert [] == within_window([])
        assert [] == within_window([], ())
        assert [None, None] == within_window([None, None])

    def test_the_sub_key_is_that_of_class_and_type_wherever_they_stand(self) -> None:
        rule = Renumber(scope="window", **{"class": "thing"}).settle(setting(pa.string()))

        assert ("class", "thing", "s") == tuple(rule.key_info("a", 0, pa.string())) == tuple(rule.key_info("b[].c", 3, pa.string()))
        assert ("class", "thing", "i") == tuple(rule.key_info("a", 0, pa.int64()))
        assert "renumber" == rule.purpose
        assert "window" == rule.key_scope()

    def test_class_defaults_to_the_leaf(self) -> None:
        assert ("class", "lines[].id", "s") == Renumber(scope="window").settle(setting(pa.string())).key_info("", 0, pa.string())

    def test_says_that_it_is_pseudonymous(self) -> None:
        rule = Renumber(scope="window")

        assert rule.discloses() == rule.settle(setting(pa.string())).discloses()
        assert rule.discloses().startswith("pseudonymous: ")
        assert rule.discloses() != RULE.discloses()

    def test_is_no_group(self) -> None:
        """Value by value: what belongs together is only known when the window closes."""
        assert not isinstance(Renumber(scope="window").settle(setting(pa.string())), GroupOperator)
        assert isinstance(RULE.settle(setting(pa.string())), GroupOperator)
