"""Rows that came twice: one of them is enough; rows that differ are not the same."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pyarrow as pa
import pytest

from eventveil.pipeline.twins import without_twins
from eventveil.transforms.batch import ORDER


def batch(rows: Sequence[tuple[int, str | None]]) -> pa.RecordBatch:
    ids = pa.array([bytes([number]) * 16 for number, _ in rows], pa.binary(16))
    return pa.RecordBatch.from_arrays([pa.array([text for _, text in rows], pa.string()), ids], ["text", ORDER])


def left(batches: Sequence[pa.RecordBatch]) -> tuple[list[tuple[int, str | None]], int]:
    kept, rows = without_twins(lambda: iter(batches))
    found = [(one[0], text) for each in kept() for text, one in zip(each["text"].to_pylist(), each[ORDER].to_pylist())]
    # Asked again they are the same.
    assert len(found) == rows == sum(each.num_rows for each in kept())
    return found, rows


def test_of_rows_that_are_the_same_the_first_stays() -> None:
    assert ([(1, "a"), (2, "a"), (3, None)], 3) == left([batch([(1, "a"), (2, "a"), (1, "a")]), batch([(3, None), (2, "a"), (3, None)])])


def test_rows_of_one_id_that_differ_all_stay() -> None:
    assert ([(1, "a"), (1, "b"), (1, None)], 3) == left([batch([(1, "a"), (1, "b")]), batch([(1, None), (1, "b")])])


@pytest.mark.parametrize("batches", [[], [batch([])], [batch([(1, "a")]), batch([])]])
def test_without_twins_nothing_changes(batches: list[pa.RecordBatch]) -> None:
    assert sum(one.num_rows for one in batches) == left(batches)[1]


def test_how_they_lie_in_batches_does_not_show() -> None:
    seeded = random.Random(7)
    rows = [(n % 40, seeded.choice(["a", "b", None])) for n in range(300)]
    expected = sorted(set(rows), key=str)
    for _ in range(5):
        seeded.shuffle(rows)
        cuts = sorted(seeded.sample(range(1, 300), 4))
        slices = [batch(rows).slice(start, end - start) for start, end in zip([0, *cuts], [*cuts, 300])]
        assert expected == sorted(left(slices)[0], key=str)
