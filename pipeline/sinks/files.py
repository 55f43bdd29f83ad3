"""Files as a sink: one folder, in it one file per output part, or files per window; sorted, compacted, and there whole or not at all."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from eventveil.pipeline.sinks._order import keyed_places, taken
from eventveil.pipeline.sinks.atomic import check_links, local_path, make_folder, publish_file, remove_file, remove_leftovers, unwritable
from eventveil.pipeline.sinks.publish import INTERNAL, Attempt, Batches, Published, Unit, in_shards
from eventveil.schemas.errors import StorageError
from eventveil.transforms.batch import WINDOW
from eventveil.transforms.encode.json_events import encode_json
from eventveil.transforms.times import to_local

__all__ = ["PROVENANCE", "FolderSink", "Published"]

PROVENANCE = "_eventveil.json"

Format = Literal["jsonl", "avro", "parquet"]

_SUFFIX = {"jsonl": "jsonl", "avro": "avro", "parquet": "parquet"}
_COMPRESSED = {"gzip": ".gz", "zstd": ".zst"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,199}\Z")
_ROWS_AT_ONCE = 1 << 14
_DAY_US = 86_400_000_000


@dataclass(frozen=True)
class FolderSink:
    """Writes one policy's output into one folder: part by part, or window by window.

    Bounded input is written by `publish`: a part of the input gives one file ``part-<name>.<suffix>``. What is gathered by window
    is written by `publish_window`: files ``part-<window>-p<pane>-<shard>.<suffix>``, and a manifest that names them all. With
    `partition_by_window` files stand in Hive-style folders ``window=2014-09-04``, or ``window=2014-09-04T22-00-00Z`` where a
    window does not begin at midnight in `zone`. The same rows give the same bytes under the same name, so what is published
    again, after a failure or by a second run, changes nothing.

    Discloses what the rows hold, their number per file, and where names or folders tell it their window. Neither the order of
    the input nor its names, unless `order` is keep.

    Args:
        folder: a local path, or one that begins with ``file://``.
        format: jsonl, avro or parquet.
        provenance: who made this: policy, digest, key id; also written into the files of avro and parquet. The folder refuses
            output of any other provenance.
        name: of the record, in avro.
        partition_by_window: a folder per release window; the rows need a `$window`.
        order: keyed: by `$order`, ties by the encoded row. keep: as the rows came, and with them the order of the input.
        compression: of jsonl: None, gzip or zstd.
        zone: in which midnight is meant. by_day: whether windows are whole days; None: by each window's own beginning.
        layout: parts or windows, which do not mix in a folder: both may hold the same events.
        gathered_by_day: whether the windows that are published are whole days, and called by their date. Otherwise they are
            called by the instant of their beginning, which is never that of another.
    """

    folder: str
    format: Format
    provenance: Mapping[str, str]
    name: str = "event"
    partition_by_window: bool = False
    order: Literal["keyed", "keep"] = "keyed"
    compression: Literal["gzip", "zstd"] | None = None
    zone: str = "UTC"
    by_day: bool | None = None
    layout: Literal["parts", "windows"] = "parts"
    gathered_by_day: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", local_path(self.folder))
        if self.format not in _SUFFIX:
            raise StorageError.of("EV406", f"unknown output format '{self.format}'", "name one of avro, jsonl, parquet")
        if self.compression is not None and self.format != "jsonl":
            raise StorageError.of("EV406", f"{self.format} files are compressed inside, not as a whole", "remove the compression")

    def prepare(self) -> None:
        """At the start of a job: make the folder, claim it, and remove what killed runs have left behind.

        Raises:
            StorageError: EV404 it cannot be written, EV405 it holds something else, or output of another policy, version or key.
        """
        make_folder(self.folder)
        claimed, series = self._claim()
        if claimed is not None and claimed != self._full_provenance():
            raise self._other_provenance(claimed)
        try:
            with os.scandir(self.folder) as entries:
                # Hidden and underscored names are no data: readers skip them.
                found = sorted((entry.name, entry.is_dir()) for entry in entries if entry.name[0] not in "._")
        except OSError as error:
            raise unwritable(self.folder, error) from None
        for name, is_folder in found:
            if claimed is None or not self._is_ours(name, is_folder):
                raise StorageError.of("EV405", f"holds '{name}', which this job did not write", "choose an empty folder", file=self.folder)
        for name in ["", *(name for name, is_folder in found if is_folder)]:
            remove_leftovers(os.path.join(self.folder, name))
        # Written anew every time: a folder that cannot be written, or a full disk, is found out before any event is read.
        self._write_claim(series)
        if self.layout == "windows":
            check_links(self.folder)

    def bind(self, series: str, after: str | None = None) -> None:
        """Belong to one checkpoint from now on. Under another one slices are numbered anew, and what it reads again would stand twice.

        Args:
            after: the checkpoint that this one goes on from, with later numbers and later events.

        Raises:
            StorageError: EV404; EV405 the folder holds what a job wrote from another checkpoint.
        """
        _, found = self._claim()
        if found == series:
            return
        if found not in (None, after) and any(name.startswith("_eventveil-") for name in os.listdir(self.folder)):
            fact = "holds windows that were published from another checkpoint, which may be read again"
            raise StorageError.of("EV405", fact, "choose an empty folder, or go on from that checkpoint", file=self.folder)
        self._write_claim(series)

    def _write_claim(self, series: str | None) -> None:
        claim = {"provenance": self._full_provenance(), **({} if series is None else {"checkpoint": series})}
        text = json.dumps(claim, indent=2, sort_keys=True, ensure_ascii=False)
        publish_file(os.path.join(self.folder, PROVENANCE), [text.encode() + b"\n"])

    def publish(self, name: str, batches: Sequence[pa.RecordBatch]) -> list[Published]:
        """Write one part: all its veiled batches, in the order of their numbers. No rows, no file.

        A file of an earlier run under this name in a window that now has no rows is removed.

        Args:
            name: of the part: letters, digits, ``-`` and ``_``; from a keyed digest, never from the input.
            batches: with the output columns, `$order` and, where there are windows, `$window`. All of one schema.

        Raises:
            StorageError: EV404. Nothing is left under a temporary or half-written name; windows written before stay.
        """
        if self.layout != "parts":
            raise ValueError("the folder was claimed for windows")
        if not _NAME.match(name):
            raise ValueError("the name of a part is made of letters, digits, - and _")
        file_name = f"part-{name}.{self._suffix}"
        filled = [batch for batch in batches if batch.num_rows]
        written = [self._publish_file(file_name, window, rows) for window, rows in self._files(filled)] if filled else []
        self._remove_stale(file_name, {file.path for file in written})
        return written

    def publish_window(self, start_us: int, pane: int, batches: Batches, rows: int, size: int) -> Unit:
        """Write all rows of a window, or of one pane of it, as a unit: its files appear when all are written, or none does.

        A manifest ``_eventveil-<window>-p<pane>.json`` names the files with their rows, sizes and digests. It is created before the
        first file has its name, and never changed: the unit is whole when all that it names are there. Publishing the same rows
        again completes what a crash has left incomplete; where other rows were published before, those stand.

        Args:
            start_us: beginning of the window that the rows were gathered in, in microseconds since 1970.
            pane: 0, or which of several.
            batches: gives the window's batches from the beginning each time it is called, with the output columns, `$order` and,
                where there are folders, `$window`, which is the same in all rows. All of one schema.
            rows, size: how many rows there are, and roughly the bytes they take.

        Raises:
            StorageError: EV404, EV408. Nothing is left under a temporary or half-written name. EV405: the manifest is damaged.
        """
        if self.layout != "windows":
            raise ValueError("the folder was claimed for parts")
        self._check_there()
        window = self._unit_name(start_us)
        unit = f"{window}-p{pane:06d}"
        head = {"provenance": self._full_provenance(), "window": _instant(start_us), "pane": pane}
        starts: set[int] = set()
        with Attempt(self.folder, f"_eventveil-{unit}.json", head) as attempt:
            for shard, table in in_shards(batches, rows, size, keep=self.order == "keep", folder=self.folder):
                folder = self._folder_of_unit(table, starts)
                content = self._ordered(table)
                encoded = self._encoded(content, {"window": window, "pane": str(pane)})
                attempt.write(os.path.join(folder, f"part-{unit}-{shard:03d}.{self._suffix}"), len(content), encoded)
            return attempt.finish()

    @property
    def _suffix(self) -> str:
        return _SUFFIX[self.format] + (_COMPRESSED[self.compression] if self.compression else "")

    def _full_provenance(self) -> dict[str, str]:
        # A folder of parts says nothing of its layout: it may be older than the other one.
        layout = {} if self.layout == "parts" else {"layout": self.layout}
        return {**self.provenance, "format": self._suffix, "partition": "window" if self.partition_by_window else "none", **layout}

    def _claim(self) -> tuple[dict[str, str] | None, str | None]:
        """The provenance that the folder was claimed with, and the series of the checkpoint that it belongs to; None if there is none."""
        path = os.path.join(self.folder, PROVENANCE)
        try:
            with open(path, "rb") as file:
                claim = json.loads(file.read(1 << 20))
            found, series = claim["provenance"], claim.get("checkpoint")
        except FileNotFoundError:
            return None, None
        except OSError as error:
            raise unwritable(path, error) from None
        except (ValueError, KeyError, TypeError, AttributeError):
            found = series = None
        if not isinstance(found, dict):
            raise StorageError.of("EV405", f"'{PROVENANCE}' is not as this job writes it", "choose an empty folder", file=self.folder)
        return found, series

    def _other_provenance(self, claimed: dict[str, str]) -> Exception:
        mine = self._full_provenance()
        differing = sorted(entry for entry in {*mine, *claimed} if mine.get(entry) != claimed.get(entry))
        fact = f"holds output of another job: {', '.join(differing)} differ{'s' if len(differing) == 1 else ''}"
        remedy = "choose an empty folder: output of two policies, versions or keys must not mix"
        return StorageError.of("EV405", fact, remedy, file=self.folder)

    def _is_ours(self, name: str, is_folder: bool) -> bool:
        if is_folder:
            return self.partition_by_window and name.startswith("window=")
        return name.startswith("part-") and name.endswith("." + self._suffix)

    def _files(self, batches: Sequence[pa.RecordBatch]) -> Iterator[tuple[str | None, pa.RecordBatch | pa.Array[Any]]]:
        """The window's name, if each has its folder, and the rows as they leave: the lines of jsonl, else the columns."""
        visible = _visible(batches)
        # Lines are cheaper to put in order than nested columns, and hold nothing but what is visible; so do the other encoders' bytes.
        rows = _lines(visible) if self.format == "jsonl" else _one(visible)
        places = None if self.order == "keep" else keyed_places(batches, rows)
        if not self.partition_by_window:
            yield None, taken(rows, places)
            return
        starts = _starts(batches)
        places = np.arange(len(starts)) if places is None else places
        places = places[np.argsort(starts[places], kind="stable")]
        cuts = [0, *(np.flatnonzero(np.diff(starts[places])) + 1).tolist(), len(places)]
        for first, last in pairwise(cuts):
            yield self._window_name(int(starts[places[first]])), taken(rows, places[first:last])

    def _publish_file(self, file_name: str, window: str | None, rows: pa.RecordBatch | pa.Array[Any]) -> Published:
        self._check_there()
        folder = self.folder if window is None else os.path.join(self.folder, f"window={window}")
        make_folder(folder)
        path = os.path.join(folder, file_name)
        content = self._encoded(rows, {} if window is None else {"window": window})
        publish_file(path, [content])
        return Published(path, len(rows), content.nbytes)

    def _check_there(self) -> None:
        if not os.path.isdir(self.folder):
            # Made anew it would hold half of the output, and nobody would know.
            raise StorageError.of("EV404", "the folder was removed during the run", "run again", file=self.folder)

    def _folder_of_unit(self, table: pa.Table, starts: set[int]) -> str:
        """The folder of a unit's rows, relative; `starts` are the release windows of all rows of the unit so far."""
        if not self.partition_by_window:
            return ""
        starts.update(np.unique(_starts(table.to_batches())).tolist())
        if len(starts) > 1:
            raise ValueError("a unit lies within one release window")
        folder = f"window={self._window_name(next(iter(starts)))}"
        make_folder(os.path.join(self.folder, folder))
        return folder

    def _ordered(self, table: pa.Table) -> pa.RecordBatch | pa.Array[Any]:
        """The rows of a shard as they leave."""
        batches = table.to_batches()
        if self.format == "jsonl":
            # Encoding takes several times the memory of what is encoded.
            batches = [piece for batch in batches for piece in _split(batch)]
        rows = _lines(_visible(batches)) if self.format == "jsonl" else _one(_visible(batches))
        return taken(rows, None if self.order == "keep" else keyed_places(batches, rows))

    def _unit_name(self, start_us: int) -> str:
        return _date(self._local(start_us)) if self.gathered_by_day else _instant(start_us).replace(":", "-")

    def _window_name(self, start_us: int) -> str:
        local_us = self._local(start_us)
        if local_us % _DAY_US == 0 if self.by_day is None else self.by_day:
            return _date(local_us)
        return _instant(start_us).replace(":", "-")

    def _local(self, start_us: int) -> int:
        return int(to_local(np.array([start_us], np.int64), self.zone)[0])

    def _encoded(self, rows: pa.RecordBatch | pa.Array[Any], entries: Mapping[str, str]) -> memoryview:
        """The bytes of a file. A part or shard is at most some 32 MB of input, and fits into memory."""
        if isinstance(rows, pa.Array):
            return self._compressed(_data(rows))
        buffer = io.BytesIO()
        metadata = {**self.provenance, **entries}
        # Imported where they are used: a job of JSON lines starts without the libraries for the others.
        if self.format == "avro":
            from eventveil.transforms.encode.avro_events import write_avro

            # Rows become Python objects on the way: a few at a time.
            write_avro(buffer, pa.Table.from_batches(_split(rows)), self.name, metadata)
        else:
            from eventveil.transforms.encode.parquet_rows import write_parquet

            write_parquet(buffer, pa.Table.from_batches([rows]), metadata)
        return buffer.getbuffer()

    def _compressed(self, data: memoryview) -> memoryview:
        if self.compression == "gzip":
            out = io.BytesIO()
            # No time and no name in the header: the same rows give the same bytes.
            with gzip.GzipFile("", "wb", 6, out, mtime=0) as file:
                file.write(data)
            return out.getbuffer()
        if self.compression == "zstd":
            return memoryview(pa.compress(data, codec="zstd"))
        return data

    def _remove_stale(self, file_name: str, written: set[str]) -> None:
        try:
            folders = [self.folder]
            if self.partition_by_window:
                with os.scandir(self.folder) as entries:
                    folders = [entry.path for entry in entries if entry.name.startswith("window=")]
        except OSError as error:
            raise unwritable(self.folder, error) from None
        for path in {os.path.join(folder, file_name) for folder in folders} - written:
            remove_file(path)


