"""Folders as a stream: files that are there, and files that appear later, each read once.

A file is taken when it has come to rest: unchanged for two seconds, or since the last look. Whoever writes it whole under a name that
begins with a dot and renames it is safe from that. A file that changes after it was read stops the job, because what was added would
never be read; one that is removed is forgotten. Discloses nothing; the checkpoint holds names, sizes and times of files, sealed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from eventveil.pipeline.sources.files import Range, find_files, list_ranges
from eventveil.pipeline.sources.stream import State
from eventveil.schemas.errors import StorageError

__all__ = ["WatchedFolders"]

_LANE = "files"
_AT_REST_NS = 2_000_000_000
# What a file is known by: size, time of its last change; in a state also how many of its ranges were read, and how many it has.
_Known = list[int]


class WatchedFolders:
    """All files that match, in the order of their paths; those that appear later, as they do.

    Args: as for `list_ranges`; a pattern may match nothing yet.
    """

    def __init__(self, patterns: Sequence[str], format: str | None, part_bytes: int, compression: str | None) -> None:
        self._patterns = tuple(patterns)
        self._format = format
        self._part_bytes = part_bytes
        self._compression = compression
        self._last: dict[str, _Known] = {}
        self._pending = 0

    def identity(self) -> dict[str, Any]:
        patterns = [os.path.abspath(pattern) for pattern in self._patterns]
        return {"watch": patterns, "format": self._format or "", "part_bytes": self._part_bytes, "compression": self._compression or ""}

    def begin(self, from_now: bool) -> State:
        files = self._look() if from_now else {}
        return {"files": {path: [*stamp, 1, 1] for path, stamp in files.items()}}

    def next(self, state: State, most_bytes: int) -> State | None:
        """Raises StorageError: EV402 a file was changed after it was read, and as `list_ranges`."""
        found = self._look()
        known: dict[str, _Known] = {path: entry for path, entry in state["files"].items() if path in found}
        now = time.time_ns()
        budget = most_bytes
        self._pending = 0
        for path, stamp in found.items():
            entry = known.get(path)
            if entry is not None and entry[:2] != stamp:
                fact = "was changed after it was read: what was added would be lost"
                raise StorageError.of("EV402", fact, "write what is new into new files; to begin anew say --from-now", file=path)
            at_rest = now - stamp[1] >= _AT_REST_NS or self._last.get(path) == stamp
            done = 0 if entry is None else entry[2]
            if entry is not None and entry[2] == entry[3]:
                continue
            ranges = self._ranges_of(path) if at_rest and budget > 0 else []
            taken = 0
            for piece in ranges[done:]:
                if budget <= 0:
                    break
                budget -= _weight(piece, stamp[0], len(ranges))
                taken += 1
            if taken:
                known[path] = [*stamp, done + taken, len(ranges)]
            if not ranges or done + taken < len(ranges):
                self._pending += 1
        self._last = found
        return {"files": known} if known != {path: one for path, one in state["files"].items() if path in found} else None

    def ranges(self, before: State, after: State) -> tuple[Range, ...]:
        pieces: list[Range] = []
        for path, (size, modified, done, _) in sorted(after["files"].items()):
            begun = before["files"].get(path, [size, modified, 0, 0])[2]
            if begun < done:
                found = self._ranges_of(path)[begun:done]
                if any(piece.stamp is None or [piece.stamp.size, piece.stamp.modified_ns] != [size, modified] for piece in found):
                    raise StorageError.of("EV402", "was changed before it was read", "restore the file and run again", file=path)
                pieces += found
        return tuple(pieces)

    def lanes(self, state: State) -> tuple[str, ...]:
        return (_LANE,)

    def lane_of(self, origin: str) -> str:
        return _LANE

    def is_caught_up(self, state: State) -> frozenset[str]:
        return frozenset() if self._pending else frozenset({_LANE})

    def lag(self, state: State) -> int:
        return self._pending

    def committed(self, state: State) -> None:
        """Nobody watches from outside."""

    def close(self) -> None:
        """Nothing is held open."""

    def _look(self) -> dict[str, _Known]:
        found: dict[str, _Known] = {}
        for path in find_files(self._patterns, self._format):
            try:
                status = os.stat(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise StorageError.of("EV402", os.strerror(error.errno or 0).lower(), "check that it may be read", file=path) from None
            found[path] = [status.st_size, status.st_mtime_ns]
        return found

    def _ranges_of(self, path: str) -> list[Range]:
        return list_ranges([path], self._format, self._part_bytes, self._compression)


def _weight(piece: Range, size: int, pieces: int) -> int:
    return piece.end - piece.start if piece.format == "jsonl" and piece.end is not None else -(-size // max(pieces, 1))
