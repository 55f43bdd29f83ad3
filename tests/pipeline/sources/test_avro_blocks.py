"""Avro container files: each datum's exact bytes, at the same position however the file is cut."""

from __future__ import annotations

import bz2
import io
import json
import lzma
import random
import tracemalloc
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest

from eventveil.pipeline.sources import _avro_blocks
from eventveil.pipeline.sources._avro_datums import DatumError, datum_ends, walker_of
from eventveil.pipeline.sources.files import WRITER, list_ranges, read_range
from eventveil.schemas.errors import StorageError
from eventveil.transforms.batch import part_of

SCHEMA: dict[str, Any] = {
    "type": "record",
    "name": "shop.orders.Order",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "note", "type": ["null", "string"]},
        {"name": "late", "type": ["string", "null"]},
        {"name": "n", "type": "long"},
        {"name": "ok", "type": "boolean"},
        {"name": "rate", "type": "float"},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
        {"name": "state", "type": {"type": "enum", "name": "State", "symbols": ["A", "B"]}},
        {"name": "code", "type": {"type": "fixed", "name": "Code", "size": 3}},
        {"name": "lines", "type": {"type": "array", "items": {"type": "record", "name": "Line", "fields": [
            {"name": "sku", "type": "string"}, {"name": "q", "type": "int"}, {"name": "code", "type": "Code"}]}}},
        {"name": "first", "type": ["null", "Line"]},
        {"name": "weights", "type": {"type": "array", "items": "double"}},
        {"name": "props", "type": {"type": "map", "values": ["int", "string", "null"]}},
        {"name": "then", "type": ["null", "Order"]},
    ],
}  # fmt: skip
PARSED = fastavro.parse_schema(json.loads(json.dumps(SCHEMA)))


def order(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    def line() -> dict[str, Any]:
        return {"sku": "s" * rng.randint(0, 150), "q": rng.randint(-(2**31), 2**31 - 1), "code": b"xyz"}

    return {
        "id": f"order {rng.random()}",
        "note": rng.choice([None, "note"]),
        "late": rng.choice([None, "late"]),
        "n": rng.randint(-(2**63), 2**63 - 1),
        "ok": True,
        "rate": 0.5,
        "price": b"\x01\x02",
        "state": "B",
        "code": b"abc",
        "lines": [line() for _ in range(rng.randint(0, 4))],
        "first": rng.choice([None, line()]),
        "weights": [1.5] * rng.randint(0, 3),
        "props": {f"k{number}": rng.choice([1, "one", None]) for number in range(rng.randint(0, 2))},
        "then": order(rng, depth + 1) if depth < 3 and rng.random() < 0.3 else None,
    }


def datum(value: Any, schema: Any = PARSED) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schema, value)
    return out.getvalue()


ORDERS = [order(random.Random(number)) for number in range(80)]
DATUMS = [datum(value) for value in ORDERS]


def long_of(value: int) -> bytes:
    value = (value << 1) ^ (value >> 63)
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def container(schema: Any, blocks: list[tuple[int, bytes]], codec: str = "null", sync: bytes = b"S" * 16) -> bytes:
    """A file written by hand, block by block: (number of datums, stored bytes)."""
    meta = {"avro.schema": json.dumps(schema).encode(), "avro.codec": codec.encode()}
    head = b"".join(long_of(len(part)) + part for entry in meta.items() for part in (entry[0].encode(), entry[1]))
    file = b"Obj\x01" + long_of(len(meta)) + head + b"\0" + sync
    return file + b"".join(long_of(count) + long_of(len(stored)) + stored + sync for count, stored in blocks)


def written(path: Path, codec: str = "null") -> str:
    file = path / "orders.avro"
    with open(file, "wb") as out:
        fastavro.writer(out, PARSED, ORDERS, codec=codec, sync_interval=1000)
    return str(file)


def snappy(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="snappy", asbytes=True)) + zlib.crc32(data).to_bytes(4, "big")


def save(path: Path, data: bytes) -> str:
    (path / "x.avro").write_bytes(data)
    return str(path / "x.avro")


