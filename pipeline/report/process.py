"""What this process takes of the machine: memory, files, time. Under the names that dashboards for any process already know."""

from __future__ import annotations

import os
import resource
import time

__all__ = ["process_figures"]

_BEGAN = time.time()


def process_figures() -> dict[str, float]:
    """Figures by metric name; those that this system does not tell are left out."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    found: dict[str, float] = {"process_start_time_seconds": _BEGAN, "process_cpu_seconds_total": used.ru_utime + used.ru_stime}
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit != resource.RLIM_INFINITY:
        found["process_max_fds"] = limit
    try:
        found["process_open_fds"] = len(os.listdir("/proc/self/fd")) - 1  # the listing itself holds one
        with open("/proc/self/statm", encoding="ascii") as file:
            found["process_resident_memory_bytes"] = int(file.read().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        pass
    return found
