"""eventveil run, on a stream: until it is asked to stop."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from eventveil.pipeline.prepare import ReadyJob
from eventveil.pipeline.report.reporter import Reporter
from eventveil.pipeline.report.server import Address
from eventveil.pipeline.runners.slices import Drain, run
from eventveil.pipeline.signals import answered
from eventveil.schemas.errors import EventveilError
from eventveil.schemas.job import Job
from eventveil.transforms.beam.guard import internal_error

__all__ = ["run_live"]


def run_live(
    ready: ReadyJob, job: Job, until_caught_up: bool, from_now: bool, *, log_json: bool, quiet: bool, debug: bool
) -> Mapping[str, int]:
    """Run a job on a stream; returns what it counted.

    Asked to stop (Ctrl-C, SIGTERM) it finishes its slice; asked again it stops at once.
    """
    drain = Drain()
    metrics = None if job.metrics is None else Address.parse(job.metrics)
    with (
        Reporter(ready.name, metrics=metrics, log_json=log_json, quiet=quiet, debug=debug) as reporter,
        answered(lambda: _ask(drain)),
    ):
        try:
            if ready.runner == "flink":
                from eventveil.pipeline.runners.flink import run_on_flink

                return run_on_flink(ready, job.workers, drain, reporter, from_now=from_now)
            return run(ready, job.workers, drain, reporter, until_caught_up=until_caught_up, from_now=from_now)
        except Exception as error:  # noqa: BLE001 - a defect is told as our own errors are, without its text
            told = error if isinstance(error, EventveilError) else internal_error(error)
            if reporter.failed(told):
                # Told as JSON already; the exit code says the rest.
                raise type(told)(()) from None
            raise told from None


def _ask(drain: Drain) -> None:
    if drain.is_asked:
        # Nothing is lost: the next run does the unfinished slice again.
        os._exit(130)
    drain.ask()
    if sys.stderr.isatty():
        # Not by print: a print under way holds its lock, and may be what never ends.
        os.write(sys.stderr.fileno(), b"\nfinishing what is at hand; once more to stop at once\n")
