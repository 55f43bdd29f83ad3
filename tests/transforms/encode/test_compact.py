"""What leaves holds no byte of what it does not show: searched in buffers and in files."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eventveil.transforms.encode.compact import compact, compact_batch
from eventveil.transforms.encode.parquet_rows import write_parquet

HIDDEN = [b"canary-1", b"canary-2", b"canary-3"]
HIDDEN_NUMBERS = [0x0BADCAFE0BADCAFE, 0x7EAD7EAD7EAD7EAD]


def bytes_of(array: pa.Array) -> bytes:
    """All buffers of an array, of its children and dictionaries, to the end of their memory."""
    found = b"".join(buffer.to_pybytes() for buffer in array.buffers() if buffer is not None)
    if pa.types.is_dictionary(array.type):
        found += bytes_of(array.dictionary)
    elif pa.types.is_list(array.type):
        found += bytes_of(array.values)
    return found


def texts() -> pa.Array:
    return pa.array(["canary-1", "shown-1", "canary-2", "shown-2", "canary-3"])


def masked(array: pa.Array, shown: list[bool]) -> pa.Array:
    """The array with nulls over values that stay in its buffers."""
    bits = pa.array(shown).buffers()[1]
    return pa.Array.from_buffers(array.type, len(array), [bits, *array.buffers()[1:]])


SHOWN = [False, True, False, True, False]
NUMBERS = [HIDDEN_NUMBERS[0], 1, HIDDEN_NUMBERS[1], 2, HIDDEN_NUMBERS[0]]
CASES = {
    "slice": texts().slice(1, 1),
    "masked-text": masked(texts(), SHOWN),
    "masked-slice": masked(texts(), SHOWN).slice(1, 3),
    "large-text": masked(texts().cast(pa.large_string()), SHOWN),
    "binary": masked(texts().cast(pa.binary()), SHOWN),
    "fixed": masked(pa.array([b"canary-1", b"shown-1-", b"canary-2", b"shown-2-", b"canary-3"], pa.binary(8)), SHOWN),
    "numbers": masked(pa.array(NUMBERS), SHOWN),
    "numbers-slice": pa.array(NUMBERS).slice(1, 1),
    "timestamps": masked(pa.array(NUMBERS).cast(pa.timestamp("us", "UTC")), SHOWN),
    "dictionary": texts().dictionary_encode().filter(pa.array(SHOWN)),
    "dictionary-in-list": pa.ListArray.from_arrays(pa.array([0, 1, 2]), texts().dictionary_encode().filter(pa.array(SHOWN))),
    "view": texts().cast(pa.string_view()).slice(1, 1),
    "struct": pa.StructArray.from_arrays([texts(), pa.array(NUMBERS)], names=["a", "b"], mask=pa.array([not shown for shown in SHOWN])),
    "struct-slice": pa.StructArray.from_arrays([texts(), pa.array(NUMBERS)], names=["a", "b"]).slice(3, 1),
    "list": pa.ListArray.from_arrays(pa.array([0, 1, 2, 3, 4, 5]), texts(), mask=pa.array([not shown for shown in SHOWN])),
    "list-slice": pa.ListArray.from_arrays(pa.array([0, 1, 2, 5]), texts()).slice(1, 1),
    "list-behind": pa.ListArray.from_arrays(pa.array([1, 2]), texts()),
    "large-list": pa.LargeListArray.from_arrays(pa.array([0, 1, 2, 5]), texts()).slice(1, 1),
    "fixed-list": pa.FixedSizeListArray.from_arrays(texts().slice(0, 4), 2, mask=pa.array([True, True])),
    "map": pa.MapArray.from_arrays(pa.array([0, 1, 2, 5]), texts(), pa.array(NUMBERS)).slice(1, 1),
    "null": pa.nulls(3),
    "empty": texts().slice(2, 0),
    "booleans": pa.array([True, None, False, True] * 5).slice(3, 9),
    "plain": texts().filter(pa.array(SHOWN)),
}


class TestCompact:
    @pytest.mark.parametrize("array", CASES.values(), ids=CASES.keys())
    def test_shows_the_same_and_hides_nothing(self, array: pa.Array) -> None:
        found = compact(array)
        found.validate(full=True)
        content = bytes_of(found)

        assert array.to_pylist() == found.to_pylist()
        assert not any(canary in content for canary in HIDDEN)
        assert not any(number.to_bytes(8, "little") in content for number in HIDDEN_NUMBERS)

    def test_the_cases_do_hide_something(self) -> None:
        hiding = {name for name, array in CASES.items() if any(canary in bytes_of(array) for canary in HIDDEN)}

        assert {
            "slice",
            "masked-text",
            "dictionary",
            "dictionary-in-list",
            "struct",
            "list",
            "list-behind",
            "map",
            "fixed-list",
            "empty",
        } <= hiding

    def test_a_batch_keeps_names_nullability_and_metadata(self) -> None:
        schema = pa.schema(
            [pa.field("a", pa.string(), nullable=False, metadata={"k": "v"}), pa.field("d", texts().dictionary_encode().type)], {"m": "x"}
        )
        batch = pa.RecordBatch.from_arrays([texts(), texts().dictionary_encode()], schema=schema).slice(1, 1)
        found = compact_batch(batch)

        assert (False, {b"k": b"v"}, {b"m": b"x"}) == (
            found.schema.field("a").nullable,
            found.schema.field("a").metadata,
            found.schema.metadata,
        )
        assert (pa.string(), batch.to_pylist()) == (found.schema.field("d").type, found.to_pylist())
        assert b"canary" not in b"".join(map(bytes_of, found.columns))


class TestParquet:
    def write(self, table: pa.Table) -> bytes:
        file = io.BytesIO()
        write_parquet(file, table, {"eventveil.policy": "orders"})
        assert not file.closed
        return file.getvalue()

    @pytest.mark.parametrize("name", [name for name in CASES if name != "null"])
    def test_a_file_holds_what_is_shown(self, name: str) -> None:
        column = CASES[name]
        content = self.write(pa.Table.from_arrays([column], ["v"]))
        file = pq.ParquetFile(io.BytesIO(content))
        table = file.read()

        assert column.to_pylist() == table.column("v").to_pylist()
        plain = b"".join(bytes_of(chunk) for chunk in table.column("v").chunks)
        assert not any(canary in plain or canary in content for canary in HIDDEN)
        assert b"orders" == file.schema_arrow.metadata[b"eventveil.policy"]

    def test_statistics_know_no_hidden_values(self) -> None:
        table = pa.Table.from_arrays([CASES["dictionary"]], ["v"])
        column = pq.ParquetFile(io.BytesIO(self.write(table))).metadata.row_group(0).column(0)

        assert ("ZSTD", "shown-1", "shown-2") == (column.compression, column.statistics.min, column.statistics.max)

    def test_the_same_rows_give_the_same_file(self) -> None:
        table = pa.table({"a": texts(), "n": [1, 2, 3, 4, 5]})
        cut = pa.Table.from_batches([*table.slice(0, 2).to_batches(), *table.slice(2).to_batches()])

        assert self.write(table) == self.write(cut)

    def test_no_rows_are_a_file_too(self) -> None:
        table = pa.table({"a": texts().dictionary_encode()}).slice(0, 0)

        assert [] == pq.read_table(io.BytesIO(self.write(table))).to_pylist()
        assert [] == pq.read_table(io.BytesIO(self.write(table.schema.empty_table()))).to_pylist()
