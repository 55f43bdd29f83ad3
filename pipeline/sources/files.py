"""Files as a source: lists ranges, and reads a range as raw batches. JSON lines, Avro container files and Parquet.

A range is what one worker reads. Every event lies in exactly one range, and its position does not depend on how ranges, reads or
batches are cut. A range yields one part or several; a part becomes one output file. Memory is bounded by the size of a batch (for
Avro by that of a block, for Parquet by that of a page), never by the file.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from eventveil.pipeline.sources._avro_blocks import WRITER, read_blocks
from eventveil.pipeline.sources._lines import read_lines
from eventveil.pipeline.sources._parts import mark_parts
from eventveil.pipeline.sources._row_groups import read_rows, row_group_ranges
from eventveil.pipeline.sources._streams import Stamp, open_bytes, open_watched, stamp_of, unreadable
from eventveil.schemas.errors import StorageError, did_you_mean

__all__ = ["BATCH_BYTES", "FORMATS", "MAX_EVENT_BYTES", "PART_BYTES", "WRITER", "Range", "find_files", "list_ranges", "read_range"]

PART_BYTES = 32 << 20
BATCH_BYTES = 4 << 20
MAX_EVENT_BYTES = 8 << 20

FORMATS = ("avro", "jsonl", "parquet")
_FORMAT_OF = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".avro": "avro", ".parquet": "parquet"}
_COMPRESSION_OF = {".gz": "gzip", ".zst": "zstd"}


@dataclass(frozen=True)
class Range:
    """A piece of one file, read by one worker.

    Attributes:
        path: as it was listed; the origin of the parts.
        format: jsonl, avro or parquet. compression: None, gzip or zstd, of the file as a whole.
        start, end: positions in bytes; in row groups for parquet. `end` None: the whole stream, cut into parts while it is read.
        stamp: how the file looked when it was listed; None: not checked.
    """

    path: str
    format: str
    compression: str | None
    start: int
    end: int | None
    stamp: Stamp | None = None


def list_ranges(
    patterns: Sequence[str], format: str | None = None, part_bytes: int = PART_BYTES, compression: str | None = None
) -> list[Range]:
    """The ranges of all files that match, in the order of their paths; a file matched twice is read once.

    A pattern is a file, a folder (all its files of the format, at any depth; names that begin with ``.`` or ``_`` are skipped) or a
    glob (``**`` for any depth). Each pattern must match something.

    Args:
        format: jsonl, avro or parquet; None: by the file's suffix (.jsonl .ndjson .json, each also with .gz or .zst; .avro; .parquet).
        part_bytes: the size of a range and part: of the file for avro and plain jsonl, of the decompressed data otherwise.
        compression: none, gzip or zstd, of jsonl; None: by the file's suffix.

    Raises:
        StorageError: EV401 nothing matches, EV402 a file cannot be read, EV403 a Parquet file is damaged, EV406 the format is not
            known, or is not the same for all files.
    """
    if format is not None and format not in FORMATS:
        raise StorageError.of("EV406", f"unknown format '{format}'", did_you_mean(format, FORMATS))
    paths = _distinct(path for pattern in patterns for path in _matched(pattern, format))
    kinds = {path: _kind(path, format, compression) for path in paths}
    if len({kind for kind, _ in kinds.values()}) > 1:
        first, other = (next(path for path in paths if kinds[path][0] == kind) for kind in sorted({kind for kind, _ in kinds.values()})[:2])
        raise StorageError.of("EV406", f"'{first}' and '{other}' have different formats", "name one with --input-format or input.format")
    return [piece for path in paths for piece in _ranges_of(path, *kinds[path], part_bytes)]


def find_files(patterns: Sequence[str], format: str | None = None) -> list[str]:
    """The files that match now, as `list_ranges` would find them; none is fine."""
    return _distinct(path for pattern in patterns for path in _matching(pattern, format))


def read_range(
    piece: Range, batch_bytes: int = BATCH_BYTES, part_bytes: int = PART_BYTES, max_event_bytes: int = MAX_EVENT_BYTES
) -> Iterator[pa.RecordBatch]:
    """The raw batches of a range, each marked with its part; a part without events is one empty batch.

    jsonl and avro: the columns `value` (the line with its line end; the datum) and `position`; avro batches name the writer's schema
    in the schema's metadata under `WRITER`. parquet: the columns of the file as one struct column `row`, and `position`, the number
    of the row in the file. What becomes of blank and overlong lines: see `read_lines`.

    Raises:
        StorageError: EV402 the file cannot be read or was changed since it was listed, EV403 it is damaged, EV407 an Avro file's
            schema cannot be walked safely. A part that ends in damage never yields its last batch.
    """
    # The absolute path: the same file named in another way must not become another part beside the first.
    return mark_parts(os.path.abspath(piece.path), _pieces(piece, batch_bytes, part_bytes, max_event_bytes))


def _pieces(piece: Range, batch_bytes: int, part_bytes: int, max_event_bytes: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    with open_watched(piece.path, piece.stamp) as file:
        if piece.format == "avro":
            yield from read_blocks(piece.path, file, piece.start, piece.end, batch_bytes)
        elif piece.format == "parquet":
            yield from read_rows(piece.path, file, piece.start, piece.end, batch_bytes, part_bytes)
        else:
            if piece.start:
                file.seek(piece.start - 1)
            yield from read_lines(
                open_bytes(piece.path, file, piece.compression),
                begin=piece.start,
                end=piece.end,
                part_bytes=part_bytes,
                batch_bytes=batch_bytes,
                max_event_bytes=max_event_bytes,
            )


def _ranges_of(path: str, format: str, compression: str | None, part_bytes: int) -> list[Range]:
    stamp = stamp_of(path)
    # Opened once now: a file that may not be read stops the job before anything is written.
    with open_watched(path, stamp) as file:
        if format == "parquet":
            return [Range(path, format, None, start, end, stamp) for start, end in row_group_ranges(path, file, part_bytes)]
    if compression is not None:
        return [Range(path, format, compression, 0, None, stamp)]
    starts = range(0, max(stamp.size, 1), part_bytes)
    return [Range(path, format, None, start, min(start + part_bytes, stamp.size), stamp) for start in starts]


def _kind(path: str, format: str | None, said: str | None) -> tuple[str, str | None]:
    """Format and compression of a file that was named or matched; what was said of them counts before its suffix."""
    inner, suffix = os.path.splitext(path)
    told = _COMPRESSION_OF.get(suffix.lower())
    known = _FORMAT_OF.get(os.path.splitext(inner)[1].lower() if told else suffix.lower())
    compression = told if said is None else None if said == "none" else said
    if (format or known) is None:
        remedy = "name it with --input-format or input.format: jsonl, avro or parquet"
        raise StorageError.of("EV406", "the name does not tell the format", remedy, file=path)
    if compression and (format or known) != "jsonl":
        raise StorageError.of("EV406", f"{format or known} files are compressed inside, not as a whole", "decompress the file", file=path)
    return format or known or "", compression


def _matched(pattern: str, format: str | None) -> list[str]:
    found = _matching(pattern, format)
    if not found:
        raise StorageError.of("EV401", f"nothing matches '{pattern}'", "correct the path or pattern")
    return found


def _matching(pattern: str, format: str | None) -> list[str]:
    path = pattern.removeprefix("file://")
    if "://" in path:
        raise StorageError.of("EV401", f"'{pattern}' is no local path", "this version reads local files only")
    if os.path.isdir(path):
        found = [name for name in _files_below(path) if _belongs(name, format)]
    elif os.path.lexists(path):
        found = [path]
    else:
        found = [name for name in glob.glob(path, recursive=True) if not os.path.isdir(name) and not _set_aside(name, path)]
    return found


def _set_aside(path: str, pattern: str) -> bool:
    """Whether a hidden or underscored name (provenance, a mark of success, temporary files) was matched without being meant."""
    meant = {name[:1] for name in pattern.split(os.sep)}
    return any(name[:1] in "._" and name not in ("", ".", "..") and name[0] not in meant for name in path.split(os.sep))


def _files_below(folder: str) -> Iterator[str]:
    def stop(error: OSError) -> None:
        raise unreadable(folder, error) from None

    for here, folders, names in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if name[0] not in "._"]
        yield from (os.path.join(here, name) for name in names if name[0] not in "._")


def _belongs(path: str, format: str | None) -> bool:
    """Whether a file in a folder is input: it has a suffix of the format, or none at all where the format was named."""
    name = os.path.basename(path).lower()
    inner, suffix = os.path.splitext(name)
    if suffix in _COMPRESSION_OF:
        suffix = os.path.splitext(inner)[1]
    if not suffix:
        return format is not None
    return suffix in _FORMAT_OF and format in (None, _FORMAT_OF[suffix])


def _distinct(paths: Iterable[str]) -> list[str]:
    """Sorted, and each file once, also where two names lead to it. ``./a//b`` is a/b: the path names the output part."""
    found: dict[str, str] = {}
    folders: dict[str, str] = {}
    for path in sorted(set(paths)):
        real, plain = _real(path, folders), os.path.normpath(path)
        # Behind a symbolic link, ``..`` is not what it seems.
        name = plain if _real(plain, folders) == real else path
        found[real] = min(name, found.get(real, name))
    return sorted(found.values())


def _real(path: str, folders: dict[str, str]) -> str:
    """As os.path.realpath, which looks at every folder above: once per folder, as a watched one is looked at every second."""
    folder, name = os.path.split(path)
    if name in ("", ".", "..") or os.path.islink(path):
        return os.path.realpath(path)
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    return os.path.join(folders[folder], name)
