"""Windows published as units: all their files or none, the same bytes again, and the first for good."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eventveil.pipeline.sinks import _shards
from eventveil.pipeline.sinks._scratch import Scratch
from eventveil.pipeline.sinks.files import PROVENANCE, FolderSink
from eventveil.pipeline.sinks.publish import Unit, in_shards
from eventveil.schemas.errors import StorageError
from eventveil.transforms.batch import ORDER, ROLL, WINDOW, Part, with_part

FORMATS = ["jsonl", "avro", "parquet"]
PROVENANCE_OF_THIS = {"policy": "orders", "digest": "d1", "keys": "k1"}
DAY = 86_400_000_000
START = 16317 * DAY + 22 * 3_600_000_000 + 57 * 60_000_000
NAME = "2014-09-04T22-57-00Z"
SHARD_BYTES, HELD_BYTES = 1_000, 2_500

SCHEMA = pa.schema([("name", pa.string()), ("tags", pa.list_(pa.struct([("t", pa.string()), ("n", pa.int64())]))), ("n", pa.int64())])

Rows = list[tuple[bytes, dict[str, Any]]]


def row(n: int) -> dict[str, Any]:
    return {"name": f"name {n}", "tags": [{"t": "a" * (n % 5), "n": n}] * (n % 3) or None, "n": n}


def rows_of(count: int, seed: int = 1) -> Rows:
    """Rows as they may come: some ids twice, with the same content and with another."""
    chance = random.Random(seed)
    rows = [(chance.randbytes(16), row(n)) for n in range(count)]
    for n in range(0, count // 10, 2):
        rows[n] = rows[n + 1]
        rows[-1 - n] = (rows[-2 - n][0], rows[-1 - n][1])
    return rows


def batch_of(rows: Rows, window: int | None = None, number: int = 0) -> pa.RecordBatch:
    columns = [*pa.RecordBatch.from_pylist([one for _, one in rows], schema=SCHEMA).columns]
    columns.append(pa.array([order for order, _ in rows], pa.binary(16)))
    names = [*SCHEMA.names, ORDER]
    if window is not None:
        columns += [pa.array([window] * len(rows), pa.int64()), pa.array([START] * len(rows), pa.int64())]
        names += [WINDOW, ROLL]
    return with_part(pa.RecordBatch.from_arrays(columns, names), Part("orders/0", number))


def cut(rows: Rows, pieces: int, window: int | None = None) -> list[pa.RecordBatch]:
    """The rows in batches of different sizes, one of them empty, one a slice."""
    bounds = sorted(random.Random(pieces).randint(0, len(rows)) for _ in range(pieces - 1))
    batches = [batch_of(rows[first:last], window, first) for first, last in zip([0, *bounds], [*bounds, len(rows)], strict=True)]
    return [batch_of([], window), *batches[:-1], batch_of([*rows[:3], *rows[(bounds or [0])[-1] :]], window).slice(3)]


def sink_of(folder: Path, format: str = "jsonl", **options: Any) -> FolderSink:
    return FolderSink(str(folder), format, PROVENANCE_OF_THIS, layout="windows", **options)  # type: ignore[arg-type]


def published(sink: FolderSink, batches: list[pa.RecordBatch], start: int = START, pane: int = 7) -> Unit:
    sink.prepare()
    return sink.publish_window(start, pane, lambda: iter(batches), sum(map(len, batches)), sum(batch.nbytes for batch in batches))


def read(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    if path.name.endswith(".parquet"):
        return list(pq.read_table(path, partitioning=None).to_pylist())
    if path.name.endswith(".avro"):
        return list(fastavro.reader(io.BytesIO(data)))  # type: ignore[arg-type]
    if path.name.endswith(".gz"):
        data = gzip.decompress(data)
    if path.name.endswith(".zst"):
        data = pa.input_stream(io.BytesIO(data), compression="zstd").read()
    return [json.loads(line) for line in data.splitlines()]


def state_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that a test's rows exceed: many shards, several passes."""
    monkeypatch.setattr(_shards, "_SHARD_BYTES", SHARD_BYTES)
    monkeypatch.setattr(_shards, "_HELD_BYTES", HELD_BYTES)


