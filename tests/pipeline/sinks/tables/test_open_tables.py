"""Delta and Iceberg: one commit per window and part, once and for good, whoever else writes."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.table import Table

from eventveil.pipeline.sinks import _shards
from eventveil.pipeline.sinks.files import FolderSink
from eventveil.pipeline.sinks.tables._sink import CHECKPOINT, TableSink
from eventveil.pipeline.sinks.tables.delta import DeltaSink
from eventveil.pipeline.sinks.tables.iceberg import CATALOG, CATALOG_FILE, KEY, IcebergSink
from eventveil.schemas.errors import PolicyError, SchemaError, StorageError, Unreachable
from eventveil.transforms.batch import ORDER

from .rows import DAY, HOUR, PROVENANCE, SCHEMA, START, batch_of, cut, multiset, published

KINDS = ["delta", "iceberg"]
MANY = list(range(400))
ROUNDS = 20


class Place:
    """A table of one format in a folder, written by sinks, read by the format's own library."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.folder = folder

    def sink(self, **options: Any) -> TableSink:
        given = {"schema": SCHEMA, "provenance": PROVENANCE, "layout": "windows", **options}
        if self.kind == "delta":
            return DeltaSink(str(self.folder), "", **given)
        return IcebergSink(str(self.folder), "shop.orders", **given)

    def ready(self, **options: Any) -> TableSink:
        sink = self.sink(**options)
        sink.prepare()
        return sink

    def iceberg(self) -> Table:
        return SqlCatalog(CATALOG, uri=f"sqlite:///{self.folder}/{CATALOG_FILE}").load_table("shop.orders")

    def table(self) -> pa.Table:
        if self.kind == "delta":
            return pa.table(DeltaTable(str(self.folder)).to_pyarrow_table())
        return self.iceberg().scan().to_arrow()

    def rows(self) -> list[dict[str, Any]]:
        return list(self.table().to_pylist())

    def commits(self) -> list[dict[str, str]]:
        """The entries of each commit of data, the latest first."""
        if self.kind == "delta":
            return [one for one in DeltaTable(str(self.folder)).history() if one["operation"] == "WRITE"]
        return [dict(one.summary.additional_properties) for one in reversed(self.iceberg().metadata.snapshots) if one.summary]

    def entries(self) -> dict[str, str]:
        return dict(DeltaTable(str(self.folder)).metadata().configuration if self.kind == "delta" else self.iceberg().properties)

    def visible_files(self) -> list[str]:
        if self.kind == "delta":
            return DeltaTable(str(self.folder)).file_uris()
        return [task.file.file_path.removeprefix("file://") for task in self.iceberg().scan().plan_files()]

    def data_files(self) -> list[Path]:
        return sorted(self.folder.rglob("part-*.parquet"))


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(request.param, tmp_path / "lake")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that a test's rows exceed: many shards, several passes."""
    monkeypatch.setattr(_shards, "_SHARD_BYTES", 4_000)
    monkeypatch.setattr(_shards, "_HELD_BYTES", 10_000)


