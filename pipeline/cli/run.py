"""eventveil run: events into anonymous events."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from eventveil.pipeline.cli.screen import printable
from eventveil.pipeline.prepare import job_of_flags, prepare
from eventveil.pipeline.report.progress import Progress
from eventveil.pipeline.report.summary import Summary, summarize
from eventveil.pipeline.sinks.atomic import make_folder, publish_file
from eventveil.schemas.document import load_document
from eventveil.schemas.errors import EventveilError, LimitError, PolicyError, Problem
from eventveil.schemas.job import Job, load_job

__all__ = ["LiveFlags", "run_job"]

# Flags become a job document; what is wrong with it is told by the flag's name.
_FLAG_OF = {
    "variants[0].output.format": "--format",
    "variants[0].output.uri": "--output",
    "variants[0].output.partition_by": "--partition-by",
    "variants[0].policy": "--policy",
    "dead_letters.custodian": "--custodian",
    "dead_letters.uri": "--dead-letters",
    "input.format": "--input-format",
    "input.uri": "--input",
    "max_refused": "--max-refused",
    "input.client": "--client",
    "input.registry": "--registry",
    "variants[0].output.client": "--client",
    "variants[0].output.key": "--key",
    "checkpoint": "--checkpoint",
    "roll": "--roll",
    "watch": "--watch",
    "stop_when_refused": "--stop-when-refused",
    "metrics": "--metrics",
    "summary": "--summary",
    "keys": "--keys",
}


@dataclass(frozen=True)
class LiveFlags:
    """How a job on a stream is run this time; they may stand beside a job file."""

    until_caught_up: bool = False
    from_now: bool = False
    log_json: bool = False


def run_job(
    document: str | None,
    flags: Mapping[str, Any],
    live: LiveFlags | None = None,
    where: Mapping[str, Any] | None = None,
    *,
    quiet: bool,
    debug: bool,
) -> int:
    """Run a job file, or the job that the flags describe; returns the exit code. `where`: as for `parse_job`, beside either."""
    began = time.monotonic()
    live = live or LiveFlags()
    # Set before Beam is imported: it warns about cloud libraries that nobody asked for.
    logging.basicConfig(level=logging.DEBUG if debug else logging.ERROR, format="%(levelname)s %(name)s %(message)s")
    job = _job(document, flags, where)
    if not job.is_live and live != LiveFlags(log_json=live.log_json):
        fact = "--until-caught-up and --from-now are for streams, and this job reads files once"
        raise PolicyError(Problem(job.file, 0, "EV120", fact, "leave them out, or say --watch"))
    if job.runner != "local" and live.until_caught_up:
        fact = f"--until-caught-up is for the local runner, and this job runs on {job.runner}"
        raise PolicyError(Problem(job.file, 0, "EV120", fact, "leave it out"))
    if job.runner == "dataflow" and live.from_now:
        raise PolicyError(
            Problem(job.file, 0, "EV120", "--from-now is for jobs with a checkpoint, and Dataflow keeps its own", "leave it out")
        )
    prepared = prepare(job)
    if job.summary is not None:
        make_folder(os.path.dirname(job.summary) or ".")
    # Beam is slow to import: everything that can be wrong was found before.
    if prepared.runner == "dataflow":
        from eventveil.pipeline.cli.submit import submit_to_dataflow

        return submit_to_dataflow(prepared, quiet=quiet)
    if prepared.live is not None or prepared.runner == "flink":
        from eventveil.pipeline.cli.live import run_live

        counters = run_live(prepared, job, live.until_caught_up, live.from_now, log_json=live.log_json, quiet=quiet, debug=debug)
    else:
        from eventveil.pipeline.runners.local import run

        with Progress(len(prepared.ranges), shown=not quiet):
            counters = run(prepared, job.workers)
    policies = [(variant.name, variant.plan.version, variant.plan.digest) for variant in prepared.variants]
    summary = summarize(prepared.name, time.monotonic() - began, prepared.keys_id, policies, counters)
    if job.summary is not None:
        publish_file(str(job.summary), [json.dumps(summary.as_json(), indent=2).encode() + b"\n"])
    if not quiet and ((prepared.live is None and prepared.runner == "local") or sys.stderr.isatty()) and not live.log_json:
        print(printable("\n".join(summary.lines())), file=sys.stderr)
    if prepared.runner == "local":
        # Flink tells its counters step by step, each a little later than the one before.
        _check(summary, job)
    return 0


def _job(document: str | None, flags: Mapping[str, Any], where: Mapping[str, Any] | None) -> Job:
    if document is None:
        if "policy" in flags and _is_job(flags["policy"]):
            raise _misplaced(flags["policy"], "--policy names a job file", f"eventveil run {flags['policy']}")
        try:
            return job_of_flags(flags, where)
        except PolicyError as error:
            raise PolicyError(_by_flag(problem) for problem in error.problems) from None
    if flags:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in flags)
        raise PolicyError(Problem("", 0, "EV120", f"a job file and flags were given: {names}", "write them into the job file"))
    found = load_document(document)
    if "job" not in found and "policy" in found:
        raise _misplaced(document, "this is a policy, not a job", f"eventveil run --policy {document} --input ... --output ...")
    return load_job(document, where=where)


def _is_job(path: str) -> bool:
    try:
        found = load_document(path)
    except PolicyError:
        return False  # told, with all that is wrong, when the policy is compiled
    return "job" in found and "policy" not in found


def _misplaced(file: str, fact: str, instead: str) -> PolicyError:
    return PolicyError(Problem(file, 0, "EV120", fact, f"say: {instead}"))


def _by_flag(problem: Problem) -> Problem:
    entry = next((entry for entry in _FLAG_OF if problem.fact.startswith(entry)), None)
    return problem if entry is None else replace(problem, fact=_FLAG_OF[entry] + problem.fact.removeprefix(entry))


def _check(summary: Summary, job: Job) -> None:
    for one in summary.policies:
        if not one.balanced:
            raise EventveilError.of(
                "EV901", f"{one.policy}: {one.into} in, but {one.out} out, {one.refused_total} refused, {one.filtered} filtered"
            )
    passed = [one for one in summary.policies if job.max_refused is not None and job.max_refused.is_passed(one.refused_total, one.into)]
    if passed:
        folder = job.dead_letters.uri if job.dead_letters is not None else None
        look = f"see why: eventveil dead-letters list {folder}" if folder else "run with --dead-letters and --custodian to see them"
        facts = [f"{one.policy}: {one.refused_total:,} of {one.into:,} events refused, more than {job.max_refused}" for one in passed]
        raise LimitError(Problem("", 0, "EV601", fact, f"the output is complete; {look}") for fact in facts)
