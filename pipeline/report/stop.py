"""Stop when too much is refused: a producer that has changed would fill the dead letters, and the output would have holes."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from eventveil.schemas.errors import CODES, LimitError, Problem

__all__ = ["RefusedGate"]

_BUCKETS = 60
_LATE = "EV518"


@dataclass
class _Bucket:
    number: int
    events: int = 0
    refused: int = 0
    codes: Counter[str] = field(default_factory=Counter)


class RefusedGate:
    """Of each policy, the events of the last while, and how many of them were refused.

    It closes when more than `share` of the events of the last `over_us` were refused. Where these are fewer than `least`, earlier ones are
    taken with them until they are as many, and the share must be passed by the recent ones and by all together: a quiet stream does not
    stop over one of three, nor for what has long been mended, and is not free to refuse everything for ever. A flood
    right after the start closes it as soon as there are `least` events: there is no time of grace.

    Late events (EV518) do not count, neither as refused nor as events: that they are late says nothing of what a producer writes, a
    stop would mend none of it, and after a stop yet more would be late. Their counter is what to watch.

    Memory: sixty buckets for `over_us` and at most `least` older ones, per policy.

    Args:
        share: 0 to 1; of 1 it never closes. over_us: microseconds.
        least: fewer events than this are never judged.
        letters: the folder of dead letters, for the remedy.
    """

    def __init__(self, share: Fraction, over_us: int, least: int = 100, letters: str | None = None) -> None:
        self._share = share
        self._over_us = over_us
        self._width_s = max(over_us, _BUCKETS) / _BUCKETS / 1e6
        self._least = least
        self._letters = letters
        self._now = 0
        self._buckets: dict[str, deque[_Bucket]] = {}

    def add(self, at: float, policy: str, events: int, refused: Mapping[str, int]) -> None:
        """What a slice did.

        Args:
            at: seconds of a clock that is never set back.
            events: read for this policy in the slice, refused ones included. refused: of them, by code.
        """
        self._now = max(self._now, int(at // self._width_s))
        counted = Counter({code: number for code, number in refused.items() if code != _LATE and number > 0})
        judged = events - refused.get(_LATE, 0)
        if judged <= 0:
            return
        buckets = self._buckets.setdefault(policy, deque())
        if not buckets or buckets[-1].number < self._now:
            buckets.append(_Bucket(self._now))
        last = buckets[-1]
        last.events += judged
        last.refused += counted.total()
        last.codes += counted
        whole = sum(one.events for one in buckets)
        while not self._is_recent(buckets[0]) and whole - buckets[0].events >= self._least:
            whole -= buckets.popleft().events

    def check(self) -> None:
        """Raises LimitError (EV602) with every policy of which too much was refused."""
        problems = [self._problem(policy, found) for policy, buckets in self._buckets.items() if (found := self._judged(buckets))]
        if problems:
            raise LimitError(problems)

    def _judged(self, buckets: deque[_Bucket]) -> list[_Bucket]:
        """What closes the gate: the recent buckets, with as many earlier ones as it takes; none where it stays open."""
        recent = [one for one in buckets if self._is_recent(one)]
        judged, seen = recent, sum(one.events for one in recent)
        if not self._is_passed(recent):
            return []
        for one in reversed(list(buckets)[: len(buckets) - len(recent)]):
            if seen >= self._least:
                break
            judged, seen = [one, *judged], seen + one.events
        return judged if seen >= self._least and self._is_passed(judged) else []

    def _is_recent(self, bucket: _Bucket) -> bool:
        return bucket.number > self._now - _BUCKETS

    def _is_passed(self, buckets: list[_Bucket]) -> bool:
        return sum(one.refused for one in buckets) > self._share * sum(one.events for one in buckets)

    def _problem(self, policy: str, buckets: list[_Bucket]) -> Problem:
        events, refused = sum(one.events for one in buckets), sum(one.refused for one in buckets)
        codes: Counter[str] = sum((one.codes for one in buckets), Counter())
        most = sorted(codes.items(), key=lambda found: (-found[1], found[0]))[:2]
        why = ", ".join(f"{number:,} {code} ({CODES[code][0]})" for code, number in most)
        is_recent = all(map(self._is_recent, buckets))
        among = f"{events:,} events in {self._over_us / 1e6:,.0f} s" if is_recent else f"the last {events:,} events"
        fact = f"{policy}: {refused:,} of {among} refused, more than {float(self._share * 100):g}%: {why}"
        look = f"see why: eventveil dead-letters list {self._letters}; " if self._letters else ""
        return Problem("", 0, "EV602", fact, f"{look}has the producer changed? Then correct schema or policy, or raise --stop-when-refused")
