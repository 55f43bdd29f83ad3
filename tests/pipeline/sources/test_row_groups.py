"""Parquet: rows by row groups, numbered through the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eventveil.pipeline.sources.files import list_ranges, read_range
from eventveil.schemas.errors import StorageError
from eventveil.transforms.batch import part_of

ROWS = [
    {"id": f"order {number}", "lines": [{"sku": "s", "q": number}] * (number % 3), "note": None if number % 5 else "x"}
    for number in range(400)
]
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("lines", pa.list_(pa.struct([("sku", pa.string()), ("q", pa.int64())]))),
        ("note", pa.string()),
    ]
)


def written(path: Path, rows: list[dict[str, Any]] = ROWS, **options: Any) -> str:
    file = path / "orders.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata({"made by": "somebody"})), file, **options)
    return str(file)


def read(path: str, part_bytes: int = 32 << 20, batch_bytes: int = 4 << 20) -> list[tuple[int, dict[str, Any]]]:
    found = []
    parts = []
    for piece in list_ranges([path], part_bytes=part_bytes):
        for batch in read_range(piece, batch_bytes, part_bytes):
            batch.validate(full=True)
            part = part_of(batch)
            assert part is not None
            parts.append(part)
            assert ["row", "position"] == batch.schema.names
            positions = batch.column("position").to_pylist()
            assert all(position >= part.start for position in positions)
            found += list(zip(positions, batch.column("row").to_pylist()))
    for start in {part.start for part in parts}:
        of_part = [(part.number, part.last) for part in parts if part.start == start]
        assert of_part == [(number, number == len(of_part) - 1) for number in range(len(of_part))]
    return found


@pytest.mark.parametrize("row_group_size", [1000, 150, 7])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip"])
def test_every_row_once_at_its_number_however_it_is_cut(tmp_path: Path, row_group_size: int, compression: str) -> None:
    path = written(tmp_path, row_group_size=row_group_size, compression=compression)
    want = list(enumerate(ROWS))

    assert want == read(path)
    for part_bytes, batch_bytes in ((1, 1 << 20), (700, 100), (3000, 1)):
        assert want == read(path, part_bytes, batch_bytes)


def test_small_row_groups_share_a_range_and_large_ones_become_several_parts(tmp_path: Path) -> None:
    small = list_ranges([written(tmp_path, row_group_size=10)], part_bytes=4000)
    assert 1 < len(small) < 40
    assert [0, 40] == [small[0].start, small[-1].end]

    (large,) = list_ranges([written(tmp_path, row_group_size=1000)], part_bytes=4000)
    starts = [part.start for part in map(part_of, read_range(large, part_bytes=4000)) if part]
    assert starts == sorted(starts)
    assert len(set(starts)) > 1


def test_no_rows_is_one_empty_part(tmp_path: Path) -> None:
    path = written(tmp_path, [])
    (batch,) = read_range(*list_ranges([path]))

    assert 0 == batch.num_rows
    assert pa.struct(list(SCHEMA)) == batch.schema.field("row").type
    assert part_of(batch).last  # type: ignore[union-attr]


def test_the_files_own_metadata_does_not_go_along(tmp_path: Path) -> None:
    (batch,) = read_range(*list_ranges([written(tmp_path)]))

    assert [b"eventveil.part", b"eventveil.kind"] == list(batch.schema.metadata or {})


class TestDamage:
    @pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" + bytes(40) + b"PAR1", b'{"a":1}\n' * 10])
    def test_what_is_no_parquet_file(self, tmp_path: Path, data: bytes) -> None:
        (tmp_path / "x.parquet").write_bytes(data)

        with pytest.raises(StorageError, match=r"x.parquet: EV403 not a Parquet file, or truncated"):
            list_ranges([str(tmp_path / "x.parquet")])

    def test_truncated(self, tmp_path: Path) -> None:
        path = Path(written(tmp_path))
        path.write_bytes(path.read_bytes()[:-100])

        with pytest.raises(StorageError, match="EV403"):
            list_ranges([str(path)])

    def test_a_damaged_page_never_ends_the_part(self, tmp_path: Path) -> None:
        path = Path(written(tmp_path, compression="zstd", write_page_checksum=True))
        data = bytearray(path.read_bytes())
        data[100] ^= 0x55
        path.write_bytes(data)
        seen = []

        with pytest.raises(StorageError, match="EV403 a row group at row 0 is damaged") as caught:
            seen += list(read_range(*list_ranges([str(path)]), batch_bytes=2000))
        assert not any(part.last for part in map(part_of, seen) if part)
        assert "order" not in str(caught.value).replace(str(path), "")
