"""What the tests know of BigQuery: its storage API over gRPC and its tables over REST, as far as the sink uses them.

It is strict where the service is documented to be: offsets, finalized and committed streams, columns, sizes, etags. It is no proof that
the service does the same.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import grpc
import pyarrow as pa
from google.cloud.bigquery_storage_v1 import types

_WRITE = "google.cloud.bigquery.storage.v1.BigQueryWrite"
_READ = "google.cloud.bigquery.storage.v1.BigQueryRead"
_LARGEST = 10_000_000
_CONDITION = re.compile(r"(\w+) >= '([^']*)' AND (\w+) < '([^']*)'\Z")
_ARROW: dict[str, Callable[[Any], bool]] = {
    "BOOLEAN": pa.types.is_boolean,
    "INTEGER": pa.types.is_integer,
    "FLOAT": pa.types.is_floating,
    "NUMERIC": pa.types.is_decimal,
    "STRING": pa.types.is_string,
    "BYTES": pa.types.is_binary,
    "DATE": pa.types.is_date32,
    "TIME": pa.types.is_time64,
    "DATETIME": lambda kind: pa.types.is_timestamp(kind) and kind.tz is None,
    "TIMESTAMP": lambda kind: pa.types.is_timestamp(kind) and kind.tz == "UTC",
    "RECORD": pa.types.is_struct,
}


class Stream:
    """A PENDING stream."""

    def __init__(self, table: str) -> None:
        self.table = table
        self.batches: list[pa.RecordBatch] = []
        self.is_final = False
        self.is_committed = False

    @property
    def rows(self) -> int:
        return sum(batch.num_rows for batch in self.batches)


class FakeBigQuery:
    """As a context: servers on two free ports.

    Attributes:
        calls: names of the calls that came, in turn.
        faults: for the name of a call, what is done at the next ones: an error before anything happens, or after it has.
    """

    def __init__(self) -> None:
        self.tables: dict[str, dict[str, Any]] = {}
        self.streams: dict[str, Stream] = {}
        self.sessions: dict[str, pa.Table] = {}
        self.data: dict[str, list[pa.Table]] = {}
        self.calls: list[str] = []
        self.faults: dict[str, list[tuple[str, grpc.StatusCode]]] = {}
        self.received = b""
        self._lock = threading.RLock()

    def __enter__(self) -> FakeBigQuery:
        self._grpc = grpc.server(ThreadPoolExecutor(8))
        unary, both = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler

        def simple(call: Callable[[Any, Any], Any], asked: Any, answered: Any) -> Any:
            return unary(self._with_faults(call), asked.deserialize, answered.serialize)

        write = {
            "CreateWriteStream": simple(self._create, types.CreateWriteStreamRequest, types.WriteStream),
            "GetWriteStream": simple(self._get, types.GetWriteStreamRequest, types.WriteStream),
            "FinalizeWriteStream": simple(self._finalize, types.FinalizeWriteStreamRequest, types.FinalizeWriteStreamResponse),
            "BatchCommitWriteStreams": simple(self._commit, types.BatchCommitWriteStreamsRequest, types.BatchCommitWriteStreamsResponse),
            "AppendRows": both(self._append, types.AppendRowsRequest.deserialize, types.AppendRowsResponse.serialize),
        }
        read = {
            "CreateReadSession": simple(self._session, types.CreateReadSessionRequest, types.ReadSession),
            "ReadRows": grpc.unary_stream_rpc_method_handler(
                self._read, types.ReadRowsRequest.deserialize, types.ReadRowsResponse.serialize
            ),
        }
        self._grpc.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(_WRITE, write), grpc.method_handlers_generic_handler(_READ, read)]
        )
        port = self._grpc.add_insecure_port("127.0.0.1:0")
        self._grpc.start()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()
        self.settings = (("api.endpoint", f"http://127.0.0.1:{port}"), ("api.rest", f"http://127.0.0.1:{self._http.server_port}"))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._grpc.stop(None).wait()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def fail(self, call: str, when: str, *codes: grpc.StatusCode) -> None:
        """At the next calls of this name: fail ``before`` or ``after`` they have had their effect."""
        self.faults[call] = [(when, code) for code in codes]

    def rows(self, table: str) -> list[dict[str, Any]]:
        """What is visible."""
        return [one for piece in self.data.get(table, []) for one in piece.to_pylist()]

    # --- faults ---------------------------------------------------------------------------------------------------------------

    def _fault(self, name: str, when: str, context: Any) -> None:
        with self._lock:
            planned = self.faults.get(name, [])
            code = planned.pop(0)[1] if planned and planned[0][0] == when else None
        if code is not None:
            context.abort(code, "planted text that quotes a value")

    def _with_faults(self, call: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        name = call.__name__.strip("_")

        def wrapped(request: Any, context: Any) -> Any:
            self._fault(name, "before", context)
            with self._lock:
                self.calls.append(name)
                answer = call(request, context)
            self._fault(name, "after", context)
            return answer

        return wrapped

    # --- writing --------------------------------------------------------------------------------------------------------------

    def _create(self, request: Any, context: Any) -> Any:
        if request.parent not in self.tables:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such table")
        assert request.write_stream.type_ == types.WriteStream.Type.PENDING
        name = f"{request.parent}/streams/s{len(self.streams)}"
        self.streams[name] = Stream(request.parent)
        return types.WriteStream(name=name, type_=types.WriteStream.Type.PENDING)

    def _get(self, request: Any, _: Any) -> Any:
        found = types.WriteStream(name=request.name)
        if self.streams[request.name].is_committed:
            found.commit_time = {"seconds": 1}
        return found

    def _append(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        stream, schema = None, None
        for request in requests:
            self._fault("append", "before", context)
            with self._lock:
                self.calls.append("append")
                if stream is None:
                    stream = self.streams.get(request.write_stream)
                    routes = [text for name, text in context.invocation_metadata() if name == "x-goog-request-params"]
                    if stream is None or f"write_stream={request.write_stream}" not in routes:
                        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no such stream, or no routing header")
                if request.arrow_rows.writer_schema.serialized_schema:
                    schema = pa.ipc.read_schema(pa.py_buffer(request.arrow_rows.writer_schema.serialized_schema))
                answer = self._appended(stream, schema, request)
            self._fault("append", "after", context)
            yield answer

    def _appended(self, stream: Stream | None, schema: pa.Schema | None, request: Any) -> Any:
        assert stream is not None
        data = request.arrow_rows.rows.serialized_record_batch
        if schema is None or len(data) > _LARGEST or stream.is_final or self._wrong(stream.table, schema):
            return types.AppendRowsResponse(error={"code": 3, "message": "planted text that quotes a value"})
        batch = pa.ipc.read_record_batch(pa.py_buffer(data), schema)
        if request.offset < stream.rows:
            return types.AppendRowsResponse(error={"code": 6})
        if request.offset > stream.rows:
            return types.AppendRowsResponse(error={"code": 11})
        if any(pa.types.is_list(column.type) and (column.null_count or column.flatten().null_count) for column in batch.columns):
            return types.AppendRowsResponse(error={"code": 3})
        self.received += data
        stream.batches.append(batch)
        return types.AppendRowsResponse(append_result={"offset": request.offset})

    def _wrong(self, table: str, schema: pa.Schema) -> bool:
        return _differ(self.tables[table]["schema"]["fields"], list(schema))

    def _finalize(self, request: Any, _: Any) -> Any:
        stream = self.streams[request.name]
        stream.is_final = True
        return types.FinalizeWriteStreamResponse(row_count=stream.rows)

    def _commit(self, request: Any, _: Any) -> Any:
        codes = types.StorageError.StorageErrorCode
        errors = []
        for name in request.write_streams:
            stream = self.streams.get(name)
            code = codes.STREAM_NOT_FOUND if stream is None or stream.table != request.parent else None
            if stream is not None and not code:
                code = codes.STREAM_ALREADY_COMMITTED if stream.is_committed else None if stream.is_final else codes.INVALID_STREAM_STATE
            if code:
                errors.append(types.StorageError(code=code, entity=name))
        if errors:
            return types.BatchCommitWriteStreamsResponse(stream_errors=errors)
        for name in request.write_streams:
            self.streams[name].is_committed = True
            self.data.setdefault(request.parent, []).append(pa.Table.from_batches(self.streams[name].batches))
        return types.BatchCommitWriteStreamsResponse(commit_time={"seconds": 1})

    # --- reading --------------------------------------------------------------------------------------------------------------

    def _session(self, request: Any, context: Any) -> Any:
        wanted = request.read_session
        if wanted.table not in self.tables:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such table")
        columns = list(wanted.read_options.selected_fields)
        pieces = [piece.select(columns) for piece in self.data.get(wanted.table, [])]
        schema = pa.schema([(name, pa.string()) for name in columns])
        found = pa.concat_tables(pieces) if pieces else schema.empty_table()
        if wanted.read_options.row_restriction:
            condition = _CONDITION.match(wanted.read_options.row_restriction)
            assert condition is not None and condition[1] == condition[3]
            keep = [condition[2] <= str(one) < condition[4] for one in found.column(condition[1])]
            found = found.filter(pa.array(keep, pa.bool_()))
        name = f"{request.parent}/locations/here/sessions/x{len(self.sessions)}/streams/0"
        self.sessions[name] = found
        session = types.ReadSession(arrow_schema={"serialized_schema": schema.serialize().to_pybytes()})
        if len(found):
            session.streams = [types.ReadStream(name=name)]
        return session

    def _read(self, request: Any, context: Any) -> Iterator[Any]:
        self._fault("read", "before", context)
        for batch in self.sessions[request.read_stream].to_batches(max_chunksize=3):
            yield types.ReadRowsResponse(arrow_record_batch={"serialized_record_batch": batch.serialize().to_pybytes()})

    # --- tables ---------------------------------------------------------------------------------------------------------------

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def _body(self) -> Any:
                return json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))

            def _path(self) -> str:
                return self.path.removeprefix("/bigquery/v2/")

            def _answer(self, status: int, body: Any = None) -> None:
                data = json.dumps(body or {"error": {"code": status, "message": "planted text that quotes a value"}}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                found = fake.tables.get(self._path())
                self._answer(404 if found is None else 200, found)

            def do_POST(self) -> None:
                body = self._body()
                path = f"{self._path()}/{body['tableReference']['tableId']}"
                with fake._lock:
                    if path in fake.tables:
                        self._answer(409)
                        return
                    fake.tables[path] = {**body, "etag": "e0", "numRows": "0"}
                self._answer(200, fake.tables[path])

            def do_PATCH(self) -> None:
                body = self._body()
                with fake._lock:
                    found = fake.tables.get(self._path())
                    if found is None or self.headers.get("If-Match") != found["etag"]:
                        self._answer(404 if found is None else 412)
                        return
                    found |= {**body, "etag": f"e{int(found['etag'][1:]) + 1}"}
                self._answer(200, found)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


def _differ(described: list[dict[str, Any]], fields: list[Any]) -> bool:
    """Whether rows of these columns do not fit the table: a column may be missing, none may be more."""
    known = {one["name"]: one for one in described}
    for field in fields:
        one, kind = known.get(field.name), field.type
        if one is None or pa.types.is_list(kind) != (one["mode"] == "REPEATED"):
            return True
        kind = kind.value_type if pa.types.is_list(kind) else kind
        if not _ARROW[one["type"]](kind) or (pa.types.is_struct(kind) and _differ(one["fields"], list(kind))):
            return True
    return False
