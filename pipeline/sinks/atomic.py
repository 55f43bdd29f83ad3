"""Files that appear whole or not at all: a temporary file beside the final name, fsync, rename, fsync of the folder."""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from eventveil.schemas.errors import EventveilError, StorageError

__all__ = ["local_path", "make_folder", "publish_file", "remove_file", "remove_leftovers", "unwritable"]

# Readers skip names that begin with a dot; the rest keeps us from ever touching a file that is not ours.
_TEMPORARY = re.compile(r"\.eventveil-[0-9a-f]{16}\.tmp\Z")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def unwritable(path: str, error: OSError) -> EventveilError:
    """EV404 with the cause in the system's words; a full disk is called by its name."""
    if error.errno in _FULL:
        fact = "the disk is full, or a limit on the size of files is reached"
        return StorageError.of("EV404", fact, "make room and run again", file=path)
    cause = os.strerror(error.errno).lower() if error.errno else "cannot be written"
    return StorageError.of("EV404", cause, "check that the folder exists and may be written", file=path)


def local_path(uri: str) -> str:
    """The path that an output's uri names. Raises StorageError EV404 if it is no local one."""
    path = uri.removeprefix("file://")
    if "://" in path:
        raise StorageError.of("EV404", f"'{uri}' is no local path", "this version writes to local folders only")
    return path


def make_folder(folder: str) -> None:
    """Make a folder and its parents durable; one that is there already is fine.

    Raises StorageError EV404 if it cannot be made, or is something else than a folder.
    """
    if os.path.isdir(folder):
        return
    parent = os.path.dirname(os.path.abspath(folder))
    make_folder(parent)
    try:
        os.makedirs(folder, exist_ok=True)
        _sync_folder(parent)
    except FileExistsError:
        raise StorageError.of("EV404", "a file stands where a folder is needed", "name another folder", file=folder) from None
    except OSError as error:
        raise unwritable(folder, error) from None


def publish_file(path: str, chunks: Iterable[Any], *, mode: int = 0o644) -> None:
    """Write the chunks (bytes-like) under the final name `path`, at once and for good; a file of that name is replaced.

    The folder must exist. After any failure nothing is left: neither half a file nor a temporary one.

    Args:
        mode: permissions, before the umask.

    Raises:
        StorageError: EV404.
    """
    folder = os.path.dirname(path) or "."
    temporary = os.path.join(folder, f".eventveil-{secrets.token_hex(8)}.tmp")
    try:
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), mode)
            with open(descriptor, "wb", buffering=0) as file:
                for chunk in chunks:
                    _write(file.fileno(), memoryview(chunk).cast("B"))
                os.fsync(descriptor)
            os.replace(temporary, path)
        except BaseException:
            remove_file(temporary)
            raise
        _sync_folder(folder)
    except OSError as error:
        raise unwritable(path, error) from None


def remove_file(path: str) -> None:
    """Remove a file if it is there; a failure to do so is no failure of the caller's."""
    with suppress(OSError):
        os.unlink(path)


def remove_leftovers(folder: str) -> int:
    """Remove the temporary files of runs that were killed, by our own naming pattern; returns how many there were."""
    try:
        names = [name for name in os.listdir(folder) if _TEMPORARY.match(name)]
    except OSError as error:
        raise unwritable(folder, error) from None
    for name in names:
        remove_file(os.path.join(folder, name))
    return len(names)


def _write(descriptor: int, rest: memoryview) -> None:
    """One system call may write a part only, as on a disk that is nearly full."""
    while len(rest):
        rest = rest[os.write(descriptor, rest) :]


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder; their rename is durable by itself, or never is.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
