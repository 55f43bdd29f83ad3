"""What stands on the disk, taken as it is found: no link is followed, no pipe waited for."""

from __future__ import annotations

import os
import stat

from eventveil.pipeline.sinks.atomic import make_folder, unwritable
from eventveil.schemas.errors import EventveilError, StorageError, remedy_for

__all__ = ["cause", "cut_file", "damaged", "make_private_folder", "open_regular"]


def damaged(path: str, fact: str, remedy: str = "") -> EventveilError:
    """EV411: what stands there is not what this job has written."""
    return StorageError.of("EV411", fact, remedy or remedy_for("EV411"), file=path)


def cause(error: OSError) -> str:
    """The system's words."""
    return os.strerror(error.errno).lower() if error.errno else "no reason is given"


def open_regular(path: str, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a file that must be there. Raises StorageError EV411."""
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise damaged(path, "is missing") from None
    except OSError as error:
        raise damaged(path, f"cannot be read: {cause(error)}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise damaged(path, "is no regular file")
    return descriptor


def cut_file(path: str, length: int) -> None:
    """Cut off what stands behind `length`, for good: found again after a loss of power, nothing would explain it. Raises StorageError."""
    descriptor = open_regular(path, os.O_WRONLY)
    try:
        os.ftruncate(descriptor, length)
        os.fsync(descriptor)
    except OSError as error:
        raise unwritable(path, error) from None
    finally:
        os.close(descriptor)


def make_private_folder(path: str) -> None:
    """A folder that is open to its owner alone; one that is there stays as it is. Raises StorageError EV404."""
    if os.path.isdir(path):
        return
    make_folder(path)
    try:
        os.chmod(path, 0o700)
    except OSError as error:
        raise unwritable(path, error) from None
