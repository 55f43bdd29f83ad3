"""One pass over the graph on Beam's embedded runner: one process, one or several threads."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
from apache_beam.runners.worker import sdk_worker

from eventveil.pipeline.graph import Work, build
from eventveil.pipeline.prepare import ReadyJob
from eventveil.schemas.errors import EventveilError
from eventveil.transforms.beam.anonymize import LATEST
from eventveil.transforms.beam.guard import internal_error, take_failures

__all__ = ["Passed", "run_pass"]


@dataclass
class Passed:
    """What a pass counted.

    Attributes:
        counts: by ``policy|what[|which]``.
        latest: the highest event time that was accepted, by (policy, origin), in microseconds.
    """

    counts: Counter[str] = field(default_factory=Counter)
    latest: dict[tuple[str, str], int] = field(default_factory=dict)


def run_pass(job: ReadyJob, work: Work, workers: int = 1) -> Passed:
    """Run one pass to its end.

    Args:
        workers: threads that treat ranges at the same time.

    Raises:
        EventveilError: the first error of the job, in the order of the codes, as it was raised on the worker.
    """
    # Beam logs each failure with its whole stack, and its threads print it; ours is told once, by the command line. Who debugs
    # sees both. A worker that cannot print, because nobody reads any more, would never answer, and the job would never end.
    debugging = logging.getLogger().level == logging.DEBUG
    logging.getLogger("apache_beam").setLevel(logging.DEBUG if debugging else logging.CRITICAL)
    vars(sdk_worker)["print"] = print if debugging else _say_nothing
    take_failures()
    try:
        pipeline = beam.Pipeline(runner="FnApiRunner", options=_options(workers))
        build(pipeline, job, work)
        result = pipeline.run()
        result.wait_until_finish()
    except Exception as error:
        # Whatever Beam raises, its text may quote an event; where the error was one of ours, it is a copy with another text.
        failures = take_failures()
        if not failures and isinstance(error, EventveilError):
            raise
        raise (min(failures, key=_rank) if failures else internal_error(error)) from None
    return _counted(result.metrics())


class _Options(PipelineOptions):
    """Options whose views are made once. Beam asks for dozens in each pass, and builds a parser of command lines for every one."""

    def view_as(self, cls: Any) -> Any:
        views = self.__dict__.setdefault("_views", {})
        if cls not in views:
            views[cls] = super().view_as(cls)
        return views[cls]

    def __deepcopy__(self, memo: Any) -> _Options:
        # A pipeline takes a copy, so that nobody else's are changed: these are ours alone.
        return self


@lru_cache
def _options(workers: int) -> _Options:
    options = _Options(flags=[], runner="FnApiRunner")
    direct = options.view_as(DirectOptions)
    direct.direct_num_workers = workers
    direct.direct_running_mode = "multi_threading" if workers > 1 else "in_memory"
    return options


def _rank(error: EventveilError) -> tuple[list[str], Any]:
    """By their codes: a defect, EV901, comes last. It may be a thread of an earlier attempt that found its attempt to be over."""
    return [problem.code for problem in error.problems], error.problems


def _counted(metrics: Any) -> Passed:
    passed = Passed()
    for counter in metrics.query(beam.metrics.MetricsFilter().with_namespace("eventveil"))["counters"]:
        # Beam counts each step apart, and several steps may refuse events of one policy.
        passed.counts[counter.key.metric.name] += counter.committed
    for latest in metrics.query(beam.metrics.MetricsFilter().with_namespace(LATEST))["distributions"]:
        policy, _, origin = latest.key.metric.name.partition("|")
        passed.latest[policy, origin] = latest.committed.max
    return passed


def _say_nothing(*_: Any, **__: Any) -> None:
    """In place of `print` in Beam's worker."""
