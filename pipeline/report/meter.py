"""Live counts of this process, for progress. The summary is made of Beam's own metrics, which survive a retry."""

from __future__ import annotations

import threading

__all__ = ["METER", "Meter"]


class Meter:
    """Events read, events refused and ranges finished so far; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        self.read = self.refused = self.ranges = 0

    def add(self, *, read: int = 0, refused: int = 0, ranges: int = 0) -> None:
        with self._lock:
            self.read += read
            self.refused += refused
            self.ranges += ranges


METER = Meter()
