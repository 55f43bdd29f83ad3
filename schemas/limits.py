"""How many events may be refused, at the end of a run and while it goes on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from eventveil.schemas.durations import Duration

__all__ = ["Limit", "StopWhen"]


@dataclass(frozen=True)
class Limit:
    """How many events may be refused: a count, or a share of all (0 to 1). One of the two is None."""

    count: int | None = None
    share: Fraction | None = None

    @classmethod
    def parse(cls, value: object) -> Limit:
        """From ``5%``, ``0.5%``, a whole number, or its text. Raises ValueError (EV103) on anything else."""
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return cls(count=value)
        found = re.match(r"([0-9]{1,18})(?:(\.[0-9]{1,9})?(%))?\Z", value) if isinstance(value, str) else None
        if found is not None and found[3] is None:
            return cls(count=int(found[1]))
        share = Fraction(found[1] + (found[2] or "")) / 100 if found is not None else None
        if share is None or share > 1:
            raise ValueError("EV103 not a limit: write a count, or a share from 0% to 100% with its sign")
        return cls(share=share)

    def is_passed(self, refused: int, events: int) -> bool:
        """Whether `refused` of `events` are more than it allows."""
        return refused > self.count if self.count is not None else refused > (self.share or 0) * events

    def __str__(self) -> str:
        return str(self.count) if self.count is not None else f"{float((self.share or 0) * 100):g}%"


@dataclass(frozen=True)
class StopWhen:
    """A job on a stream stops when more than `share` of the events of the last `over_us` were refused; never, where `share` is 1."""

    share: Fraction
    over_us: int

    @classmethod
    def parse(cls, value: object) -> StopWhen:
        """From ``5%/10min`` or ``never``. Raises ValueError (EV103) on anything else."""
        if value == "never":
            return cls(Fraction(1), 0)
        share, _, over = value.partition("/") if isinstance(value, str) else ("", "", "")
        try:
            limit, length = Limit.parse(share), Duration.parse(over).fixed_us
        except ValueError:
            limit, length = Limit(), None
        if limit.share is None or length is None:
            raise ValueError("EV103 does not say when to stop: write a share and a time, as 5%/10min, or never")
        return cls(limit.share, length)

    @property
    def is_never(self) -> bool:
        return self.share >= 1

    def __str__(self) -> str:
        # The shortest unit serves: it is read by people, and parsed again.
        return "never" if self.is_never else f"{Limit(share=self.share)}/{self.over_us // 1_000_000}s"
