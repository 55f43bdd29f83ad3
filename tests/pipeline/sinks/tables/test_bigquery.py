"""BigQuery, on the level of its protocol: Google's client speaks to a server of the test. It never ran on the service itself."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eventveil.pipeline.sinks import _shards
from eventveil.pipeline.sinks.files import FolderSink
from eventveil.pipeline.sinks.tables import _bigquery_rows, bigquery
from eventveil.pipeline.sinks.tables._bigquery_rows import in_requests, without_null_lists
from eventveil.pipeline.sinks.tables.bigquery import COMMIT_COLUMN, BigQuerySink
from eventveil.schemas.errors import PolicyError, SchemaError, StorageError, Unreachable
from eventveil.transforms.batch import ORDER

from .fake_bigquery import FakeBigQuery
from .rows import HOUR, PROVENANCE, SCHEMA, START, TAGS, batch_of, cut, multiset, published
from .test_columns import CASES

MANY = list(range(400))
TABLE = "projects/acme-shop/datasets/sales/tables/orders"
# A repeated field holds no nulls.
REQUIRED: Any = pa.list_(pa.field("item", TAGS.value_type, nullable=False))
FLAT = SCHEMA.set(SCHEMA.get_field_index("tags"), pa.field("tags", REQUIRED))


@pytest.fixture
def fake() -> Iterator[FakeBigQuery]:
    with FakeBigQuery() as found:
        yield found


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that a test's rows exceed: many shards, many requests."""
    monkeypatch.setattr(_shards, "_SHARD_BYTES", 8_000)
    monkeypatch.setattr(_bigquery_rows, "LARGEST_REQUEST", 4_000)


def sink_of(fake: FakeBigQuery, **options: Any) -> BigQuerySink:
    given = {"schema": FLAT, "provenance": PROVENANCE, "settings": fake.settings, "layout": "windows", **options}
    return BigQuerySink("acme-shop/sales", "orders", **given)


def ready(fake: FakeBigQuery, **options: Any) -> BigQuerySink:
    sink = sink_of(fake, **options)
    sink.prepare()
    return sink


def numbers(fake: FakeBigQuery) -> list[int]:
    return sorted(one["n"] for one in fake.rows(TABLE))


