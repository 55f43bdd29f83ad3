"""One door for the loop of slices: what it says once is seen on the terminal, in the logs, as metrics and as health."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import ExitStack
from types import TracebackType

from eventveil.pipeline.report.health import Health, Verdict
from eventveil.pipeline.report.journal import Journal
from eventveil.pipeline.report.logs import tell, written_logs
from eventveil.pipeline.report.metrics import CONTENT_TYPE, exposition
from eventveil.pipeline.report.process import process_figures
from eventveil.pipeline.report.pulse import Pulse
from eventveil.pipeline.report.rate import Rate
from eventveil.pipeline.report.server import Address, Answer, MetricsServer
from eventveil.pipeline.report.status import StatusLine, status_line
from eventveil.schemas.errors import EventveilError

__all__ = ["Reporter"]


class Reporter:
    """Enter it before the first slice, and tell it a pulse

    - before the first slice, ``starting``, with the counts of the checkpoint: what later pulses have more is what is new;
    - after every slice, after every look that found nothing new (``idle``), and after every failed attempt (``waiting``): a job that
      says nothing for three minutes, or ten slices, counts as stuck;
    - ``draining`` when no further slice will be begun, ``stopped`` at the end.

    Args:
        job: its name.
        metrics: where to tell metrics and health; None: nowhere.
        log_json: JSON logs even on a terminal. Where standard error is none, they are JSON anyway.
        quiet: errors alone. debug: also what libraries log.
    """

    def __init__(
        self, job: str, *, metrics: Address | None = None, log_json: bool = False, quiet: bool = False, debug: bool = False
    ) -> None:
        self._pulse = Pulse(job, "starting", now=_now())
        self._metrics = metrics
        self._as_json = log_json or not sys.stderr.isatty()
        self._quiet = quiet
        self._debug = debug
        self._rate = Rate()
        self._health = Health()
        self._journal = Journal()
        self._stack = ExitStack()
        self.metrics_address: Address | None = None

    def __enter__(self) -> Reporter:
        """Raises StorageError (EV417) where nothing can listen at the address for metrics."""
        status = StatusLine(lambda: status_line(self._pulse, self._rate.per_second(time.monotonic()), _now()), self._has_status)
        with ExitStack() as stack:
            if self._metrics is not None:
                server = MetricsServer(self._metrics, {"/metrics": self._told, "/healthz": self._alive, "/readyz": self._ready})
                self.metrics_address = server.address
                stack.enter_context(server)
            # With a status, the terminal shows by itself what is worth less than a warning.
            level = logging.ERROR if self._quiet else logging.WARNING if status.is_shown else logging.INFO
            say = None if self._as_json else status.say
            stack.enter_context(written_logs(as_json=self._as_json, level=level, debug=self._debug, say=say))
            stack.enter_context(status)
            self._stack = stack.pop_all()
        if self._metrics is not None and server.is_open:
            tell(logging.WARNING, "metrics are open", address=str(server.address), fact="other machines can read names and counts there")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def update(self, pulse: Pulse) -> None:
        """Never raises for what happens outside: a terminal that is gone, a pipe that nobody reads."""
        now = time.monotonic()
        if pulse.state == "starting":
            self._rate = Rate()  # what the checkpoint holds was read by others
        self._rate.add(now, pulse.read)
        self._pulse = pulse
        self._health.update(pulse)
        self._journal.update(pulse, self._rate.per_second(now))

    def failed(self, error: EventveilError) -> bool:
        """Tell an error that ends the job. Whether it was told: where logs are not JSON, the command line tells it better."""
        self._health.fail(error.problems[0].code if error.problems else "EV901")
        if self._as_json:
            self._journal.fail(error)
        return self._as_json

    @property
    def _has_status(self) -> bool:
        return not self._quiet and not self._as_json

    def _told(self) -> Answer:
        return Answer(exposition(self._pulse, self._health.judge(), _now(), process_figures()), CONTENT_TYPE)

    def _alive(self) -> Answer:
        verdict = self._health.judge()
        return self._judged(verdict, verdict.alive)

    def _ready(self) -> Answer:
        verdict = self._health.judge()
        return self._judged(verdict, verdict.ready)

    def _judged(self, verdict: Verdict, is_fine: bool) -> Answer:
        pulse = self._pulse
        told = {
            "ok": is_fine,
            "job": pulse.job,
            "state": verdict.state,
            **({"reason": verdict.reason} if verdict.reason else {}),
            "silent_s": round(verdict.silent_s, 1),
            "waiting_s": round(verdict.waiting_s, 1),
            "slice": pulse.slice,
            "lag": pulse.lag,
        }
        return Answer.json(told, 200 if is_fine else 503)


def _now() -> int:
    return time.time_ns() // 1000
