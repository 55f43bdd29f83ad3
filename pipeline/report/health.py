"""Is the job alive, and does it do its work? Two questions, because they have two answers: start it anew, or tell somebody.

**Alive** (``/healthz``): nothing is wrong that a new start of this process would mend. It is not alive when it has failed, or when no
slice was finished for longer than ten slices take, and at least three minutes. A slice that still reads events counts as progress: killed
for being large, it would be begun again, and killed again. A job that waits for its broker is alive, however long: a new start brings
no broker back, and would lose the reason.

**Ready** (``/readyz``): events are being treated, or there are none. Not before the first slice, not when no further one is begun, and
not when the job has waited for longer than five minutes: shorter waits mend themselves, and nobody needs to be called.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from eventveil.pipeline.report.meter import METER
from eventveil.pipeline.report.pulse import Pulse

__all__ = ["Health", "Verdict"]

# Within a slice source and sink are each given a minute to answer, before the job says that it waits for them.
_LEAST_PATIENCE_S = 180.0
_SLICES = 10
_WAIT_S = 300.0


@dataclass(frozen=True)
class Verdict:
    """What to answer.

    Attributes:
        state: that of the last pulse, or ``failed``, or ``stuck``.
        silent_s: seconds since the last progress.
        waiting_s: seconds that the job has been waiting; 0 where it does not. reason: the code of what it waits for, or failed with.
    """

    alive: bool
    ready: bool
    state: str
    silent_s: float
    waiting_s: float
    reason: str


class Health:
    """Hears every pulse, and judges when asked; safe to use from several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._progress_at = clock()
        self._inside = _inside()
        self._waiting_since: float | None = None
        self._state = "starting"
        self._reason = ""
        self._patience = _LEAST_PATIENCE_S

    def update(self, pulse: Pulse) -> None:
        with self._lock:
            now = self._progress_at = self._clock()
            if pulse.state != "waiting":
                self._waiting_since = None
            elif self._waiting_since is None:
                self._waiting_since = now
            self._state, self._reason = pulse.state, pulse.reason
            self._patience = max(_LEAST_PATIENCE_S, _SLICES * max(pulse.slice_s, pulse.every_s))

    def fail(self, code: str) -> None:
        with self._lock:
            self._state, self._reason, self._waiting_since = "failed", code, None

    def judge(self) -> Verdict:
        with self._lock:
            now = self._clock()
            if (inside := _inside()) != self._inside:
                self._inside, self._progress_at = inside, now
            silent = now - self._progress_at
            waiting = 0.0 if self._waiting_since is None else now - self._waiting_since
            state = "stuck" if self._state not in ("failed", "stopped") and silent > self._patience else self._state
            alive = state not in ("failed", "stuck")
            ready = state in ("running", "idle") or (state == "waiting" and waiting <= _WAIT_S)
            return Verdict(alive, ready, state, silent, waiting, self._reason)


def _inside() -> tuple[int, int]:
    """What moves while a slice is under way."""
    return METER.read, METER.refused