class TestAWindow:
    def test_holds_what_a_folder_would_hold(self, fake: FakeBigQuery, tmp_path: Path, small: None) -> None:
        folder = FolderSink(str(tmp_path / "files"), "parquet", PROVENANCE, layout="windows")
        folder.prepare()
        expected = [one for file in published(folder, cut(MANY, 1)).files for one in pq.read_table(file.path).to_pylist()]

        unit = published(ready(fake), cut(MANY, 2))

        found = fake.rows(TABLE)
        assert not unit.conflict
        assert multiset([{**one, "tags": one["tags"] or []} for one in expected]) == multiset(
            [{name: value for name, value in one.items() if name != COMMIT_COLUMN} for one in found]
        )
        assert [one["n"] for one in expected] == [one["n"] for one in found]
        assert 1 == len({one[COMMIT_COLUMN] for one in found})

    def test_is_one_commit_of_one_stream(self, fake: FakeBigQuery, small: None) -> None:
        published(ready(fake), cut(MANY, 1))

        assert {"create": 1, "finalize": 1, "commit": 1} == {name: fake.calls.count(name) for name in ("create", "finalize", "commit")}
        assert fake.calls.count("append") > 5

    def test_again_is_not_written_again(self, fake: FakeBigQuery) -> None:
        sink = ready(fake)
        published(sink, cut(MANY, 1))

        unit = published(pickle.loads(pickle.dumps(sink)), cut(MANY, 2))

        assert (False, 1) == (unit.conflict, fake.calls.count("create"))
        assert MANY == numbers(fake)

    def test_with_another_content_the_first_one_stands(self, fake: FakeBigQuery) -> None:
        sink = ready(fake)
        published(sink, cut(MANY, 1))

        assert published(sink, cut(MANY[1:], 1)).conflict
        assert MANY == numbers(fake)

    def test_is_told_from_one_whose_name_begins_like_its_own(self, fake: FakeBigQuery) -> None:
        sink = ready(fake)
        for pane in (1_000_000, 100_000, 1):
            assert not published(sink, cut([pane], 1), pane=pane).conflict

        assert [1, 100_000, 1_000_000] == numbers(fake)

    def test_hides_nothing_in_what_is_sent(self, fake: FakeBigQuery) -> None:
        secret = "planted-4111111111111111"
        offsets, data = pa.array([secret, "seen", secret]).buffers()[1:]
        behind = pa.Array.from_buffers(pa.string(), 3, [pa.py_buffer(bytes([0b010])), offsets, data])
        order = pa.array([bytes([n] * 16) for n in range(3)], pa.binary(16))
        batch = pa.RecordBatch.from_arrays([behind, pa.array([1, 2, 3]), order], ["name", "n", ORDER]).slice(0, 2)

        published(ready(fake, schema=pa.schema([("name", pa.string()), ("n", pa.int64())])), [batch])

        assert [None, "seen"] == [one["name"] for one in fake.rows(TABLE)]
        assert b"seen" in fake.received
        assert secret.encode() not in fake.received

    @pytest.mark.parametrize(("by_day", "window"), [(False, "2014-09-04T22-00-00Z"), (True, "2014-09-04")])
    def test_says_which_it_is_where_the_table_is_partitioned(self, fake: FakeBigQuery, by_day: bool, window: str) -> None:
        published(ready(fake, partition_by_window=True, by_day=by_day), [batch_of(range(3), START, FLAT)])

        described = fake.tables[TABLE]
        assert {window} == {str(one["window"]) for one in fake.rows(TABLE)}
        assert by_day == ("timePartitioning" in described)
        assert [*([] if by_day else ["window"]), COMMIT_COLUMN] == described["clustering"]["fields"]

    def test_whose_row_is_too_large_is_refused(self, fake: FakeBigQuery, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bigquery, "LARGEST_REQUEST", 100)

        with pytest.raises(StorageError, match="EV422 a row is larger"):
            published(ready(fake), cut(MANY, 1))

        assert [] == numbers(fake)


class TestAPart:
    def test_with_the_windows_of_its_rows_is_one_commit(self, fake: FakeBigQuery) -> None:
        sink = ready(fake, layout="parts", partition_by_window=True)
        for _ in range(2):
            sink.publish("00ff", [batch_of([1, 2, 3], [START, START + HOUR, START], FLAT)])

        assert [1, 2, 3] == numbers(fake)
        assert 1 == fake.calls.count("commit")
        with pytest.raises(StorageError, match="EV423 holds this part"):
            sink.publish("00ff", [batch_of([1], [START], FLAT)])