def read(path: str, part_bytes: int = 32 << 20, batch_bytes: int = 4 << 20) -> list[tuple[int, bytes]]:
    found = []
    for piece in list_ranges([path], part_bytes=part_bytes):
        batches = list(read_range(piece, batch_bytes, part_bytes))
        parts = [part_of(batch) for batch in batches]
        assert [(piece.start, number, number == len(parts) - 1) for number in range(len(parts))] == [
            (part.start, part.number, part.last) for part in parts if part
        ]
        for batch in batches:
            batch.validate(full=True)
            found += list(zip(batch.column("position").to_pylist(), batch.column("value").to_pylist()))
    return found


class TestRanges:
    @pytest.mark.parametrize("codec", ["null", "deflate", "bzip2", "xz"])
    def test_the_same_datums_at_the_same_positions(self, tmp_path: Path, codec: str) -> None:
        path = written(tmp_path, codec)
        whole = read(path)
        assert DATUMS == [value for _, value in whole]
        assert 80 == len({position for position, _ in whole})

        for part_bytes in (333, 1000, 4096):
            for batch_bytes in (1, 3000, 1 << 20):
                assert whole == read(path, part_bytes, batch_bytes)

    def test_every_range_on_its_own_side_of_every_sync_marker(self, tmp_path: Path) -> None:
        schema = {"type": "record", "name": "r", "fields": [{"name": "t", "type": "string"}]}
        datums = [datum({"t": text}, fastavro.parse_schema(dict(schema))) for text in ("a", "bb", "ccc", "dddd")]
        path = save(tmp_path, container(schema, [(1, datums[0]), (2, datums[1] + datums[2]), (1, datums[3])]))

        for part_bytes in range(1, Path(path).stat().st_size + 1):
            assert datums == [value for _, value in read(path, part_bytes)]

    def test_a_sync_marker_across_two_reads(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = written(tmp_path)
        whole = read(path)
        for chunk in (16, 17, 31, 100):
            monkeypatch.setattr(_avro_blocks, "_CHUNK", chunk)
            assert whole == read(path, 700)

    def test_positions_differ_even_where_datums_outnumber_bytes(self, tmp_path: Path) -> None:
        stored = [zlib.compressobj(9, zlib.DEFLATED, -15) for _ in range(2)]
        blocks = [(5000, pack.compress(b"\x02a" * 5000) + pack.flush()) for pack in stored]
        found = read(save(tmp_path, container("string", blocks, "deflate")))

        assert 10_000 == len(found) == len({position for position, _ in found})
        assert found == sorted(found)

    def test_the_writers_schema_goes_along(self, tmp_path: Path) -> None:
        (piece,) = list_ranges([written(tmp_path)])
        (batch,) = read_range(piece)

        assert "shop.orders.Order" == fastavro.parse_schema(json.loads((batch.schema.metadata or {})[WRITER]))["name"]

    def test_no_records(self, tmp_path: Path) -> None:
        assert [] == read(save(tmp_path, container(SCHEMA, [])))
        assert [] == read(save(tmp_path, container(SCHEMA, [(0, b"")])))

    def test_a_large_block_becomes_several_batches(self, tmp_path: Path) -> None:
        path = save(tmp_path, container(SCHEMA, [(80, b"".join(DATUMS))]))
        batches = list(read_range(*list_ranges([path]), batch_bytes=10_000))

        assert DATUMS == [value for batch in batches for value in batch.column("value").to_pylist()]
        assert len(b"".join(DATUMS)) // 10_000 <= len(batches) <= len(b"".join(DATUMS)) // 10_000 + 2


class TestCodecs:
    @pytest.mark.parametrize(
        ("codec", "pack"),
        [("zstandard", lambda data: bytes(pa.compress(data, codec="zstd", asbytes=True))), ("snappy", snappy)],
    )
    def test_codecs_that_arrow_has(self, tmp_path: Path, codec: str, pack: Any) -> None:
        stored = pack(b"".join(DATUMS))
        assert DATUMS == [value for _, value in read(save(tmp_path, container(SCHEMA, [(80, stored)], codec)))]

        for damage in (stored[:-1], b"\xff\xff\xff" + stored[3:], b""):
            with pytest.raises(StorageError, match="EV403 the block at byte"):
                read(save(tmp_path, container(SCHEMA, [(80, damage)], codec)))

    def test_the_checksum_of_snappy_counts(self, tmp_path: Path) -> None:
        stored = snappy(b"\x02a")

        with pytest.raises(StorageError, match="EV403 the block at byte"):
            read(save(tmp_path, container("string", [(1, stored[:-1] + bytes([stored[-1] ^ 1]))], "snappy")))

    def test_an_unknown_codec_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match="EV403 the blocks have a codec that is not known here; known: bzip2, deflate, null"):
            read(save(tmp_path, container(SCHEMA, [], "lzo")))

    @pytest.mark.parametrize("codec", ["deflate", "bzip2", "xz", "zstandard", "snappy"])
    def test_a_block_that_would_swell_beyond_the_limit(self, tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_avro_blocks, "_MOST_BLOCK", 1 << 20)
        deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
        data = long_of(2 << 20) + bytes(2 << 20)
        stored = {
            "deflate": lambda: deflate.compress(data) + deflate.flush(),
            "bzip2": lambda: bz2.compress(data),
            "xz": lambda: lzma.compress(data),
            "zstandard": lambda: bytes(pa.compress(data, codec="zstd", asbytes=True)),
            "snappy": lambda: snappy(data),
        }[codec]()
        path = save(tmp_path, container("bytes", [(1, stored)], codec))

        with pytest.raises(StorageError, match="EV403 the block at byte"):
            read(path)
        monkeypatch.setattr(_avro_blocks, "_MOST_BLOCK", 4 << 20)
        assert 1 == len(read(path))


