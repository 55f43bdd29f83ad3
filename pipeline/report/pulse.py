"""How a job on a stream stands after a slice, or a look that found nothing new: status, logs, metrics and health are made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from eventveil.schemas.errors import Problem

__all__ = ["OUTCOMES", "PolicyCounts", "Pulse", "State"]

State: TypeAlias = Literal["starting", "running", "idle", "waiting", "draining", "stopped"]
"""waiting: source, sink or registry are away, and `reason` has the code. draining: no further slice is begun."""

OUTCOMES = ("read", "out", "filtered", "refused", "published", "withheld")


@dataclass(frozen=True)
class PolicyCounts:
    """What became of the events of one policy since its checkpoint began. `read` = `out` + `refused` + `filtered`.

    Attributes:
        policy: the variant's name.
        published, withheld: events of `out` that stand in published windows, and of windows that were not published. What is in
            neither has left at once, or waits in an open window.
        refused: by code. drift: events with fields that the schema does not know, by their deepest known parent.
        windows: windows (or panes) by what became of them: ``published``, ``withheld`` (EV603), ``conflict`` (EV416).
    """

    policy: str
    read: int = 0
    out: int = 0
    filtered: int = 0
    published: int = 0
    withheld: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    drift: Mapping[str, int] = field(default_factory=dict)
    windows: Mapping[str, int] = field(default_factory=dict)

    @property
    def refused_total(self) -> int:
        return sum(self.refused.values())

    def outcomes(self) -> dict[str, int]:
        """Events by outcome, in the order of `OUTCOMES`."""
        counts = (self.read, self.out, self.filtered, self.refused_total, self.published, self.withheld)
        return dict(zip(OUTCOMES, counts, strict=True))


@dataclass(frozen=True)
class Pulse:
    """One moment of a job. Holds counts, codes, and names of policy and schema; never a value of an event.

    Attributes:
        slice: slices finished since the checkpoint began.
        uptime_s: since this process began.
        lag: events that the source has and the checkpoint does not; None where the source cannot say.
        read: events read from the source since the checkpoint began, whatever the number of policies.
        open_windows, carry_bytes: windows that gather events, and the bytes gathered for them on disk.
        now, watermark: microseconds since 1970: the clock, and how far the stream has come in event time (None: not known yet).
        slice_s: how long the last slice took. every_s: how long the job waits between the beginnings of two slices.
        reason: of ``waiting``, the code of the error (EV413...); else empty. problem: what is away, where, and what to do about it.
    """

    job: str
    state: State
    policies: tuple[PolicyCounts, ...] = ()
    slice: int = 0
    uptime_s: float = 0.0
    lag: int | None = None
    read: int = 0
    open_windows: int = 0
    carry_bytes: int = 0
    now: int = 0
    watermark: int | None = None
    slice_s: float = 0.0
    every_s: float = 0.0
    reason: str = ""
    problem: Problem | None = None

    def delay_s(self, now: int | None = None) -> float | None:
        """Seconds by which event time is behind the clock (`now`: another moment than the pulse's); None: not known yet."""
        return None if self.watermark is None else ((self.now if now is None else now) - self.watermark) / 1e6

    @property
    def refused(self) -> int:
        """Events refused, of all policies."""
        return sum(one.refused_total for one in self.policies)
