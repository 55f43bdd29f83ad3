"""eventveil run: events into anonymous events."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

from eventveil.pipeline.prepare import job_of_flags, prepare
from eventveil.pipeline.report.progress import Progress
from eventveil.pipeline.report.summary import Summary, summarize
from eventveil.pipeline.sinks.atomic import publish_file
from eventveil.schemas.errors import EventveilError, LimitError, PolicyError, Problem
from eventveil.schemas.job import Job, load_job

__all__ = ["run_job"]


def run_job(document: str | None, flags: Mapping[str, Any], *, quiet: bool, debug: bool) -> int:
    """Run a job file, or the job that the flags describe; returns the exit code."""
    logging.basicConfig(level=logging.DEBUG if debug else logging.ERROR, format="%(levelname)s %(name)s %(message)s")
    if document is not None and flags:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in flags)
        raise PolicyError(Problem("", 0, "EV120", f"a job file and flags were given: {names}", "write them into the job file"))
    job = load_job(document) if document is not None else job_of_flags(flags)
    prepared = prepare(job)
    # Beam is slow to import: everything that can be wrong was found before.
    from eventveil.pipeline.runners.local import run

    began = time.monotonic()
    with Progress(len(prepared.ranges), shown=not quiet):
        counters = run(prepared, job.workers)
    policies = [(variant.name, variant.plan.version, variant.plan.digest) for variant in prepared.variants]
    summary = summarize(prepared.name, time.monotonic() - began, prepared.keys_id, policies, counters)
    if job.summary is not None:
        publish_file(str(job.summary), [json.dumps(summary.as_json(), indent=2).encode() + b"\n"])
    if not quiet:
        print("\n".join(summary.lines()), file=sys.stderr)
    _check(summary, job)
    return 0


def _check(summary: Summary, job: Job) -> None:
    for one in summary.policies:
        if not one.balanced:
            raise EventveilError.of(
                "EV901", f"{one.policy}: {one.into} in, but {one.out} out, {one.refused_total} refused, {one.filtered} filtered"
            )
        if job.max_refused is not None and job.max_refused.is_passed(one.refused_total, one.into):
            fact = f"{one.policy}: {one.refused_total} of {one.into} events refused, more than {job.max_refused}"
            raise LimitError.of("EV601", fact, "the output is complete; see the dead letters: eventveil dead-letters list")
