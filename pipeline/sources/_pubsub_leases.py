"""Keeps messages ours while we work on them: the service sends a message again once its time is over, and gives ten seconds by default."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from eventveil.pipeline.sources._pubsub_client import Connection
from eventveil.schemas.errors import StorageError

__all__ = ["Lease", "Leases", "leases_of"]

_MOST_S = 600.0
_FIRST_S = 4.0
_EXTENSION_S = 60
_AGAIN_S = 40.0
_TICK_S = 1.0


@dataclass(eq=False)
class Lease:
    """Messages that were pulled and are not done. `due`: when their time is extended next."""

    ids: Sequence[str]
    begun: float = field(default_factory=time.monotonic)
    due: float = field(default_factory=lambda: time.monotonic() + _FIRST_S)


class Leases:
    """What is ours of one subscription, extended by a thread that lives as long as something is; after ten minutes it comes again.

    For any number of threads.
    """

    def __init__(self, connection: Connection, subscription: str, most_s: float = _MOST_S) -> None:
        self._connection = connection
        self._subscription = subscription
        self._most_s = most_s
        self._held: set[Lease] = set()
        self._lock = threading.Lock()
        self._ticking = False

    def hold(self, ids: Sequence[str]) -> Lease:
        """Keep these messages until they are done, or let go."""
        lease = Lease(ids)
        with self._lock:
            self._held.add(lease)
            if not self._ticking:
                self._ticking = True
                threading.Thread(target=self._tick, name="pubsub-leases", daemon=True).start()
        return lease

    def done(self, leases: Sequence[Lease]) -> None:
        """Acknowledge messages, as well as may be: what the service does not hear of comes again. Never raises."""
        self._forget(leases)
        try:
            self._connection.acknowledge(self._subscription, [one for lease in leases for one in lease.ids])
        except StorageError:
            # The next pull says what is wrong.
            pass

    def let_go(self, leases: Sequence[Lease]) -> None:
        """Let messages come again at once. Never raises."""
        self._forget(leases)
        try:
            self._connection.extend(self._subscription, [one for lease in leases for one in lease.ids], 0)
        except StorageError:
            pass

    def _forget(self, leases: Sequence[Lease]) -> None:
        with self._lock:
            self._held.difference_update(leases)

    def _tick(self) -> None:
        while True:
            time.sleep(_TICK_S)
            now = time.monotonic()
            with self._lock:
                self._held = {lease for lease in self._held if now - lease.begun < self._most_s}
                if not self._held:
                    self._ticking = False
                    return
                due = [lease for lease in self._held if lease.due <= now]
            for lease in due:
                try:
                    missed = self._connection.extend(self._subscription, lease.ids, _EXTENSION_S)
                except StorageError:
                    # For good: the messages are not ours any more.
                    self._forget([lease])
                else:
                    lease.due = now + (_TICK_S if missed else _AGAIN_S)


_of: dict[tuple[int, Connection, str], Leases] = {}
_lock = threading.Lock()


def leases_of(connection: Connection, subscription: str) -> Leases:
    """The leases of this process: what one bundle pulls another one's end may acknowledge."""
    key = os.getpid(), connection, subscription
    with _lock:
        return _of.setdefault(key, Leases(connection, subscription))
