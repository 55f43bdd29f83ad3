"""Lists in, lists out: laying flat and folding lose nothing, whatever is null, empty or sliced."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventveil.transforms.nested import LevelSpec, OutLeaf, OutList, OutRecord, column, fold, lay_flat

ITEM = pa.struct([("x", pa.int64()), ("tags", pa.list_(pa.string()))])
EVENT = pa.struct([("a", pa.int64()), ("r", pa.struct([("items", pa.list_(ITEM))]))])
SPECS = (LevelSpec(-1), LevelSpec(0, ("r", "items")), LevelSpec(1, ("tags",)))

# The whole event back as it was, from the columns a, r.items[].x and r.items[].tags[].
TAGS = OutList(2, OutLeaf(2, pa.string(), True), True)
ITEMS = OutList(1, OutRecord((("x", OutLeaf(1, pa.int64(), True)), ("tags", TAGS)), (), True), True)
WHOLE = OutRecord((("a", OutLeaf(0, pa.int64(), True)), ("r", OutRecord((("items", ITEMS),), ("r",), True))), (), True)

tags = st.none() | st.lists(st.none() | st.text(max_size=3), max_size=3)
items = st.none() | st.lists(st.none() | st.fixed_dictionaries({"x": st.none() | st.integers(-5, 5), "tags": tags}), max_size=3)
records = st.none() | st.fixed_dictionaries({"items": items})
events = st.lists(st.none() | st.fixed_dictionaries({"a": st.integers(0, 9), "r": records}), max_size=8)


def there_and_back(batch: pa.StructArray) -> pa.Array:
    levels = lay_flat(batch, SPECS)
    slots = [column(levels[0].items, ("a",)), column(levels[1].items, ("x",)), levels[2].items]
    return fold(WHOLE, 0, levels, slots)


class TestThereAndBack:
    @settings(max_examples=200, deadline=None)
    @given(events)
    def test_every_shape_of_event_comes_back_as_it_was(self, rows: list[Any]) -> None:
        batch = pa.array(rows, EVENT)

        assert there_and_back(batch).to_pylist() == rows

    @settings(max_examples=200, deadline=None)
    @given(events, st.integers(0, 8), st.integers(0, 8))
    def test_a_slice_comes_back_as_the_slice(self, rows: list[Any], start: int, size: int) -> None:
        batch = pa.array(rows, EVENT).slice(min(start, len(rows)), size)

        assert there_and_back(batch).to_pylist() == batch.to_pylist()


class TestSpine:
    def test_elements_are_numbered_within_their_event_along_the_whole_path(self) -> None:
        rows = [
            {"a": 1, "r": {"items": [{"x": 1, "tags": ["p", "q"]}, {"x": 2, "tags": None}, {"x": 3, "tags": ["r"]}]}},
            {"a": 2, "r": None},
            {"a": 3, "r": {"items": [{"x": 4, "tags": ["s"]}]}},
        ]
        levels = lay_flat(pa.array(rows, EVENT), SPECS)

        assert levels[1].row is not None and levels[2].row is not None
        assert levels[1].row.tolist() == [0, 0, 0, 2]
        assert levels[2].row.tolist() == [0, 0, 0, 2]
        assert levels[2].element is not None
        assert levels[2].element.tolist() == [0, 1, 2, 0]

    @pytest.mark.parametrize("names", [("r", "items")], ids=["below a null record"])
    def test_a_column_below_a_null_record_is_null(self, names: tuple[str, ...]) -> None:
        # The child holds a value under the parent's null: it must not show.
        child = pa.StructArray.from_arrays([pa.array([[], []], pa.list_(ITEM))], ["items"], mask=pa.array([True, False]))
        batch = pa.StructArray.from_arrays([pa.array([1, 2]), child], ["a", "r"])

        assert column(batch, names).is_null().to_pylist() == [True, False]
