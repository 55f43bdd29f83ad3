"""A plan with its keys: treats a batch of decoded events.

It cannot raise on a value: what cannot be treated is refused, row by row, with a code and a known path. The result
depends on policy, keys and each event alone: not on the batch, its order, a clock or a generator.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from eventveil.transforms.batch import ROLL, Clock
from eventveil.transforms.context import Context, RowContext, SubKeys
from eventveil.transforms.encode.json_events import encode_json
from eventveil.transforms.keys.canonical import canonical
from eventveil.transforms.keys.cmac import Cmac
from eventveil.transforms.keys.derive import DomainKeys, lengths
from eventveil.transforms.keys.prf import macs
from eventveil.transforms.nested import Column, FlatLevel, column, fold, lay_flat
from eventveil.transforms.plan import POSITION, KeyRequest, Plan, Together
from eventveil.transforms.times import instants, to_local
from eventveil.transforms.windows import WindowRule

__all__ = ["Outcome", "Veil"]

Int64s = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

_CACHED_WINDOWS = 4096
_NO_CLOCK = Clock()


@dataclass(frozen=True)
class Outcome:
    """What became of a batch.

    Attributes:
        veiled: the output rows with `$order`, where there are windows `$window`, and where files are rolled `$roll`.
        refused_rows: rows of the input that are refused, ascending; codes, paths, rules: why, row by row.
        refused_windows: start of each refused row's release window in microseconds; null where it has none.
        filtered: how many events `only_if` left out.
        counts: values treated, and values that went to `otherwise`, by place in the policy.
        drift: events with unknown fields, by known parent; of those that were not filtered out.
        latest: the highest event time among `veiled`, in microseconds; None where there is none.
    """

    veiled: pa.RecordBatch
    refused_rows: Int64s
    codes: list[str]
    paths: list[str]
    rules: list[str]
    refused_windows: Column
    filtered: int
    counts: dict[str, int]
    drift: dict[str, int]
    latest: int | None = None


class _Refusals:
    """The first reason for each refused row."""

    def __init__(self, rows: int) -> None:
        self.reason = np.full(rows, -1, np.int32)
        self.reasons: list[tuple[str, str, str]] = []
        self.without_time = np.zeros(rows, bool)

    def refuse_rows(self, rows: Int64s, code: str, path: str, rule: str) -> None:
        fresh = rows[self.reason[rows] < 0]
        if len(fresh):
            self.reason[fresh] = len(self.reasons)
            self.reasons.append((code, path, rule))


class Veil:
    """A plan with keys: treats batches. Refuses to be pickled, because it holds keys.

    Args:
        roll: the windows that files are rolled in; None: no `$roll` is told.
    """

    def __init__(self, plan: Plan, keys: DomainKeys, roll: WindowRule | None = None) -> None:
        self.plan = plan
        self._roll = roll
        self._keys = keys
        self._release = Cmac(keys.for_domain("release", plan.event_type[1] if plan.event_type else plan.schema.name))
        self._order = keys.for_domain("order")
        self._sub_keys: OrderedDict[tuple[KeyRequest, int], bytes] = OrderedDict()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Veil holds keys and is never pickled; pickle the Plan and bind it where it runs")

    def apply(
        self,
        events: pa.StructArray,
        *,
        origin: str = "",
        positions: Column | None = None,
        drift: Mapping[str, Int64s] | None = None,
        clock: Clock = _NO_CLOCK,
        appended: Column | None = None,
    ) -> Outcome:
        """Treat a batch of decoded events.

        Args:
            events: one struct per event, of the type that the decoder gives for this plan's `schema` and `used`.
            origin, positions: where each event was read; needed where `event.id` is ``$position``.
            drift: for each known parent the rows that had unknown fields below it.
            clock: how far the stream had come: which windows are closed, and what lies too far ahead.
            appended: when the broker took each event, timestamp[us, UTC]; null or None: by the clock.
        """
        plan = self.plan
        strange = self._of_another_type(events)
        chosen = self._consenting(events, strange)
        filtered = 0
        if chosen is not None:
            filtered = len(events) - len(chosen)
            taken: Column = pa.array(chosen)
            events = events.take(taken)
            positions = None if positions is None else positions.take(taken)
            appended = None if appended is None else appended.take(taken)
            drift = {path: np.flatnonzero(np.isin(chosen, rows)) for path, rows in (drift or {}).items()}
        refusals = _Refusals(len(events))
        counts: dict[str, int] = {}
        if strange is not None and plan.event_type is not None:
            found = np.flatnonzero(strange if chosen is None else strange[chosen])
            refusals.refuse_rows(found, "EV509", plan.event_type[0], "event.type")
        drift = {path: rows for path, rows in (drift or {}).items() if len(rows)}
        if plan.refuse_unknown:
            for path in sorted(drift):
                refusals.refuse_rows(drift[path], "EV508", path, "unknown_fields")
        micros = self._times(events, refusals) if plan.event.times else None
        if micros is not None:
            self._refuse_ahead(micros, clock, appended, refusals)
        batch, codes, windows = self._row_context(events, micros, origin, positions, refusals)
        if plan.numbered and clock.watermark is not None:
            self._refuse_late(batch, clock.watermark, refusals)
        slots = self._run(events, batch, codes, windows, refusals, counts)
        veiled, refused = self._fold(events, slots, batch, micros, refusals)
        reasons = [refusals.reasons[i] for i in refusals.reason[refused]]
        starts = batch.window_start
        return Outcome(
            veiled=veiled,
            refused_rows=refused if chosen is None else chosen[refused],
            codes=[code for code, _, _ in reasons],
            paths=[path for _, path, _ in reasons],
            rules=[rule for _, _, rule in reasons],
            refused_windows=pa.nulls(len(refused), pa.int64()) if starts is None else _windows(starts, refused, refusals),
            filtered=filtered,
            counts=counts,
            drift={path: len(rows) for path, rows in drift.items()},
            latest=None if micros is None or not veiled.num_rows else int(micros[refusals.reason < 0].max()),
        )

    def _of_another_type(self, events: pa.StructArray) -> Mask | None:
        """Which events the policy is not for; None if it is for all. A job has sorted them before; a pipeline of others' has not."""
        if self.plan.event_type is None:
            return None
        same: Column = pc.equal(column(events, self.plan.type_names), pa.scalar(self.plan.event_type[1]))
        strange: Mask = ~same.fill_null(False).to_numpy(zero_copy_only=False).astype(bool)
        return strange

    def _consenting(self, events: pa.StructArray, strange: Mask | None) -> Int64s | None:
        """The rows that every entry of `only_if` lets in, and those to be refused before it is asked; None if there is no such entry."""
        let_in = None
        for names, values in self.plan.event.only_if:
            held = column(events, names)
            among: Column = pc.is_in(held, value_set=pa.array(values, held.type))
            one = among.to_numpy(zero_copy_only=False).astype(bool)
            one &= held.is_valid().to_numpy(zero_copy_only=False).astype(bool)
            let_in = one if let_in is None else let_in & one
        if let_in is None:
            return None
        return np.flatnonzero(let_in if strange is None else let_in | strange).astype(np.int64)

    def _refuse_ahead(self, micros: Int64s, clock: Clock, appended: Column | None, refusals: _Refusals) -> None:
        """What is dated too far ahead, before it can move a watermark: one such event would close every window."""
        if clock.now is None:
            return
        now = np.full(len(micros), clock.now, np.int64)
        if appended is not None:
            told = appended.is_valid().to_numpy(zero_copy_only=False).astype(bool)
            now = np.where(told, appended.cast(pa.int64()).fill_null(0).to_numpy(), now)
        # Compared by difference: near the end of all times a sum would overflow.
        ahead = ~refusals.without_time & (micros - now > self.plan.max_ahead_us)
        refusals.refuse_rows(np.flatnonzero(ahead), "EV514", ".".join(self.plan.event.times[0]), "event.max_ahead")

    def _refuse_late(self, batch: RowContext, watermark: int, refusals: _Refusals) -> None:
        """What comes for a window that is closed. Only release models close windows: other rules treat each event alone."""
        assert batch.window_end is not None, "compile asks for a window where a release model needs one"
        late = ~refusals.without_time & (batch.window_end <= watermark - self.plan.lateness_us)
        refusals.refuse_rows(np.flatnonzero(late), "EV518", ".".join(self.plan.event.times[0]), "allowed_lateness")

    def _row_context(
        self, events: pa.StructArray, micros: Int64s | None, origin: str, positions: Column | None, refusals: _Refusals
    ) -> tuple[RowContext, Int64s | None, list[int]]:
        """The row context, each row's code of its key window, and the key windows by code."""
        plan, rows = self.plan, len(events)
        start = end = codes = None
        windows: list[int] = []
        if micros is not None:
            if plan.release_window is not None:
                distinct, at = _distinct(plan.release_window.index(micros))
                starts, ends = plan.release_window.bounds(distinct)
                start, end = starts[at], ends[at]
            if plan.key_window is not None:
                keyed, at = _distinct(plan.key_window.index(micros))
                windows = keyed.tolist()
                codes = at if len(windows) > 1 else None
        ids = self._release_ids(events, origin, positions, refusals) if plan.event.ids else None
        subjects = self._subjects(events, codes, windows, refusals) if plan.event.subjects else None
        return RowContext(rows, ids, subjects, start, end), codes, windows

    def _times(self, events: pa.StructArray, refusals: _Refusals) -> Int64s:
        """Event times in microseconds; 0 where the row is refused."""
        access = self.plan.event
        held = [column(events, names) for names in access.times]
        merged = held[0] if len(held) == 1 else None
        path = ".".join(access.times[0])
        if merged is not None:
            micros, bad, skipped = instants(merged, access.zone, access.time_unit)
            missing = merged.is_null().to_numpy(zero_copy_only=False).astype(bool)
        else:
            # The first of several fields that is there decides; each may have a type of its own.
            micros, bad, skipped = (np.zeros(len(events), t) for t in (np.int64, bool, bool))
            missing = np.ones(len(events), bool)
            for one in held:
                here = missing & one.is_valid().to_numpy(zero_copy_only=False).astype(bool)
                found, wrong, gap = instants(one, access.zone, access.time_unit)
                micros[here], bad[here], skipped[here] = found[here], wrong[here], gap[here]
                missing &= ~here
        refusals.refuse_rows(np.flatnonzero(bad | missing), "EV510", path, "event.time")
        refusals.refuse_rows(np.flatnonzero(skipped), "EV511", path, "event.time")
        refusals.without_time = bad | missing | skipped
        return np.where(refusals.without_time, np.int64(0), micros)

    def _release_ids(self, events: pa.StructArray, origin: str, positions: Column | None, refusals: _Refusals) -> Words:
        """The keyed id of each event: AES-CMAC, in bulk, under a domain key of this type of event."""
        paths = self.plan.event.ids
        if paths == ((POSITION,),):
            assert positions is not None, "a source of ours always gives positions"
            places = _bytes(positions.to_numpy(zero_copy_only=False).astype(">i8"), 8)
            return self._release.words(pc.binary_join_element_wise(pa.scalar(lengths(origin)), places, pa.scalar(b"")))
        held = [canonical(column(events, names)) for names in paths]
        for names, one in zip(paths, held):
            refusals.refuse_rows(np.flatnonzero(one.is_null().to_numpy(zero_copy_only=False)), "EV512", ".".join(names), "event.id")
        return self._release.words(_joined(held))

    def _subjects(self, events: pa.StructArray, codes: Int64s | None, windows: list[int], refusals: _Refusals) -> Words:
        """The keyed digest of each subject; zero where it is missing."""
        access = self.plan.event
        held = [canonical(column(events, names)) for names in access.subjects]
        if access.first_of:
            found = held[0]
            for one in held[1:]:
                found = pc.coalesce(found, one)
        else:
            valid = held[0].is_valid()
            for one in held[1:]:
                valid = pc.and_(valid, one.is_valid())
            found = pc.if_else(valid, _joined(held), pa.scalar(None, pa.binary()))
        missing = found.is_null().to_numpy(zero_copy_only=False).astype(bool)
        # A draw per subject needs one, whatever the policy says of events without.
        if self.plan.needs_subject or access.missing_subject == "refuse":
            refusals.refuse_rows(np.flatnonzero(missing), "EV513", ".".join(access.subjects[0]), "event.subject")
        if not self.plan.needs_subject:
            return np.zeros((len(events), 2), np.uint64)
        request = KeyRequest("window", "subject", ())
        digests = macs("blake2b", self._keys_of(request, windows), codes, found.fill_null(b""), 16)
        words = np.array(digests, order="C").view(np.uint64).reshape(-1, 2)  # a copy: it may come read-only
        words[missing] = 0
        return words

    def _keys_of(self, request: KeyRequest, windows: list[int]) -> list[bytes]:
        """One finished sub-key per window, or the one of the domain."""
        if request.scope == "domain":
            return [self._keys.for_domain(request.purpose, *request.info)]
        rule = self.plan.key_window
        assert rule is not None, "compile asks for a window where a step needs a key"
        found = []
        for window in windows:
            key = self._sub_keys.get((request, window))
            if key is None:
                start = int(rule.bounds(np.array([window], np.int64))[0][0])
                key = self._keys.for_window(start, str(rule.duration), rule.zone, request.purpose, *request.info)
                self._sub_keys[request, window] = key
                if len(self._sub_keys) > _CACHED_WINDOWS * 4:
                    self._sub_keys.popitem(last=False)
            found.append(key)
        return found

    def _run(
        self,
        events: pa.StructArray,
        batch: RowContext,
        codes: Int64s | None,
        windows: list[int],
        refusals: _Refusals,
        counts: dict[str, int],
    ) -> tuple[list[Column], list[FlatLevel]]:
        plan = self.plan
        levels = lay_flat(events, plan.levels)
        slots: list[Column] = [None] * plan.slots

        def context(level: int, path: str, step_rule: str, request: KeyRequest | None, present: Int64s | None = None) -> Context:
            keys = None
            if request is not None:
                keys = SubKeys(self._keys_of(request, windows), codes if request.scope == "window" else None)
            row, element = levels[level].row, levels[level].element
            if present is not None:
                row = present if row is None else row[present]
                element = None if element is None else element[present]
            return Context(batch, refusals, path, step_rule, row, element, keys)

        def report(rule: str, values: Column, of: Context) -> None:
            counts[rule] = counts.get(rule, 0) + len(values) - values.null_count
            for what, number in of.counts.items():
                counts[f"{rule} {what}"] = counts.get(f"{rule} {what}", 0) + number

        for instruction in plan.instructions:
            if isinstance(instruction, Together):
                columns = [slots[i] for i in instruction.given]
                contexts = [context(*place, None) for place in zip(instruction.levels, instruction.paths, instruction.rules)]
                results = instruction.operator.apply_together(columns, contexts)
                for i, given, result, of in zip(instruction.results, columns, results, contexts):
                    assert given is not None
                    slots[i] = result
                    report(of.rule, given, of)
                continue
            values = column(levels[instruction.level].items if instruction.given is None else slots[instruction.given], instruction.names)
            if instruction.is_time:
                values = self._as_timestamp(values, instruction.path, refusals)
            present = _present(levels[instruction.level].items, instruction.record)
            count, values = len(values), values if present is None else values.take(pa.array(present))
            for step in instruction.steps:
                of = context(instruction.level, instruction.path, step.rule, step.key, present)
                given, values = values, step.operator.apply(values, of)
                report(step.rule, given, of)
            values = values if present is None else _spread(values, present, count)
            if instruction.local_zone is not None and pa.types.is_timestamp(values.type):
                values = _wall_clock(values, instruction.local_zone)
            slots[instruction.result] = values
        return slots, levels

    def _as_timestamp(self, values: Column, path: str, refusals: _Refusals) -> Column:
        """A leaf of `event.time` as instants. Where there are several, this may be one that did not decide the event's time."""
        micros, bad, skipped = instants(values, self.plan.event.zone, self.plan.event.time_unit)
        refusals.refuse_rows(np.flatnonzero(bad), "EV510", path, "event.time")
        refusals.refuse_rows(np.flatnonzero(skipped), "EV511", path, "event.time")
        hidden = bad | skipped | values.is_null().to_numpy(zero_copy_only=False).astype(bool)
        mask: Any = hidden if hidden.any() else None
        return pa.array(micros, mask=mask).cast(pa.timestamp("us", "UTC"))

    def _fold(
        self,
        events: pa.StructArray,
        run: tuple[list[Column], list[FlatLevel]],
        batch: RowContext,
        micros: Int64s | None,
        refusals: _Refusals,
    ) -> tuple[pa.RecordBatch, Int64s]:
        plan = self.plan
        slots, levels = run
        arrays = [fold(node, 0, levels, slots) for _, node in plan.output.fields]
        if batch.release_ids is not None:
            order = _fixed(batch.release_ids)
        else:
            plain = pa.RecordBatch.from_arrays(arrays, schema=pa.schema(list(plan.veiled_schema)[: len(arrays)]))
            order = _fixed(macs("blake2b", [self._order], None, encode_json(plain).cast(pa.binary()), 16))
        arrays.append(order)
        if batch.window_start is not None:
            arrays.append(pa.array(batch.window_start))
        veiled = pa.RecordBatch.from_arrays(arrays, schema=plan.veiled_schema)
        if self._roll is not None:
            assert micros is not None, "a job that rolls files asks for event.time"
            rolls, at = _distinct(self._roll.index(micros))
            veiled = veiled.append_column(pa.field(ROLL, pa.int64(), nullable=False), pa.array(self._roll.bounds(rolls)[0][at]))
        refused = np.flatnonzero(refusals.reason >= 0).astype(np.int64)
        if len(refused):
            veiled = veiled.filter(pa.array(refusals.reason < 0))
        return veiled, refused


