"""What an operator may know about the values it treats: per rule and batch, finished sub-keys and no keyring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ["Context", "Refusals", "RowContext", "SubKeys"]

Int64s = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]


class Refusals(Protocol):
    """Collects refused rows. The first refusal of a row is the one it is told by; rules run in the order of the schema's leaves."""

    def refuse_rows(self, rows: Int64s, code: str, path: str, rule: str) -> None: ...


@dataclass(frozen=True)
class SubKeys:
    """Finished sub-keys for the values of one rule.

    Attributes:
        keys: one 32-byte sub-key per distinct key window in the batch.
        codes: for each root row the index into `keys`; None when there is just one key.
    """

    keys: Sequence[bytes]
    codes: Int64s | None = None


@dataclass(frozen=True)
class RowContext:
    """Computed once per batch, per root row.

    Attributes:
        rows: number of root rows.
        release_ids: (rows, 2) words: the keyed id of each event; None where the policy names no id.
        subjects: (rows, 2) words: the keyed digest of each subject; None where the policy names none.
        window_start, window_end: microseconds since 1970 of each row's release window; None without event time.
    """

    rows: int
    release_ids: Words | None = None
    subjects: Words | None = None
    window_start: Int64s | None = None
    window_end: Int64s | None = None


@dataclass(frozen=True)
class Context:
    """The surroundings of one column of values.

    Attributes:
        row: for each value the root row it belongs to; None where values are root rows themselves.
        element: for each value its number within its event, counted from 0 along the leaf's path; None at the root.
        sub_keys: finished sub-keys, if the operator asked for a purpose.
        path: the leaf's path in the event schema; rule: the place in the policy, as `fields.products[].price[1]`.
    """

    batch: RowContext
    refusals: Refusals
    path: str
    rule: str
    row: Int64s | None = None
    element: Int64s | None = None
    sub_keys: SubKeys | None = None
    counts: dict[str, int] = field(default_factory=dict)

    def release_ids(self) -> Words:
        """(values, 2) words: the keyed event id of each value's event."""
        assert self.batch.release_ids is not None, "compile asks for event.id where an operator draws per event"
        return self.lift(self.batch.release_ids)

    def subjects(self) -> Words:
        """(values, 2) words: the keyed subject digest of each value's event."""
        assert self.batch.subjects is not None, "compile asks for event.subject where an operator draws per subject"
        return self.lift(self.batch.subjects)

    def window_bounds(self) -> tuple[Int64s, Int64s]:
        """Start and end of each value's release window, in microseconds since 1970."""
        assert self.batch.window_start is not None and self.batch.window_end is not None, "compile asks for event.time"
        return self.lift(self.batch.window_start), self.lift(self.batch.window_end)

    def keys(self) -> tuple[Sequence[bytes], Int64s | None]:
        """The sub-keys, and for each value the index of its own; None when one key serves all."""
        assert self.sub_keys is not None, "compile provides sub-keys where an operator names a purpose"
        return self.sub_keys.keys, None if self.sub_keys.codes is None else self.lift(self.sub_keys.codes)

    def lift(self, per_row: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Values per root row -> values per element."""
        return per_row if self.row is None else per_row[self.row]

    def refuse(self, mask: pa.BooleanArray | Mask, code: str) -> None:
        """Refuse the events of the values where `mask` is true (null counts as false)."""
        if isinstance(mask, pa.Array):
            mask = np.asarray(mask.fill_null(False).to_numpy(zero_copy_only=False), dtype=bool)
        found = np.flatnonzero(mask)
        if len(found):
            self.refusals.refuse_rows(found if self.row is None else self.row[found], code, self.path, self.rule)

    def count(self, what: str, number: int) -> None:
        """Count something for the report, as values that went to `otherwise`."""
        if number:
            self.counts[what] = self.counts.get(what, 0) + number
