"""Event times before a policy is applied: those that may move a watermark, as a veil would judge them.

A source without slices reports how far it has come before anything is veiled, so it looks at decoded events with the policy, but
without its keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from eventveil.transforms.nested import Column, column
from eventveil.transforms.plan import Plan
from eventveil.transforms.times import instants

__all__ = ["accepted_times", "least_latest"]

_pc: Any = pc  # the stubs know no calls with an array and a scalar
Int64s = npt.NDArray[np.int64]


def accepted_times(plan: Plan, events: Column, now: int, appended: Column | None = None) -> Int64s:
    """The event times, in microseconds, of the events that the policy is for, that consent, and that are not dated too far ahead.

    What other rules refuse still counts: it has come, and what comes behind it has come later.

    Args:
        events: decoded events. appended: when the broker took them; null or None: `now`.
    """
    access = plan.event
    if not access.times:
        return np.zeros(0, np.int64)
    keep = np.ones(len(events), np.bool_)
    if plan.event_type is not None:
        keep &= _true(_pc.equal(column(events, plan.type_names), pa.scalar(plan.event_type[1])))
    for names, values in access.only_if:
        held = column(events, names)
        keep &= _true(pc.and_(pc.is_in(held, value_set=pa.array(values, held.type)), held.is_valid()))
    micros, open_ = np.zeros(len(events), np.int64), np.ones(len(events), np.bool_)
    for names in access.times:
        # The first of several fields that is there decides, also where it cannot be read.
        held = column(events, names)
        here = open_ & _true(held.is_valid())
        found, wrong, skipped = instants(held, access.zone, access.time_unit)
        micros[here] = found[here]
        keep &= ~(here & (wrong | skipped))
        open_ &= ~here
    clock = np.full(len(events), now, np.int64)
    if appended is not None:
        clock = np.where(_true(appended.is_valid()), appended.cast(pa.int64()).fill_null(0).to_numpy(), clock)
    keep &= ~open_ & (micros - clock <= plan.max_ahead_us)
    return micros[keep]


def least_latest(plans: Sequence[Plan], events: Column, now: int, appended: Column | None = None) -> tuple[int, int] | None:
    """The least event time that counts under any of the plans, and the least of the highest of each; None where none has any."""
    found = [times for times in (accepted_times(plan, events, now, appended) for plan in plans) if len(times)]
    if not found:
        return None
    return min(int(times.min()) for times in found), min(int(times.max()) for times in found)


def _true(mask: Column) -> npt.NDArray[np.bool_]:
    told: npt.NDArray[np.bool_] = mask.fill_null(False).to_numpy(zero_copy_only=False).astype(np.bool_)
    return told
