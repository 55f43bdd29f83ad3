"""One line on a terminal for as long as a job runs; what else is said appears above it."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from eventveil.pipeline.cli.screen import has_colour, printable
from eventveil.pipeline.report.pulse import Pulse

__all__ = ["StatusLine", "status_line"]

_CLEAR = "\r\033[K"
_YELLOW = "\033[33m"
_PLAIN = "\033[0m"
_UNITS = ((1, "s", 120), (60, "min", 120), (3600, "h", 48), (86400, "d", float("inf")))


def status_line(pulse: Pulse, per_second: float, now: int) -> str:
    """Where a job stands, in words that are read from left to right by importance: the end may be cut.

    Args:
        per_second: events read. now: the clock, microseconds since 1970.
    """
    delay = pulse.delay_s(now)
    return "  ".join(
        (
            f"{pulse.state} {pulse.reason}" if pulse.reason else pulse.state,
            f"lag {'?' if pulse.lag is None else format(pulse.lag, ',')}",
            f"{per_second:,.0f}/s",
            f"windows {pulse.open_windows:,}",
            f"refused {pulse.refused:,}",
            f"behind {'?' if delay is None else _duration(delay)}",
        )
    )


class StatusLine:
    """While it is entered, shows what `line` returns, looked at twice a second and written when it has changed; cleared at the end.

    Nothing where there is no terminal, or a dumb one. `say` works in either case.
    """

    def __init__(self, line: Callable[[], str], shown: bool = True, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self.is_shown = shown and self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._line = line
        self._coloured = has_colour(self._stream.isatty())
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._standing = ""
        self._thread = threading.Thread(target=self._show, name="status", daemon=True)

    def __enter__(self) -> StatusLine:
        if self.is_shown:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        if self.is_shown:
            self._thread.join()
            with self._lock:
                self._put(_CLEAR if self._standing else "")
                self._standing = ""

    def say(self, text: str) -> None:
        """Print lines that stay, above the status."""
        with self._lock:
            self._put(f"{_CLEAR if self._standing else ''}{printable(text)}\n{self._standing}")

    def _show(self) -> None:
        while not self._over.wait(0.5):
            with self._lock:
                line = self._fitted(printable(self._line()))
                if line != self._standing:
                    self._put(f"{_CLEAR}{line}")
                    self._standing = line

    def _fitted(self, line: str) -> str:
        try:
            width = os.get_terminal_size(self._stream.fileno()).columns
        except OSError:
            width = 0
        # A longer one would wrap, and never be cleared. A terminal that does not know its width says 0.
        cut = line[: max(width or shutil.get_terminal_size().columns, 1) - 1]
        state, gap, rest = cut.partition("  ")
        return f"{_YELLOW}{state}{_PLAIN}{gap}{rest}" if self._coloured and state.startswith("waiting") else cut

    def _put(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # the terminal is gone: no reason to stop a job
            self.is_shown = False
            self._over.set()


def _duration(seconds: float) -> str:
    """In the largest unit that still tells it to about one percent; an event of the future is behind by less than nothing."""
    size = abs(seconds)
    unit, name = next((unit, name) for unit, name, below in _UNITS if size / unit < below)
    number = size / unit
    return f"{'-' if seconds < 0 and round(number, 1) else ''}{number:.{1 if number < 10 else 0}f} {name}"