class TestAWindow:
    def test_holds_what_a_folder_would_hold(self, place: Place, tmp_path: Path) -> None:
        folder = FolderSink(str(tmp_path / "files"), "parquet", PROVENANCE, layout="windows")
        folder.prepare()
        file = published(folder, cut(MANY, 1)).files[0]

        unit = published(place.ready(), cut(MANY, 2))

        expected = pq.read_table(file.path).to_pylist()
        found = [one for path in place.visible_files() for one in pq.read_table(path, partitioning=None).to_pylist()]
        assert not unit.conflict
        assert multiset(expected) == multiset(found)
        # pyiceberg 0.12 reads a list of records that is null as an empty one.
        forgiven = [{**one, "tags": one["tags"] or ([] if place.kind == "iceberg" else None)} for one in expected]
        assert multiset(forgiven) == multiset(place.rows())
        assert SCHEMA.names == place.table().schema.names

    def test_leaves_in_keyed_order_and_bare(self, place: Place, tmp_path: Path) -> None:
        folder = FolderSink(str(tmp_path / "files"), "parquet", PROVENANCE, layout="windows")
        folder.prepare()
        expected = pq.read_table(published(folder, cut(MANY, 1)).files[0].path).column("n").to_pylist()

        published(place.ready(), cut(MANY, 2))

        (path,) = place.data_files()
        content = path.read_bytes()
        assert expected == pq.read_table(path).column("n").to_pylist()
        assert not [name for name in (b"$order", b"$window", b"$roll") if name in content]
        assert PROVENANCE == {key.decode(): one.decode() for key, one in (pq.read_metadata(path).metadata or {}).items()}

    def test_is_one_commit_of_many_files(self, place: Place, small: None) -> None:
        unit = published(place.ready(), cut(MANY, 1))

        assert len(unit.files) > 2
        assert 1 == len(place.commits())
        assert sorted(MANY) == sorted(one["n"] for one in place.rows())
        assert len(MANY) == sum(file.rows for file in unit.files)

    def test_its_commit_says_what_it_is(self, place: Place) -> None:
        published(place.ready(), cut(MANY, 1))

        (entries,) = place.commits()
        expected = {f"eventveil.{name}": text for name, text in PROVENANCE.items() if name != "eventveil"}
        expected |= {"eventveil.format": "1", "eventveil.window": "2014-09-04T22:00:00Z", "eventveil.pane": "7"}
        assert expected.items() <= entries.items()

    def test_again_is_not_written_again(self, place: Place, small: None) -> None:
        sink = place.ready()
        published(sink, cut(MANY, 1))
        before = {path: path.stat().st_mtime_ns for path in place.folder.rglob("*") if path.is_file()}

        unit = published(pickle.loads(pickle.dumps(sink)), cut(MANY, 2))

        assert not unit.conflict
        assert before == {path: path.stat().st_mtime_ns for path in place.folder.rglob("*") if path.is_file()}

    def test_with_another_content_the_first_one_stands(self, place: Place) -> None:
        sink = place.ready()
        published(sink, cut(MANY, 1))
        expected = multiset(place.rows())

        units = [published(sink, cut(numbers, 1)) for numbers in (MANY[:-1], [*MANY, 400], [*MANY[:-1], 400])]

        assert [True, True, True] == [unit.conflict for unit in units]
        assert expected == multiset(place.rows())

    def test_its_panes_stand_each_for_itself_in_any_order(self, place: Place) -> None:
        sink = place.ready()
        for pane in (2, 0, 1, 0, 2):
            assert not published(sink, cut(range(pane * 10, pane * 10 + 10), 1), pane=pane).conflict

        assert published(sink, cut(MANY, 1), pane=1).conflict
        assert list(range(30)) == sorted(one["n"] for one in place.rows())

    def test_without_rows_is_no_commit(self, place: Place) -> None:
        unit = published(place.ready(), [batch_of([])])

        assert not unit.conflict
        assert [] == place.commits()

    def test_that_came_in_incomplete_is_not_there(self, place: Place) -> None:
        sink = place.ready()

        with pytest.raises(StorageError, match="EV408"):
            sink.publish_window(START, 0, lambda: iter([batch_of(range(5))]), 6, 1)

        assert [] == place.rows()

    def test_hides_nothing_in_its_files(self, place: Place) -> None:
        """A filtered row, the bytes behind a null, a dictionary's unused value: none is in what was written."""
        secret = "planted-4111111111111111"
        schema = pa.schema(
            [pa.field("name", pa.string()), pa.field("kind", pa.dictionary(pa.int32(), pa.string())), pa.field("n", pa.int64())]
        )
        names = pa.array([secret, "seen", secret])
        offsets, data = names.buffers()[1:]
        behind = pa.Array.from_buffers(pa.string(), 3, [pa.py_buffer(bytes([0b010])), offsets, data])
        kinds = pa.DictionaryArray.from_arrays(pa.array([1, 1, 0], pa.int32()), pa.array([secret, "b"]))
        order = pa.array([bytes([n] * 16) for n in range(3)], pa.binary(16))
        batch = pa.RecordBatch.from_arrays([behind, kinds, pa.array([1, 2, 3]), order], [*schema.names, ORDER]).slice(0, 2)
        assert secret.encode() in data.to_pybytes()

        published(place.ready(schema=schema), [batch])

        assert [{"name": None, "kind": "b", "n": 1}, {"name": "seen", "kind": "b", "n": 2}] == sorted(
            place.rows(), key=lambda one: one["n"]
        )
        for path in place.folder.rglob("*"):
            assert not path.is_file() or secret.encode() not in path.read_bytes(), path


