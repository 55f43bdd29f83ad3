"""How logs are written: one JSON object a line, or plain lines above the status on a terminal. Never a value of an event.

What we say ourselves is an event and fields that hold counts, codes and names. What libraries say is shown as far as it stands in
their own source: a format without its arguments, an exception as its type and place. All else may quote an event, a key or a
password, whatever the level; so --debug shows more lines, not more of each.
"""

from __future__ import annotations

import json
import linecache
import logging
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import PurePath
from typing import Any, TextIO

from eventveil.pipeline.cli.screen import printable

__all__ = ["LOGGER", "JsonLines", "PlainLines", "tell", "written_logs"]

LOGGER = logging.getLogger("eventveil.live")
"""What the loop itself says, by `tell` alone."""

_LINES_OF_A_CALL = 12


def tell(level: int, event: str, /, **fields: Any) -> None:
    """Log an event of the job: its name, and fields of counts, codes, and names of policy and schema. A field that is None is left out."""
    if LOGGER.isEnabledFor(level):
        known = {name: value for name, value in fields.items() if value is not None}
        LOGGER.log(level, event, extra={"fields": known})


@contextmanager
def written_logs(
    *, as_json: bool, level: int, debug: bool = False, stream: TextIO | None = None, say: Callable[[str], None] | None = None
) -> Iterator[None]:
    """While it is entered, whatever is logged in this process is written by us; also warnings, and what a thread dies of.

    Args:
        level: of our own events. debug: all that libraries log; else what they log as errors.
        stream: where to; default: standard error, as it is now. say: prints a line instead, on a terminal that shows a status.
    """
    handler = _Lines(stream or sys.stderr, say)
    handler.setFormatter(JsonLines() if as_json else PlainLines())
    root = logging.getLogger()
    before = (root.handlers[:], root.level, LOGGER.level, logging.raiseExceptions)
    hooks = (threading.excepthook, sys.unraisablehook, warnings.showwarning)
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if debug else logging.ERROR)
    LOGGER.setLevel(level)
    # What cannot be written is lost: a log that nobody reads any more is no reason to stop, nor to print a stack in its place.
    logging.raiseExceptions = False
    threading.excepthook = _thread_died
    sys.unraisablehook = _could_not_raise
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        threading.excepthook, sys.unraisablehook, warnings.showwarning = hooks
        root.handlers[:], level_of_root, level_of_ours, logging.raiseExceptions = before
        root.setLevel(level_of_root)
        LOGGER.setLevel(level_of_ours)


class JsonLines(logging.Formatter):
    """time, level and event of ours, then its fields; of a library: ``"event": "library"`` and logger, place, message, error."""

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        line = {"time": _time(record), "level": record.levelname.lower(), **fields}
        # ASCII alone: whatever reads lines elsewhere knows more ends of a line than we do.
        return json.dumps(line, default=lambda value: f"<{type(value).__name__}>")


class PlainLines(logging.Formatter):
    """The same for a person: ``12:03:09 warning refused policy=orders codes={"EV502": 3}``."""

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        event = fields.pop("event")
        words = (f"{name}={value if isinstance(value, str) else json.dumps(value, default=str)}" for name, value in fields.items())
        at = datetime.fromtimestamp(record.created).astimezone()
        return printable(" ".join((f"{at:%H:%M:%S}", record.levelname.lower(), event, *words))).replace("\n", " ")


class _Lines(logging.StreamHandler[TextIO]):
    def __init__(self, stream: TextIO, say: Callable[[str], None] | None) -> None:
        super().__init__(stream)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        if self._say is None:
            super().emit(record)
        else:
            self._say(self.format(record))


def _time(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, timezone.utc)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    given = getattr(record, "fields", None)
    if record.name == LOGGER.name and isinstance(given, dict):
        return {"event": str(record.msg), **given}
    fields = {"event": "library", "logger": record.name, "at": f"{PurePath(record.pathname).name}:{record.lineno}"}
    if message := _of_its_source(record):
        fields["message"] = message
    if record.exc_info and record.exc_info[1] is not None:
        fields |= _cut(record.exc_info[1])
    return fields


def _of_its_source(record: logging.LogRecord) -> str:
    """The message before anything was filled in, if it stands in quotes where it was logged; a text made at run time does not."""
    if not isinstance(record.msg, str) or not record.msg:
        return ""
    lines = linecache.getlines(record.pathname)[record.lineno - 1 : record.lineno - 1 + _LINES_OF_A_CALL]
    source = "".join(lines)
    return record.msg if f'"{record.msg}"' in source or f"'{record.msg}'" in source else ""


def _cut(error: BaseException) -> dict[str, str]:
    """An exception without its text: its type, where it was raised, and the type of what it came from."""
    fields = {"error": type(error).__name__}
    frames = traceback.extract_tb(error.__traceback__)
    if frames:
        fields["raised_at"] = f"{PurePath(frames[-1].filename).name}:{frames[-1].lineno}"
    if (cause := error.__cause__ or error.__context__) is not None:
        fields["cause"] = type(cause).__name__
    return fields


def _thread_died(given: threading.ExceptHookArgs) -> None:
    if given.exc_value is not None and not isinstance(given.exc_value, SystemExit):
        tell(logging.ERROR, "thread died", **_cut(given.exc_value))


def _could_not_raise(given: Any) -> None:
    if given.exc_value is not None:
        tell(logging.ERROR, "error ignored", **_cut(given.exc_value))