def _present(items: Column, record: tuple[str, ...] | None) -> Int64s | None:
    """The elements whose record is there; None if all are."""
    if record is None:
        return None
    held = column(items, record)
    return np.flatnonzero(held.is_valid().to_numpy(zero_copy_only=False)) if held.null_count else None


def _spread(values: Column, present: Int64s, count: int) -> Column:
    """The values at their places among `count`; null elsewhere."""
    at = np.full(count, -1, np.int64)
    at[present] = np.arange(len(present))
    return values.take(pa.array(at, mask=at < 0))


def _distinct(index: Int64s) -> tuple[Int64s, Int64s]:
    """The distinct indices, ascending, and each row's place among them; cheap where all rows share one."""
    if len(index) and index[0] == index[-1] and (index == index[0]).all():
        return index[:1], np.zeros(len(index), np.int64)
    found, at = np.unique(index, return_inverse=True)
    return found, at.astype(np.int64)


def _joined(parts: Sequence[Column]) -> Column:
    """Several canonical columns as one, each part behind its length, so that ("ab", "c") and ("a", "bc") differ."""
    if len(parts) == 1:
        return parts[0].fill_null(b"")
    pieces: list[Column] = []
    for part in parts:
        there = part.fill_null(b"")
        pieces += [_bytes(pc.binary_length(there).to_numpy(zero_copy_only=False).astype(">u4"), 4), there]
    return pc.binary_join_element_wise(*pieces, pa.scalar(b"", pa.binary()))