class TestPartitions:
    def test_are_called_by_the_windows_start(self, place: Place) -> None:
        sink = place.ready(partition_by_window=True)
        published(sink, [batch_of(range(5), START)])
        published(sink, [batch_of(range(5, 8), START + HOUR)], START + HOUR)

        found = {(one["window"], one["n"]) for one in place.rows()}
        assert {*(("2014-09-04T22-00-00Z", n) for n in range(5)), *(("2014-09-04T23-00-00Z", n) for n in range(5, 8))} == found
        assert {"window=2014-09-04T22-00-00Z", "window=2014-09-04T23-00-00Z"} == {path.parent.name for path in place.data_files()}

    def test_are_dates_where_windows_are_days(self, place: Place) -> None:
        sink = place.ready(partition_by_window=True, by_day=True, zone="Europe/Berlin")

        published(sink, [batch_of(range(5), START)])

        assert {"2014-09-05"} == {str(one["window"]) for one in place.rows()}
        assert pa.date32() == place.table().schema.field("window").type

    def test_prune(self, place: Place) -> None:
        sink = place.ready(partition_by_window=True)
        for hour in range(3):
            published(sink, [batch_of([hour], START + hour * HOUR)], START + hour * HOUR)

        wanted = "2014-09-04T23-00-00Z"
        if place.kind == "delta":
            files = DeltaTable(str(place.folder)).file_uris(file_pruning_predicate=f"window = '{wanted}'")
        else:
            files = [task.file.file_path for task in place.iceberg().scan(row_filter=f"window = '{wanted}'").plan_files()]
        assert 1 == len(files)

    def test_of_an_output_with_such_a_column_are_refused(self, place: Place) -> None:
        with pytest.raises(SchemaError, match="EV206"):
            place.sink(schema=pa.schema([("Window", pa.int64())]), partition_by_window=True)


class TestAPart:
    def test_is_one_commit_with_the_windows_of_its_rows(self, place: Place) -> None:
        sink = place.ready(layout="parts", partition_by_window=True)
        batches = [batch_of([1, 2, 3], [START, START + HOUR, START]), batch_of([4], [START + HOUR])]

        sink.publish("00ff", batches)
        sink.publish("00ff", list(reversed(batches)))
        sink.publish("ff00", [batch_of([5], [START])])

        assert 2 == len(place.commits())
        expected = {("22", 1), ("22", 3), ("22", 5), ("23", 2), ("23", 4)}
        assert expected == {(one["window"][11:13], one["n"]) for one in place.rows()}

    def test_with_other_rows_is_refused(self, place: Place) -> None:
        sink = place.ready(layout="parts")
        sink.publish("00ff", [batch_of([1, 2])])

        with pytest.raises(StorageError, match="EV423 holds this part"):
            sink.publish("00ff", [batch_of([1, 3])])

        assert [1, 2] == sorted(one["n"] for one in place.rows())

    @pytest.mark.parametrize("name", ["", "a/b", "../x", "a b"])
    def test_has_a_plain_name(self, place: Place, name: str) -> None:
        with pytest.raises(ValueError, match="name of a part"):
            place.sink(layout="parts").publish(name, [])


class TestAClaim:
    def test_again_changes_nothing(self, place: Place) -> None:
        place.ready()
        before = place.entries()

        place.ready()

        assert before == place.entries()
        assert PROVENANCE.items() <= json.loads(before["eventveil.provenance"]).items()

    @pytest.mark.parametrize("entry", sorted(PROVENANCE))
    def test_of_another_provenance_is_refused(self, place: Place, entry: str) -> None:
        published(place.ready(), cut(MANY, 1))

        with pytest.raises(StorageError, match=f"EV423 holds output of another job: {entry} differs"):
            place.ready(provenance={**PROVENANCE, entry: "0"})

        assert len(MANY) == len(place.rows())

    @pytest.mark.parametrize("options", [{"layout": "parts"}, {"partition_by_window": True}], ids=str)
    def test_of_another_layout_is_refused(self, place: Place, options: dict[str, Any]) -> None:
        place.ready()

        with pytest.raises(StorageError, match="EV423"):
            place.ready(**options)

    def test_with_other_columns_is_refused(self, place: Place) -> None:
        place.ready()

        with pytest.raises(StorageError, match="EV423 has other columns: day, small differ"):
            place.ready(schema=pa.schema([("day", pa.string()), *[one for one in SCHEMA if one.name not in ("day", "small")]]))

    def test_is_looked_at_before_each_commit(self, place: Place) -> None:
        old = place.ready()
        place.ready(provenance={**PROVENANCE, "version": "2", "digest": "d2"}, evolve=True)

        with pytest.raises(StorageError, match="EV423 was claimed by another job"):
            published(old, cut(MANY, 1))

        assert [] == place.rows()

    def test_of_a_table_that_others_made_is_refused(self, place: Place) -> None:
        if place.kind == "delta":
            DeltaTable.create(str(place.folder), SCHEMA)
        else:
            place.folder.mkdir()
            catalog = SqlCatalog(CATALOG, uri=f"sqlite:///{place.folder}/{CATALOG_FILE}", warehouse=f"file://{place.folder}")
            catalog.create_namespace("shop")
            catalog.create_table("shop.orders", SCHEMA.remove(4))

        with pytest.raises(StorageError, match="EV423 is there, and no job of eventveil"):
            place.ready()

    def test_by_two_at_once_makes_one_table(self, place: Place) -> None:
        together([place.sink().prepare] * 4)

        assert [] == place.rows()
        assert not published(place.sink(), cut(MANY, 1)).conflict


