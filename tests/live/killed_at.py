"""The command line, in a process to which something happens: ``python killed_at.py '{"kill": {...}}' run job.yaml``.

What happens, any of them:

    kill        {"place": "pipeline.checkpoint.folder:CheckpointFolder.commit", "call": 3, "when": "after", "about": "..."}
                kill -9 before or after the third call; with `about`, the third of those with an argument that holds this text
    full        {"place": ..., "call": 1}: in this call nothing can be written, as on a disk that is full
    pause       {"place": ..., "call": 1, "seconds": 10, "when": "before"}: before or after this call it says "paused", and sleeps
    constants   {"pipeline.sinks._shards:_SHARD_ROWS": 100}: other values
    clock_back  {"slices": 3, "by_s": 3600}: after so many slices the clock is set back
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
        set_back(**happens["clock_back"])
    for place, value in happens.get("constants", {}).items():
        setattr(*found(place), value)
    for name in ("kill", "full", "pause"):
        if name in happens:
            globals()[name](**happens[name])
    from eventveil.pipeline.cli.main import main as command

    command()


def kill(when: str, **where: Any) -> None:
    def around(real: Callable[[], Any]) -> Any:
        if when == "after":
            real()
        os.kill(os.getpid(), signal.SIGKILL)

    replace_call(around, **where)


def full(**where: Any) -> None:
    def around(real: Callable[[], Any]) -> Any:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        try:
            return real()
        finally:
            # The log is a file too.
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    replace_call(around, **where)


def pause(seconds: float, when: str = "after", **where: Any) -> None:
    def around(real: Callable[[], Any]) -> Any:
        result = real() if when == "after" else None
        print("paused", flush=True)
        time.sleep(seconds)
        return result if when == "after" else real()

    replace_call(around, **where)


def replace_call(around: Callable[[Callable[[], Any]], Any], place: str, call: int, about: str = "") -> None:
    """Let one call of a function go through `around`, which is given the real one."""
    owner, name = found(place)
    real = getattr(owner, name)
    calls = 0

    @wraps(real)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        counts = not about or any(about in str(one) for one in arguments)
        calls += counts
        if counts and calls == call:
            return around(lambda: real(*arguments, **named))
        return real(*arguments, **named)

    setattr(owner, name, wrapped)


def found(place: str) -> tuple[Any, str]:
    """What holds the name, and the name. Fails where the code has no such name any more."""
    module, _, path = place.partition(":")
    owner: Any = importlib.import_module(f"eventveil.{module}")
    *owners, name = path.split(".")
    for one in owners:
        owner = getattr(owner, one)
    getattr(owner, name)
    return owner, name


def set_back(slices: int, by_s: float) -> None:
    real = time.time_ns
    back = 0 if slices else int(by_s * 1e9)

    def around(commit: Callable[[], Any]) -> Any:
        nonlocal back
        result = commit()
        back = int(by_s * 1e9)
        return result

    # Before our code is imported, which keeps it.
    time.time_ns = lambda: real() - back
    # The first checkpoint is written before the first slice.
    replace_call(around, "pipeline.checkpoint.folder:CheckpointFolder.commit", slices + 1)


main()