class TestDamage:
    def test_a_file_cut_inside_a_block(self, tmp_path: Path) -> None:
        path = Path(written(tmp_path, "deflate"))
        whole = path.read_bytes()
        sync = whole[-16:]
        path.write_bytes(whole[:-20])
        with pytest.raises(StorageError, match=r"EV403 the block at byte \d+ goes past the end"):
            read(str(path), 3000)
        for size in random.Random(2).sample(range(len(whole)), 60):
            if whole[size - 16 : size] == sync:
                continue
            path.write_bytes(whole[:size])
            with pytest.raises(StorageError, match="EV403"):
                read(str(path), 3000)

    @pytest.mark.parametrize(
        ("schema", "blocks"),
        [
            pytest.param("string", [(2, b"\x02a")], id="too many datums"),
            pytest.param("string", [(1, b"\x02a\x02b")], id="too few datums"),
            pytest.param("string", [(1, b"\x08ab")], id="a text past the end"),
            pytest.param("string", [(1, b"\x01")], id="a negative length"),
            pytest.param("string", [(-1, b"")], id="a negative number of datums"),
            pytest.param("string", [(1 << 60, b"\x02a")], id="a forged number of datums"),
            pytest.param("long", [(1, b"\xff" * 11)], id="a number without end"),
            pytest.param(["null", "string"], [(1, b"\x04")], id="no such case"),
            pytest.param(["int", "string", "null"], [(1, b"\x08")], id="no such case of three"),
            pytest.param({"type": "array", "items": "double"}, [(1, long_of(1 << 60) + b"\0")], id="a forged number of items"),
            pytest.param({"type": "array", "items": "string"}, [(1, long_of(1 << 60) + b"\0" * 50)], id="a forged number of texts"),
        ],
    )
    def test_bytes_that_are_not_the_schemas(self, tmp_path: Path, schema: Any, blocks: list[tuple[int, bytes]]) -> None:
        with pytest.raises(StorageError, match=r"x.avro: EV403 the block at byte \d+ "):
            read(save(tmp_path, container(schema, blocks)))

    def test_a_wrong_sync_marker(self, tmp_path: Path) -> None:
        data = container("string", [(1, b"\x02a"), (1, b"\x02b")])

        with pytest.raises(StorageError, match=r"EV403 .*sync marker"):
            read(save(tmp_path, data[:-1] + b"x"))

    def test_endless_nesting_stops(self, tmp_path: Path) -> None:
        schema = {"type": "record", "name": "r", "fields": [{"name": "next", "type": ["null", "r"]}]}

        with pytest.raises(StorageError, match="EV403"):
            read(save(tmp_path, container(schema, [(1, b"\x02" * 1_000_000 + b"\0")])))

    @pytest.mark.parametrize("schema", ["null", {"type": "record", "name": "r", "fields": []}])
    def test_a_schema_without_content(self, tmp_path: Path, schema: Any) -> None:
        with pytest.raises(StorageError, match="EV407"):
            read(save(tmp_path, container(schema, [(1 << 60, b"")])))

    @pytest.mark.parametrize("schema", ["nothing", {"type": "record"}, [], 7, {"type": "fixed", "name": "f", "size": -1}])
    def test_a_header_without_schema(self, tmp_path: Path, schema: Any) -> None:
        with pytest.raises(StorageError, match=r"EV403|EV407"):
            read(save(tmp_path, container(schema, [(1, b"x")])))

    @pytest.mark.parametrize(
        "data", [b"", b"Obj", b"Obj\x01", b'{"a":1}\n' * 100, b"Obj\x01" + b"\xff" * 400, b"Obj\x01\x02" + long_of(1 << 40)]
    )
    def test_what_is_no_container_file(self, tmp_path: Path, data: bytes) -> None:
        with pytest.raises(StorageError, match="EV403"):
            read(save(tmp_path, data))

    def test_changed_bytes_never_crash_or_hang(self, tmp_path: Path) -> None:
        rng = random.Random(4)
        for codec in ("null", "deflate"):
            whole = Path(written(tmp_path, codec)).read_bytes()
            for _ in range(80):
                data = bytearray(whole)
                for _ in range(rng.randint(1, 3)):
                    data[rng.randrange(len(data))] = rng.randrange(256)
                with suppress(StorageError):
                    read(save(tmp_path, bytes(data)), 5000)

    def test_in_bounded_memory(self, tmp_path: Path) -> None:
        path = save(tmp_path, container("string", [(100, (long_of(1000) + b"x" * 1000) * 100)] * 200))
        tracemalloc.start()
        number = sum(batch.num_rows for batch in read_range(*list_ranges([path]), batch_bytes=256 << 10))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

        assert 20_000 == number
        assert peak < 4 << 20 < 20_000_000 < Path(path).stat().st_size


