"""What all tables have in common: one commit per part or window, by name; claimed by one policy; sorted, compacted, bare."""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from eventveil.pipeline.sinks._order import keyed_places, taken
from eventveil.pipeline.sinks.files import _date, _instant, _one, _starts, _visible
from eventveil.pipeline.sinks.publish import Batches, Published, Unit, in_shards
from eventveil.pipeline.sinks.tables._columns import Format, as_stored, columns_of, stored_schema
from eventveil.schemas.errors import Problem, SchemaError, StorageError, Unreachable
from eventveil.schemas.references import fill_references
from eventveil.schemas.streams import Settings
from eventveil.schemas.tables import TableAddress
from eventveil.transforms.times import to_local

__all__ = ["CHECKPOINT", "PROVENANCE", "TRIES", "WINDOW_COLUMN", "Commit", "File", "OpenTable", "TableSink", "Taken"]

PROVENANCE = "eventveil.provenance"
CHECKPOINT = "eventveil.checkpoint"
WINDOW_COLUMN = "window"

# Of a commit that others were faster than. Each time one of them has come through.
TRIES = 100

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,199}\Z")
# What a new version of a policy may differ in.
_OF_A_VERSION = frozenset({"version", "digest"})


@dataclass(frozen=True)
class File:
    """A data file that was written, and that no reader sees yet.

    Attributes:
        path: as the table names it. window: the partition that it lies in.
    """

    path: str
    rows: int
    size: int
    window: str | None


@dataclass(frozen=True)
class Commit:
    """What is committed at once.

    Attributes:
        name: says which part or window it is; in one table no two commits have one name.
        entries: provenance, kept beside it.
    """

    name: str
    entries: Mapping[str, str]


class Taken(Unreachable):
    """Somebody else was faster: look at the table again. Who has tried often enough lets it pass: later it may go better."""


class OpenTable(ABC):
    """A table that is there, as it was when it was last looked at. For one thread, in one process.

    What a library reports is raised as `TableSink.failed` has it.
    """

    wants_digest: ClassVar[bool] = False
    """Whether a commit's digest must be known before its rows are written: then its rows are gone through twice."""

    @property
    @abstractmethod
    def entries(self) -> Mapping[str, str]:
        """Its properties."""

    @property
    @abstractmethod
    def columns(self) -> pa.Schema:
        """Its columns."""

    @property
    @abstractmethod
    def is_empty(self) -> bool:
        """Whether nothing was ever committed, or nothing of it is left."""

    @abstractmethod
    def refresh(self) -> None:
        """Look at it again."""

    @abstractmethod
    def set_entries(self, entries: Mapping[str, str]) -> None:
        """Change some properties. Raises Taken."""

    @abstractmethod
    def add_columns(self, fields: Sequence[pa.Field[Any]], entries: Mapping[str, str]) -> None:
        """Add columns, then change some properties. Raises Taken."""

    @abstractmethod
    def standing(self, name: str) -> int | None:
        """The digest of what was committed under this name; None: nothing."""

    def begin(self, commit: Commit, digest: int) -> None:
        """What is written from now on is for this commit. Only called where the digest is wanted."""
        raise NotImplementedError

    @abstractmethod
    def write(self, name: str, number: int, window: str | None, rows: pa.Table) -> File:
        """Write rows that no reader sees yet.

        Args:
            name: of the commit that they are for. number: of the file within it.
            window: the partition that they belong to. rows: with the column `window` where there are partitions.
        """

    @abstractmethod
    def commit(self, commit: Commit, digest: int, files: Sequence[File]) -> None:
        """Make the files visible under the commit's name, all of them or none. Raises Taken, also where the name is taken."""


