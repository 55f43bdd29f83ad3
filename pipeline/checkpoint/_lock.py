"""One process at a time: flock on a file in the folder, which the system gives free when the process ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress

from eventveil.pipeline.sinks.atomic import unwritable
from eventveil.schemas.errors import StorageError, remedy_for

__all__ = ["LOCK", "FolderLock"]

LOCK = "lock"


class FolderLock:
    """Holds `folder` until `release`. The file stays when the lock is gone: to remove it could free a lock that another has just taken.

    Raises:
        StorageError: EV410 another holds it; EV404 it cannot be locked.
    """

    def __init__(self, folder: str) -> None:
        path = os.path.join(folder, LOCK)
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise unwritable(path, error) from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, b"%d\n" % os.getpid(), 0)
        except OSError as error:
            holder = self._holder()
            self.release()
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise unwritable(path, error) from None
            fact = f"process {holder} uses this checkpoint" if holder else "another process uses this checkpoint"
            raise StorageError.of("EV410", fact, remedy_for("EV410"), file=folder) from None

    def release(self) -> None:
        """Give the folder free; twice does no harm."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _holder(self) -> str:
        with suppress(OSError):
            found = os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip()
            return found if found.isdigit() else ""
        return ""
