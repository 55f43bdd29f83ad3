"""The checkpoint of a job over a stream: a folder that one process at a time holds.

    lock                 who holds the folder
    checkpoint.json      how far the job has come: replaced as a whole by each slice
    intent.json          what the slice that has begun will do; written before it reads anything, and done again as it stands
    carry/               rows of windows that are still open
    withheld/            carry of windows that were not published, kept as it is
    set-aside-<n>/       an older checkpoint, its intent and its carry, whole, from when a job began anew

A slice is: write_intent, append to carry, commit. Killed anywhere in between, the folder is found as it was before the slice, with its
intent, or as it is after it. Everything is sealed (`_document`, `_frames`); a folder made here is open to its owner alone.

What was changed, cut, exchanged or is missing is noticed, and so is a checkpoint that is older than the carry or the intent beside it.
A copy of the whole folder, put back in its place, is not: then the job goes on from there, and does a second time what came after.
Nor is it noticed when whoever can write the folder cuts off, or removes, what an unfinished slice has appended: it is appended again.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from eventveil.pipeline.checkpoint._disk import cause, cut_file, damaged, make_private_folder, open_regular
from eventveil.pipeline.checkpoint._document import other, read_document, write_document
from eventveil.pipeline.checkpoint._frames import newest_slice
from eventveil.pipeline.checkpoint._lock import LOCK, FolderLock
from eventveil.pipeline.checkpoint.carry import CARRY, CarryFile, CarryWriter, Window, carry_name
from eventveil.pipeline.checkpoint.seal import StateSeal, WindowSeals
from eventveil.pipeline.sinks.atomic import local_path, remove_file, remove_leftovers, sync_folder, unwritable
from eventveil.schemas.errors import StorageError
from eventveil.transforms.keys.derive import KeyProvider

__all__ = ["ENGINE", "SPOOL", "Checkpoint", "CheckpointFolder"]

Checkpoint = dict[str, Any]
"""JSON: `slice`, `carry` as `CarryWriter.flush_all` returns it, and what else the loop needs."""

_CHECKPOINT = "checkpoint.json"
_INTENT = "intent.json"
_WITHHELD = "withheld"
_ASIDE = re.compile(r"set-aside-([1-9][0-9]{0,8})\Z")
_UNFINISHED = "set-aside"
# What belongs to a checkpoint and is not written here: messages that a source holds no longer, and what an engine's workers note.
SPOOL, ENGINE = "spool", "engine"
_KEPT = (CARRY, _WITHHELD, SPOOL, ENGINE, _INTENT, _CHECKPOINT)
_OURS = {LOCK, _UNFINISHED, *_KEPT}
_CARRY_NAME = re.compile(r"(-?[0-9]{1,19})-([0-9]{1,19})\.carry\Z")


class CheckpointFolder(KeyProvider):
    """A folder that remembers. `open` comes first, `close` last; a context manager closes. Refuses to be pickled.

    Args:
        path: local; symbolic links are followed once, here.
        seal: of the job's keyring: `StateSeal.of(keys)`.
    """

    def __init__(self, path: str, seal: StateSeal) -> None:
        self.path = os.path.realpath(local_path(path))
        self._seal = seal
        self._lock: FolderLock | None = None
        self._writer: CarryWriter | None = None
        self._identity: dict[str, Any] = {}
        self._committed: int | None = None
        self._intent: dict[str, Any] | None = None
        self._withheld: list[list[Any]] = []
        self._held: dict[Window, CarryFile] = {}
        self._forget()

    def __enter__(self) -> CheckpointFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self, identity: Mapping[str, Any], from_now: bool = False) -> Checkpoint | None:
        """Take the folder and find out where the job stands; what an unfinished slice has appended is cut off, leftovers are removed.

        Args:
            identity: what makes the job the same one: texts and lists, by name, in levels. Its `job` stands in clear.
            from_now: if the checkpoint belongs to another identity, set it aside and begin anew. One of this identity is continued.

        Returns:
            The checkpoint; None if there is none yet. `intent` then says whether a slice must be done again.

        Raises:
            StorageError: EV404 the folder cannot be used; EV405 it holds something else; EV409 the checkpoint belongs to another job,
                policy or keyring; EV410 it is in use; EV411 it is damaged.
        """
        self._take()
        try:
            self._forget()
            self._identity = json.loads(json.dumps(identity))
            remove_leftovers(self.path)
            self._finish_setting_aside()
            try:
                checkpoint = self._read()
            except StorageError as error:
                if not from_now or error.problems[0].code != "EV409":
                    raise
                self.set_aside()
                checkpoint = None
            self._check_carry()
        except BaseException:
            self.close()
            raise
        return checkpoint

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes out, without opening the folder. Raises StorageError EV404, EV405, EV410 as `open` does."""
        self._take()
        try:
            yield
        finally:
            self.close()

    def intent(self) -> dict[str, Any] | None:
        """The intent of a slice that is not committed; None if there is none."""
        return None if self._intent is None else dict(self._intent)

    def write_intent(self, doc: Mapping[str, Any]) -> None:
        """Note what a slice will do, durably, before it reads anything.

        Args:
            doc: JSON, with the number of the `slice`: one more than the checkpoint's.

        Raises:
            StorageError: EV404.
        """
        if self._intent is not None:
            raise ValueError("an intent stands: its slice is done as it says")
        number = self._next(doc["slice"])
        self._write(_INTENT, "intent", number, {"document": doc})
        self._intent = dict(doc)

    def commit(self, checkpoint: Mapping[str, Any], withheld: Collection[Window] = ()) -> None:
        """Replace the checkpoint, at once and for good; then remove the intent and the carry that is no longer listed.

        Args:
            checkpoint: see `Checkpoint`.
            withheld: windows that were due and not published: their carry is kept in `withheld/`.

        Raises:
            StorageError: EV404: the checkpoint before and the intent still stand.
        """
        number = self._next(checkpoint["slice"])
        if self._intent is not None and self._intent["slice"] != number:
            raise ValueError("the intent is of another slice")
        listed = {(file.variant, file.window_us): file for file in self._listed(checkpoint)}
        if self._writer is None:
            if any(self._held.get(window) != file for window, file in listed.items()):
                raise ValueError("the checkpoint lists another carry than was written")
            settle = None
        else:
            settle = self._writer.finished(listed)
        kept = {file.path for file in listed.values()}
        written = (*self._held.values(), *(self._writer.files() if self._writer is not None else ()))
        gone = {file.path for file in written} - kept
        aside = [self._held[window] for window in withheld]
        if any(file.path not in gone for file in aside):
            raise ValueError("a window that is withheld is no longer listed")
        names = [[file.variant, file.window_us, file.begun] for file in aside]
        self._write(_CHECKPOINT, "checkpoint", number, {"document": checkpoint, "withheld": names})
        self._committed, self._intent = number, None
        self._held.clear()
        self._held.update(listed)
        if settle is not None:
            settle()
        self._withhold(aside)
        # What is left in spite of it, or of a crash, is removed when the folder is opened again.
        for path in sorted(gone - {file.path for file in aside}):
            remove_file(path)
        remove_file(os.path.join(self.path, _INTENT))

    def carry(self, variant: str, window_us: int) -> CarryFile:
        """What the checkpoint holds for a window; without rows where it holds nothing."""
        return self._held.get((variant, window_us)) or CarryFile("", variant, window_us, 0)

    def writer(self, seals: Mapping[str, WindowSeals]) -> CarryWriter:
        """The one that appends to carry, with the seals of each variant that is gathered. Closed with the folder."""
        if self._lock is None or self._writer is not None:
            raise ValueError("the folder is not open, or has a writer")
        self._writer = CarryWriter(self.path, self._series, seals, self._held, self._intended)
        return self._writer

    @property
    def series(self) -> str:
        """Tells this checkpoint from any that was begun anew: 16 hexadecimal digits, the same until it is set aside."""
        return self._series

    def set_aside(self) -> None:
        """Keep checkpoint, intent and carry in a folder of their own, and begin anew. Raises StorageError EV404."""
        if self._lock is None or self._writer is not None:
            raise ValueError("the folder is not open, or has a writer")
        if not any(os.path.lexists(os.path.join(self.path, name)) for name in _KEPT):
            return
        # From here on it is decided: whoever opens the folder next finishes it.
        self._make_folder(_UNFINISHED)
        self._finish_setting_aside()
        self._forget()

    def close(self) -> None:
        """Give the folder free. What was not committed is done again."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def _take(self) -> None:
        if self._lock is not None:
            raise ValueError("the folder is open")
        make_private_folder(self.path)
        # Before the lock, which makes a file.
        self._check_ours()
        self._lock = FolderLock(self.path)

    def _forget(self) -> None:
        """As of a folder in which nothing stands. Carry that was set aside does not open under the series that comes after it."""
        self._committed, self._intent, self._withheld, self._held = None, None, [], {}
        self._series = secrets.token_hex(8)

    def _intended(self) -> int | None:
        return None if self._intent is None else int(self._intent["slice"])

    def _check_ours(self) -> None:
        try:
            with os.scandir(self.path) as entries:
                # Hidden names are of the system, or temporary files of ours.
                found = sorted(entry.name for entry in entries if entry.name[0] != ".")
        except OSError as error:
            raise unwritable(self.path, error) from None
        for name in found:
            if name not in _OURS and not _ASIDE.match(name):
                fact = f"holds '{name}', which is no part of a checkpoint"
                raise StorageError.of("EV405", fact, "choose an empty folder", file=self.path)

    # --- what stands in the folder ------------------------------------------------------------------------------------------------

    def _read(self) -> Checkpoint | None:
        found, intent = self._document(_CHECKPOINT, "checkpoint"), self._document(_INTENT, "intent")
        checkpoint: Checkpoint | None = None
        if found is not None:
            self._committed, body = found
            checkpoint, self._series, self._withheld = body["document"], body["series"], body["withheld"]
            if intent is not None and intent[1]["series"] != self._series:
                raise damaged(os.path.join(self.path, _INTENT), "is of another checkpoint")
            if intent is not None and intent[0] > self._committed + 1:
                fact = f"is of slice {self._committed}, and slice {intent[0]} has begun: an older checkpoint was put back"
                raise damaged(os.path.join(self.path, _CHECKPOINT), fact)
            if intent is not None and intent[0] <= self._committed:
                # Committed; its removal was cut short.
                intent = None
        elif intent is not None:
            self._series = intent[1]["series"]
        self._intent = None if intent is None else intent[1]["document"]
        self._held.update({(file.variant, file.window_us): file for file in self._listed(checkpoint or {})})
        return checkpoint

    def _document(self, name: str, kind: str) -> tuple[int, dict[str, Any]] | None:
        path = os.path.join(self.path, name)
        found = read_document(path, kind, str(self._identity.get("job", "")), self._seal)
        if found is not None and (differing := _differing(found[1]["identity"], self._identity)):
            raise other(path, differing)
        return found

    def _write(self, name: str, kind: str, number: int, body: dict[str, Any]) -> None:
        if self._lock is None:
            raise ValueError("the folder is not open")
        body = {"identity": self._identity, "series": self._series, **body}
        write_document(os.path.join(self.path, name), kind, str(self._identity.get("job", "")), number, body, self._seal)

    def _next(self, number: Any) -> int:
        if type(number) is not int or number < 0 or (self._committed is not None and number != self._committed + 1):
            raise ValueError("slices are numbered one by one")
        return number

    def _listed(self, checkpoint: Mapping[str, Any]) -> Iterator[CarryFile]:
        for variant, windows in checkpoint.get("carry", {}).items():
            for window, (length, rows, begun) in windows.items():
                path = self._carry_path(variant, int(window), begun)
                yield CarryFile(path, variant, int(window), begun, length, rows, self._series)

    # --- carry that was left ------------------------------------------------------------------------------------------------------

    def _check_carry(self) -> None:
        """Carry as the checkpoint lists it, and nothing else; every check comes before the first change."""
        listed = {file.path: file for file in self._held.values()}
        unlisted = [path for path in self._carry_paths() if path not in listed]
        cut = [file for file in listed.values() if self._has_tail(file.path, file.length)]
        for path in unlisted:
            self._has_tail(path, 0)
        for file in cut:
            cut_file(file.path, file.length)
        withheld = [CarryFile(self._carry_path(*one), *one) for one in self._withheld]
        self._withhold([file for file in withheld if file.path in unlisted])
        for path in set(unlisted) - {file.path for file in withheld}:
            remove_file(path)
        if self._intent is None:
            remove_file(os.path.join(self.path, _INTENT))

    def _has_tail(self, path: str, length: int) -> bool:
        """Whether there is more than the checkpoint knows. Raises StorageError EV411 where no crash explains what is there."""
        descriptor = open_regular(path)
        try:
            size = os.fstat(descriptor).st_size
            if size <= length and length:
                if size < length:
                    raise damaged(path, f"has {size} bytes, and the checkpoint says {length}")
                return False
            try:
                newest = newest_slice(descriptor, length)
            except ValueError:
                raise damaged(path, "is no carry file", "remove it, if it is not of eventveil") from None
        except OSError as error:
            raise damaged(path, f"cannot be read: {cause(error)}") from None
        finally:
            os.close(descriptor)
        # An unlisted file of earlier slices was published, and its removal was cut short. One of the slice that comes next needs an intent.
        begun = self._intended()
        last = self._committed if begun is None else begun
        if last is None:
            raise damaged(path, "is carry without a checkpoint")
        if (newest is not None and newest > last) or (length and begun is None):
            raise damaged(path, "holds rows of a later slice than the checkpoint, which was put back, or lost its intent")
        return True

    def _carry_paths(self) -> list[str]:
        """The files of carry. Raises StorageError: EV405 on names that are not ours, EV411 where something stands in a folder's place."""
        found = []
        for variant in _names(os.path.join(self.path, CARRY)):
            for name in _names(os.path.join(self.path, CARRY, variant)):
                if not _CARRY_NAME.match(name):
                    fact = f"holds '{CARRY}/{variant}/{name}', which is no part of a checkpoint"
                    raise StorageError.of("EV405", fact, "move it elsewhere", file=self.path)
                found.append(os.path.join(self.path, CARRY, variant, name))
        return sorted(found)

    def _carry_path(self, variant: str, window_us: int, begun: int) -> str:
        return os.path.join(self.path, CARRY, variant, carry_name(window_us, begun))

    def _withhold(self, files: Collection[CarryFile]) -> None:
        for file in files:
            target = self._make_folder(_WITHHELD, file.variant)
            try:
                os.rename(file.path, os.path.join(target, os.path.basename(file.path)))
                # Now, for the next checkpoint no longer says that the file is to be kept.
                sync_folder(target)
                sync_folder(os.path.dirname(file.path))
            except OSError as error:
                raise unwritable(target, error) from None

    # --- beginning anew -----------------------------------------------------------------------------------------------------------

    def _finish_setting_aside(self) -> None:
        unfinished = os.path.join(self.path, _UNFINISHED)
        if not os.path.isdir(unfinished):
            return
        try:
            numbers = [int(found[1]) for name in os.listdir(self.path) if (found := _ASIDE.match(name))]
            for name in _KEPT:
                if os.path.lexists(os.path.join(self.path, name)):
                    os.rename(os.path.join(self.path, name), os.path.join(unfinished, name))
            sync_folder(unfinished)
            sync_folder(self.path)
            os.rename(unfinished, os.path.join(self.path, f"set-aside-{max(numbers, default=0) + 1}"))
            sync_folder(self.path)
        except OSError as error:
            raise unwritable(self.path, error) from None

    def _make_folder(self, *names: str) -> str:
        path = self.path
        for name in names:
            path = os.path.join(path, name)
            make_private_folder(path)
        return path


def _names(folder: str) -> list[str]:
    try:
        if not stat.S_ISDIR(os.lstat(folder).st_mode):
            raise damaged(folder, "is no folder")
        # Hidden names are of the system, as those of open files that were removed on a network file system.
        return [name for name in os.listdir(folder) if name[0] != "."]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise damaged(folder, f"cannot be read: {cause(error)}") from None


def _differing(found: Any, expected: Any, name: str = "") -> list[str]:
    """The names of entries that are not the same, each at the highest level at which one is missing."""
    if isinstance(found, dict) and isinstance(expected, dict):
        names = sorted({*found, *expected})
        deeper = f"{name}." if name else ""
        return [one for entry in names for one in _differing(found.get(entry), expected.get(entry), deeper + entry)]
    return [] if found == expected else [name]
