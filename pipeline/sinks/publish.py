"""A window as a unit: its rows in shards of bounded size, its files named by a manifest, and all of them or none.

Shards are written under temporary names. Then a manifest that lists them with their digests is created, if there is none, and
only then they get their names. So whatever is killed, and wherever, publishing again gives the same files; and where a window
stands already, nothing that comes later changes it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from eventveil.pipeline.sinks._shards import INTERNAL, Batches, in_shards
from eventveil.pipeline.sinks.atomic import create_file, remove_file, sync_folder, unwritable, write_temporary
from eventveil.schemas.errors import StorageError

__all__ = ["INTERNAL", "Attempt", "Batches", "Published", "Unit", "in_shards"]


@dataclass(frozen=True)
class Published:
    """One file that was written."""

    path: str
    rows: int
    size: int


@dataclass(frozen=True)
class Unit:
    """A window, or a pane of one, that was published.

    Attributes:
        manifest: its path.
        files: those of the unit, whether they were written now or before; none where another content stands.
        conflict: the unit stands already, with another content: nothing was changed, and what came now must be kept sealed.
    """

    manifest: str
    files: tuple[Published, ...] = ()
    conflict: bool = False


class Attempt:
    """The files of one unit on their way to their names. As a context: what has none at the end is removed.

    Args:
        folder: in which the manifest stands; names of files are relative to it.
        manifest: its name.
        head: what it says beside the files.
    """

    def __init__(self, folder: str, manifest: str, head: Mapping[str, Any]) -> None:
        self._folder = folder
        self._manifest = os.path.join(folder, manifest)
        self._head = head
        self._files: list[dict[str, Any]] = []
        self._temporary: dict[str, str] = {}

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for temporary in self._temporary.values():
            remove_file(temporary)

    def write(self, name: str, rows: int, content: memoryview) -> None:
        """Write one file, under a temporary name. Its folder exists.

        Raises:
            StorageError: EV404.
        """
        self._temporary[name] = write_temporary(os.path.join(self._folder, name), [content])
        digest = hashlib.sha256(content).hexdigest()
        self._files.append({"name": name, "rows": rows, "bytes": content.nbytes, "sha256": digest})

    def finish(self) -> Unit:
        """Create the manifest, and give the files their names; or find that another content stands.

        Raises:
            StorageError: EV404; EV405 where something else has the manifest's name.
        """
        document = {**self._head, "files": self._files}
        text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"
        if not create_file(self._manifest, [text]) and self._standing() != document:
            return Unit(self._manifest, conflict=True)
        for file in self._files:
            self._place(file)
        try:
            for folder in sorted({os.path.dirname(os.path.join(self._folder, file["name"])) for file in self._files}):
                sync_folder(folder)
        except OSError as error:
            raise unwritable(self._folder, error) from None
        found = (Published(os.path.join(self._folder, file["name"]), file["rows"], file["bytes"]) for file in self._files)
        return Unit(self._manifest, tuple(found))

    def _standing(self) -> Any:
        try:
            with open(self._manifest, "rb") as file:
                return json.load(file)
        except OSError as error:
            raise unwritable(self._manifest, error) from None
        except ValueError:
            fact, remedy = "is not as this job writes it", "restore it from a copy, or choose an empty folder"
            raise StorageError.of("EV405", fact, remedy, file=self._manifest) from None

    def _place(self, file: Mapping[str, Any]) -> None:
        path = os.path.join(self._folder, file["name"])
        # A file that is there and whole is left as it is: readers that look at times of change would take it for a new one.
        if _digest_of(path, file["bytes"]) == file["sha256"]:
            return
        try:
            os.replace(self._temporary[file["name"]], path)
        except OSError as error:
            raise unwritable(path, error) from None
        del self._temporary[file["name"]]


def _digest_of(path: str, size: int) -> str | None:
    """SHA-256 of a file of this size; None if there is none."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size != size:
                return None
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unwritable(path, error) from None
    return digest.hexdigest()
