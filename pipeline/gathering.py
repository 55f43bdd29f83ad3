"""What rows wait for before they are published: a window of their policy's release model, or the roll of their files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from eventveil.transforms.batch import ROLL, WINDOW
from eventveil.transforms.windows import WindowRule

__all__ = ["Gathering", "split_windows"]


@dataclass(frozen=True)
class Gathering:
    """How the rows of a variant are gathered into windows.

    Attributes:
        rule: the windows. lateness_us: how long after its end, in event time, a window stays open.
        released: the window is decided on as a whole: it is published once, and what comes for it later was refused before. Otherwise
            it is a roll of files: what comes later is published as a further pane of the same roll.
    """

    rule: WindowRule
    lateness_us: int
    released: bool

    @property
    def column(self) -> str:
        """The column of veiled batches that says which window a row waits for."""
        return WINDOW if self.released else ROLL

    def is_due(self, start_us: int, watermark: int | None) -> bool:
        """Whether the window that begins then is to be published."""
        return watermark is not None and self.end_us(start_us) <= watermark - self.lateness_us

    def end_us(self, start_us: int) -> int:
        """The first instant behind the window that begins then."""
        return int(self.rule.bounds(self.rule.index(np.array([start_us], np.int64)))[1][0])


def split_windows(batch: pa.RecordBatch, column: str) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Each window that a veiled batch has rows of, ascending, with these rows in their order; nothing for an empty batch."""
    starts = batch.column(column).to_numpy()
    if not len(starts):
        return
    if starts[0] == starts[-1] and (starts == starts[0]).all():
        yield int(starts[0]), batch
        return
    order = np.argsort(starts, kind="stable")
    ordered = starts[order]
    cuts = [0, *(np.flatnonzero(np.diff(ordered)) + 1).tolist(), len(ordered)]
    taken: Any = pa.array(order)
    whole = batch if (order[1:] > order[:-1]).all() else batch.take(taken)
    for first, last in pairwise(cuts):
        yield int(ordered[first]), whole.slice(first, last - first)