class TestANewVersion:
    MORE = pa.schema([*SCHEMA, pa.field("extra", pa.string(), nullable=False), pa.field("list", pa.list_(pa.int64()))])
    NEWER = {**PROVENANCE, "version": "2", "digest": "d2"}

    def test_adds_its_columns(self, place: Place) -> None:
        published(place.ready(), cut(MANY, 1))

        sink = place.ready(schema=self.MORE, provenance=self.NEWER, evolve=True)
        extra = batch_of([1000]).append_column("extra", pa.array(["x"])).append_column("list", pa.array([[1, 2]]))
        published(sink, [extra], pane=8)

        assert self.MORE.names == place.table().schema.names
        assert [("x", [1, 2])] == [(one["extra"], one["list"]) for one in place.rows() if one["n"] == 1000]
        assert {(None, None)} == {(one["extra"], None) for one in place.rows() if one["n"] < 1000}
        assert self.NEWER.items() <= json.loads(place.entries()["eventveil.provenance"]).items()

    def test_does_not_write_a_window_anew(self, place: Place) -> None:
        published(place.ready(), cut(MANY, 1))

        sink = place.ready(provenance=self.NEWER, evolve=True)

        assert not published(sink, cut(MANY, 2)).conflict
        assert published(sink, cut(MANY[1:], 2)).conflict
        assert len(MANY) == len(place.rows())

    def test_is_refused_without_being_asked_for(self, place: Place) -> None:
        place.ready()

        with pytest.raises(StorageError, match="say evolve: true"):
            place.ready(schema=self.MORE, provenance=self.NEWER)

    @pytest.mark.parametrize(
        ("schema", "provenance"),
        [
            pytest.param(SCHEMA.remove(0), NEWER, id="fewer_columns"),
            pytest.param(SCHEMA.set(0, pa.field("name", pa.int64())), NEWER, id="another_type"),
            pytest.param(MORE, {**NEWER, "version": "0"}, id="earlier"),
            pytest.param(MORE, {**NEWER, "domain": "other"}, id="another_domain"),
            pytest.param(MORE, {**NEWER, "keys": "other"}, id="other_keys"),
        ],
    )
    def test_that_does_more_is_refused(self, place: Place, schema: pa.Schema, provenance: dict[str, str]) -> None:
        place.ready()
        before = place.entries()

        with pytest.raises(StorageError, match="EV423"):
            place.ready(schema=schema, provenance=provenance, evolve=True)

        assert before == place.entries()
        assert SCHEMA.names == place.table().schema.names


class TestACheckpoint:
    def test_is_kept_by_the_table(self, place: Place) -> None:
        sink = place.ready()

        sink.bind("s1")
        sink.bind("s1")
        published(sink, cut(MANY, 1))
        sink.bind("s2", after="s1")

        assert "s2" == place.entries()[CHECKPOINT]

    def test_of_another_series_is_refused(self, place: Place) -> None:
        sink = place.ready()
        sink.bind("s1")
        sink.bind("s2")
        published(sink, cut(MANY, 1))

        with pytest.raises(StorageError, match="EV423 holds windows that were published from another checkpoint"):
            sink.bind("s3", after="s1")

        assert "s2" == place.entries()[CHECKPOINT]