@dataclass(frozen=True)
class TableSink(ABC):
    """Writes one policy's output into one table.

    `publish` commits a part of bounded input, `publish_window` a window or a pane of it: at once, under a name, and once: what comes again
    under a name that stands changes nothing. Rows stand in files of at most some 32 MB, sorted as in a folder's files, with the output
    columns alone; where `partition_by_window` says so, the column `window` is the partition: the window's first day as a date where
    windows are days, otherwise its start as text, ``2014-09-04T22-00-00Z``. Without rows nothing is committed.

    Discloses what the rows hold, when they were committed, their number per commit, and in the commit's name their window.

    Args:
        place, table: as of `TableAddress`.
        schema: the output's columns. What they are stored as: see `_columns`.
        provenance: as of files: policy, version, digest, domain, keys, and eventveil, the version of the format. The table refuses
            output of any other.
        settings: of the client; references to secrets are filled where one is made.
        zone: in which midnight is meant. by_day: whether windows are whole days.
        order: keyed: by `$order`, ties by the encoded row. keep: as the rows came, and with them the order of the input.
        layout: parts or windows, which do not mix in a table: both may hold the same events.
        evolve: a later version of the policy may add columns, if these are all that it changes of them. Its commits have the names that
            those of the earlier version have: what stands is not written again.

    Raises:
        SchemaError: EV219 a column that the format cannot store; EV206 an output that is called as the partition is.
    """

    format: ClassVar[Format]

    place: str
    table: str
    schema: pa.Schema
    provenance: Mapping[str, str]
    settings: Settings = ()
    partition_by_window: bool = False
    order: Literal["keyed", "keep"] = "keyed"
    zone: str = "UTC"
    by_day: bool = False
    layout: Literal["parts", "windows"] = "parts"
    evolve: bool = False

    def __post_init__(self) -> None:
        stored_schema(self.schema, self.format)
        taken = sorted({name.lower() for name in self.schema.names} & set(self._reserved()))
        if taken:
            fact = f"output name {taken[0]} is that of a column which the table has beside the output's"
            remedy = "rename it, or do not partition by window" if taken[0] == WINDOW_COLUMN else "rename it"
            raise SchemaError(Problem("", 0, "EV206", fact, remedy))

    # --- what a format does itself --------------------------------------------------------------------------------------------

    @abstractmethod
    def _open(self) -> AbstractContextManager[OpenTable | None]:
        """The table; None where there is none."""

    @abstractmethod
    def _create(self, entries: Mapping[str, str]) -> None:
        """Make the table. Raises Taken where there is one."""

    def _reserved(self) -> tuple[str, ...]:
        """Columns of the table beside those of the output."""
        return (WINDOW_COLUMN,) if self.partition_by_window else ()

    # --- what a job does ------------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """At the start of a job: make the table, or find that it is ours; where `evolve` allows it, add columns.

        Raises:
            Unreachable: EV422. StorageError: EV422 it cannot be reached or made; EV423 it has other columns, or is another job's.
        """
        for _ in range(TRIES):
            try:
                if self._claimed():
                    return
            except Taken:
                continue
        raise self.taken()

    def bind(self, series: str, after: str | None = None) -> None:
        """Belong to one checkpoint from now on. Under another one slices are numbered anew, and what it reads again would stand twice.

        Args:
            after: the checkpoint that this one goes on from, with later numbers and later events.

        Raises:
            Unreachable, StorageError: EV422; EV423 the table holds what a job wrote from another checkpoint.
        """
        for _ in range(TRIES):
            with self._opened() as table:
                found = table.entries.get(CHECKPOINT)
                if found == series:
                    return
                if found not in (None, after) and not table.is_empty:
                    fact = "holds windows that were published from another checkpoint, which may be read again"
                    raise self._other(fact, "name a table that is not there yet, or go on from that checkpoint")
                try:
                    table.set_entries({CHECKPOINT: series})
                except Taken:
                    continue
        raise self.taken()

    def publish(self, name: str, batches: Sequence[pa.RecordBatch]) -> Unit:
        """Commit one part: all its veiled batches. What stands already is not written again.

        Args:
            name: of the part: letters, digits, ``-`` and ``_``; from a keyed digest, never from the input.
            batches: with the output columns, `$order` and, where there are partitions, `$window`. All of one schema.

        Raises:
            Unreachable, StorageError: EV422; EV423 the part stands with other rows: both would hold the same events.
        """
        if self.layout != "parts":
            raise ValueError("the table was claimed for windows")
        if not _NAME.match(name):
            raise ValueError("the name of a part is made of letters, digits, - and _")
        filled = [batch.replace_schema_metadata(None) for batch in batches if batch.num_rows]
        commit = Commit(self._commit_name(f"part-{name}"), self._provenance_entries({"eventveil.part": name}))
        unit = self._published(commit, lambda: iter([pa.Table.from_batches(filled)] if filled else []))
        if unit.conflict:
            fact = "holds this part of the input already, with other rows: the input or the policy has changed since"
            raise self._other(fact, "name a table that is not there yet: rows of a table are never replaced")
        return unit

    def publish_window(self, start_us: int, pane: int, batches: Batches, rows: int, size: int) -> Unit:
        """Commit all rows of a window, or of one pane of it. Where other rows stand under that name, they stay, and nothing is changed.

        Args:
            start_us: beginning of the window that the rows were gathered in, in microseconds since 1970.
            pane: 0, or which of several.
            batches: gives the window's batches from the beginning each time it is called, with the output columns, `$order` and,
                where there are partitions, `$window`. All of one schema.
            rows, size: how many rows there are, and roughly the bytes they take.

        Raises:
            Unreachable, StorageError: EV422, EV408, EV404 where rows cannot be put aside; EV423 the table is another's by now.
        """
        if self.layout != "windows":
            raise ValueError("the table was claimed for parts")
        entries = {"eventveil.window": _instant(start_us), "eventveil.pane": str(pane)}
        commit = Commit(self._commit_name(f"{_instant(start_us)}-p{pane:06d}"), self._provenance_entries(entries))
        return self._published(commit, lambda: (table for _, table in in_shards(batches, rows, size, keep=self.order == "keep")))

    # --- shared with the formats ----------------------------------------------------------------------------------------------

    @property
    def stored(self) -> pa.Schema:
        """The columns of the table."""
        found = stored_schema(self.schema, self.format)
        if not self.partition_by_window:
            return found
        return found.append(pa.field(WINDOW_COLUMN, pa.date32() if self.by_day else pa.string()))

    def client_settings(self) -> dict[str, str]:
        """The settings with their references filled. Raises PolicyError EV103 EV115 EV117."""
        return {name: fill_references(value) for name, value in self.settings}

    def failed(self, fact: str, *, waiting_helps: bool) -> Exception:
        """EV422, without a library's own words: these may quote what is in a table, or its address with its password."""
        if waiting_helps:
            return Unreachable.of("EV422", fact, "it may answer later; check its address and the client's settings", file=self._address)
        return StorageError.of("EV422", fact, "check its address, the client's settings and permissions", file=self._address)

    def taken(self) -> Exception:
        return Taken.of("EV422", "others write to it without a pause, and nothing comes through", "run again later", file=self._address)

    # --- the walk -------------------------------------------------------------------------------------------------------------

    def _published(self, commit: Commit, shards: Callable[[], Iterable[pa.Table]]) -> Unit:
        with self._opened() as table:
            stands = table.standing(commit.name)
            content, files = _Content(), list[File]()
            if stands is None and table.wants_digest:
                for window, rows in self._pieces(shards()):
                    content.add(window, rows)
                table.begin(commit, content.digest)
                content = _Content()
            for window, rows in self._pieces(shards()):
                content.add(window, rows)
                if stands is None:
                    files.append(table.write(commit.name, len(files), window, rows))
            if not content.rows:
                return Unit(commit.name)
            for _ in range(TRIES):
                if stands is not None:
                    return Unit(commit.name, conflict=stands != content.digest)
                self._check_claim(table)
                try:
                    table.commit(commit, content.digest, files)
                    return Unit(commit.name, tuple(Published(file.path, file.rows, file.size) for file in files))
                except Taken:
                    table.refresh()
                    stands = table.standing(commit.name)
        raise self.taken()

    def _pieces(self, shards: Iterable[pa.Table]) -> Iterator[tuple[str | None, pa.Table]]:
        """The rows of each file, as they are stored, and the partition that they belong to."""
        schema = stored_schema(self.schema, self.format)
        for shard in shards:
            batches = shard.to_batches()
            rows = _one(_visible(batches))
            places = None if self.order == "keep" else keyed_places(batches, rows)
            if not self.partition_by_window:
                yield None, as_stored(_batch(taken(rows, places)), schema)
                continue
            starts = _starts(batches)
            places = np.arange(len(starts)) if places is None else places
            places = places[np.argsort(starts[places], kind="stable")]
            cuts = [0, *(np.flatnonzero(np.diff(starts[places])) + 1).tolist(), len(places)]
            for first, last in pairwise(cuts):
                window = self._window_name(int(starts[places[first]]))
                yield window, self._with_window(as_stored(_batch(taken(rows, places[first:last])), schema), window)

    def _with_window(self, rows: pa.Table, window: str) -> pa.Table:
        kind: Any = self.stored.field(WINDOW_COLUMN).type
        return rows.append_column(pa.field(WINDOW_COLUMN, kind), pa.repeat(pa.scalar(window).cast(kind), len(rows)))

    def _window_name(self, start_us: int) -> str:
        if self.by_day:
            return _date(int(to_local(np.array([start_us], np.int64), self.zone)[0]))
        return _instant(start_us).replace(":", "-")

    def _opened(self) -> _Opened:
        return _Opened(self)

    def _claimed(self) -> bool:
        """Whether the table is there and ours; otherwise it was made, and another look is due."""
        with self._open() as table:
            if table is None:
                self._create({PROVENANCE: self._claim_text})
                return False
            found = self._claim_of(table)
            if found != self._claim:
                self._check_newer(found)
                missing = self._missing(table, may_add=True)
                entries = {PROVENANCE: self._claim_text}
                if missing:
                    table.add_columns([self.stored.field(name) for name in missing], entries)
                else:
                    table.set_entries(entries)
                return False
            self._missing(table, may_add=False)
            return True

    def _missing(self, table: OpenTable, *, may_add: bool) -> list[str]:
        """Columns that the table lacks, in their order. Raises EV423 where the two differ in more than may be added."""
        mine, found = columns_of(self.stored, self.format), columns_of(table.columns, self.format)
        differing = [name for name in sorted({*mine, *found}) if mine.get(name) != found.get(name)]
        if [name for name in differing if name in found or not may_add]:
            named = ", ".join(differing[:5]) + (", ..." if len(differing) > 5 else "")
            raise self._other(
                f"has other columns: {named} differ{'s' if len(differing) == 1 else ''}", "name a table that is not there yet"
            )
        return [name for name in mine if name in differing]

    def _check_newer(self, found: Mapping[str, str]) -> None:
        """Raises EV423 where the claim is not that of an earlier version which may be gone on from."""
        mine = self._claim
        differing = sorted(entry for entry in {*mine, *found} if mine.get(entry) != found.get(entry))
        is_newer = _OF_A_VERSION.issuperset(differing) and _number(mine.get("version")) > _number(found.get("version"))
        if not is_newer or not self.evolve:
            fact = f"holds output of another job: {', '.join(differing)} differ{'s' if len(differing) == 1 else ''}"
            remedy = "name a table that is not there yet: output of two policies, versions or keys must not mix"
            if is_newer:
                remedy = "name a table that is not there yet, or say evolve: true if the new version only adds columns"
            raise self._other(fact, remedy)

    def _check_claim(self, table: OpenTable) -> None:
        """The table as it is now: another job may have evolved it, or made it anew."""
        if self._claim_of(table) != self._claim:
            raise self._other("was claimed by another job while this one ran", "end one of the two")

    def _claim_of(self, table: OpenTable) -> dict[str, str]:
        text = table.entries.get(PROVENANCE)
        try:
            found = json.loads(text) if text is not None else None
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise self._other("is there, and no job of eventveil has made it", "name a table that is not there yet")
        return found

    @property
    def _claim(self) -> dict[str, str]:
        window = "none" if not self.partition_by_window else "day" if self.by_day else "window"
        return {**self.provenance, "partition": window, "layout": self.layout}

    @property
    def _claim_text(self) -> str:
        return json.dumps(self._claim, sort_keys=True, ensure_ascii=False)

    def _commit_name(self, of: str) -> str:
        """Tells this policy's commits from those of others; not its versions': a window that stands is not published anew by the next."""
        lineage = json.dumps({name: text for name, text in self._claim.items() if name not in _OF_A_VERSION}, sort_keys=True)
        return f"eventveil-{hashlib.sha256(lineage.encode()).hexdigest()[:16]}-{of}"

    def _provenance_entries(self, more: Mapping[str, str]) -> dict[str, str]:
        return {**{f"eventveil.{'format' if name == 'eventveil' else name}": text for name, text in self.provenance.items()}, **more}

    def _other(self, fact: str, remedy: str) -> Exception:
        return StorageError.of("EV423", fact, remedy, file=self._address)

    @property
    def _address(self) -> str:
        return str(TableAddress(self.format, self.place, self.table))


