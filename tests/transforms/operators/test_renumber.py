"""renumber: 1..n within each event, by first appearance."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from eventveil.schemas.durations import Duration
from eventveil.transforms.context import Context, RowContext
from eventveil.transforms.operators.renumber import Renumber
from eventveil.transforms.registry import Setting

RULE = Renumber(scope="event", **{"class": "thing"})


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
        setting = Setting("lines[].id", "UTC", False, Duration(1, "d"), pa.string(), True, lambda name: b"")

        assert "lines[].id" == Renumber(scope="event").settle(setting).group()
        assert "thing" == RULE.settle(setting).group()

    def test_lists_are_not_accepted(self) -> None:
        assert RULE.returns(pa.list_(pa.string())) is None

    def test_window_is_not_available_yet(self) -> None:
        with pytest.raises(ValidationError, match="EV111"):
            Renumber(scope="window")  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "parameters", [{}, {"scope": "batch"}, {"scope": "event", "class": ""}, {"scope": "event", "start": 0}], ids=str
    )
    def test_wrong_parameters_are_refused(self, parameters: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            Renumber(**parameters)
