"""What a log should say about a job: its start and end, every ten seconds how it stands, and at once what is new."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from eventveil.pipeline.report.logs import tell
from eventveil.pipeline.report.pulse import PolicyCounts, Pulse
from eventveil.schemas.errors import CODES, EventveilError

__all__ = ["Journal"]

_EVERY_S = 10.0
_REMIND_S = 60.0


class _Growth:
    """Counts that only grow: told at once where one is new, and else every ten seconds."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        self._told = dict(counts)
        self._at = float("-inf")

    def take(self, counts: Mapping[str, int], now: float, *, at_once: bool) -> dict[str, int]:
        """By how much each has grown since it was told; nothing where it is not yet time."""
        grown = {name: number - self._told.get(name, 0) for name, number in sorted(counts.items()) if number > self._told.get(name, 0)}
        is_new = not grown.keys() <= self._told.keys()
        if not grown or not (at_once or is_new or now - self._at >= _EVERY_S):
            return {}
        self._told, self._at = dict(counts), now
        return grown


class Journal:
    """Hears every pulse and logs what is worth a line. What a job begins from is told by its pulse ``starting``, and is not new."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: Pulse | None = None
        self._growths: dict[tuple[str, str], _Growth] = {}
        self._slice_at = float("-inf")
        self._waiting_since = 0.0
        self._reminded_at = 0.0

    def update(self, pulse: Pulse, per_second: float = 0.0) -> None:
        now, last = self._clock(), self._last
        self._last = pulse
        self._tell_waiting(pulse, last, now)
        if pulse.state == "starting" and (last is None or last.state != "starting"):
            names = [one.policy for one in pulse.policies]
            tell(logging.INFO, "started", job=pulse.job, slice=pulse.slice, policies=names, lag=pulse.lag)
            self._slice_at = now
            self._growths.clear()
        is_over = pulse.state == "stopped"
        for one in pulse.policies:
            self._tell_policy(pulse.job, one, now, at_once=is_over)
        if last is not None and pulse.slice > last.slice and now - self._slice_at >= _EVERY_S:
            self._slice_at = now
            tell(logging.INFO, "slice", **_standing(pulse), per_second=round(per_second, 1), slice_s=round(pulse.slice_s, 3))
        was = None if last is None else last.state
        if pulse.state == "draining" and was != "draining":
            tell(logging.INFO, "stopping", job=pulse.job, slice=pulse.slice)
        if is_over and was != "stopped":
            tell(logging.INFO, "stopped", **_standing(pulse), uptime_s=round(pulse.uptime_s, 1))

    def fail(self, error: EventveilError) -> None:
        """Tell every problem of an error that ends the job."""
        job = None if self._last is None else self._last.job
        for problem in error.problems:
            place = {"file": problem.file or None, "line": problem.line or None}
            tell(logging.ERROR, "failed", job=job, code=problem.code, fact=problem.fact, remedy=problem.remedy or None, **place)

    def _tell_waiting(self, pulse: Pulse, last: Pulse | None, now: float) -> None:
        was_waiting = last is not None and last.state == "waiting"
        if pulse.state == "waiting":
            if not was_waiting:
                self._waiting_since = now
            if not was_waiting or (last is not None and last.reason != pulse.reason) or now - self._reminded_at >= _REMIND_S:
                self._reminded_at = now
                tell(logging.WARNING, "waiting", job=pulse.job, **_why(pulse), for_s=round(now - self._waiting_since, 1))
        elif was_waiting and pulse.state not in ("draining", "stopped"):
            tell(logging.INFO, "resumed", job=pulse.job, after_s=round(now - self._waiting_since, 1))

    def _tell_policy(self, job: str, one: PolicyCounts, now: float, *, at_once: bool) -> None:
        of = {"job": job, "policy": one.policy}
        if codes := self._grown(one, "refused", one.refused, now, at_once):
            tell(logging.WARNING, "refused", **of, events=sum(codes.values()), codes=codes)
        if paths := self._grown(one, "drift", one.drift, now, at_once):
            tell(logging.WARNING, "drift", **of, events=sum(paths.values()), paths=paths)
        published = {"windows": one.windows.get("published", 0), "events": one.published}
        if grown := self._grown(one, "published", published, now, at_once):
            tell(logging.INFO, "window published", **of, **grown)
        withheld = {"windows": one.windows.get("withheld", 0), "events": one.withheld}
        if grown := self._grown(one, "withheld", withheld, now, at_once):
            tell(logging.WARNING, "window withheld", **of, code="EV603", **grown)
        conflicts = {"windows": one.windows.get("conflict", 0)}
        if grown := self._grown(one, "conflict", conflicts, now, at_once):
            tell(logging.WARNING, "window conflict", **of, code="EV416", **grown)

    def _grown(self, one: PolicyCounts, kind: str, counts: Mapping[str, int], now: float, at_once: bool) -> dict[str, int]:
        growth = self._growths.get((one.policy, kind))
        if growth is None:
            self._growths[one.policy, kind] = _Growth(counts)
            return {}
        return growth.take(counts, now, at_once=at_once)


def _why(pulse: Pulse) -> dict[str, Any]:
    """What a job waits for: as its error would be told."""
    if pulse.problem is None:
        return {"code": pulse.reason, "fact": CODES[pulse.reason][0] if pulse.reason in CODES else None}
    told = pulse.problem
    return {"code": told.code, "fact": told.fact, "remedy": told.remedy or None, "file": told.file or None}


def _standing(pulse: Pulse) -> dict[str, Any]:
    """How a job stands. The watermark is left out: it is the time of an event; how far it is behind is what is asked."""
    delay = pulse.delay_s()
    return {
        "job": pulse.job,
        "slice": pulse.slice,
        "state": pulse.state,
        "lag": pulse.lag,
        "read": pulse.read,
        "open_windows": pulse.open_windows,
        "carry_bytes": pulse.carry_bytes,
        "behind_s": None if delay is None else round(delay, 1),
        "policies": {one.policy: one.outcomes() for one in pulse.policies},
    }
