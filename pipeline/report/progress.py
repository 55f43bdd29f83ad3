"""Progress on a terminal: one line, on standard error, twice a second."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from types import TracebackType

from eventveil.pipeline.report.meter import METER

__all__ = ["Progress"]

_CLEAR = "\r\033[K"


class Progress:
    """While it is entered, shows events read, their rate, refusals and finished ranges. Nothing where there is no terminal, or a dumb one.

    Args:
        ranges: how many ranges there are.
        shown: False keeps it silent.
    """

    def __init__(self, ranges: int, shown: bool) -> None:
        self._ranges = ranges
        self._shown = shown and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> Progress:
        METER.reset()
        self._began = time.monotonic()
        if self._shown:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        if self._shown:
            self._thread.join()
            print(_CLEAR, end="", file=sys.stderr, flush=True)

    def _show(self) -> None:
        while True:
            print(f"{_CLEAR}{self._line()}", end="", file=sys.stderr, flush=True)
            if self._over.wait(0.5):
                return

    def _line(self) -> str:
        seconds = time.monotonic() - self._began
        rate = METER.read / seconds if seconds > 0.5 else 0
        line = f"{METER.read:,} events  {rate:,.0f}/s  refused {METER.refused:,}  ranges {METER.ranges:,}/{self._ranges:,}"
        # A longer one would wrap, and never be cleared.
        return line[: shutil.get_terminal_size().columns - 1]