def _instant(micros: int) -> str:
    """ISO 8601 in UTC, with a fraction only where there is one."""
    seconds, rest = divmod(micros % _DAY_US, 1_000_000)
    fraction = f".{rest:06d}" if rest else ""
    return f"{_date(micros)}T{seconds // 3_600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{fraction}Z"


def _date(micros: int) -> str:
    """ISO 8601, also for years before 1, where long windows may begin: the year before 0001 is 0000, and the one before that -0001."""
    month = np.datetime64(micros // _DAY_US, "D").astype("datetime64[M]")
    years, months = divmod(int(month.astype(np.int64)), 12)
    day = micros // _DAY_US - int(month.astype("datetime64[D]").astype(np.int64)) + 1
    year = 1970 + years
    return f"{'-' if year < 0 else ''}{abs(year):04d}-{months + 1:02d}-{day:02d}"


def _visible(batches: Sequence[pa.RecordBatch]) -> list[pa.RecordBatch]:
    return [batch.select([name for name in batch.schema.names if name not in INTERNAL]) for batch in batches]


def _split(batch: pa.RecordBatch) -> list[pa.RecordBatch]:
    return [batch.slice(start, _ROWS_AT_ONCE) for start in range(0, batch.num_rows, _ROWS_AT_ONCE)]


def _starts(batches: Sequence[pa.RecordBatch]) -> npt.NDArray[np.int64]:
    """The release window of each row."""
    if WINDOW not in batches[0].schema.names:
        raise StorageError.of("EV404", "the policy has no window to partition by", "name `event.time` and `window` in the policy")
    return np.concatenate([batch.column(WINDOW).to_numpy() for batch in batches])


def _lines(batches: Sequence[pa.RecordBatch]) -> pa.Array[Any]:
    """All rows, encoded. Wide, because one batch may ask for it."""
    return pa.concat_arrays([encode_json(batch).cast(pa.large_binary()) for batch in batches])


def _one(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """All rows as one batch; the parts' marks differ, and do not belong to the output."""
    bare = [batch.replace_schema_metadata(None) for batch in batches]
    (whole,) = bare if len(bare) == 1 else pa.Table.from_batches(bare).combine_chunks().to_batches()
    return whole


def _data(lines: pa.Array[Any]) -> memoryview:
    """The bytes of all lines, one after the other, where they lie."""
    offsets, data = cast(list[Any], lines.buffers())[1:]
    bounds = np.frombuffer(offsets, np.int64)[[lines.offset, lines.offset + len(lines)]]
    return memoryview(data)[bounds[0] : bounds[1]] if data is not None else memoryview(b"")
