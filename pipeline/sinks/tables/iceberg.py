"""An Iceberg table as a sink: by default in a warehouse with a catalogue of its own, otherwise in any that pyiceberg knows."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from eventveil.pipeline.sinks.atomic import make_folder, publish_file
from eventveil.pipeline.sinks.tables._columns import Format
from eventveil.pipeline.sinks.tables._parquet import encoded
from eventveil.pipeline.sinks.tables._sink import WINDOW_COLUMN, Commit, File, OpenTable, TableSink

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table

__all__ = ["CATALOG", "CATALOG_FILE", "CONTENT", "KEY", "IcebergSink"]

CATALOG = "eventveil"
CATALOG_FILE = "catalog.db"
KEY = "eventveil.commit"
CONTENT = "eventveil.content"

_NO_RETRIES = "commit.retry.num-retries"
_PREFIX = "catalog."
_WAIT_S = 0.02
_LONGEST_WAIT_S = 0.5


@dataclass(frozen=True)
class IcebergSink(TableSink):
    """Writes into an Iceberg table.

    A commit is one snapshot. Its name is the snapshot's property ``eventveil.commit``, and ``eventveil.content`` a digest of its rows;
    window, pane and provenance stand beside them. Before each try the snapshots are looked through for the name, and a commit that met
    another one is tried anew from there: for that the table has ``commit.retry.num-retries: 0``, without which the library would
    commit one name twice. A name is known as long as its snapshot is: who expires snapshots keeps those of the time that may be replayed,
    for a stream since the checkpoint, for files all of them.

    Data files have names that follow from their content: a writer who is killed leaves files behind that no reader sees, and the one
    that takes over writes the same ones. What is left behind for good goes with Iceberg's ``remove_orphan_files``. In a local warehouse
    data files are synced to the disk, and so is the catalogue; the metadata in between is the library's, which leaves that to the system.

    Without ``catalog.type`` the catalogue is a SQLite file in the warehouse, ``catalog.db``, called ``eventveil``: for writers on
    one machine. Readers find the table by ``SqlCatalog("eventveil", uri="sqlite:////lake/warehouse/catalog.db")``.

    Args:
        place: the warehouse. table: ``namespace.name``.
        settings: of pyiceberg: those of the catalogue under ``catalog.``, as ``catalog.type: rest``, ``catalog.uri``,
            ``catalog.warehouse`` (otherwise the place), ``catalog.credential``; those of the store as they are, as ``s3.region``.
    """

    format: ClassVar[Format] = "iceberg"

    @property
    def is_local(self) -> bool:
        return "://" not in self.place

    @contextmanager
    def _open(self) -> Iterator[OpenTable | None]:
        from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchTableError

        with self._catalog() as catalog:
            with self.library_errors():
                try:
                    table = catalog.load_table(self.table)
                except (NoSuchTableError, NoSuchNamespaceError):
                    table = None
            yield None if table is None else _OpenIceberg(self, table)

    def _create(self, entries: Mapping[str, str]) -> None:
        from pyiceberg.exceptions import TableAlreadyExistsError

        with self._catalog() as catalog, self.library_errors():
            catalog.create_namespace_if_not_exists(self.table.rpartition(".")[0])
            try:
                properties = {**entries, _NO_RETRIES: "0"}
                with catalog.create_table_transaction(self.table, self.stored, properties=properties) as transaction:
                    if self.partition_by_window:
                        with transaction.update_spec() as spec:
                            spec.add_identity(WINDOW_COLUMN)
            except TableAlreadyExistsError:
                raise self.taken() from None

    @contextmanager
    def _catalog(self) -> Iterator[Catalog]:
        from pyiceberg.catalog import load_catalog

        given = {name.removeprefix(_PREFIX): value for name, value in self.client_settings().items()}
        given.setdefault("warehouse", f"file://{self.place}" if self.is_local else self.place)
        if not {"type", "py-catalog-impl"} & set(given):
            if "uri" not in given:
                if not self.is_local:
                    fact = "a warehouse that is no folder needs a catalogue"
                    raise self.failed(f"{fact}, and the settings name none (catalog.type, catalog.uri)", waiting_helps=False)
                make_folder(self.place)
                given["uri"] = f"sqlite:///{os.path.abspath(self.place)}/{CATALOG_FILE}"
            given["type"] = "sql" if given["uri"].startswith("sqlite:") else "rest"
        with self.library_errors():
            catalog = load_catalog(given.pop("name", CATALOG), **given)
        try:
            yield catalog
        finally:
            catalog.close()

    @contextmanager
    def library_errors(self) -> Iterator[None]:
        """What the library raises becomes one of ours; `Taken` where a commit met another one, or nobody knows what became of it."""
        from pyiceberg import exceptions as found
        from requests.exceptions import RequestException

        try:
            yield
        except (found.CommitFailedException, found.CommitStateUnknownException):
            raise self.taken() from None
        except (found.UnauthorizedError, found.ForbiddenError, found.OAuthError, found.AuthorizationExpiredError):
            raise self.failed("the catalogue refuses who asks", waiting_helps=False) from None
        except (found.ServiceUnavailableError, found.ServerError, RequestException):
            raise self.failed("the catalogue does not answer", waiting_helps=True) from None
        except OSError as error:
            cause = os.strerror(error.errno).lower() if error.errno else "the store does not answer, or refuses"
            helps = not self.is_local and not isinstance(error, PermissionError | FileNotFoundError)
            raise self.failed(f"the table cannot be reached: {cause}", waiting_helps=helps) from None
        except _sql_errors() as error:
            # SQLite has waited for its lock for some seconds; or two have made the catalogue, or its namespace, at the same time.
            if type(error).__name__ == "IntegrityError" or "database is locked" in str(error) or "already exists" in str(error):
                raise self.taken() from None
            raise self.failed("the catalogue cannot be read or written", waiting_helps=False) from None
        except (found.RESTError, found.NoSuchTableError, found.ValidationError, ValueError, pa.ArrowException):
            raise self.failed(
                "the table cannot be read or written: it or its settings are not as they should be", waiting_helps=False
            ) from None


class _OpenIceberg(OpenTable):
    def __init__(self, sink: IcebergSink, table: Table) -> None:
        self._sink = sink
        self._table = table
        self._tries = 0

    @property
    def entries(self) -> Mapping[str, str]:
        return self._table.properties

    @property
    def columns(self) -> pa.Schema:
        from pyiceberg.io.pyarrow import schema_to_pyarrow

        return schema_to_pyarrow(self._table.schema(), include_field_ids=False)

    @property
    def is_empty(self) -> bool:
        return self._table.current_snapshot() is None

    def refresh(self) -> None:
        # Others are at work: less and less often.
        self._tries += 1
        time.sleep(min(_WAIT_S * self._tries, _LONGEST_WAIT_S))
        with self._sink.library_errors():
            self._table.refresh()

    def set_entries(self, entries: Mapping[str, str]) -> None:
        with self._sink.library_errors(), self._table.transaction() as transaction:
            transaction.set_properties(dict(entries))

    def add_columns(self, fields: Sequence[pa.Field[Any]], entries: Mapping[str, str]) -> None:
        with self._sink.library_errors(), self._table.transaction() as transaction:
            with transaction.update_schema() as update:
                update.union_by_name(pa.schema([*self.columns, *fields]))
            transaction.set_properties(dict(entries))

    def standing(self, name: str) -> int | None:
        for snapshot in self._table.metadata.snapshots:
            found = {} if snapshot.summary is None else snapshot.summary.additional_properties
            if found.get(KEY) == name:
                return int(found.get(CONTENT, -1))
        return None

    def write(self, name: str, number: int, window: str | None, rows: pa.Table) -> File:
        content = encoded(self._numbered(rows), self._sink.provenance)
        commit, data = hashlib.sha256(name.encode()).hexdigest()[:16], hashlib.sha256(content).hexdigest()[:16]
        folder = "" if window is None else f"{WINDOW_COLUMN}={window}/"
        with self._sink.library_errors():
            path = self._table.location_provider().new_data_location(f"{folder}part-{commit}-{number:05d}-{data}.zstd.parquet")
            local = path.removeprefix("file://")
            if "://" in local:
                with self._table.io.new_output(path).create(overwrite=True) as stream:
                    stream.write(content)  # type: ignore[arg-type]
                return File(path, len(rows), content.nbytes, window)
        # In a folder the library would empty a file before it writes it, also one that another writer has committed.
        make_folder(os.path.dirname(local))
        publish_file(local, [content])
        return File(path, len(rows), content.nbytes, window)

    def _numbered(self, rows: pa.Table) -> pa.Table:
        """The rows with the numbers of the table's fields, by which readers find them under any name."""
        from pyiceberg.io.pyarrow import schema_to_pyarrow

        fields = {field.name: field for field in schema_to_pyarrow(self._table.schema())}
        found = pa.schema([fields[name] for name in rows.column_names])
        return pa.Table.from_arrays([rows.column(name).cast(fields[name].type) for name in rows.column_names], schema=found)

    def commit(self, commit: Commit, digest: int, files: Sequence[File]) -> None:
        if self._table.properties.get(_NO_RETRIES) != "0":
            fact = f"somebody has changed the table's property {_NO_RETRIES}, without which a window may be committed twice"
            raise self._sink.failed(fact, waiting_helps=False)
        properties = {**commit.entries, KEY: commit.name, CONTENT: str(digest)}
        with self._sink.library_errors():
            # The name of a file follows from its content: what it is called cannot have been committed under another name.
            self._table.add_files([file.path for file in files], properties, check_duplicate_files=False)


def _sql_errors() -> tuple[type[Exception], ...]:
    """Those of the SQLite catalogue; a REST catalogue needs no such library."""
    try:
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:
        return ()
    return (SQLAlchemyError,)