class _Opened:
    """The table, which was there when the job began, and must be there still."""

    def __init__(self, sink: TableSink) -> None:
        self._sink = sink
        self._inner = sink._open()

    def __enter__(self) -> OpenTable:
        table = self._inner.__enter__()
        if table is None:
            self._inner.__exit__(None, None, None)
            # Made anew it would hold half of the output, and nobody would know.
            raise self._sink.failed("the table was removed during the run", waiting_helps=False)
        return table

    def __exit__(self, *error: Any) -> None:
        self._inner.__exit__(*error)


class _Content:
    """A digest of rows as they are stored: it tells a replay from something else. No secret is in it that is not in the rows."""

    def __init__(self) -> None:
        self.rows = 0
        self._hash = hashlib.sha256()

    def add(self, window: str | None, rows: pa.Table) -> None:
        self.rows += len(rows)
        self._hash.update(f"{window}\n{rows.schema.to_string()}\n{len(rows)}\n".encode())
        for column in rows.columns:
            for chunk in column.chunks:
                for buffer in chunk.buffers():
                    self._hash.update(b"-" if buffer is None else b"%d:" % buffer.size)
                    if buffer is not None:
                        self._hash.update(buffer)

    @property
    def digest(self) -> int:
        """63 bits: what a table can keep as the version of a commit."""
        return int.from_bytes(self._hash.digest()[:8], "big") >> 1


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else -1


def _batch(rows: Any) -> pa.RecordBatch:
    assert isinstance(rows, pa.RecordBatch)
    return rows