def together(calls: list[Callable[[], Any]]) -> list[Any]:
    """The results of calls that begin at the same time."""
    barrier = threading.Barrier(len(calls))
    results: list[Any] = [None] * len(calls)

    def run(number: int) -> None:
        barrier.wait()
        try:
            results[number] = calls[number]()
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failed = [one for one in results if isinstance(one, BaseException)]
    if failed:
        raise failed[0]
    return results


def _race(sink: TableSink, barrier: Any, seed: int, others: bool, results: Any) -> None:
    for pane in range(ROUNDS):
        barrier.wait()
        numbers = range(pane * 10, pane * 10 + (11 if others and seed else 10))
        results.put((pane, published(sink, cut(numbers, seed), pane=pane).conflict))


class TestARace:
    """Two writers of one window, as after a worker was given up and was not dead."""

    def test_between_threads_commits_once(self, place: Place) -> None:
        sink = place.ready()

        for pane in range(ROUNDS):
            numbers = range(pane * 10, pane * 10 + 10)
            units = together([partial(published, sink, cut(numbers, seed), pane=pane) for seed in range(2)])
            assert [False, False] == [unit.conflict for unit in units]

        assert list(range(ROUNDS * 10)) == sorted(one["n"] for one in place.rows())
        assert ROUNDS == len(place.commits())

    @pytest.mark.parametrize("others", [False, True], ids=["same_rows", "other_rows"])
    def test_between_processes_commits_once(self, place: Place, others: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        sink = place.ready()
        # Where the new processes find this module, whatever started the tests.
        monkeypatch.syspath_prepend(str(Path(__file__).parents[4]))
        context = multiprocessing.get_context("spawn")
        barrier, results = context.Barrier(2), context.Queue()
        workers = [context.Process(target=_race, args=(sink, barrier, seed, others, results)) for seed in range(2)]
        for worker in workers:
            worker.start()
        conflicts = [results.get(timeout=120) for _ in range(2 * ROUNDS)]
        for worker in workers:
            worker.join(30)

        assert ROUNDS == len(place.commits())
        assert (ROUNDS if others else 0) == sum(conflict for _, conflict in conflicts)
        found = sorted(one["n"] for one in place.rows())
        assert others or list(range(ROUNDS * 10)) == found

    def test_of_writers_of_different_windows_loses_none(self, place: Place) -> None:
        sink = place.ready()

        def write(writer: int) -> None:
            for pane in range(5):
                assert not published(sink, cut([writer * 10 + pane], 1), START + writer * HOUR, pane).conflict

        together([partial(write, writer) for writer in range(4)])

        assert sorted(writer * 10 + pane for writer in range(4) for pane in range(5)) == sorted(one["n"] for one in place.rows())


_KILLED = """
import os, pickle, sys
from eventveil.pipeline.sinks.tables import delta, iceberg
for kind in (delta._OpenDelta, iceberg._OpenIceberg):
    kind.commit = lambda *_: os._exit(9)
sink, batches = pickle.loads(sys.stdin.buffer.read())
sink.publish_window({start}, 7, lambda: iter(batches), sum(map(len, batches)), 1)
"""


class TestAKilledWriter:
    def test_leaves_files_that_nobody_sees_and_the_next_one_uses(self, place: Place) -> None:
        sink = place.ready()
        given = pickle.dumps((sink, cut(MANY, 1)))

        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(_KILLED.format(start=START))], input=given, check=False, capture_output=True
        )
        left = place.data_files()

        assert (9, 1) == (done.returncode, len(left))
        assert [] == place.rows()
        published(sink, cut(MANY, 2))
        assert left == place.data_files()
        assert len(MANY) == len(place.rows())

    def test_that_comes_back_spoils_nothing(self, place: Place) -> None:
        """Who writes the files of a window that was committed meanwhile replaces them by the same, at once."""
        sink = place.ready()
        with sink._open() as late:
            assert late is not None
            published(sink, cut(MANY, 1))
            before = {path: path.read_bytes() for path in place.data_files()}
            ((window, rows),) = sink._pieces([pa.Table.from_batches([one.replace_schema_metadata(None) for one in cut(MANY, 2)])])
            late.write(place.sink()._commit_name("2014-09-04T22:00:00Z-p000007"), 0, window, rows)

        assert before == {path: path.read_bytes() for path in place.data_files()}


