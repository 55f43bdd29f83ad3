"""local: the embedded runner for bounded input. Nothing to install but the wheel."""

from __future__ import annotations

from collections.abc import Mapping

from eventveil.pipeline.graph import Work
from eventveil.pipeline.prepare import ReadyJob
from eventveil.pipeline.runners._pass import run_pass

__all__ = ["run"]


def run(job: ReadyJob, workers: int = 1) -> Mapping[str, int]:
    """Run a job to its end; returns Beam's counters. Raises as `run_pass`.

    Where rows wait for their window, they wait on disk, sealed, until everything is read; then all windows are due.
    """
    if not job.gathers:
        return run_pass(job, Work(job.ranges), workers).counts
    from eventveil.pipeline.runners.slices import run_bounded

    return run_bounded(job, workers)
