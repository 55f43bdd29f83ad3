"""Files as a sink: one folder, one file per output part (and window), sorted, compacted, and there as a whole or not at all."""

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
import pyarrow.compute as pc

from eventveil.pipeline.sinks.atomic import local_path, make_folder, publish_file, remove_file, remove_leftovers, unwritable
from eventveil.schemas.errors import StorageError
from eventveil.transforms.batch import ORDER, WINDOW
from eventveil.transforms.encode.json_events import encode_json
from eventveil.transforms.times import to_local

__all__ = ["PROVENANCE", "FolderSink", "Published"]

PROVENANCE = "_eventveil.json"

Format = Literal["jsonl", "avro", "parquet"]
Rows = npt.NDArray[np.int64]

_SUFFIX = {"jsonl": "jsonl", "avro": "avro", "parquet": "parquet"}
_COMPRESSED = {"gzip": ".gz", "zstd": ".zst"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,199}\Z")
_DAY_US = 86_400_000_000


@dataclass(frozen=True)
class Published:
    """One file that was written."""

    path: str
    rows: int
    size: int


@dataclass(frozen=True)
class FolderSink:
    """Writes the parts of one policy's output into one folder.

    Files are named ``part-<name>.<suffix>``; with `partition_by_window` they stand in Hive-style folders ``window=2014-09-04``, or
    ``window=2014-09-04T22-00-00Z`` where a window does not begin at midnight in `zone`. The same rows give the same bytes under the
    same name, so a part that is published again, after a failure or by a second run, changes nothing.

    Discloses what the rows hold, their number per part, and with `partition_by_window` their window. Neither the order of the input
    nor its names, unless `order` is keep.

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
        claimed = self._claim()
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
        text = json.dumps({"provenance": self._full_provenance()}, indent=2, sort_keys=True, ensure_ascii=False)
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
        if not _NAME.match(name):
            raise ValueError("the name of a part is made of letters, digits, - and _")
        file_name = f"part-{name}.{self._suffix}"
        filled = [batch for batch in batches if batch.num_rows]
        written = [self._publish_file(file_name, window, rows) for window, rows in self._files(filled)] if filled else []
        self._remove_stale(file_name, {file.path for file in written})
        return written

    @property
    def _suffix(self) -> str:
        return _SUFFIX[self.format] + (_COMPRESSED[self.compression] if self.compression else "")

    def _full_provenance(self) -> dict[str, str]:
        return {**self.provenance, "format": self._suffix, "partition": "window" if self.partition_by_window else "none"}

    def _claim(self) -> dict[str, str] | None:
        """The provenance that the folder was claimed with; None if it was not."""
        path = os.path.join(self.folder, PROVENANCE)
        try:
            with open(path, "rb") as file:
                found = json.loads(file.read(1 << 20))["provenance"]
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unwritable(path, error) from None
        except (ValueError, KeyError, TypeError):
            found = None
        if not isinstance(found, dict):
            raise StorageError.of("EV405", f"'{PROVENANCE}' is not as this job writes it", "choose an empty folder", file=self.folder)
        return found

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
        visible = [batch.select([name for name in batch.schema.names if name not in (ORDER, WINDOW)]) for batch in batches]
        # Lines are cheaper to put in order than nested columns, and hold nothing but what is visible; so do the other encoders' bytes.
        rows = _lines(visible) if self.format == "jsonl" else _one(visible)
        places = self._order_of(batches, rows)
        if not self.partition_by_window:
            yield None, _taken(rows, places)
            return
        if WINDOW not in batches[0].schema.names:
            raise StorageError.of("EV404", "the policy has no window to partition by", "name `event.time` and `window` in the policy")
        starts = np.concatenate([batch.column(WINDOW).to_numpy() for batch in batches])
        places = np.arange(len(starts)) if places is None else places
        places = places[np.argsort(starts[places], kind="stable")]
        cuts = [0, *(np.flatnonzero(np.diff(starts[places])) + 1).tolist(), len(places)]
        for first, last in pairwise(cuts):
            yield self._window_name(int(starts[places[first]])), _taken(rows, places[first:last])

    def _order_of(self, batches: Sequence[pa.RecordBatch], rows: pa.RecordBatch | pa.Array[Any]) -> Rows | None:
        """The rows' numbers by `$order`, ties by the encoded row, so that the way they came never shows; None: as they came."""
        if self.order == "keep":
            return None
        words = np.concatenate([_words(batch.column(ORDER)) for batch in batches])
        places = np.argsort(words[:, 0])
        same = words[places[1:], 0] == words[places[:-1], 0]
        if same.any():
            tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
            taken = _taken(rows, places[tied])
            lines = encode_json(taken) if isinstance(taken, pa.RecordBatch) else taken
            ranks = pa.table({"high": words[places[tied], 0], "low": words[places[tied], 1], "line": lines})
            by_all = pc.sort_indices(ranks, [("high", "ascending"), ("low", "ascending"), ("line", "ascending")])
            places[tied] = places[tied][by_all.to_numpy()]
        return places

    def _publish_file(self, file_name: str, window: str | None, rows: pa.RecordBatch | pa.Array[Any]) -> Published:
        if not os.path.isdir(self.folder):
            # Made anew it would hold half of the output, and nobody would know.
            raise StorageError.of("EV404", "the folder was removed during the run", "run again", file=self.folder)
        folder = self.folder if window is None else os.path.join(self.folder, f"window={window}")
        make_folder(folder)
        path = os.path.join(folder, file_name)
        content = self._encoded(rows, window)
        publish_file(path, [content])
        return Published(path, len(rows), content.nbytes)

    def _window_name(self, start_us: int) -> str:
        local_us = int(to_local(np.array([start_us], np.int64), self.zone)[0])
        if local_us % _DAY_US == 0 if self.by_day is None else self.by_day:
            return _date(local_us)
        seconds, micros = divmod(start_us % _DAY_US, 1_000_000)
        fraction = f".{micros:06d}" if micros else ""
        return f"{_date(start_us)}T{seconds // 3_600:02d}-{seconds // 60 % 60:02d}-{seconds % 60:02d}{fraction}Z"

    def _encoded(self, rows: pa.RecordBatch | pa.Array[Any], window: str | None) -> memoryview:
        """The bytes of a file. A part is at most some 32 MB of input, and fits into memory."""
        if isinstance(rows, pa.Array):
            return self._compressed(_data(rows))
        buffer = io.BytesIO()
        table = pa.Table.from_batches([rows])
        metadata = {**self.provenance, **({} if window is None else {"window": window})}
        # Imported where they are used: a job of JSON lines starts without the libraries for the others.
        if self.format == "avro":
            from eventveil.transforms.encode.avro_events import write_avro

            write_avro(buffer, table, self.name, metadata)
        else:
            from eventveil.transforms.encode.parquet_rows import write_parquet

            write_parquet(buffer, table, metadata)
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


