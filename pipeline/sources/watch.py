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
from eventveil.pipeline.sources.stream import EngineSource, State
from eventveil.schemas.errors import EventveilError, StorageError

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
        self._waiting: dict[str, tuple[_Known, int]] = {}
        self._pending = 0

    def identity(self) -> dict[str, Any]:
        patterns = [os.path.abspath(pattern) for pattern in self._patterns]
        return {"watch": patterns, "format": self._format or "", "part_bytes": self._part_bytes, "compression": self._compression or ""}

    def begin(self, from_now: bool) -> State:
        """`from_now`: files that are at rest count as read; one that is still being written is read as a whole, once it is."""
        now = time.time_ns()
        files = self._look() if from_now else {}
        return {"files": {path: [*stamp, 1, 1] for path, stamp in files.items() if now - stamp[1] >= _AT_REST_NS}}

    def next(self, state: State, most_bytes: int) -> State | None:
        """Raises StorageError: EV402 a file was changed after it was read, EV412 one was removed before, and as `list_ranges`."""
        found = self._look()
        before: dict[str, _Known] = state["files"]
        known = {path: entry for path, entry in before.items() if path in found or not _is_read(entry)}
        waiting: dict[str, tuple[_Known, int]] = {}
        budget = most_bytes
        taken_any = False
        self._pending = 0
        for path, entry in known.items():
            if path not in found:
                raise _gone(path, "removed")
            if entry[:2] != found[path]:
                fact = "was changed after it was read: what was added would be lost"
                raise StorageError.of("EV402", fact, "restore it, or move it away; write what is new into new files", file=path)
        for path, stamp in found.items():
            entry = known.get(path, [*stamp, 0, -1])
            if _is_read(entry):
                continue
            is_at_rest = self._is_at_rest(path, stamp, waiting)
            ranges = self._listed(path, stamp) if is_at_rest and budget > 0 else None
            if ranges is None:
                self._pending += 1
                continue
            done = entry[2]
            while done < len(ranges) and budget > 0:
                budget -= _weight(ranges[done], stamp[0], len(ranges))
                done += 1
            known[path] = [*stamp, done, len(ranges)]
            taken_any = True
            self._pending += done < len(ranges)
        self._waiting = waiting
        return {"files": known} if taken_any else None

    def ranges(self, before: State, after: State) -> tuple[Range, ...]:
        """Raises StorageError: EV412 a file was removed or changed before it was read."""
        pieces: list[Range] = []
        for path, (size, modified, done, _) in sorted(after["files"].items()):
            begun = before["files"].get(path, [size, modified, 0, 0])[2]
            if begun < done:
                if not os.path.exists(path):
                    raise _gone(path, "removed")
                found = self._ranges_of(path)[begun:done]
                if any(_stamp(piece) != [size, modified] for piece in found):
                    raise _gone(path, "changed")
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

    def on_engine(self, engine: str, wants: frozenset[str], batch_bytes: int, idle_after_us: int) -> EngineSource:
        """Folders are watched by the local runner alone: that is said when a job is read."""
        raise EventveilError.of("EV901", "folders are not watched by an engine")

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

    def _is_at_rest(self, path: str, stamp: _Known, waiting: dict[str, tuple[_Known, int]]) -> bool:
        """Whether a file is unchanged for long enough: by its own time, or by how long we see it so, as its clock may be another."""
        if time.time_ns() - stamp[1] >= _AT_REST_NS:
            return True
        seen, since = self._waiting.get(path, (stamp, 0))
        waiting[path] = (stamp, since if since and seen == stamp else time.monotonic_ns())
        return time.monotonic_ns() - waiting[path][1] >= _AT_REST_NS

    def _listed(self, path: str, stamp: _Known) -> list[Range] | None:
        """The ranges of a file that was just looked at; None where it is another by now, or gone."""
        try:
            ranges = self._ranges_of(path)
        except StorageError:
            if os.path.exists(path):
                raise
            return None
        return ranges if all(_stamp(piece) == stamp for piece in ranges) else None

    def _ranges_of(self, path: str) -> list[Range]:
        return list_ranges([path], self._format, self._part_bytes, self._compression)


def _is_read(entry: _Known) -> bool:
    return entry[2] == entry[3]


def _stamp(piece: Range) -> _Known:
    return [] if piece.stamp is None else [piece.stamp.size, piece.stamp.modified_ns]


def _gone(path: str, what: str) -> EventveilError:
    remedy = "restore it, with the time of its last change; to go on without it say --from-now"
    return StorageError.of("EV412", f"was {what} before it was read", remedy, file=path)


def _weight(piece: Range, size: int, pieces: int) -> int:
    return piece.end - piece.start if piece.format == "jsonl" and piece.end is not None else -(-size // max(pieces, 1))
