"""Which window a row waits for, when it is due, and how batches are cut into windows."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest

from eventveil.pipeline.gathering import Gathering, split_windows
from eventveil.schemas.durations import Duration
from eventveil.transforms.windows import WindowRule

MINUTE = 60_000_000


def gathering(size: str = "1min", lateness_us: int = 0, zone: str = "UTC") -> Gathering:
    return Gathering(WindowRule(Duration.parse(size), zone), lateness_us, released=True)


class TestDue:
    def test_a_window_is_due_when_it_has_ended(self) -> None:
        assert not gathering().is_due(0, MINUTE - 1)
        assert gathering().is_due(0, MINUTE)

    def test_lateness_keeps_it_open(self) -> None:
        assert not gathering(lateness_us=5).is_due(0, MINUTE + 4)
        assert gathering(lateness_us=5).is_due(0, MINUTE + 5)

    def test_without_a_watermark_none_is(self) -> None:
        assert not gathering().is_due(0, None)

    def test_a_day_ends_when_its_zone_says(self) -> None:
        # 2024-03-31 has 23 hours in Berlin, and begins at 23:00 UTC of the day before.
        start = 1_711_839_600_000_000

        assert start + 23 * 60 * MINUTE == gathering("1d", zone="Europe/Berlin").end_us(start)


class TestSplit:
    def test_each_window_has_its_rows_in_their_order(self) -> None:
        batch = pa.RecordBatch.from_pydict({"$window": [2, 1, 2, 0, 1], "n": [0, 1, 2, 3, 4]})

        assert [(0, [3]), (1, [1, 4]), (2, [0, 2])] == [(start, rows["n"].to_pylist()) for start, rows in split_windows(batch, "$window")]

    @pytest.mark.parametrize("starts", [[], [5], [5, 5, 5], [1, 1, 2, 2]], ids=["empty", "one row", "one window", "in order"])
    def test_short_ways_give_the_same(self, starts: list[int]) -> None:
        batch = pa.RecordBatch.from_pydict({"$window": pa.array(starts, pa.int64()), "n": pa.array(range(len(starts)), pa.int64())})
        found = {start: rows["n"].to_pylist() for start, rows in split_windows(batch, "$window")}

        assert {start: [row for row, one in enumerate(starts) if one == start] for start in starts} == found

    def test_a_slice_of_a_batch_is_cut_like_a_whole(self) -> None:
        rng = random.Random(7)
        starts = [rng.randrange(3) for _ in range(40)]
        batch = pa.RecordBatch.from_pydict({"$window": starts, "n": list(range(40))}).slice(7, 20)
        assert {0, 1, 2} == set(starts[7:27])
        found = {start: rows["n"].to_pylist() for start, rows in split_windows(batch, "$window")}

        assert {start: [row for row in range(7, 27) if starts[row] == start] for start in range(3)} == found

    def test_marks_stay(self) -> None:
        batch = pa.RecordBatch.from_pydict({"$window": [1, 0]}).replace_schema_metadata({"mark": "kept"})

        assert all(rows.schema.metadata == {b"mark": b"kept"} for _, rows in split_windows(batch, "$window"))
