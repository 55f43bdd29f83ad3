"""Files that appear whole or not at all: a temporary file beside the final name, fsync, rename, fsync of the folder."""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, BinaryIO

from eventveil.schemas.errors import EventveilError, StorageError

__all__ = [
    "check_links",
    "create_file",
    "local_path",
    "make_folder",
    "open_nameless",
    "publish_file",
    "remove_file",
    "remove_leftovers",
    "sync_folder",
    "unwritable",
    "write_temporary",
]

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
        sync_folder(parent)
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
    temporary = write_temporary(path, chunks, mode=mode)
    try:
        try:
            os.replace(temporary, path)
        except BaseException:
            remove_file(temporary)
            raise
        sync_folder(os.path.dirname(path) or ".")
    except OSError as error:
        raise unwritable(path, error) from None


def create_file(path: str, chunks: Iterable[Any]) -> bool:
    """Write the chunks under the name `path` if nothing has that name, at once and for good.

    Of several who try at the same time one succeeds. Whoever does not finds the other's whole file.

    Returns:
        Whether it was written; if not, nothing has changed.

    Raises:
        StorageError: EV404.
    """
    temporary = write_temporary(path, chunks)
    try:
        try:
            # A rename would replace what is there; writing under the final name would leave half a file to a crash.
            os.link(temporary, path)
            is_new = True
        except FileExistsError:
            is_new = False
        finally:
            remove_file(temporary)
        # Also one that was there: whoever created it may have died before this.
        sync_folder(os.path.dirname(path) or ".")
    except OSError as error:
        raise unwritable(path, error) from None
    return is_new


def check_links(folder: str) -> None:
    """Find out whether `create_file` works in this folder.

    Raises:
        StorageError: EV404.
    """
    first = write_temporary(os.path.join(folder, "."), [])
    second = _temporary_name(folder)
    try:
        os.link(first, second)
    except OSError:
        fact = "the file system has no hard links, and without them a window cannot be claimed once and for all"
        raise StorageError.of("EV404", fact, "choose a folder on another file system", file=folder) from None
    finally:
        remove_file(first)
        remove_file(second)


def write_temporary(path: str, chunks: Iterable[Any], *, mode: int = 0o644) -> str:
    """Write the chunks, synced, under a temporary name beside `path`, and return that name.

    After a failure nothing is left.

    Raises:
        StorageError: EV404, about `path`.
    """
    temporary = _temporary_name(os.path.dirname(path) or ".")
    try:
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), mode)
            with open(descriptor, "wb", buffering=0) as file:
                for chunk in chunks:
                    _write(file.fileno(), memoryview(chunk).cast("B"))
                os.fsync(descriptor)
        except BaseException:
            remove_file(temporary)
            raise
    except OSError as error:
        raise unwritable(path, error) from None
    return temporary


def open_nameless(folder: str) -> BinaryIO:
    """A file on this folder's disk that nobody else can open, and that is gone when it is closed, or the process ends.

    Raises OSError.
    """
    temporary = _temporary_name(folder)
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600)
    remove_file(temporary)
    return open(descriptor, "w+b")


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


def _temporary_name(folder: str) -> str:
    return os.path.join(folder, f".eventveil-{secrets.token_hex(8)}.tmp")


def _write(descriptor: int, rest: memoryview) -> None:
    """One system call may write a part only, as on a disk that is nearly full."""
    while len(rest):
        rest = rest[os.write(descriptor, rest) :]


def sync_folder(folder: str) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder; their rename is durable by itself, or never is.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
