"""What a piece of work costs this process, start-up and imports apart."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Fill in cpu_s, wall_s and peak_mb when the block ends; peak_mb is the highest resident memory so far, imports included."""
    result: dict[str, float] = {}
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    yield result
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    result["cpu_s"] = round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 3)
    result["wall_s"] = round(wall, 3)
    result["peak_mb"] = round(after.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)


def pin(core: int | None) -> None:
    """Keep this process, and what it starts, on one core."""
    if core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})


def report(result: dict[str, float], **more: object) -> None:
    print(json.dumps({**result, **more}))