CODE = {"type": "fixed", "name": "f", "size": 2}
STATE = {"type": "enum", "name": "m.e", "symbols": ["A"]}


def pair(first: Any, second: Any, **names: str) -> dict[str, Any]:
    return {"type": "record", **names, "fields": [{"name": "x", "type": first}, {"name": "y", "type": second}]}


class TestWalker:
    @pytest.mark.parametrize(
        ("schema", "value"),
        [
            pytest.param(pair(CODE, "f", name="a.r"), {"x": b"12", "y": b"34"}, id="fixed by name"),
            pytest.param(pair(STATE, "m.e", name="r", namespace="n"), {"x": "A", "y": "A"}, id="enum of another namespace"),
            pytest.param(
                {"type": "map", "values": {"type": "array", "items": ["null", "boolean"]}}, {"k": [None, True], "l": []}, id="map of lists"
            ),
            pytest.param({"type": "string", "avro.java.string": "String"}, "text", id="text with properties"),
            pytest.param(["null", {"type": "array", "items": {**CODE, "size": 0}}], [b"", b""], id="items without size"),
        ],
    )
    def test_agrees_with_fastavro(self, schema: Any, value: Any) -> None:
        parsed = fastavro.parse_schema(json.loads(json.dumps(schema)))
        data = datum(value, parsed)

        assert [len(data), 2 * len(data)] == datum_ends(walker_of(json.dumps(schema)), data * 2, 2).tolist()

    def test_a_block_of_items_with_its_size_in_bytes(self) -> None:
        data = long_of(-2) + long_of(999) + b"\x02a\x02b" + b"\0"

        assert np.array([len(data)]) == datum_ends(walker_of('{"type": "array", "items": "string"}'), data, 1)

    def test_a_name_defined_twice(self) -> None:
        fixed = {"type": "fixed", "name": "f", "size": 1}
        with pytest.raises(DatumError):
            walker_of(json.dumps({"type": "record", "name": "r", "fields": [{"name": "a", "type": fixed}, {"name": "b", "type": fixed}]}))