def _date(micros: int) -> str:
    """ISO 8601, also for years before 1, where long windows may begin: the year before 0001 is 0000, and the one before that -0001."""
    month = np.datetime64(micros // _DAY_US, "D").astype("datetime64[M]")
    years, months = divmod(int(month.astype(np.int64)), 12)
    day = micros // _DAY_US - int(month.astype("datetime64[D]").astype(np.int64)) + 1
    year = 1970 + years
    return f"{'-' if year < 0 else ''}{abs(year):04d}-{months + 1:02d}-{day:02d}"


def _lines(batches: Sequence[pa.RecordBatch]) -> pa.Array[Any]:
    """All rows, encoded. Wide, because one batch may ask for it."""
    return pa.concat_arrays([encode_json(batch).cast(pa.large_binary()) for batch in batches])


def _one(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """All rows as one batch; the parts' marks differ, and do not belong to the output."""
    bare = [batch.replace_schema_metadata(None) for batch in batches]
    return bare[0] if len(bare) == 1 else pa.Table.from_batches(bare).combine_chunks().to_batches()[0]


def _taken(rows: pa.RecordBatch | pa.Array[Any], places: Rows | None) -> pa.RecordBatch | pa.Array[Any]:
    return rows if places is None else rows.take(cast(Any, pa.array(places)))


def _words(order: pa.Array[Any]) -> npt.NDArray[np.uint64]:
    """(rows, 2) words of 16-byte keys, in the order of their bytes."""
    buffer: Any = order.buffers()[1]
    big_endian = np.frombuffer(buffer, ">u8")[2 * order.offset : 2 * (order.offset + len(order))]
    words: npt.NDArray[np.uint64] = big_endian.astype(np.uint64).reshape(-1, 2)
    return words


def _data(lines: pa.Array[Any]) -> memoryview:
    """The bytes of all lines, one after the other, where they lie."""
    offsets, data = cast(list[Any], lines.buffers())[1:]
    bounds = np.frombuffer(offsets, np.int64)[[lines.offset, lines.offset + len(lines)]]
    return memoryview(data)[bounds[0] : bounds[1]] if data is not None else memoryview(b"")