class TestFaults:
    """Between the client and the service anything may be lost: what was asked, or the answer."""

    @pytest.mark.parametrize("when", ["before", "after"])
    @pytest.mark.parametrize("call", ["append", "create", "finalize", "commit", "session", "read"])
    @pytest.mark.parametrize(
        "code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED, grpc.StatusCode.INTERNAL], ids=lambda one: one.name
    )
    def test_end_with_all_rows_once(self, fake: FakeBigQuery, small: None, call: str, when: str, code: grpc.StatusCode) -> None:
        sink = ready(fake)
        published(sink, cut([1000], 1), pane=6)
        fake.fail(call, when, code, code)

        told = []
        for _ in range(6):
            try:
                unit = published(sink, cut(MANY, 1))
                break
            except Unreachable as error:
                told.append(str(error))

        assert not unit.conflict
        assert "planted" not in "".join(told)
        assert [*MANY, 1000] == numbers(fake)

    def test_of_a_connection_are_mended_where_it_broke(self, fake: FakeBigQuery, small: None) -> None:
        sink = ready(fake)
        fake.fail("append", "after", grpc.StatusCode.UNAVAILABLE)

        published(sink, cut(MANY, 1))

        assert MANY == numbers(fake)
        assert 1 == fake.calls.count("create")

    def test_that_lose_the_answer_to_a_commit_do_not_double_it(self, fake: FakeBigQuery) -> None:
        sink = ready(fake)
        fake.fail("commit", "after", grpc.StatusCode.INTERNAL)

        assert not published(sink, cut(MANY, 1)).conflict
        assert MANY == numbers(fake)
        assert 1 == fake.calls.count("get")

    def test_that_last_are_told_and_may_mend(self, fake: FakeBigQuery) -> None:
        sink = ready(fake)
        fake.fail("append", "before", *[grpc.StatusCode.UNAVAILABLE] * 20)

        with pytest.raises(Unreachable, match="EV422"):
            published(sink, cut(MANY, 1))

        assert [] == numbers(fake)

    def test_that_will_come_again_are_told(self, fake: FakeBigQuery) -> None:
        sink = ready(fake)
        fake.fail("create", "before", grpc.StatusCode.PERMISSION_DENIED)

        with pytest.raises(StorageError, match="EV422 the service refuses who asks") as caught:
            published(sink, cut(MANY, 1))

        assert not isinstance(caught.value, Unreachable)

    def test_of_a_server_that_is_not_there_may_mend(self, fake: FakeBigQuery, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bigquery, "_SECONDS", 1.0)
        sink = ready(fake)
        gone = sink_of(fake, settings=(("api.endpoint", "http://127.0.0.1:9"), fake.settings[1]))

        with pytest.raises(Unreachable, match="EV422"):
            published(gone, cut(MANY, 1))
        with pytest.raises(Unreachable, match="EV422"):
            sink_of(fake, settings=(fake.settings[0], ("api.rest", "http://127.0.0.1:9"))).prepare()
        assert not published(sink, cut(MANY, 1)).conflict

    def test_of_a_writer_that_died_before_its_commit_leave_nothing(self, fake: FakeBigQuery, monkeypatch: pytest.MonkeyPatch) -> None:
        sink = ready(fake)
        with monkeypatch.context() as patch:
            patch.setattr(bigquery._OpenBigQuery, "_make_visible", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                published(sink, cut(MANY, 1))
        assert [] == numbers(fake)

        published(sink, cut(MANY, 2))

        assert MANY == numbers(fake)


class TestAClaim:
    def test_is_the_tables(self, fake: FakeBigQuery) -> None:
        ready(fake)
        ready(fake)

        described = fake.tables[TABLE]
        assert PROVENANCE.items() <= json.loads(json.loads(described["description"])["eventveil.provenance"]).items()
        assert [*FLAT.names, COMMIT_COLUMN] == [one["name"] for one in described["schema"]["fields"]]

    def test_of_another_job_is_refused(self, fake: FakeBigQuery) -> None:
        ready(fake)

        with pytest.raises(StorageError, match="EV423 holds output of another job: digest differs"):
            ready(fake, provenance={**PROVENANCE, "digest": "d2"})

    def test_of_a_table_that_others_made_is_refused(self, fake: FakeBigQuery) -> None:
        fake.tables[TABLE] = {"schema": {"fields": []}, "etag": "e0", "description": "orders of the shop"}

        with pytest.raises(StorageError, match="EV423 is there, and no job of eventveil"):
            ready(fake)

    @pytest.mark.parametrize("column", ["GEOGRAPHY", "STRING"])
    def test_with_other_columns_is_refused(self, fake: FakeBigQuery, column: str) -> None:
        ready(fake)
        fake.tables[TABLE]["schema"]["fields"][2]["type"] = column

        with pytest.raises(StorageError, match="EV423 has other columns: n differs"):
            ready(fake)

    def test_of_a_new_version_adds_its_columns(self, fake: FakeBigQuery) -> None:
        published(ready(fake), cut(MANY, 1))
        more = FLAT.append(pa.field("extra", pa.string()))

        sink = ready(fake, schema=more, provenance={**PROVENANCE, "version": "2", "digest": "d2"}, evolve=True)
        published(sink, [batch_of([1000], None, FLAT).append_column("extra", pa.array(["x"]))], pane=8)

        assert "extra" == fake.tables[TABLE]["schema"]["fields"][-1]["name"]
        assert ["x"] == [one["extra"] for one in fake.rows(TABLE) if one["n"] == 1000]
        assert not published(sink, [batch_of(MANY, None, FLAT).append_column("extra", pa.nulls(400, pa.string()))]).files

    def test_that_met_another_change_is_made_anew(self, fake: FakeBigQuery, monkeypatch: pytest.MonkeyPatch) -> None:
        sink = ready(fake)
        seen = bigquery._OpenBigQuery.set_entries

        def meanwhile(self: Any, entries: Any) -> None:
            monkeypatch.setattr(bigquery._OpenBigQuery, "set_entries", seen)
            fake.tables[TABLE]["etag"] = "e7"
            seen(self, entries)

        monkeypatch.setattr(bigquery._OpenBigQuery, "set_entries", meanwhile)
        sink.bind("s1")

        assert "s1" == json.loads(fake.tables[TABLE]["description"])["eventveil.checkpoint"]

    def test_belongs_to_one_checkpoint(self, fake: FakeBigQuery) -> None:
        sink = ready(fake)
        sink.bind("s1")
        sink.bind("s2")
        published(sink, cut(MANY, 1))
        sink.bind("s3", after="s2")

        with pytest.raises(StorageError, match="EV423 holds windows that were published from another checkpoint"):
            sink.bind("s4", after="s2")

    def test_of_a_column_that_the_table_has_itself_is_refused(self, fake: FakeBigQuery) -> None:
        with pytest.raises(SchemaError, match="EV206"):
            sink_of(fake, schema=pa.schema([(COMMIT_COLUMN, pa.string())]))

    def test_with_a_setting_that_is_none_is_refused(self, fake: FakeBigQuery) -> None:
        with pytest.raises(PolicyError, match=r"EV103 BigQuery has no setting api\.endpont"):
            sink_of(fake, settings=(("api.endpont", "x"),))


class TestColumns:
    @pytest.mark.parametrize(
        ("of", "value", "back"), [(of, value, back) for of, value, _, back in CASES if not pa.types.is_nested(of)], ids=str
    )
    def test_every_value_comes_back(self, fake: FakeBigQuery, of: Any, value: Any, back: Any) -> None:
        if of == pa.decimal128(38, 2):
            of = pa.decimal128(31, 2)
        order = pa.array([bytes(16), bytes([1] * 16)], pa.binary(16))
        batch = pa.RecordBatch.from_arrays([pa.array([None, value], of), order], ["x", ORDER])

        published(ready(fake, schema=pa.schema([("x", of)])), [batch])
        ready(fake, schema=pa.schema([("x", of)]))

        assert [None, back] == [one["x"] for one in fake.rows(TABLE)]


class TestRows:
    def test_lists_that_are_null_come_back_empty_at_any_depth(self) -> None:
        given = [{"a": None, "s": None}, {"a": [{"b": None}, {"b": [1]}], "s": {"t": None}}, {"a": [], "s": {"t": ["x"]}}]
        inner = pa.list_(pa.struct([("b", pa.list_(pa.int64()))]))
        rows = pa.Table.from_pylist(given, pa.schema([("a", inner), ("s", pa.struct([("t", pa.list_(pa.string()))]))]))

        found = without_null_lists(rows).to_pylist()

        expected = [{"a": [], "s": None}, {"a": [{"b": []}, {"b": [1]}], "s": {"t": []}}, {"a": [], "s": {"t": ["x"]}}]
        assert expected == found

    def test_requests_hold_all_rows_in_turn(self, small: None) -> None:
        rows = pa.table({"n": pa.array(range(5_000), pa.int64()), "t": ["x" * (n % 50) for n in range(5_000)]})

        requests = list(in_requests(rows))

        batches = [pa.ipc.read_record_batch(pa.py_buffer(data), rows.schema) for data, _ in requests]
        assert max(len(data) for data, _ in requests) <= 4_000
        assert [batch.num_rows for batch in batches] == [number for _, number in requests]
        assert rows.equals(pa.Table.from_batches(batches).combine_chunks())
