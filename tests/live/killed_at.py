"""The command line, in a process to which something happens: ``python killed_at.py '{"kill": {...}}' run job.yaml``.

{"kill": {"place": "pipeline.checkpoint.folder:CheckpointFolder.write_intent", "call": 3, "when": "after", "about": "..."}}
    kill -9 before or after the 3rd call of this function (of those with an argument that holds the text `about`).
{"limit": {"place": ..., "call": 1, "bytes": 4096}}
    from before that call on no file can be larger, as on a disk that is full.
{"pause": {"place": ..., "call": 1, "when": "after", "seconds": 10}}
    it says "paused", and sleeps.
{"set": {"pipeline.sinks.publish:_SHARD_ROWS": 100}}
    another value of a constant.
{"clock_back": {"after_s": 3.0, "by_s": 3600}}
    the clock is set back.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from functools import wraps
from typing import Any


def main() -> None:
    happens = json.loads(sys.argv.pop(1))
    if "clock_back" in happens:
        # Before anybody has imported it.
        set_back(**happens["clock_back"])
    for place, value in happens.get("set", {}).items():
        setattr(*found(place), value)
    if "kill" in happens:
        interrupt(**happens["kill"], action=lambda: os.kill(os.getpid(), signal.SIGKILL))
    if "pause" in happens:
        seconds = happens["pause"].pop("seconds")
        interrupt(**happens["pause"], action=lambda: (print("paused", flush=True), time.sleep(seconds)))
    if "limit" in happens:
        size = happens["limit"].pop("bytes")
        interrupt(**happens["limit"], action=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))
    from eventveil.pipeline.cli.main import main as command

    command()


def found(place: str) -> tuple[Any, str]:
    """What holds the name, and the name."""
    module, _, path = place.partition(":")
    owner: Any = importlib.import_module(f"eventveil.{module}")
    *owners, name = path.split(".")
    for one in owners:
        owner = getattr(owner, one)
    getattr(owner, name)
    return owner, name


def interrupt(place: str, call: int, action: Callable[[], Any], when: str = "before", about: str = "") -> None:
    owner, name = found(place)
    real = getattr(owner, name)
    calls = 0

    @wraps(real)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        if not about or any(about in str(one) for one in arguments):
            calls += 1
        is_it = calls == call and (not about or any(about in str(one) for one in arguments))
        if is_it and when == "before":
            action()
        result = real(*arguments, **named)
        if is_it and when == "after":
            action()
        return result

    setattr(owner, name, wrapped)


def set_back(after_s: float, by_s: float) -> None:
    real, since = time.time_ns, time.monotonic()

    def time_ns() -> int:
        return real() - (int(by_s * 1e9) if time.monotonic() - since >= after_s else 0)

    time.time_ns = time_ns


main()
