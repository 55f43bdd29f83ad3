"""A Delta table as a sink: in a folder, or on S3 or Google Cloud Storage."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import time_ns
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from eventveil.pipeline.sinks.atomic import make_folder, publish_file, sync_folder
from eventveil.pipeline.sinks.tables._columns import Format
from eventveil.pipeline.sinks.tables._parquet import encoded
from eventveil.pipeline.sinks.tables._sink import WINDOW_COLUMN, Commit, File, OpenTable, TableSink
from eventveil.schemas.errors import PolicyError, Problem

if TYPE_CHECKING:
    from deltalake import CommitProperties, DeltaTable

__all__ = ["DeltaSink"]

_PIECE_BYTES = 1 << 20
# With these, two writers on S3 overwrite each other's commits.
_UNSAFE = frozenset({"allow_unsafe_rename", "aws_s3_allow_unsafe_rename"})


@dataclass(frozen=True)
class DeltaSink(TableSink):
    """Writes into a Delta table.

    A commit is one entry of the table's log. Its name is the app id of an app transaction, which a log keeps for good, through
    checkpoints and clean-ups, unless somebody sets ``delta.setTransactionRetentionDuration``; its version is a digest of the rows. Of two
    writers who commit one name the log lets one through, and the other finds what stands. The commit's own entries (``eventveil.window``,
    ``eventveil.pane``, policy, version, digest ...) are in the table's history, as long as that is kept.

    Data files have names that follow from their content: a writer who is killed leaves files behind that no reader sees, and the one
    that takes over writes the same ones. What is left behind for good (a window that another writer published otherwise) goes with
    ``VACUUM``. In a local folder data files and log are synced to the disk.

    On S3 the store must know conditional puts, as S3 itself does since 2024; others need a DynamoDB table as lock, by the settings of
    deltalake.

    Args:
        place: a folder, ``s3://bucket/path`` or ``gs://bucket/path``. table: empty.
        settings: storage options of deltalake, as ``AWS_REGION``.

    Raises:
        PolicyError: EV103 a setting that would lose commits.
    """

    format: ClassVar[Format] = "delta"

    def __post_init__(self) -> None:
        super().__post_init__()
        unsafe = sorted(name for name, _ in self.settings if name.lower() in _UNSAFE)
        if unsafe:
            fact = f"the setting {unsafe[0]} lets one writer overwrite the commit of another"
            raise PolicyError(Problem("", 0, "EV103", fact, "remove it: S3 itself needs no such setting"))

    @property
    def is_local(self) -> bool:
        return "://" not in self.place

    @contextmanager
    def _open(self) -> Iterator[OpenTable | None]:
        from deltalake import DeltaTable
        from deltalake.exceptions import TableNotFoundError

        with self.library_errors():
            try:
                table = DeltaTable(self.place, storage_options=self.client_settings())
            except TableNotFoundError:
                table = None
        yield None if table is None else _OpenDelta(self, table)

    def _create(self, entries: Mapping[str, str]) -> None:
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError

        if self.is_local:
            make_folder(self.place)
        partition = [WINDOW_COLUMN] if self.partition_by_window else []
        with self.library_errors():
            options = self.client_settings()
            try:
                DeltaTable.create(
                    self.place,
                    self.stored,
                    partition_by=partition,
                    configuration=dict(entries),
                    storage_options=options,
                    raise_if_key_not_exists=False,
                )
            except DeltaError:
                if not DeltaTable.is_deltatable(self.place, options):
                    raise
                raise self.taken() from None

    @contextmanager
    def library_errors(self) -> Iterator[None]:
        """What the library raises becomes one of ours; `Taken` where a commit met another one."""
        from deltalake.exceptions import CommitFailedError, DeltaError

        try:
            yield
        except CommitFailedError:
            raise self.taken() from None
        except OSError as error:
            # An object store's errors are of this kind too, and have no number: the library has tried again for minutes.
            cause = os.strerror(error.errno).lower() if error.errno else "the store does not answer, or refuses"
            helps = not self.is_local and not isinstance(error, PermissionError | FileNotFoundError)
            raise self.failed(f"the table cannot be reached: {cause}", waiting_helps=helps) from None
        except (DeltaError, ValueError, pa.ArrowException):
            raise self.failed(
                "the table cannot be read or written: its log or its settings are not as they should be", waiting_helps=False
            ) from None


class _OpenDelta(OpenTable):
    def __init__(self, sink: DeltaSink, table: DeltaTable) -> None:
        self._sink = sink
        self._table = table

    @property
    def entries(self) -> Mapping[str, str]:
        return self._table.metadata().configuration

    @property
    def columns(self) -> pa.Schema:
        return pa.schema(self._table.schema())  # type: ignore[arg-type]

    @property
    def is_empty(self) -> bool:
        with self._sink.library_errors():
            return not self._table.file_uris()

    def refresh(self) -> None:
        with self._sink.library_errors():
            self._table.update_incremental()

    def set_entries(self, entries: Mapping[str, str]) -> None:
        with self._sink.library_errors():
            self._table.alter.set_table_properties(dict(entries), raise_if_not_exists=False, commit_properties=_once())

    def add_columns(self, fields: Sequence[pa.Field[Any]], entries: Mapping[str, str]) -> None:
        from deltalake import Schema

        # Two commits. Between them the table has the new columns under its old claim: whoever comes next adds what is missing, nothing.
        with self._sink.library_errors():
            self._table.alter.add_columns(list(Schema.from_arrow(pa.schema(fields)).fields), commit_properties=_once())
        self.set_entries(entries)

    def standing(self, name: str) -> int | None:
        with self._sink.library_errors():
            return self._table.transaction_version(name)

    def write(self, name: str, number: int, window: str | None, rows: pa.Table) -> File:
        if window is not None:
            rows = rows.drop_columns([WINDOW_COLUMN])
        content = encoded(rows, self._sink.provenance)
        commit, data = hashlib.sha256(name.encode()).hexdigest()[:16], hashlib.sha256(content).hexdigest()[:16]
        folder = "" if window is None else f"{WINDOW_COLUMN}={window}/"
        path = f"{folder}part-{commit}-{number:05d}-{data}.zstd.parquet"
        if self._sink.is_local:
            full = os.path.join(self._sink.place, path)
            make_folder(os.path.dirname(full))
            publish_file(full, [content])
        else:
            self._put(path, content)
        return File(path, len(rows), content.nbytes, window)

    def _put(self, path: str, content: memoryview) -> None:
        from deltalake.fs import DeltaStorageHandler
        from pyarrow.fs import PyFileSystem

        with self._sink.library_errors():
            store = PyFileSystem(DeltaStorageHandler(self._sink.place, self._sink.client_settings()))
            # Buffered: what the library gives takes bytes alone, and not the buffer that a plain write would hand on.
            with pa.BufferedOutputStream(store.open_output_stream(path), _PIECE_BYTES) as stream:
                stream.write(content)

    def commit(self, commit: Commit, digest: int, files: Sequence[File]) -> None:
        from deltalake import CommitProperties, Transaction
        from deltalake.transaction import AddAction

        before = self._table.version()
        # Of when a file was made readers are told by the log alone; no row depends on it.
        now = time_ns() // 1_000_000
        actions = [
            AddAction(
                file.path,
                file.size,
                {} if file.window is None else {WINDOW_COLUMN: file.window},
                now,
                True,
                json.dumps({"numRecords": file.rows}),
            )
            for file in files
        ]
        properties = CommitProperties(dict(commit.entries), app_transactions=[Transaction(commit.name, digest)])
        with self._sink.library_errors():
            self._table.create_write_transaction(
                list(actions),
                "append",
                self._sink.stored,
                [WINDOW_COLUMN] if self._sink.partition_by_window else None,
                commit_properties=properties,
            )
        if self._sink.is_local:
            self._sync(before)

    def _sync(self, before: int) -> None:
        """Make the entries of the log durable that came after this version: the checkpoint goes on from here."""
        folder = os.path.join(self._sink.place, "_delta_log")
        with self._sink.library_errors():
            for version in range(before + 1, self._table.version() + 1):
                descriptor = os.open(os.path.join(folder, f"{version:020d}.json"), os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            sync_folder(folder)


def _once() -> CommitProperties:
    """Changes of the table itself are never made on top of what was not seen."""
    from deltalake import CommitProperties

    return CommitProperties(max_commit_retries=0)
