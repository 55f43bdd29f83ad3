"""Avro messages that name their writer's schema by a number: read by it, whatever stands beside them; the registry asked once each.

The registry is a server of the test's own that speaks the two calls that are needed; tests/live has a real one.
"""

from __future__ import annotations

import io
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import fastavro
import pyarrow as pa
import pytest

from eventveil.schemas.errors import StorageError, Unreachable
from eventveil.schemas.events.avro import parse_avro
from eventveil.schemas.streams import RegistryDoc
from eventveil.transforms.batch import with_kind
from eventveil.transforms.decode.decoded import Decoded
from eventveil.transforms.decode.event_type import event_types
from eventveil.transforms.decode.reading import Decoders, Reading
from eventveil.transforms.decode.writer_schemas import WriterSchemas

pytest.importorskip("confluent_kafka.schema_registry")

NAME = {"name": "name", "type": "string"}
EVENT = {"type": "record", "name": "E", "fields": [{"name": "n", "type": "long"}, {"name": "name", "type": ["null", "string"]}]}


def record(*fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "record", "name": "E", "fields": list(fields)}


def number_of(kind: str) -> dict[str, Any]:
    return {"name": "n", "type": kind}


WRITERS: dict[int, Any] = {
    1: record(number_of("long"), NAME),
    2: record(number_of("int")),
    3: record(number_of("long"), NAME, {"name": "added", "type": "string"}),
    4: record(number_of("string"), NAME),
    1 << 31: record(NAME, number_of("long")),
}