class TestFailures:
    def test_of_a_removed_table_are_told(self, place: Place) -> None:
        sink = place.ready()
        place.folder.rename(place.folder.with_name("elsewhere"))

        with pytest.raises(StorageError, match="EV422 the table was removed during the run"):
            published(sink, cut(MANY, 1))

    def test_of_a_folder_that_cannot_be_made_are_told(self, place: Place) -> None:
        place.folder.parent.mkdir(exist_ok=True)
        place.folder.write_text("a file")

        with pytest.raises(StorageError, match=r"EV4(04|22)"):
            place.ready()

    def test_of_a_store_that_does_not_answer_may_mend(self) -> None:
        settings = (
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:9"),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", "x"),
            ("AWS_ACCESS_KEY_ID", "${EV_KEY}"),
        )
        settings += (("AWS_SECRET_ACCESS_KEY", "${EV_SECRET}"), ("max_retries", "1"), ("retry_timeout", "1s"))
        sink = DeltaSink("s3://bucket/orders", "", SCHEMA, PROVENANCE, settings)
        os.environ.update(EV_KEY="k", EV_SECRET="planted-secret")

        with pytest.raises(Unreachable, match="EV422") as caught:
            sink.prepare()

        assert "planted-secret" not in str(caught.value)

    def test_of_a_catalogue_that_does_not_answer_may_mend(self) -> None:
        settings = (("catalog.type", "rest"), ("catalog.uri", "http://127.0.0.1:9"))
        sink = IcebergSink("s3://bucket/orders", "shop.orders", SCHEMA, PROVENANCE, settings)

        with pytest.raises(Unreachable, match="EV422"):
            sink.prepare()

    def test_of_a_warehouse_without_catalogue_are_told(self) -> None:
        with pytest.raises(StorageError, match="EV422 a warehouse that is no folder needs a catalogue"):
            IcebergSink("s3://bucket/orders", "shop.orders", SCHEMA, PROVENANCE).prepare()

    @pytest.mark.parametrize("name", ["allow_unsafe_rename", "AWS_S3_ALLOW_UNSAFE_RENAME"])
    def test_by_settings_that_lose_commits_are_refused(self, name: str) -> None:
        with pytest.raises(PolicyError, match="EV103"):
            DeltaSink("s3://bucket/orders", "", SCHEMA, PROVENANCE, ((name, "true"),))

    def test_by_a_property_that_lets_windows_double_are_refused(self, tmp_path: Path) -> None:
        place = Place("iceberg", tmp_path / "lake")
        sink = place.ready()
        with place.iceberg().transaction() as transaction:
            transaction.set_properties({"commit.retry.num-retries": "4"})

        with pytest.raises(StorageError, match="EV422 somebody has changed"):
            published(sink, cut(MANY, 1))


class TestWhatStands:
    def test_is_known_after_checkpoints_and_compaction(self, tmp_path: Path) -> None:
        place = Place("delta", tmp_path / "lake")
        sink = place.ready()
        for pane in range(5):
            published(sink, cut([pane], 1), pane=pane)
        table = DeltaTable(str(place.folder))
        table.optimize.compact()
        table.create_checkpoint()
        for path in (place.folder / "_delta_log").glob("*.json"):
            path.unlink()

        assert [False] * 5 == [published(sink, cut([pane], 1), pane=pane).conflict for pane in range(5)]
        assert published(sink, cut([99], 1), pane=3).conflict
        assert list(range(5)) == sorted(one["n"] for one in place.rows())

    def test_is_read_by_name_and_by_number(self, tmp_path: Path) -> None:
        """Iceberg's readers go by the numbers of fields, which stand in the files: a column that is renamed keeps its values."""
        place = Place("iceberg", tmp_path / "lake")
        published(place.ready(), cut(MANY, 1))
        (file,) = place.visible_files()
        numbers = {field.name: (field.metadata or {}).get(b"PARQUET:field_id") for field in pq.ParquetFile(file).schema_arrow}
        assert {field.name: b"%d" % field.field_id for field in place.iceberg().schema().fields} == numbers
        with place.iceberg().update_schema() as update:
            update.rename_column("n", "number")

        assert MANY == sorted(place.iceberg().scan().to_arrow().column("number").to_pylist())
        assert [KEY in one for one in place.commits()] == [True]


def test_no_sink_holds_a_client_or_a_secret(place: Place) -> None:
    sink = place.sink(settings=(("AWS_SECRET_ACCESS_KEY", "${EV_SECRET}"),))

    again = pickle.loads(pickle.dumps(sink))

    assert sink == again
    assert replace(sink, evolve=True) != sink
    assert DAY and b"${EV_SECRET}" in pickle.dumps(sink)