class TestAUnit:
    @pytest.mark.parametrize("format", FORMATS)
    def test_its_rows_leave_in_the_order_of_their_keys_and_bare(self, out: Path, format: str) -> None:
        rows = [(hashlib.sha256(bytes([n])).digest()[:16], row(n)) for n in range(200)]

        unit = published(sink_of(out, format), cut(rows, 5, START))

        (file,) = unit.files
        assert f"part-{NAME}-p000007-000.{format}" == Path(file.path).name
        assert (200, os.path.getsize(file.path)) == (file.rows, file.size)
        assert [one for _, one in sorted(rows, key=lambda one: one[0])] == read(Path(file.path))
        assert not [name for name in (b"$order", b"$window", b"$roll") if name in Path(file.path).read_bytes()]

    def test_its_manifest_names_its_files_and_says_no_more(self, out: Path, small: None) -> None:
        unit = published(sink_of(out), cut(rows_of(200), 5))

        assert len(unit.files) > 1
        assert str(out / f"_eventveil-{NAME}-p000007.json") == unit.manifest
        expected = [
            {
                "name": Path(file.path).name,
                "rows": len(read(Path(file.path))),
                "bytes": os.path.getsize(file.path),
                "sha256": hashlib.sha256(Path(file.path).read_bytes()).hexdigest(),
            }
            for file in unit.files
        ]
        assert {
            "provenance": {**PROVENANCE_OF_THIS, "format": "jsonl", "layout": "windows", "partition": "none"},
            "window": "2014-09-04T22:57:00Z",
            "pane": 7,
            "files": expected,
        } == json.loads(Path(unit.manifest).read_bytes())
        assert {PROVENANCE, Path(unit.manifest).name, *(file["name"] for file in expected)} == set(state_of(out))

    @pytest.mark.parametrize("format", ["avro", "parquet"])
    def test_its_files_carry_provenance_window_and_pane(self, out: Path, format: str) -> None:
        (file,) = published(sink_of(out, format), [batch_of(rows_of(3))]).files

        if format == "parquet":
            found = {name.decode(): value.decode() for name, value in (pq.read_schema(file.path).metadata or {}).items()}
        else:
            with open(file.path, "rb") as opened:
                found = fastavro.reader(opened).metadata  # type: ignore[assignment]
        assert {**PROVENANCE_OF_THIS, "window": NAME, "pane": "7"}.items() <= found.items()

    @pytest.mark.parametrize(
        ("options", "start", "expected"),
        [
            pytest.param({}, 16317 * DAY, "2014-09-04T00-00-00Z", id="instant"),
            pytest.param({"by_day": True}, 16317 * DAY, "2014-09-04T00-00-00Z", id="a minute of a policy by day"),
            pytest.param({"gathered_by_day": True}, 16317 * DAY, "2014-09-04", id="day"),
            pytest.param({"gathered_by_day": True, "zone": "Europe/Vienna"}, 16317 * DAY - DAY // 12, "2014-09-04", id="day in Vienna"),
            pytest.param({}, 1_000, "1970-01-01T00-00-00.001000Z", id="fraction"),
            pytest.param({}, -62_135_596_800_000_000, "0001-01-01T00-00-00Z", id="first year"),
        ],
    )
    def test_its_window_is_in_its_name(self, out: Path, options: dict[str, Any], start: int, expected: str) -> None:
        published(sink_of(out, **options), [batch_of(rows_of(3))], start, pane=12)

        assert {PROVENANCE, f"_eventveil-{expected}-p000012.json", f"part-{expected}-p000012-000.jsonl"} == set(state_of(out))

    def test_hours_that_the_clock_shows_twice_are_two(self, out: Path) -> None:
        """In Havana the clock goes back from one to midnight."""
        midnight = 1_414_900_800_000_000
        for start in (midnight, midnight + 3_600_000_000):
            assert not published(sink_of(out, zone="America/Havana"), [batch_of(rows_of(3))], start).conflict

        assert 5 == len(state_of(out))

    def test_partitioned_its_files_stand_in_the_folder_of_the_release_window(self, out: Path, small: None) -> None:
        sink = sink_of(out, "parquet", partition_by_window=True, by_day=True)

        unit = published(sink, cut(rows_of(200), 5, 16317 * DAY))

        assert {"window=2014-09-04"} == {os.path.dirname(os.path.relpath(file.path, out)) for file in unit.files}
        assert [os.path.relpath(file.path, out) for file in unit.files] == [
            file["name"] for file in json.loads(Path(unit.manifest).read_bytes())["files"]
        ]
        assert str(out) == os.path.dirname(unit.manifest)

    @pytest.mark.parametrize("together", [True, False])
    def test_rows_of_two_release_windows_are_no_unit(self, out: Path, small: None, together: bool) -> None:
        rows = sorted(rows_of(200), key=lambda one: one[0])
        first, second = (rows[::2], rows[1::2]) if together else (rows[:100], rows[100:])
        sink = sink_of(out, partition_by_window=True)

        with pytest.raises(ValueError, match="one release window"):
            published(sink, [batch_of(first, 0), batch_of(second, DAY)])
        assert [PROVENANCE] == sorted(state_of(out))

    def test_without_a_window_it_cannot_be_partitioned(self, out: Path) -> None:
        with pytest.raises(StorageError, match="EV404 the policy has no window"):
            published(sink_of(out, partition_by_window=True), [batch_of(rows_of(2))])

    def test_no_rows_no_file_but_a_manifest(self, out: Path) -> None:
        unit = published(sink_of(out, partition_by_window=True), [])

        assert () == unit.files
        assert {PROVENANCE, Path(unit.manifest).name} == set(state_of(out))
        assert [] == json.loads(Path(unit.manifest).read_bytes())["files"]

    @pytest.mark.parametrize("format", FORMATS)
    def test_sliced_batches_hide_nothing(self, out: Path, format: str) -> None:
        rows = [(bytes([n]) * 16, {"name": "CANARY" if n % 2 else f"shown {n}", "tags": None, "n": n}) for n in range(50)]
        batch = batch_of(rows)
        shown = batch.filter(pa.array([n % 2 == 0 for n in range(50)])).slice(3)

        (file,) = published(sink_of(out, format), [shown, batch.slice(10, 1)]).files

        assert 23 == file.rows
        assert b"CANARY" not in Path(file.path).read_bytes()

    def test_panes_and_windows_stand_beside_each_other(self, out: Path) -> None:
        sink = sink_of(out)
        for start, pane in ((START, 0), (START, 3), (START + DAY, 0)):
            assert not published(sink, [batch_of(rows_of(5, pane))], start, pane).conflict

        assert 3 * 2 + 1 == len(state_of(out))


class TestShards:
    @pytest.mark.parametrize(
        ("rows", "weight", "expected"),
        [
            pytest.param(0, 0, 1, id="none"),
            pytest.param(1, 1 << 25, 1, id="as many bytes as fit"),
            pytest.param(1, (1 << 25) + 1, 2, id="a byte more"),
            pytest.param(1 << 17, 1, 1, id="as many rows as fit"),
            pytest.param((1 << 17) + 1, 1, 2, id="a row more"),
            pytest.param(3 << 17, 1, 4, id="a power of two"),
            pytest.param(1, 2 << 30, 64, id="two gigabytes"),
        ],
    )
    def test_their_number_is_that_of_parts_of_bounded_size(self, rows: int, weight: int, expected: int) -> None:
        assert expected == 1 << _shards._bits_for(rows, weight)

    def test_each_holds_the_rows_of_its_leading_bits_and_what_is_too_much_is_put_aside(self, tmp_path: Path, small: None) -> None:
        rows = rows_of(1_000)
        batches = cut(rows, 20)
        calls = 0

        def given() -> Iterator[pa.RecordBatch]:
            nonlocal calls
            calls += 1
            return iter(batches)

        found = {}
        for shard, table in in_shards(given, len(rows), 10**6, keep=False, folder=str(tmp_path)):
            assert [] == list(tmp_path.iterdir()), "what is put aside has no name"
            assert table.nbytes < 4 * SHARD_BYTES
            found[shard] = table

        assert list(range(64)) == list(found)
        assert 2 == calls
        for shard, table in found.items():
            assert {shard} == {order[0] >> 2 for order in table.column(ORDER).to_pylist()}
        assert sorted(order for order, _ in rows) == sorted(order for table in found.values() for order in table.column(ORDER).to_pylist())

    @pytest.mark.parametrize("skewed", [False, True])
    def test_a_window_is_never_in_memory_as_a_whole(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skewed: bool) -> None:
        monkeypatch.setattr(_shards, "_SHARD_BYTES", 1 << 20)
        monkeypatch.setattr(_shards, "_HELD_BYTES", 2 << 20)
        before, most = pa.total_allocated_bytes(), 0

        def given() -> Iterator[pa.RecordBatch]:
            chance = random.Random(1)
            for _ in range(40):
                text = pa.array([f"{n:01000d}" for n in range(1_000)])
                order = [b"\x55" * 16 if skewed else chance.randbytes(16) for _ in range(1_000)]
                yield pa.RecordBatch.from_arrays([text, pa.array(order, pa.binary(16))], ["text", ORDER])

        for _, table in in_shards(given, 40_000, 40 << 20, keep=False, folder=str(tmp_path)):
            most = max(most, table.nbytes, pa.total_allocated_bytes() - before)

        assert 0 < most < 10 << 20

    def test_what_rows_take_is_the_same_however_they_are_cut(self, monkeypatch: pytest.MonkeyPatch) -> None:
        kinds = [pa.field("f", pa.bool_()), pa.field("d", pa.decimal128(9, 2)), pa.field("s", pa.struct([("t", pa.large_string())]))]
        rows = [{"f": None, "d": 5, "s": None}, {"f": True, "d": None, "s": {"t": "text"}}, {"f": False, "d": 1, "s": {"t": None}}] * 9
        more = pa.RecordBatch.from_pylist(rows, schema=pa.schema(kinds))
        for batch in (batch_of(rows_of(27), START), more):
            pieces = [batch.slice(start, 5) for start in range(0, 27, 5)]

            assert 27 * 16 < _shards._weight(batch) == sum(map(_shards._weight, pieces))
        whole = batch_of(rows_of(27), START)
        assert _shards._weight(whole) == _shards._weight(batch_of(rows_of(27)))
        monkeypatch.setattr(_shards, "_SHARD_BYTES", _shards._weight(whole))
        for pieces in ([whole], cut(rows_of(27), 9)):
            assert [0] == [shard for shard, _ in in_shards(lambda: iter(pieces), 27, 1, keep=False)]  # noqa: B023

    def test_what_fits_is_read_once(self) -> None:
        calls = []
        batches = cut(rows_of(100), 4)

        list(in_shards(lambda: calls.append(1) or iter(batches), 100, 10_000, keep=False))  # type: ignore[func-returns-value]

        assert [1] == calls

    @pytest.mark.parametrize("small_ones", [True, False], ids=["many passes", "held"])
    @pytest.mark.parametrize("options", [{"format": one} for one in FORMATS] + [{"compression": "gzip"}, {"compression": "zstd"}], ids=str)
    def test_the_way_rows_came_never_shows(
        self, tmp_path: Path, options: dict[str, Any], small_ones: bool, request: pytest.FixtureRequest
    ) -> None:
        if small_ones:
            request.getfixturevalue("small")
        rows = rows_of(300)
        states = []
        for number in range(4):
            random.Random(number).shuffle(rows)
            unit = published(sink_of(tmp_path / str(number), **options), cut(rows, 1 + 3 * number))
            states.append(state_of(tmp_path / str(number)))

        assert (len(unit.files) > 4) == small_ones
        assert states[0] == states[1] == states[2] == states[3]

    @pytest.mark.parametrize("format", ["jsonl", "parquet"])
    @pytest.mark.parametrize(
        ("of_one_id", "contents"),
        [
            pytest.param(400, 1, id="events that look alike"),
            pytest.param(400, 400, id="an id that is none"),
            pytest.param(300, 3, id="a few kinds, among others"),
            pytest.param(200, 150, id="some alike, among others"),
        ],
    )
    def test_rows_of_one_id_that_are_too_many_are_spread_however_they_came(
        self, tmp_path: Path, small: None, of_one_id: int, contents: int, format: str
    ) -> None:
        rows = [
            (b"\x55" * 16 if n < of_one_id else one[0], row(n % contents if n < of_one_id else n)) for n, one in enumerate(rows_of(400))
        ]
        states = []
        for number in range(4):
            random.Random(number).shuffle(rows)
            unit = published(sink_of(tmp_path / str(number), format), cut(rows, 1 + 5 * number))
            states.append(state_of(tmp_path / str(number)))

        assert len(unit.files) > 8
        assert max(file.rows for file in unit.files) < 3 * 400 / len(unit.files)
        assert sorted(one["n"] for _, one in rows) == sorted(one["n"] for file in unit.files for one in read(Path(file.path)))
        assert states[0] == states[1] == states[2] == states[3]

    @pytest.mark.parametrize("pieces", [1, 7, 30])
    def test_keep_leaves_rows_as_they_came_in_shards_of_equal_length(self, out: Path, small: None, pieces: int) -> None:
        rows = rows_of(300)

        unit = published(sink_of(out, order="keep"), cut(rows, pieces))

        assert [one for _, one in rows] == [one for file in unit.files for one in read(Path(file.path))]
        lengths = [file.rows for file in unit.files]
        assert len(lengths) > 4
        assert {-(-300 // len(lengths))} == set(lengths[:-1])

    @pytest.mark.parametrize("keep", [True, False])
    def test_rows_that_are_missing_or_too_many_are_noticed_before_anything_has_its_name(self, out: Path, small: None, keep: bool) -> None:
        sink = sink_of(out, order="keep" if keep else "keyed")
        sink.prepare()
        batches = cut(rows_of(300), 10)
        answers = iter([batches, *[batches[:-1]] * 20])

        with pytest.raises(StorageError, match="EV408 a window came in with 300 rows instead of 301"):
            sink.publish_window(START, 0, lambda: iter(batches), 301, 100)
        with pytest.raises(StorageError, match=r"EV408 a window came in with [0-9]+ rows instead of 300"):
            sink.publish_window(START, 0, lambda: iter(next(answers)), 300, 10**6)
        assert [PROVENANCE] == sorted(state_of(out))


class TestScratch:
    def test_gives_back_what_it_was_given_and_shows_it_to_nobody(self, tmp_path: Path) -> None:
        batches = [batch_of([(bytes([n]) * 16, {**row(n), "name": f"CANARY {n}"})]).replace_schema_metadata(None) for n in range(6)]
        with Scratch(str(tmp_path)) as scratch:
            scratch.add(1, batches[:2])
            scratch.add(0, batches[2:3])
            scratch.add(1, batches[3:])

            assert scratch._file is not None
            assert [] == list(tmp_path.iterdir())
            data = os.pread(scratch._file.fileno(), 1 << 20, 0)
            assert len(data) > 1_000
            assert not [text for text in (b"CANARY", b"name", bytes([3]) * 16) if text in data]
            assert [*batches[:2], *batches[3:]] == pa.Table.from_batches(scratch.take(1)).to_batches(max_chunksize=1)
            assert [] == scratch.take(1) == scratch.take(7)
            assert batches[2:3] == scratch.take(0)

    def test_a_folder_that_is_not_there(self, out: Path) -> None:
        with Scratch(str(out)) as scratch, pytest.raises(StorageError, match="EV404 no such file or directory"):
            scratch.add(0, [batch_of(rows_of(1))])


class TestAgain:
    @pytest.mark.parametrize("format", FORMATS)
    def test_changes_nothing_not_even_a_time(self, out: Path, small: None, format: str) -> None:
        sink = sink_of(out, format, partition_by_window=True)
        first = published(sink, cut(rows_of(200), 5, 0))
        before = {path: path.stat().st_mtime_ns for path in out.rglob("[!.]*-*") if path.is_file()}

        second = published(sink, cut(rows_of(200), 9, 0))

        assert first == second
        assert before == {path: path.stat().st_mtime_ns for path in out.rglob("[!.]*-*") if path.is_file()}
        assert len(before) > 3

    def test_brings_back_what_is_missing_or_damaged(self, out: Path, small: None) -> None:
        unit = published(sink_of(out), cut(rows_of(200), 5))
        before = state_of(out)
        os.unlink(unit.files[0].path)
        Path(unit.files[1].path).write_bytes(b"x" * unit.files[1].size)
        Path(unit.files[2].path).write_bytes(b"short")

        assert unit == published(sink_of(out), cut(rows_of(200), 5))

        assert before == state_of(out)

    @pytest.mark.parametrize(
        "other", [rows_of(200)[1:], [], [*rows_of(200), *rows_of(1, 5)], rows_of(200, 2)], ids=["fewer", "none", "more", "others"]
    )
    def test_another_content_changes_nothing_and_says_so(self, out: Path, small: None, other: Rows) -> None:
        first = published(sink_of(out), cut(rows_of(200), 5))
        before = state_of(out)

        second = published(sink_of(out), cut(other, 5))

        assert (first.manifest, (), True) == (second.manifest, second.files, second.conflict)
        assert before == state_of(out)

    def test_an_empty_unit_stands_like_any_other(self, out: Path) -> None:
        published(sink_of(out), [])

        assert published(sink_of(out), cut(rows_of(5), 1)).conflict
        assert 2 == len(state_of(out))

    @pytest.mark.parametrize("content", [b"", b"{", b"\xff"])
    def test_a_damaged_manifest_is_told(self, out: Path, content: bytes) -> None:
        unit = published(sink_of(out), cut(rows_of(5), 1))
        Path(unit.manifest).write_bytes(content)
        before = state_of(out)

        with pytest.raises(StorageError, match="EV405 is not as this job writes it"):
            published(sink_of(out), cut(rows_of(5), 1))
        assert before == state_of(out)


PRELUDE = """
import os, sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from test_publish import HELD_BYTES, SHARD_BYTES, _shards, cut, rows_of, sink_of

_shards._SHARD_BYTES, _shards._HELD_BYTES = SHARD_BYTES, HELD_BYTES
folder, format, partition = Path(sys.argv[2]), sys.argv[3], sys.argv[4]
batches = cut(rows_of(100), 5, 0)

def publishes(folder):
    return sink_of(folder, format, partition_by_window=partition == "window").publish_window(0, 0, lambda: iter(batches), 100, 10**6)
"""

KILLED = (
    PRELUDE
    + """
steps = last = 0

def dying(call):
    def step(*arguments, **options):
        global steps
        steps += 1
        if steps == last:
            os._exit(9)
        return call(*arguments, **options)
    return step

code = 9
while code == 9:
    last += 1
    sink_of(folder / str(last), format, partition_by_window=partition == "window").prepare()
    # A process for each: it goes through the same steps, and ends before one of them.
    child = os.fork()
    if not child:
        for name in ("open", "write", "fsync", "link", "replace", "unlink", "makedirs"):
            setattr(os, name, dying(getattr(os, name)))
        publishes(folder / str(last))
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(code, last)
"""
)

FULL = (
    "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    + PRELUDE
    + """
sink_of(folder, format).prepare()
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[5]),) * 2)
publishes(folder)
"""
)


def child(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, str(Path(__file__).parent), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


class TestKilled:
    @pytest.mark.parametrize(("format", "partition"), [("jsonl", "none"), ("parquet", "window")])
    def test_before_any_step_it_is_completed_by_publishing_again(self, tmp_path: Path, small: None, format: str, partition: str) -> None:
        code, steps = map(int, child(KILLED, tmp_path, format, partition).stdout.split())
        assert 0 == code
        expected = state_of(tmp_path / str(steps))
        seen = set()
        for last in range(1, steps):
            folder = tmp_path / str(last)
            left = {name: data for name, data in state_of(folder).items() if not os.path.basename(name).startswith(".")}
            # Whatever has a name is whole, and nothing has one before the manifest.
            assert left.items() <= expected.items()
            assert [PROVENANCE] == list(left) or any(name.startswith("_eventveil-") for name in left)
            seen.add(len(left))

            sink = sink_of(folder, format, partition_by_window=partition == "window")
            unit = published(sink, cut(rows_of(100), 3, 0), 0, 0)

            assert (len(expected) - 2, False) == (len(unit.files), unit.conflict)
            assert expected == state_of(folder)
        assert len(expected) > 5
        assert set(range(1, len(expected) + 1)) == seen, "every state on the way was seen"


class TestTheDisk:
    @pytest.mark.parametrize("most_bytes", [0, 700, 1_300], ids=["full", "room for a little", "room for the smaller files"])
    def test_full_leaves_nothing_and_a_second_try_completes(self, tmp_path: Path, small: None, most_bytes: int) -> None:
        """A limit on the size of files stands for the disk: both end in the same place."""
        folder = tmp_path / "out"

        full = child(FULL, folder, "jsonl", "none", most_bytes)

        assert 1 == full.returncode
        assert "EV404 the disk is full, or a limit on the size of files is reached" in full.stderr
        assert [PROVENANCE] == list(state_of(folder))
        assert len(published(sink_of(folder), cut(rows_of(100), 3, 0), 0, 0).files) > 2

    @pytest.mark.parametrize("call", ["fsync", "link", "replace"])
    def test_a_step_that_fails_leaves_no_temporary_name(self, out: Path, small: None, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
        sink = sink_of(out)
        sink.prepare()
        batches = cut(rows_of(100), 3)
        given: Callable[[], Iterator[pa.RecordBatch]] = lambda: iter(batches)  # noqa: E731
        calls = 0
        original = getattr(os, call)

        def failing(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == (1 if call == "link" else 2):
                raise OSError(28, "No space left on device")
            return original(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing)
            with pytest.raises(StorageError, match="EV404 the disk is full"):
                sink.publish_window(START, 0, given, 100, 10**6)
        left = state_of(out)
        unit = sink.publish_window(START, 0, given, 100, 10**6)

        assert (3 if call == "replace" else 1) == len(left)
        assert left.items() <= state_of(out).items()
        assert len(unit.files) + 2 == len(state_of(out))

    def test_a_folder_that_was_removed_is_not_made_anew(self, out: Path) -> None:
        sink = sink_of(out, partition_by_window=True)
        sink.prepare()
        (out / PROVENANCE).unlink()
        out.rmdir()

        with pytest.raises(StorageError, match="EV404 the folder was removed during the run"):
            sink.publish_window(START, 0, lambda: iter([batch_of(rows_of(2), 0)]), 2, 100)
        assert not out.exists()


class TestTheFolder:
    def test_a_restarted_job_finds_it_its_own_and_removes_what_a_killed_one_left(self, out: Path) -> None:
        sink = sink_of(out, partition_by_window=True)
        published(sink, [batch_of(rows_of(3), 0)])
        before = state_of(out)
        (out / ".eventveil-0123456789abcdef.tmp").write_bytes(b"half")
        (out / "window=1970-01-01" / ".eventveil-0123456789abcdef.tmp").write_bytes(b"half")

        sink.prepare()

        assert before == state_of(out)

    def test_parts_and_windows_do_not_mix(self, tmp_path: Path) -> None:
        parts = FolderSink(str(tmp_path / "parts"), "jsonl", PROVENANCE_OF_THIS)
        parts.prepare()
        windows = sink_of(tmp_path / "windows")
        windows.prepare()

        for folder, layout in ((tmp_path / "parts", "windows"), (tmp_path / "windows", "parts")):
            with pytest.raises(StorageError, match="EV405 holds output of another job: layout differs"):
                FolderSink(str(folder), "jsonl", PROVENANCE_OF_THIS, layout=layout).prepare()  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="claimed for parts"):
            parts.publish_window(START, 0, lambda: iter([]), 0, 0)
        with pytest.raises(ValueError, match="claimed for windows"):
            windows.publish("x", [])

    def test_a_file_system_without_hard_links_is_found_at_the_start(self, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def link(*_: Any) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", link)
        FolderSink(str(out), "jsonl", PROVENANCE_OF_THIS).prepare()
        with pytest.raises(StorageError, match="EV404 the file system has no hard links"):
            sink_of(out.parent / "other").prepare()
        assert [] == [path.name for path in out.parent.rglob(".*")]


class TestCheckpoint:
    def test_a_folder_belongs_to_the_checkpoint_that_published_into_it(self, tmp_path: Path) -> None:
        sink = FolderSink(str(tmp_path / "out"), "jsonl", {"policy": "p"}, layout="windows")
        sink.prepare()
        sink.bind("first")
        sink.bind("second")  # nothing was published: it may begin anew
        (tmp_path / "out" / "_eventveil-2024-01-01T00-00-00Z-p000001.json").write_text("{}")
        sink.prepare()
        sink.bind("second")

        with pytest.raises(StorageError, match="EV405"):
            sink.bind("third")