class Registry:
    """Attributes:
    asked: the paths that were asked for. status: what it answers with where that is not 200.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.status = 200
        self.schemas: dict[str, dict[str, Any]] = {f"/schemas/ids/{number}": {"schema": json.dumps(one)} for number, one in WRITERS.items()}
        self.authorization: str | None = None
        registry = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                registry.asked.append(path)
                registry.authorization = self.headers.get("Authorization")
                found = registry.schemas.get(path)
                status = registry.status if registry.status != 200 else 200 if found is not None else 404
                body = json.dumps(found if status == 200 else {"error_code": 40403, "message": "canary"}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def registry() -> Iterator[Registry]:
    found = Registry()
    yield found
    found.close()


def wire(number: int, event: dict[str, Any], writer: Any = None) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(writer or WRITERS[number]), event)
    return b"\0" + number.to_bytes(4, "big") + out.getvalue()


def batch(*values: bytes | None) -> pa.RecordBatch:
    columns: list[Any] = [pa.array(values, pa.binary()), pa.array(range(len(values)))]
    return with_kind(pa.RecordBatch.from_arrays(columns, ["value", "position"]), "messages")


def reading(registry: Registry, *settings: tuple[str, str], **more: Any) -> Reading:
    used = frozenset({"n", "name"})
    return Reading(parse_avro(EVENT, ""), used, "avro", registry=RegistryDoc(registry.url, settings), **more)


def decode(registry: Registry, *values: bytes | None) -> Decoded:
    return Decoders(reading(registry)).decode(batch(*values))


class TestDecoded:
    def test_each_by_its_own_writer_in_the_order_in_which_they_came(self, registry: Registry) -> None:
        found = decode(
            registry,
            wire(1, {"n": 1, "name": "a"}),
            wire(2, {"n": 2}),
            wire(1 << 31, {"n": 3, "name": "c"}),
            wire(1, {"n": 4, "name": "d"}),
            wire(2, {"n": 5}),
        )

        assert [(1, "a"), (2, None), (3, "c"), (4, "d"), (5, None)] == [(event["n"], event["name"]) for event in found.events.to_pylist()]
        assert ([], {}) == (found.refused_codes, found.drifting)

    def test_what_only_the_writer_has_is_drift_of_its_events(self, registry: Registry) -> None:
        found = decode(registry, wire(2, {"n": 1}), wire(3, {"n": 2, "name": "b", "added": "x"}), wire(2, {"n": 3}))

        assert [1, 2, 3] == [event["n"] for event in found.events.to_pylist()]
        assert {"?": [1]} == {label: rows.tolist() for label, rows in found.drifting.items()}

    def test_what_cannot_be_read_is_refused_row_by_row(self, registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
        good = wire(1, {"n": 1, "name": "a"})
        values = [
            good,
            good[:-1],
            good + b"x",
            wire(4, {"n": "x", "name": "a"}),
            b"\0\0\0",
            b"\1" + good[1:],
            None,
            b"",
            wire(99, {"n": 1}, WRITERS[2]),
        ]
        found = decode(registry, *values, good)

        assert list(range(1, 9)) == found.refused_rows.tolist()
        assert ["EV516", "EV516", "EV502", "EV516", "EV516", "EV517", "EV516", "EV516"] == found.refused_codes
        assert [1, 1] == [event["n"] for event in found.events.to_pylist()]
        assert found.rows is not None
        assert [0, 9] == found.rows.tolist()
        assert ["EV502 events of the registry's schema 4 are refused"] == [
            record.getMessage().partition(":")[0] for record in caplog.records
        ]

    def test_a_batch_with_nothing_to_read(self, registry: Registry) -> None:
        found = decode(registry, b"x", b"y")

        assert ((0, 2), ["EV516", "EV516"]) == ((len(found.events), len(found.events.type)), found.refused_codes)
        assert 0 == len(decode(registry).events)

    def test_beside_fields_of_the_stream(self, registry: Registry) -> None:
        given = batch(wire(2, {"n": 1}), b"x", wire(1, {"n": 2, "name": "b"}))
        given = with_kind(given.append_column("key", pa.array([b"a", b"b", b"c"])), "messages")
        found = Decoders(reading(registry, stream=("$key",))).decode(given)

        assert [("a", 1), ("c", 2)] == [(event["$key"], event["n"]) for event in found.events.to_pylist()]

    def test_types_are_read_by_them(self, registry: Registry) -> None:
        values = [wire(1, {"n": 1, "name": "a"}), wire(2, {"n": 2}), wire(3, {"n": 2, "name": "b", "added": ""}), b"x", None]
        found = event_types(batch(*values), "name", 1000, registry=RegistryDoc(registry.url))

        assert (["a", None, "b", None, None], [None, "EV516", None, "EV516", "EV517"]) == found


class TestReferences:
    def test_types_of_other_schemas_are_written_out(self, registry: Registry) -> None:
        base = {
            "type": "record",
            "name": "E",
            "namespace": "shop",
            "fields": [number_of("Number"), {"name": "name", "type": ["null", "Text"]}],
        }
        last = [{"name": "again", "type": ["null", "shop.Number"]}]
        registry.schemas["/schemas/ids/7"] = {
            "schema": json.dumps({**base, "fields": base["fields"] + last}),
            "references": [{"name": "shop.Number", "subject": "number", "version": 3}, {"name": "Text", "subject": "text", "version": 1}],
        }
        fixed = {"type": "enum", "name": "Number", "namespace": "shop", "symbols": ["a", "b"]}
        registry.schemas["/subjects/number/versions/3"] = {"subject": "number", "version": 3, "id": 8, "schema": json.dumps(fixed)}
        text = {"type": "enum", "name": "Text", "symbols": ["x"]}
        registry.schemas["/subjects/text/versions/1"] = {"subject": "text", "version": 1, "id": 9, "schema": json.dumps(text)}
        found = WriterSchemas(RegistryDoc(registry.url)).schema(7)

        assert found is not None
        out = io.BytesIO()
        fastavro.schemaless_writer(out, fastavro.parse_schema(json.loads(found)), {"n": "a", "name": "x", "again": "b"})
        assert {"n": "a", "name": "x", "again": "b"} == fastavro.schemaless_reader(io.BytesIO(out.getvalue()), json.loads(found), None)

    @pytest.mark.parametrize("answer", [{"schemaType": "JSON", "schema": "{}"}, {"schemaType": "PROTOBUF", "schema": "message M {}"}])
    def test_another_language_is_no_schema_of_ours(self, registry: Registry, answer: dict[str, Any]) -> None:
        registry.schemas["/schemas/ids/7"] = answer

        assert WriterSchemas(RegistryDoc(registry.url)).schema(7) is None

    @pytest.mark.parametrize("text", ["", "{", '"E"', "[]", '{"type": "record"}', '{"type": "record", "name": "E", "fields": [1]}'])
    def test_a_schema_that_is_none_refuses_its_events(self, registry: Registry, text: str) -> None:
        registry.schemas["/schemas/ids/7"] = {"schema": text}

        assert ["EV502"] == decode(registry, b"\0\0\0\0\7\2").refused_codes or ["EV516"] == decode(registry, b"\0\0\0\0\7\2").refused_codes


class TestAsked:
    def test_once_for_each_number(self, registry: Registry) -> None:
        values = [wire(1, {"n": 1, "name": "a"}), wire(2, {"n": 2}), wire(99, {"n": 2}, WRITERS[2])]
        for _ in range(3):
            decode(registry, *values)

        assert ["/schemas/ids/1", "/schemas/ids/2", "/schemas/ids/99"] == sorted(registry.asked)

    def test_with_the_settings_of_the_job(self, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("EVENTVEIL_TEST_USER", "me:hunter2")
        WriterSchemas(RegistryDoc(registry.url, (("basic.auth.user.info", "${EVENTVEIL_TEST_USER}"), ("timeout", "5")))).schema(1)

        assert "Basic bWU6aHVudGVyMg==" == registry.authorization

    @pytest.mark.parametrize(
        ("status", "kind"), [(500, Unreachable), (429, Unreachable), (503, Unreachable), (401, StorageError), (403, StorageError)]
    )
    def test_what_it_answers_instead(self, registry: Registry, status: int, kind: type[StorageError]) -> None:
        registry.status = status
        with pytest.raises(StorageError, match=f"EV414 .*status {status}") as caught:
            WriterSchemas(RegistryDoc(registry.url), patience_s=0).schema(1)

        assert kind is type(caught.value)
        assert "canary" not in str(caught.value)

    @pytest.mark.parametrize("settings", [(("timeout", "soon"),), (("no.such.setting", "hunter2"),)])
    def test_settings_that_it_does_not_take(self, registry: Registry, settings: Any) -> None:
        with pytest.raises(StorageError, match="EV414") as caught:
            WriterSchemas(RegistryDoc(registry.url, settings), patience_s=0).schema(1)

        assert StorageError is type(caught.value)
        assert "hunter2" not in str(caught.value)

    def test_while_it_is_gone_events_wait(self, registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
        registry.status = 503
        threading.Timer(0.5, lambda: setattr(registry, "status", 200)).start()
        with caplog.at_level(logging.WARNING):
            found = WriterSchemas(RegistryDoc(registry.url), patience_s=10).schema(2)

        assert found is not None
        assert {f"EV414 the schema registry {registry.url} does not answer: events wait for it"} == {
            one.getMessage() for one in caplog.records
        }

    def test_it_is_not_waited_for_for_ever(self) -> None:
        began = time.monotonic()
        with pytest.raises(Unreachable, match="EV414 the registry cannot be reached"):
            WriterSchemas(RegistryDoc("http://127.0.0.1:1"), patience_s=1).schema(1)

        assert 0.5 < time.monotonic() - began < 5

    def test_a_number_that_was_unknown_is_asked_again(self, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
        schemas = WriterSchemas(RegistryDoc(registry.url))
        first = schemas.schema(7)
        registry.schemas["/schemas/ids/7"] = {"schema": json.dumps(WRITERS[1])}
        later: Callable[[], float] = lambda now=time.monotonic: now() + 61  # noqa: E731
        soon = schemas.schema(7)
        monkeypatch.setattr("eventveil.transforms.decode.writer_schemas.time.monotonic", later)

        assert (None, None) == (first, soon)
        assert schemas.schema(7) is not None
