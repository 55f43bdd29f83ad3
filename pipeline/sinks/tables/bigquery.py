"""A BigQuery table as a sink, by the Storage Write API.

Never run on the service itself: its tests speak the protocol to a server of their own, by Google's client library, over the wire.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from eventveil.pipeline.sinks.tables._bigquery_rest import TableResource, fields_of, schema_of
from eventveil.pipeline.sinks.tables._bigquery_rows import LARGEST_REQUEST, in_requests, without_null_lists
from eventveil.pipeline.sinks.tables._columns import Format
from eventveil.pipeline.sinks.tables._sink import WINDOW_COLUMN, Commit, File, OpenTable, TableSink
from eventveil.schemas.errors import PolicyError, Problem, did_you_mean

if TYPE_CHECKING:
    from google.cloud.bigquery_storage_v1 import BigQueryReadClient, BigQueryWriteClient

__all__ = ["COMMIT_COLUMN", "BigQuerySink"]

COMMIT_COLUMN = "_eventveil_commit"

_SETTINGS = frozenset({"api.endpoint", "api.rest", "credentials.file"})
_REST = "https://bigquery.googleapis.com"
# Of one call; the library tries again in between.
_SECONDS = 60.0
# Connections to one stream that broke: what was acknowledged is not sent again.
_RECONNECTS = 5
_ALREADY_EXISTS = 6


@dataclass(frozen=True)
class BigQuerySink(TableSink):
    """Writes into a BigQuery table.

    A commit is one stream of type PENDING: its rows are sent with their offsets, so that a connection that breaks doubles and loses none;
    then the stream is finalized, its rows are counted, and ``BatchCommitWriteStreams`` shows them all at once. Whether a commit whose
    answer was lost has happened is asked of the stream.

    BigQuery keeps no record of commits by name, and a stream's name is its own choice. So the rows say it themselves: the column
    ``_eventveil_commit`` holds the commit's name and a digest of its rows, which stand or fall with the rows. Before a commit is written,
    and again right before it is made visible, the table is asked for the name (a read session with a filter on this column, by which
    the table is clustered).

    - One writer at a time, however often it is killed and started anew: exactly once, as long as a read session sees what was
      committed before it, and nobody removes rows or this column.
    - Two writers of one window at the very same time, as when a worker that was given up is not dead: both may pass the second look,
      and both contents stand, as a rule the same rows twice. Nothing in the API prevents that: keep one writer per table, or remove doubles
      by a query that groups by this column.

    The table is clustered by ``window`` too where there are windows, or partitioned by it where they are days. Provenance stands as JSON
    in the table's description: who changes that takes the table from the job (EV423). Expired tables and partitions are BigQuery's own;
    streams that nobody commits go by themselves.

    Args:
        place: ``project/dataset``; the dataset must be there. table: its name.
        settings: ``credentials.file``, a service account's key (otherwise the default credentials of the machine);
            ``api.endpoint`` and ``api.rest``, other servers: where they begin with ``http://`` nothing is encrypted, and no
            credentials are sent, as an emulator wants it.

    Raises:
        PolicyError: EV103 an unknown setting.
    """

    format: ClassVar[Format] = "bigquery"

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = sorted(name for name, _ in self.settings if name not in _SETTINGS)
        if unknown:
            raise PolicyError(Problem("", 0, "EV103", f"BigQuery has no setting {unknown[0]}", did_you_mean(unknown[0], _SETTINGS)))

    @property
    def stored(self) -> pa.Schema:
        return super().stored.append(pa.field(COMMIT_COLUMN, pa.string()))

    @property
    def path(self) -> str:
        """The table as the API calls it."""
        project, _, dataset = self.place.partition("/")
        return f"projects/{project}/datasets/{dataset}/tables/{self.table}"

    def _reserved(self) -> tuple[str, ...]:
        return (*super()._reserved(), COMMIT_COLUMN)

    @contextmanager
    def _open(self) -> Iterator[OpenTable | None]:
        with self._clients() as clients:
            with self.library_errors():
                resource = clients.rest.get()
            yield None if resource is None else _OpenBigQuery(self, clients, resource)

    def _create(self, entries: Mapping[str, str]) -> None:
        more: dict[str, Any] = {}
        clusters = [COMMIT_COLUMN]
        if self.partition_by_window and self.by_day:
            more["timePartitioning"] = {"type": "DAY", "field": WINDOW_COLUMN}
        elif self.partition_by_window:
            clusters.insert(0, WINDOW_COLUMN)
        with self._clients() as clients, self.library_errors():
            if not clients.rest.create(fields_of(self.stored), entries, {**more, "clustering": {"fields": clusters}}):
                raise self.taken()

    @contextmanager
    def _clients(self) -> Iterator[_Clients]:
        settings = self.client_settings()
        with self.library_errors():
            clients = _Clients(self.path, settings)
        try:
            yield clients
        finally:
            clients.close()

    @contextmanager
    def library_errors(self) -> Iterator[None]:
        """What the library raises becomes one of ours."""
        from google.api_core import exceptions as found
        from google.auth import exceptions as auth
        from requests.exceptions import RequestException

        try:
            yield
        except (found.ServerError, found.TooManyRequests, found.Aborted, found.RetryError, found.Cancelled):
            raise self.failed("the service does not answer", waiting_helps=True) from None
        except (found.Unauthorized, found.Forbidden, auth.RefreshError, auth.DefaultCredentialsError):
            raise self.failed("the service refuses who asks", waiting_helps=False) from None
        except (RequestException, auth.TransportError):
            raise self.failed("the service does not answer", waiting_helps=True) from None
        except found.NotFound:
            raise self.failed("there is no such project, dataset or table", waiting_helps=False) from None
        except (found.GoogleAPICallError, auth.GoogleAuthError, OSError, ValueError, pa.ArrowException):
            raise self.failed("the service does not take what it is asked", waiting_helps=False) from None


class _Clients:
    """Clients of the three parts of the API, with one set of credentials."""

    def __init__(self, path: str, settings: Mapping[str, str]) -> None:
        rest = settings.get("api.rest", _REST)
        self._endpoint = settings.get("api.endpoint")
        self._credentials = None
        is_plain = (self._endpoint or "").startswith("http://")
        if not is_plain or not rest.startswith("http://"):
            self._credentials = _credentials(settings.get("credentials.file"))
        self.rest = TableResource(path, rest, None if rest.startswith("http://") else self._credentials, _SECONDS)
        self._found: list[Any] = []

    @property
    def write(self) -> BigQueryWriteClient:
        from google.cloud.bigquery_storage_v1 import BigQueryWriteClient
        from google.cloud.bigquery_storage_v1.services.big_query_write.transports import BigQueryWriteGrpcTransport

        found: BigQueryWriteClient = self._client(BigQueryWriteClient, BigQueryWriteGrpcTransport)
        return found

    @property
    def read(self) -> BigQueryReadClient:
        from google.cloud.bigquery_storage_v1 import BigQueryReadClient
        from google.cloud.bigquery_storage_v1.services.big_query_read.transports import BigQueryReadGrpcTransport

        found: BigQueryReadClient = self._client(BigQueryReadClient, BigQueryReadGrpcTransport)
        return found

    def close(self) -> None:
        for client in self._found:
            client.transport.close()
        self.rest.close()

    def _client(self, kind: Any, transport: Any) -> Any:
        for client in self._found:
            if isinstance(client, kind):
                return client
        if self._endpoint is not None and self._endpoint.startswith("http://"):
            import grpc  # type: ignore[import-untyped]

            channel = grpc.insecure_channel(self._endpoint.removeprefix("http://"))
            client = kind(transport=transport(channel=channel))
        else:
            options = {} if self._endpoint is None else {"api_endpoint": self._endpoint.removeprefix("https://")}
            client = kind(credentials=self._credentials, client_options=options)
        self._found.append(client)
        return client


class _OpenBigQuery(OpenTable):
    wants_digest = True

    def __init__(self, sink: BigQuerySink, clients: _Clients, resource: Mapping[str, Any]) -> None:
        self._sink = sink
        self._clients = clients
        self._resource = resource
        self._mark = ""
        self._stream = ""
        self._sent = 0

    @property
    def entries(self) -> Mapping[str, str]:
        return self._clients.rest.entries(self._resource)

    @property
    def columns(self) -> pa.Schema:
        return schema_of(self._resource)

    @property
    def is_empty(self) -> bool:
        return self._first_mark("") is None

    def refresh(self) -> None:
        with self._sink.library_errors():
            found = self._clients.rest.get()
        if found is None:
            raise self._sink.failed("the table was removed during the run", waiting_helps=False)
        self._resource = found

    def set_entries(self, entries: Mapping[str, str]) -> None:
        self._patch({**self.entries, **entries}, {})

    def add_columns(self, fields: Sequence[pa.Field[Any]], entries: Mapping[str, str]) -> None:
        more = [*self._resource["schema"]["fields"], *fields_of(pa.schema(fields))]
        self._patch({**self.entries, **entries}, {"schema": {"fields": more}})

    def _patch(self, entries: Mapping[str, str], more: Mapping[str, Any]) -> None:
        with self._sink.library_errors():
            found = self._clients.rest.patch(entries, more, self._resource["etag"])
        if found is None:
            raise self._sink.taken()
        self._resource = found

    def standing(self, name: str) -> int | None:
        # "0" comes after "/": these are the marks that begin with the name and a slash.
        found = self._first_mark(f"{COMMIT_COLUMN} >= '{name}/' AND {COMMIT_COLUMN} < '{name}0'")
        return None if found is None else int(found.rpartition("/")[2], 16)

    def _first_mark(self, condition: str) -> str | None:
        """What stands in the commit's column of some row that meets the condition."""
        from google.cloud.bigquery_storage_v1 import types

        wanted = types.ReadSession.TableReadOptions(selected_fields=[COMMIT_COLUMN], row_restriction=condition)
        session = types.ReadSession(table=self._sink.path, data_format=types.DataFormat.ARROW, read_options=wanted)
        with self._sink.library_errors():
            project = "/".join(self._sink.path.split("/")[:2])
            session = self._clients.read.create_read_session(
                parent=project, read_session=session, max_stream_count=1, timeout=_SECONDS, retry=_again()
            )
            for stream in session.streams:
                schema = pa.ipc.read_schema(pa.py_buffer(session.arrow_schema.serialized_schema))
                reader: Any = self._clients.read
                for answer in reader.read_rows(stream.name, timeout=_SECONDS, retry=_again()):
                    data = answer.arrow_record_batch.serialized_record_batch
                    batch = pa.ipc.read_record_batch(pa.py_buffer(data), schema) if data else None
                    if batch is not None and batch.num_rows:
                        return str(batch.column(0)[0])
        return None

    def begin(self, commit: Commit, digest: int) -> None:
        from google.cloud.bigquery_storage_v1 import types

        self._mark, self._sent = f"{commit.name}/{digest:016x}", 0
        pending = types.WriteStream(type_=types.WriteStream.Type.PENDING)
        with self._sink.library_errors():
            self._stream = self._clients.write.create_write_stream(
                parent=self._sink.path, write_stream=pending, timeout=_SECONDS, retry=_again()
            ).name

    def write(self, name: str, number: int, window: str | None, rows: pa.Table) -> File:
        marked = rows.append_column(pa.field(COMMIT_COLUMN, pa.string()), pa.repeat(self._mark, len(rows)))
        requests = list(in_requests(without_null_lists(marked)))
        with self._sink.library_errors():
            if any(len(data) > LARGEST_REQUEST for data, _ in requests):
                raise self._sink.failed("a row is larger than the service takes", waiting_helps=False)
            self._append(marked.schema, requests)
        return File(self._stream, len(rows), sum(len(data) for data, _ in requests), window)

    def _append(self, schema: pa.Schema, requests: Sequence[tuple[bytes, int]]) -> None:
        """Send what is not acknowledged yet, by one connection after the other."""
        from google.api_core import exceptions as found

        todo = list(requests)
        for attempt in range(_RECONNECTS + 1):
            try:
                for number in self._acknowledged(schema, todo):
                    self._sent += number
                    todo.pop(0)
                if not todo:
                    return
            except (found.ServerError, found.Aborted, found.TooManyRequests, found.Cancelled):
                if attempt == _RECONNECTS:
                    raise
        raise self._sink.failed("the service takes rows without saying so", waiting_helps=True)

    def _acknowledged(self, schema: pa.Schema, todo: Sequence[tuple[bytes, int]]) -> Iterator[int]:
        """The number of rows of each request that is in the stream, in turn."""
        from google.api_core import exceptions as found
        from google.cloud.bigquery_storage_v1 import types

        def requests() -> Iterator[types.AppendRowsRequest]:
            offset = self._sent
            for place, (data, number) in enumerate(list(todo)):
                rows = types.AppendRowsRequest.ArrowData(rows=types.ArrowRecordBatch(serialized_record_batch=data))
                if not place:
                    rows.writer_schema = types.ArrowSchema(serialized_schema=schema.serialize().to_pybytes())
                yield types.AppendRowsRequest(write_stream=self._stream, offset=offset, arrow_rows=rows)
                offset += number

        numbers = [number for _, number in todo]
        metadata = (("x-goog-request-params", f"write_stream={self._stream}"),)
        answers = self._clients.write.append_rows(requests(), timeout=_SECONDS, retry=None, metadata=metadata)
        for number, answer in zip(numbers, answers):
            # What the server has already is what a connection that broke has carried.
            if answer.error.code not in (0, _ALREADY_EXISTS):
                raise found.from_grpc_status(answer.error.code, "")  # type: ignore[no-untyped-call]
            yield number

    def commit(self, commit: Commit, digest: int, files: Sequence[File]) -> None:
        if self.standing(commit.name) is not None:
            raise self._sink.taken()
        with self._sink.library_errors():
            counted = self._clients.write.finalize_write_stream(name=self._stream, timeout=_SECONDS, retry=_again()).row_count
            if counted != sum(file.rows for file in files):
                raise self._sink.failed("the service has counted other rows than were sent; nothing of them is visible", waiting_helps=True)
            self._make_visible()

    def _make_visible(self) -> None:
        from google.api_core import exceptions as found
        from google.cloud.bigquery_storage_v1 import types

        done = types.StorageError.StorageErrorCode.STREAM_ALREADY_COMMITTED
        request = types.BatchCommitWriteStreamsRequest(parent=self._sink.path, write_streams=[self._stream])
        try:
            answer = self._clients.write.batch_commit_write_streams(request, timeout=_SECONDS, retry=_again())
        except (found.ServerError, found.Aborted, found.Cancelled):
            # Nobody knows. The stream does.
            if self._clients.write.get_write_stream(name=self._stream, timeout=_SECONDS, retry=_again()).commit_time:
                return
            raise
        if answer.stream_errors and any(error.code != done for error in answer.stream_errors):
            raise self._sink.failed("the service does not commit the stream", waiting_helps=False)


def _again() -> Any:
    """How often a call that may be repeated is: the library's own default goes on for ten minutes and more."""
    from google.api_core.exceptions import ServiceUnavailable
    from google.api_core.retry import Retry, if_exception_type

    return Retry(if_exception_type(ServiceUnavailable), initial=0.1, maximum=5.0, timeout=_SECONDS)


def _credentials(file: str | None) -> Any:
    from google import auth

    scopes = ["https://www.googleapis.com/auth/bigquery"]
    if file is not None:
        from google.oauth2.service_account import Credentials

        return Credentials.from_service_account_file(file, scopes=scopes)  # type: ignore[no-untyped-call]
    return auth.default(scopes=scopes)[0]
