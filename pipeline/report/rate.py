"""Events a second, over the last ten seconds: of the total that a job tells after each slice."""

from __future__ import annotations

from collections import deque

__all__ = ["Rate"]


class Rate:
    """Fed with totals; says how fast they grow. A job that says nothing more comes to 0 by itself."""

    def __init__(self, over_s: float = 10.0) -> None:
        self._over = over_s
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, at: float, total: int) -> None:
        """The total at a moment, in seconds of a clock that is never set back."""
        if self._seen and total < self._seen[-1][1]:  # counted anew
            self._seen.clear()
        self._seen.append((at, total))
        self._forget(at)

    def per_second(self, at: float) -> float:
        """Growth since the last total that is as old as the ten seconds: a slice may take longer than they do."""
        self._forget(at)
        if not self._seen:
            return 0.0
        (begun, first), (_, last) = self._seen[0], self._seen[-1]
        return (last - first) / max(at - begun, 1.0)

    def _forget(self, at: float) -> None:
        while len(self._seen) > 1 and self._seen[1][0] <= at - self._over:
            self._seen.popleft()
