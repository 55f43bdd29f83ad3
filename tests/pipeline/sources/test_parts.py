"""Parts are bounded by rows as well as by bytes, and are cut at the same rows whatever the batches."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest

from eventveil.pipeline.sources._parts import mark_parts
from eventveil.transforms.batch import part_of


def pieces(sizes: list[int]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """One part of rows at positions 100, 102, ..., in batches of these sizes."""
    row = 0
    for size in sizes:
        positions = pa.array(range(100 + 2 * row, 100 + 2 * (row + size), 2), pa.int64())
        yield 100, pa.RecordBatch.from_arrays([pa.array([b"x"] * size, pa.binary()), positions], ["value", "position"])
        row += size


@pytest.mark.parametrize("sizes", [[25], [1] * 25, [7, 11, 7], [0, 10, 0, 15]], ids=["whole", "single", "uneven", "empty between"])
def test_a_part_with_many_rows_becomes_several_at_the_same_rows(sizes: list[int]) -> None:
    found: dict[int, list[int]] = {}
    ended = []
    for batch in mark_parts("file", pieces(sizes), part_rows=10, batch_rows=4):
        part = part_of(batch)
        assert part is not None
        assert batch.num_rows <= 4
        found.setdefault(part.start, []).extend(batch.column("position").to_pylist())
        ended += [part.start] * part.last

    assert list(found) == [100, 120, 140]
    assert [len(rows) for rows in found.values()] == [10, 10, 5]
    assert [row for rows in found.values() for row in rows] == list(range(100, 150, 2))
    assert ended == [100, 120, 140]
