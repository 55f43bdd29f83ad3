"""Folders of output: sorted, named by their parts, claimed by one policy, and whole or not there."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eventveil.pipeline.sinks.files import PROVENANCE, FolderSink
from eventveil.schemas.errors import StorageError
from eventveil.transforms.batch import ORDER, WINDOW, Part, with_part

FORMATS = ["jsonl", "avro", "parquet"]
PROVENANCE_OF_THIS = {"policy": "orders", "digest": "d1", "keys": "k1"}
DAY = 86_400_000_000


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def batch_of(rows: list[tuple[int, dict[str, Any]]], windows: list[int] | None = None, part: Part | None = None) -> pa.RecordBatch:
    schema = pa.schema([("name", pa.string()), ("tags", pa.list_(pa.string())), ("n", pa.int64())])
    columns = pa.RecordBatch.from_pylist([row for _, row in rows], schema=schema)
    arrays = [*columns.columns, pa.array([key(order) for order, _ in rows], pa.binary(16))]
    names = [*schema.names, ORDER]
    if windows is not None:
        arrays.append(pa.array(windows, pa.int64()))
        names.append(WINDOW)
    batch = pa.RecordBatch.from_arrays(arrays, names)
    return with_part(batch, part or Part("in.jsonl", 0))


def row(n: int) -> dict[str, Any]:
    return {"name": f"name {n}", "tags": ["a"] * (n % 3) or None, "n": n}


def sink_of(folder: Path, format: str = "jsonl", **options: Any) -> FolderSink:
    return FolderSink(str(folder), format, PROVENANCE_OF_THIS, **options)  # type: ignore[arg-type]


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


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "out"


class TestPublish:
    @pytest.mark.parametrize("format", FORMATS)
    def test_rows_leave_in_the_order_of_their_keys_and_without_it(self, out: Path, format: str) -> None:
        sink = sink_of(out, format)
        sink.prepare()
        batches = [batch_of([(5, row(1)), (3, row(2))]), batch_of([(1 << 100, row(3)), (4, row(4))])]

        (published,) = sink.publish("00ff", batches)

        assert [row(2), row(4), row(1), row(3)] == read(Path(published.path))
        assert [PROVENANCE, f"part-00ff.{format}"] == files_below(out)
        assert (4, os.path.getsize(published.path)) == (published.rows, published.size)

    @pytest.mark.parametrize("format", FORMATS)
    def test_the_way_rows_came_never_shows(self, tmp_path: Path, format: str) -> None:
        random.seed(11)
        rows = [(random.choice([1, 2, 1 << 70, (1 << 70) + 1, (9 << 64) + number]), row(number % 7)) for number in range(60)]
        seen = set()
        for number in range(6):
            random.shuffle(rows)
            cut = random.randint(0, len(rows))
            sink = sink_of(tmp_path / str(number), format)
            sink.prepare()
            (published,) = sink.publish("x", [batch_of(rows[:cut]), batch_of(rows[cut:])])
            seen.add(Path(published.path).read_bytes())

        assert 1 == len(seen)

    @pytest.mark.parametrize("compression", ["gzip", "zstd"])
    def test_compressed_lines_are_the_same_bytes_each_time(self, tmp_path: Path, compression: str) -> None:
        seen = set()
        for name in ("a", "b"):
            sink = sink_of(tmp_path / name, compression=compression)
            sink.prepare()
            (published,) = sink.publish("x", [batch_of([(number, row(number)) for number in range(100)])])
            seen.add(Path(published.path).read_bytes())

        assert [row(number) for number in range(100)] == read(Path(published.path))
        assert 1 == len(seen)
        if compression == "gzip":
            assert bytes(5) == seen.pop()[3:8], "neither a name nor a time"

    @pytest.mark.parametrize("format", FORMATS)
    def test_a_second_run_gives_identical_bytes_and_no_more_files(self, out: Path, format: str) -> None:
        states = []
        for _ in range(2):
            sink = sink_of(out, format)
            sink.prepare()
            sink.publish("x", [batch_of([(2, row(1)), (1, row(2))])])
            states.append({name: (out / name).read_bytes() for name in files_below(out)})

        assert states[0] == states[1]
        assert 2 == len(states[0])

    def test_keep_leaves_rows_as_they_came(self, out: Path) -> None:
        sink = sink_of(out, order="keep")
        sink.prepare()

        (published,) = sink.publish("x", [batch_of([(5, row(1)), (3, row(2))]), batch_of([(1, row(3))])])

        assert [row(1), row(2), row(3)] == read(Path(published.path))

    def test_no_rows_no_file_and_one_of_an_earlier_run_goes(self, out: Path) -> None:
        sink = sink_of(out)
        sink.prepare()
        assert [] == sink.publish("x", [batch_of([])])
        sink.publish("x", [batch_of([(1, row(1))])])
        sink.publish("y", [batch_of([(1, row(1))])])

        assert [] == sink.publish("x", [batch_of([])])
        assert [] == sink.publish("x", [])
        assert [PROVENANCE, "part-y.jsonl"] == files_below(out)

    @pytest.mark.parametrize("name", ["", "../x", "a b", ".hidden", "x.y"])
    def test_a_part_has_a_plain_name(self, out: Path, name: str) -> None:
        with pytest.raises(ValueError, match="name of a part"):
            sink_of(out).publish(name, [])

    @pytest.mark.parametrize("format", FORMATS)
    def test_sliced_and_filtered_batches_hide_nothing(self, out: Path, format: str) -> None:
        rows = [(number, {"name": "CANARY" if number % 2 else f"shown {number}", "tags": None, "n": number}) for number in range(50)]
        batch = batch_of(rows)
        shown = batch.filter(pa.array([number % 2 == 0 for number in range(50)])).slice(3)
        nulled = batch.slice(1, 1).set_column(0, "name", pa.array(["CANARY"]).filter(pa.array([False])).take(pa.array([None], pa.int64())))
        sink = sink_of(out, format)
        sink.prepare()

        (published,) = sink.publish("x", [shown, nulled])

        data = Path(published.path).read_bytes()
        assert 23 == published.rows
        assert b"CANARY" not in data
        assert b"$order" not in data

    @pytest.mark.parametrize("format", ["avro", "parquet"])
    def test_files_carry_their_provenance(self, out: Path, format: str) -> None:
        sink = sink_of(out, format, partition_by_window=True)
        sink.prepare()

        (published,) = sink.publish("x", [batch_of([(1, row(1))], [DAY])])

        if format == "parquet":
            found = {name.decode(): value.decode() for name, value in (pq.read_schema(published.path).metadata or {}).items()}
        else:
            with open(published.path, "rb") as file:
                found = fastavro.reader(file).metadata  # type: ignore[assignment]
        assert {**PROVENANCE_OF_THIS, "window": "1970-01-02"}.items() <= found.items()

    def test_a_sink_survives_pickling(self, out: Path) -> None:
        assert sink_of(out) == pickle.loads(pickle.dumps(sink_of(out)))


class TestWindows:
    @pytest.mark.parametrize(
        ("start", "options", "name"),
        [
            pytest.param(16317 * DAY, {}, "2014-09-04", id="midnight"),
            pytest.param(16317 * DAY - 2 * 3_600_000_000, {}, "2014-09-03T22-00-00Z", id="ten in the evening"),
            pytest.param(16317 * DAY - 2 * 3_600_000_000, {"zone": "Europe/Vienna"}, "2014-09-04", id="midnight in Vienna"),
            pytest.param(16317 * DAY, {"zone": "Europe/Vienna"}, "2014-09-04T00-00-00Z", id="two at night in Vienna"),
            pytest.param(16317 * DAY, {"by_day": False}, "2014-09-04T00-00-00Z", id="midnight of an hourly window"),
            pytest.param(-DAY, {}, "1969-12-31", id="before 1970"),
            pytest.param(
                1_508_641_200_000_000 - 7_200_000_000 - 6 * DAY - 46_800_000_000,
                {"zone": "America/Sao_Paulo", "by_day": True},
                "2017-10-15",
                id="a day without midnight",
            ),
        ],
    )
    def test_a_folder_says_when_its_window_begins(self, out: Path, start: int, options: dict[str, Any], name: str) -> None:
        sink = sink_of(out, partition_by_window=True, **options)
        sink.prepare()

        sink.publish("x", [batch_of([(1, row(1))], [start])])

        assert [PROVENANCE, f"window={name}/part-x.jsonl"] == files_below(out)

    @pytest.mark.parametrize(
        ("start", "zone", "by_day", "name"),
        [
            pytest.param(-719_162 * DAY, "UTC", None, "0001-01-01", id="first year"),
            pytest.param(-719_162 * DAY + 3_600_000_000, "UTC", False, "0001-01-01T01-00-00Z", id="first hours"),
            pytest.param(-719_163 * DAY, "UTC", True, "0000-12-31", id="year 0"),
            pytest.param(-730_485 * DAY, "UTC", True, "-0030-01-01", id="window of 400 years"),
            pytest.param(-730_485 * DAY + 1, "UTC", None, "-0030-01-01T00-00-00.000001Z", id="instant before year 1"),
            pytest.param(2_932_896 * DAY, "UTC", True, "9999-12-31", id="last day"),
            pytest.param(2_932_896 * DAY + 15 * 3_600_000_000, "Asia/Tokyo", True, "10000-01-01", id="behind the last day"),
        ],
    )
    def test_any_window_has_a_name(self, out: Path, start: int, zone: str, by_day: bool | None, name: str) -> None:
        sink = sink_of(out, partition_by_window=True, zone=zone, by_day=by_day)
        sink.prepare()

        sink.publish("x", [batch_of([(1, row(1))], [start])])

        assert [PROVENANCE, f"window={name}/part-x.jsonl"] == files_below(out)

    @pytest.mark.parametrize("format", FORMATS)
    def test_rows_are_split_by_window_and_sorted_within(self, out: Path, format: str) -> None:
        sink = sink_of(out, format, partition_by_window=True)
        sink.prepare()

        sink.publish("x", [batch_of([(9, row(1)), (3, row(2))], [0, DAY]), batch_of([(1, row(3)), (2, row(4))], [0, DAY])])

        assert [row(3), row(1)] == read(out / f"window=1970-01-01/part-x.{format}")
        assert [row(4), row(2)] == read(out / f"window=1970-01-02/part-x.{format}")

    def test_keep_holds_within_a_window(self, out: Path) -> None:
        sink = sink_of(out, partition_by_window=True, order="keep")
        sink.prepare()

        sink.publish("x", [batch_of([(9, row(1)), (8, row(2)), (7, row(3))], [DAY, 0, DAY])])

        assert [row(1), row(3)] == read(out / "window=1970-01-02/part-x.jsonl")

    def test_without_folders_windows_only_vanish(self, out: Path) -> None:
        sink = sink_of(out)
        sink.prepare()

        (published,) = sink.publish("x", [batch_of([(2, row(1)), (1, row(2))], [0, DAY])])

        assert [row(2), row(1)] == read(Path(published.path))

    def test_a_window_that_a_part_no_longer_has_is_removed(self, out: Path) -> None:
        sink = sink_of(out, partition_by_window=True)
        sink.prepare()
        sink.publish("x", [batch_of([(1, row(1)), (2, row(2))], [0, DAY])])

        sink.publish("x", [batch_of([(1, row(1))], [0])])

        assert [PROVENANCE, "window=1970-01-01/part-x.jsonl"] == files_below(out)


class TestPrepare:
    def test_an_empty_folder_is_claimed(self, out: Path) -> None:
        out.mkdir(parents=True)
        (out / ".DS_Store").write_bytes(b"")
        sink_of(out).prepare()

        claimed = json.loads((out / PROVENANCE).read_text())["provenance"]
        assert {**PROVENANCE_OF_THIS, "format": "jsonl", "partition": "none"} == claimed

    @pytest.mark.parametrize("name", ["data.csv", "part-1.jsonl", "folder/x"])
    def test_a_folder_with_something_else_is_refused_and_left_alone(self, out: Path, name: str) -> None:
        (out / name).parent.mkdir(parents=True)
        (out / name).write_bytes(b"x")

        with pytest.raises(StorageError, match="EV405 holds"):
            sink_of(out).prepare()
        assert [name] == files_below(out)

    @pytest.mark.parametrize(
        "other",
        [
            pytest.param({"provenance": {**PROVENANCE_OF_THIS, "digest": "d2"}}, id="digest"),
            pytest.param({"provenance": {**PROVENANCE_OF_THIS, "keys": "k2"}}, id="keys"),
            pytest.param({"format": "avro"}, id="format"),
            pytest.param({"compression": "gzip"}, id="compression"),
            pytest.param({"partition_by_window": True}, id="partition"),
        ],
    )
    def test_another_jobs_folder_is_refused(self, out: Path, other: dict[str, Any], request: pytest.FixtureRequest) -> None:
        sink_of(out).prepare()
        options = {"format": "jsonl", "provenance": PROVENANCE_OF_THIS, **other}
        what = {"compression": "format"}.get(request.node.callspec.id, request.node.callspec.id)

        with pytest.raises(StorageError, match=f"EV405 holds output of another job: {what} differs"):
            FolderSink(str(out), **options).prepare()

    def test_a_stranger_among_our_own_is_refused(self, out: Path) -> None:
        sink_of(out).prepare()
        sink_of(out).publish("x", [batch_of([(1, row(1))])])
        sink_of(out).prepare()
        (out / "part-x.parquet").write_bytes(b"")

        with pytest.raises(StorageError, match=r"EV405 holds 'part-x\.parquet'"):
            sink_of(out).prepare()

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"provenance": 1}', b"\xff"])
    def test_a_damaged_claim_is_refused(self, out: Path, content: bytes) -> None:
        out.mkdir(parents=True)
        (out / PROVENANCE).write_bytes(content)

        with pytest.raises(StorageError, match="EV405"):
            sink_of(out).prepare()

    def test_only_our_own_left_overs_are_removed(self, out: Path) -> None:
        sink = sink_of(out, partition_by_window=True)
        sink.prepare()
        sink.publish("x", [batch_of([(1, row(1))], [0])])
        ours = [out / ".eventveil-0123456789abcdef.tmp", out / "window=1970-01-01" / ".eventveil-fedcba9876543210.tmp"]
        theirs = [out / ".eventveil-notes.tmp", out / ".other.tmp"]
        for path in (*ours, *theirs):
            path.write_bytes(b"")

        sink.prepare()

        assert not any(path.exists() for path in ours)
        assert all(path.exists() for path in theirs)

    def test_a_path_below_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")

        with pytest.raises(StorageError, match="EV404"):
            sink_of(tmp_path / "file" / "out").prepare()
        with pytest.raises(StorageError, match="EV404"):
            sink_of(tmp_path / "file").prepare()

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
    def test_a_folder_that_may_not_be_written(self, out: Path) -> None:
        out.mkdir(parents=True)
        out.chmod(0o500)

        with pytest.raises(StorageError, match=r"EV404 .*permission denied"):
            sink_of(out).prepare()

    def test_what_is_not_local_is_refused(self) -> None:
        with pytest.raises(StorageError, match="EV404 'gs://bucket/out' is no local path"):
            FolderSink("gs://bucket/out", "jsonl", {})


class TestFailure:
    def test_a_folder_that_has_gone(self, out: Path) -> None:
        sink = sink_of(out)
        sink.prepare()
        (out / PROVENANCE).unlink()
        out.rmdir()
        out.write_bytes(b"now a file")

        with pytest.raises(StorageError, match="EV404"):
            sink.publish("x", [batch_of([(1, row(1))])])

    def test_a_disk_that_is_full_leaves_nothing_and_a_second_run_completes(self, out: Path) -> None:
        """A limit on the size of files stands for the disk: both end in the same place."""
        program = textwrap.dedent(
            """
            import resource, signal, sys
            import pyarrow as pa
            from eventveil.pipeline.sinks.files import FolderSink
            from eventveil.schemas.errors import StorageError

            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            sink = FolderSink(sys.argv[1], "jsonl", {"policy": "p"})
            sink.prepare()
            if sys.argv[2] == "full":
                resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
            rows = pa.array(["CANARY" * 10] * 5_000)
            order = pa.array([number.to_bytes(16, "big") for number in range(5_000)], pa.binary(16))
            try:
                sink.publish("x", [pa.RecordBatch.from_arrays([rows, order], ["text", "$order"])])
            except StorageError as error:
                print(error)
                sys.exit(error.exit_code)
            """
        )

        def run(state: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run([sys.executable, "-c", program, str(out), state], capture_output=True, text=True, check=False)

        full = run("full")
        assert 4 == full.returncode, full.stderr
        assert "EV404 the disk is full" in full.stdout
        assert "CANARY" not in full.stdout + full.stderr
        assert [PROVENANCE] == files_below(out)

        assert 0 == run("free").returncode
        assert [PROVENANCE, "part-x.jsonl"] == files_below(out)

    def test_a_failure_keeps_the_file_of_an_earlier_run(self, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        sink = sink_of(out)
        sink.prepare()
        sink.publish("x", [batch_of([(1, row(1))])])
        before = (out / "part-x.jsonl").read_bytes()

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="EV404 the disk is full"):
            sink.publish("x", [batch_of([(1, row(2))])])
        assert before == (out / "part-x.jsonl").read_bytes()
        assert [PROVENANCE, "part-x.jsonl"] == files_below(out)
