"""Surroundings for operators: what the plan would give them, with fixed keys and ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from eventveil.schemas.durations import Duration
from eventveil.transforms.context import Context, RowContext, SubKeys
from eventveil.transforms.registry import Operator, Setting, find

DAY_US = 86_400_000_000
KEYS = (bytes(range(32)), bytes(range(32, 64)))
FILES = {
    "countries.csv": b"France;Europe;*\nGermany;Europe;*\nKenya;Africa;*\nPeru;America;*\n",
    "numbers.csv": b"true;yes\nfalse;no\n" + b"".join(b"%d;%d-%d\n" % (n, n // 10 * 10, n // 10 * 10 + 9) for n in range(-100, 100)),
}


@dataclass
class Refused:
    """Root row -> the code that it was first refused with."""

    codes: dict[int, str] = field(default_factory=dict)

    def refuse_rows(self, rows: npt.NDArray[np.int64], code: str, path: str, rule: str) -> None:
        for row in rows.tolist():
            self.codes.setdefault(row, code)


@dataclass(frozen=True)
class Surroundings:
    """The context of a column of `count` values; at the root, or each event holding one to three of them."""

    count: int
    nested: bool = False

    def rows(self) -> npt.NDArray[np.int64]:
        """The root row of each value."""
        if not self.nested:
            return np.arange(self.count, dtype=np.int64)
        return np.repeat(np.arange(self.count, dtype=np.int64), np.arange(self.count) % 3 + 1)[: self.count]

    def context(self, operator: Operator, refused: Refused, cut: npt.NDArray[np.int64] | slice = slice(None)) -> Context:
        """What `operator` has asked for, and no more, for the values at `cut`."""
        rows = self.rows()
        events = int(rows.max(initial=-1)) + 1
        number = np.arange(events, dtype=np.uint64)
        of_row: dict[str, Any] = {}
        needs = operator.needs()
        if "id" in needs:
            of_row["release_ids"] = np.stack([number * np.uint64(0x9E3779B97F4A7C15), number + np.uint64(7)], axis=1)
        if "subject" in needs:
            of_row["subjects"] = np.stack([number // np.uint64(2) + np.uint64(1), number // np.uint64(2) + np.uint64(3)], axis=1)
        if "time" in needs:
            of_row["window_start"] = np.full(events, 16_000 * DAY_US, np.int64)
            of_row["window_end"] = of_row["window_start"] + DAY_US
        codes = np.arange(events, dtype=np.int64) % len(KEYS) if operator.key_scope() == "window" else None
        if not self.nested:
            of_row = {name: values[cut] for name, values in of_row.items()}
            codes = None if codes is None else codes[cut]
            events = len(rows[cut])
        keys = None if operator.purpose is None else SubKeys(KEYS if codes is not None else KEYS[:1], codes)
        nested = self.nested
        element = np.arange(self.count, dtype=np.int64) - np.searchsorted(rows, rows) if nested else None
        return Context(
            batch=RowContext(events, **of_row),
            refusals=refused,
            path="a.b",
            rule="fields.a.b",
            row=rows[cut] if nested else None,
            element=element[cut] if element is not None else None,
            sub_keys=keys,
        )

    def run(
        self, operator: Operator, column: pa.Array[Any], cut: npt.NDArray[np.int64] | slice = slice(None)
    ) -> tuple[pa.Array[Any], dict[int, str]]:
        """The result for `column`, which stands at `cut`, and the codes of the refused root rows, counted without cut."""
        refused = Refused()
        result = operator.apply(column, self.context(operator, refused, cut))
        rows = np.arange(self.count + 1) if self.nested else self.rows()[cut]
        return result, {int(rows[row]): code for row, code in refused.codes.items()}


@dataclass(frozen=True)
class Treated:
    """What became of a column."""

    values: list[Any]
    type: pa.DataType
    refused: dict[int, str]
    counts: dict[str, int]


def settled(name: str, parameters: Mapping[str, Any], given: pa.DataType, **where: Any) -> Operator:
    """An operator in its place, as compile makes it. Raises ValidationError or ValueError as compile would see them."""
    cls = find(name)
    assert cls is not None and issubclass(cls, Operator)
    files = {**FILES, **where.pop("files", {})}
    place: dict[str, Any] = {"path": "a.b", "zone": "UTC", "is_event_time": False, "window": Duration(1, "d"), "nullable": True}
    return cls(**parameters).settle(Setting(given=given, read=files.__getitem__, **{**place, **where}))


@pytest.fixture(scope="session")
def surroundings() -> type[Surroundings]:
    return Surroundings


@pytest.fixture(scope="session")
def in_place() -> Callable[..., Operator]:
    return settled


@pytest.fixture(scope="session")
def treat() -> Callable[..., Treated]:
    """Run one operator over values of one type: `treat("mask", {"keep_last": 4}, ["4111"], pa.string())`."""

    def run(name: str, parameters: Mapping[str, Any], values: Any, given: pa.DataType | None = None, **where: Any) -> Treated:
        column = values if isinstance(values, pa.Array) else pa.array(values, given)
        operator = settled(name, parameters, column.type, **where)
        refused = Refused()
        context = Surroundings(len(column)).context(operator, refused)
        result = operator.apply(column, context)
        result.validate(full=True)
        assert result.type == (operator.stands_in or operator.returns(column.type))
        return Treated(result.to_pylist(), result.type, refused.codes, context.counts)

    return run