def _bytes(numbers: npt.NDArray[Any], width: int) -> Column:
    """Numbers of `width` bytes as a binary column."""
    data: Any = np.ascontiguousarray(numbers)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(numbers), [None, pa.py_buffer(data)]).cast(pa.binary())


def _fixed(words: npt.NDArray[np.uint64] | npt.NDArray[np.uint8]) -> Column:
    data: Any = np.ascontiguousarray(words)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(words), [None, pa.py_buffer(data)])


def _wall_clock(values: Column, zone: str) -> Column:
    """Instants as the time on the wall of `zone`, without offset."""
    if zone == "UTC":
        return values.cast(pa.timestamp("us"), safe=False)
    micros = values.cast(pa.timestamp("us", "UTC"), safe=False).cast(pa.int64())
    local = to_local(micros.fill_null(0).to_numpy(zero_copy_only=False), zone)
    mask: Any = micros.is_null().to_numpy(zero_copy_only=False) if micros.null_count else None
    return pa.array(local, pa.int64(), mask=mask).cast(pa.timestamp("us"))


def _windows(starts: Int64s, refused: Int64s, refusals: _Refusals) -> Column:
    """The windows of refused events; none where the time was not to be read, whatever the event was refused for."""
    return pa.array(starts[refused], pa.int64(), mask=refusals.without_time[refused])
