"""How far a stream has come in event time: the least over its lanes of the highest event time that was accepted.

A lane is what keeps its own order, as a partition of a topic does. A lane that has been read to its end and stays silent is idle and
holds nothing back; where all of them are idle, event time goes on with the clock, by as much as has passed since, so that the last
windows close too. It never jumps to the clock's own time: of last year's events, read today, none would be in time. Clocks enter as
they were noted in an intent, never as they are now, and one that was set back counts as standing still.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

__all__ = ["Watermark"]


class Watermark:
    """Microseconds since 1970. What it says never falls.

    Attributes:
        value: None until every lane that is not idle has shown an event time.
    """

    def __init__(self) -> None:
        self.value: int | None = None
        self._highest: dict[str, int] = {}
        self._now: int | None = None

    def advance(self, latest: Mapping[str, int], *, now: int, lanes: Collection[str], idle: Collection[str] = ()) -> int | None:
        """Take in what was read; returns `value`.

        Args:
            latest: the highest accepted event time of each lane that had any.
            now: the clock. lanes: all that there are. idle: those of them that were read to their end and are silent.
        """
        for lane, micros in latest.items():
            self._highest[lane] = max(micros, self._highest.get(lane, micros))
        passed = 0 if self._now is None else max(0, now - self._now)
        self._now = now if self._now is None else max(now, self._now)
        holding = [lane for lane in lanes if lane not in idle]
        found = self.value
        if not holding:
            highest = max(self._highest.values(), default=None)
            if highest is not None:
                found = highest if self.value is None else max(highest, self.value + passed)
        elif all(lane in self._highest for lane in holding):
            found = min(self._highest[lane] for lane in holding)
        if found is not None and (self.value is None or found > self.value):
            self.value = found
        return self.value

    def raise_to(self, value: int | None) -> None:
        """Be no less than what was acted on: what was closed then stays closed."""
        if value is not None and (self.value is None or value > self.value):
            self.value = value

    def as_json(self) -> dict[str, Any]:
        return {"value": self.value, "highest": dict(self._highest), "now": self._now}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Watermark:
        found = cls()
        found.value, found._highest, found._now = document["value"], dict(document["highest"]), document["now"]
        return found
