"""Anonymize: a policy as a Beam transform, for jobs of ours and inside a Beam pipeline that somebody has already.

    veiled, refused = events | Anonymize("policy.yaml", keys="keyring.json", custodian="custodian.pub")

One element is one RecordBatch throughout. Raw events never leave a DoFn of this module unsealed: what is refused
comes out as letters, sealed to the custodian's public key, or, without one, as their headers alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics

from eventveil.schemas.errors import EventveilError, PolicyError, Problem, SchemaError
from eventveil.transforms.batch import (
    ORDER,
    ROLL,
    WINDOW,
    Clock,
    Part,
    clock_of,
    kind_of,
    part_of,
    refused_batch,
    with_clock,
    with_kind,
    with_part,
)
from eventveil.transforms.beam.coder import RecordBatchCoder
from eventveil.transforms.beam.guard import Step, guarded
from eventveil.transforms.compile import load_plan
from eventveil.transforms.decode.decoded import Decoded
from eventveil.transforms.decode.reading import Decoders, Originals, Reading
from eventveil.transforms.encode.compact import compact_batch
from eventveil.transforms.encode.json_events import encode_json
from eventveil.transforms.keys.custodian import load_public
from eventveil.transforms.keys.keyring import load_keys
from eventveil.transforms.nested import Column
from eventveil.transforms.plan import POSITION, Plan
from eventveil.transforms.seal import Sealing
from eventveil.transforms.veil import Outcome
from eventveil.transforms.windows import WindowRule

__all__ = [
    "Anonymize",
    "ApplyPolicy",
    "BatchBytes",
    "DecodeEvents",
    "PublishVeiled",
    "RecordBatchCoder",
    "TakeBatches",
    "count",
    "count_codes",
    "decode",
    "veil",
    "without_tombstones",
]

REFUSED_TAG = "refused"
VEILED_TAG = "veiled"
_COUNTERS = "eventveil"
LATEST = "eventveil latest"


def count(name: str, number: int) -> None:
    if number:
        Metrics.counter(_COUNTERS, name).inc(number)


class DecodeEvents(Step):
    """Raw batch -> decoded batch; what cannot be decoded -> letters under the tag ``refused``.

    Args:
        reading: what to decode, and how.
        policies: name and digest of the policies behind: each counts the events it is given.
    """

    def __init__(self, reading: Reading, policies: Sequence[tuple[str, str]], sealing: Sealing) -> None:
        self._reading = reading
        self._policies = tuple(policies)
        self._sealing = sealing

    def setup(self) -> None:
        self._decoders = Decoders(self._reading)
        self._sealer = self._sealing.sealer()

    @guarded
    def process(self, raw: pa.RecordBatch) -> Iterator[Any]:
        part = part_of(raw)
        for policy, _ in self._policies:
            count(f"{policy}|in", raw.num_rows)
        if self._reading.tombstones:
            raw = without_tombstones(raw, self._policies)
        originals = Originals(raw)
        try:
            decoded = self._decoders.decode(raw)
        except EventveilError as error:
            # A decoder does not know where its batch was read.
            origin = part.origin if part else ""
            raise type(error)(replace(problem, file=problem.file or origin) for problem in error.problems) from None
        positions = originals.positions
        for policy, _ in self._policies:
            count_codes(policy, decoded.refused_codes)
        rows: Column = pa.array(decoded.refused_rows)
        refused = refused_batch(
            decoded.refused_codes,
            decoded.refused_paths,
            [""] * len(rows),
            positions.take(rows),
            pa.nulls(len(rows), pa.int64()),
            originals.take(rows),
        )
        yield beam.pvalue.TaggedOutput(REFUSED_TAG, self._letters(refused, part))
        yield _marked(_decoded_batch(decoded, raw, originals), raw)

    def _letters(self, refused: pa.RecordBatch, part: Part | None) -> pa.RecordBatch:
        names = ", ".join(name for name, _ in self._policies)
        digest = self._policies[0][1] if len(self._policies) == 1 else ""
        letters = self._sealer.seal(refused, origin=part.origin if part else "", policy=names, digest=digest)
        return with_part(letters, part) if part else letters


class ApplyPolicy(Step):
    """Decoded batch -> veiled batch; what a rule refuses -> letters under the tag ``refused``.

    Args:
        roll: the windows that files are rolled in, as for `Veil`.
        tells: whether a launcher in this process learns how far event time has come. Elsewhere metrics are kept, and seen by others.
    """

    def __init__(self, plan: Plan, policy: str, sealing: Sealing, roll: WindowRule | None = None, tells: bool = False) -> None:
        self._tells = tells
        self._plan = plan
        self._policy = policy
        self._sealing = sealing
        self._roll = roll

    def setup(self) -> None:
        self._veil = self._plan.bind(load_keys(self._sealing.keys), self._roll)
        self._sealer = self._sealing.sealer()

    @guarded
    def process(self, decoded: pa.RecordBatch) -> Iterator[Any]:
        part = part_of(decoded)
        positions = decoded.column("position")
        events: Column = decoded.column("event")
        clock = clock_of(decoded)
        outcome = self._veil.apply(
            events,
            origin=part.origin if part else "",
            positions=positions,
            drift=_drift(decoded.column("drift")),
            clock=clock,
            appended=decoded.column("appended") if "appended" in decoded.schema.names else None,
        )
        self._count(outcome)
        if self._tells and part and clock.now is not None and outcome.latest is not None:
            # A launcher that reads a stream in slices learns from it how far the stream has come.
            Metrics.distribution(LATEST, f"{self._policy}|{part.origin}").update(outcome.latest)
        rows: Column = pa.array(outcome.refused_rows)
        refused = refused_batch(
            outcome.codes,
            outcome.paths,
            outcome.rules,
            positions.take(rows),
            outcome.refused_windows,
            Originals(decoded).take(rows),
        )
        letters = self._sealer.seal(refused, origin=part.origin if part else "", policy=self._policy, digest=self._plan.digest)
        yield beam.pvalue.TaggedOutput(REFUSED_TAG, with_part(letters, part) if part else letters)
        yield _marked(outcome.veiled, decoded)

    def _count(self, outcome: Outcome) -> None:
        count(f"{self._policy}|out", outcome.veiled.num_rows)
        count(f"{self._policy}|filtered", outcome.filtered)
        count_codes(self._policy, outcome.codes)
        for path, number in outcome.drift.items():
            count(f"{self._policy}|drift|{path}", number)
        for rule, number in outcome.counts.items():
            count(f"{self._policy}|rule|{rule}", number)


class BatchBytes(Step):
    """Lists of messages -> raw batches."""

    @guarded
    def process(self, messages: list[bytes]) -> Iterator[pa.RecordBatch]:
        positions = np.full(len(messages), -1, np.int64)
        batch = pa.RecordBatch.from_arrays([pa.array(messages, pa.binary()), pa.array(positions)], ["value", "position"])
        yield with_kind(batch, "messages")


class TakeBatches(Step):
    """Batches of somebody else's -> raw batches. Their metadata goes: marks are ours to make.

    Args:
        messages: the column that holds messages; None: the columns are the event's.
    """

    def __init__(self, messages: str | None) -> None:
        self._messages = messages

    @guarded
    def process(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        positions: Column = pa.array(np.full(batch.num_rows, -1, np.int64))
        if self._messages is None:
            rows: Column = batch.to_struct_array()
            yield with_kind(pa.RecordBatch.from_arrays([rows, positions], ["row", "position"]), "rows")
            return
        if batch.schema.get_field_index(self._messages) < 0:
            raise SchemaError(
                Problem("", 0, "EV407", f"a batch has no column '{self._messages}' of messages", "name the column with messages=")
            )
        values: Column = batch.column(self._messages)
        yield with_kind(pa.RecordBatch.from_arrays([values, positions], ["value", "position"]), "messages")


class PublishVeiled(Step):
    """Veiled batch -> the output alone: in keyed order, internal columns removed, nothing hidden in its buffers; empty batches vanish.

    Args:
        keep_order: rows leave as they came, and the order in two outputs of one read joins their rows.
    """

    def __init__(self, keep_order: bool) -> None:
        self._keep_order = keep_order

    @guarded
    def process(self, veiled: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        if veiled.num_rows:
            visible = veiled.select([name for name in veiled.schema.names if name not in (ORDER, WINDOW, ROLL)])
            if not self._keep_order:
                visible = visible.take(_keyed_order(veiled.column(ORDER), visible))
            yield compact_batch(visible)


def _keyed_order(order: Column, visible: pa.RecordBatch) -> Column:
    """The rows' numbers by their keyed ids; those of equal ids by what they show."""
    ranks = pa.table({"order": order.cast(pa.binary())})
    if pc.count_distinct(ranks["order"]).as_py() < len(order):
        ranks = ranks.append_column("line", encode_json(visible))
    return pc.sort_indices(ranks, [(name, "ascending") for name in ranks.column_names])


class _Filled(Step):
    """Drops empty batches."""

    @guarded
    def process(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        if batch.num_rows:
            yield batch


class Anonymize(beam.PTransform):
    """Anonymize events under a policy.

    Takes a PCollection of `bytes` (one message each) or of `pyarrow.RecordBatch` (columns of the event schema; or, with
    `messages`, a column of messages). Gives two PCollections of RecordBatches: veiled events with the policy's output
    columns, and letters of refused events with the columns of `eventveil.transforms.batch.LETTERS`.

    Windows stay. Messages are gathered into batches within their window, and a batch has the timestamp of its window's end; batches
    that are given keep their own. Rows of a batch leave in an order keyed per domain, unless the policy says `order: keep`. Events of
    another type than the policy's `event.type` are refused.

    Args:
        policy: path of the policy, or a compiled Plan.
        keys: path of a keyring, or ``env:NAME``. Loaded on the worker, never pickled.
        custodian: path of the custodian's public key. Without it `allow_loss` must be said.
        messages: the column of the batches that holds messages, where their columns are not the event's own.
        format: of messages: "json" or "avro".
        allow_loss: refused events are counted and lost.

    Raises:
        PolicyError, SchemaError: when the pipeline is built; EV119 when refused events would be lost, EV120 when elements are
            neither bytes nor RecordBatches, or of no known type, EV211 when the policy names events by a position that they have not,
            EV204 when it reads what only a stream says beside an event, EV111 when it numbers values within a window.
    """

    def __init__(
        self,
        policy: str | Path | Plan,
        *,
        keys: str,
        custodian: str | Path | None = None,
        messages: str | None = None,
        format: str = "json",
        allow_loss: bool = False,
        max_event_bytes: int = 8 << 20,
    ) -> None:
        super().__init__()
        self.plan = policy if isinstance(policy, Plan) else load_plan(policy)
        if custodian is None and not allow_loss:
            raise PolicyError(Problem("", 0, "EV119", "refused events would be lost", "give custodian=, or allow_loss=True"))
        if self.plan.event.ids == ((POSITION,),):
            fact = "event.id is $position, and elements of a PCollection have none that a replay would find again"
            raise PolicyError(Problem("", 0, "EV211", fact, "name fields of the event"))
        if self.plan.numbered:
            fact = f"{self.plan.name} numbers values when their window closes, and here batches leave as they come"
            raise PolicyError(Problem("", 0, "EV111", fact, "run the policy as a job, or write renumber: {scope: event}"))
        if self.plan.stream:
            fact = f"{self.plan.name} reads {', '.join(self.plan.stream)}, and elements of a PCollection have no such fields"
            raise SchemaError(Problem("", 0, "EV204", fact, "name fields of the event"))
        self._sealing = Sealing(keys, None if custodian is None else load_public(custodian))
        self._reading = Reading(self.plan.schema, self.plan.used, format, max_event_bytes)
        self._messages = messages

    def expand(self, events: beam.PCollection) -> tuple[beam.PCollection, beam.PCollection]:
        plan = self.plan
        if events.element_type not in (bytes, pa.RecordBatch):
            fact = f"Anonymize takes bytes or pyarrow.RecordBatch, and the PCollection has elements of the type {events.element_type}"
            raise PolicyError(Problem("", 0, "EV120", fact, "say it on the transform before: .with_output_types(bytes)"))
        if events.element_type is bytes:
            lists = events | "GatherMessages" >> beam.BatchElements(min_batch_size=100, max_batch_size=10_000)
            events = lists | "BatchMessages" >> beam.ParDo(BatchBytes()).with_output_types(pa.RecordBatch)
        else:
            events = events | "TakeBatches" >> beam.ParDo(TakeBatches(self._messages)).with_output_types(pa.RecordBatch)
        decoded, undecodable = decode(events, self._reading, [(plan.name, plan.digest)], self._sealing)
        veiled, unveilable = veil(decoded, plan, plan.name, self._sealing)
        published = veiled | "PublishVeiled" >> beam.ParDo(PublishVeiled(plan.keep_order)).with_output_types(pa.RecordBatch)
        letters = (undecodable, unveilable) | "JoinRefused" >> beam.Flatten()
        return published, letters | "DropEmpty" >> beam.ParDo(_Filled()).with_output_types(pa.RecordBatch)


def decode(
    raw: beam.PCollection, reading: Reading, policies: Sequence[tuple[str, str]], sealing: Sealing, label: str = "DecodeEvents"
) -> tuple[beam.PCollection, beam.PCollection]:
    """Raw batches -> (decoded batches, letters)."""
    return _two_outputs(raw | label >> beam.ParDo(DecodeEvents(reading, policies, sealing)).with_outputs(REFUSED_TAG, main=VEILED_TAG))


def veil(
    decoded: beam.PCollection,
    plan: Plan,
    policy: str,
    sealing: Sealing,
    label: str = "ApplyPolicy",
    roll: WindowRule | None = None,
    tells: bool = False,
) -> tuple[beam.PCollection, beam.PCollection]:
    """Decoded batches -> (veiled batches, letters)."""
    return _two_outputs(
        decoded | label >> beam.ParDo(ApplyPolicy(plan, policy, sealing, roll, tells)).with_outputs(REFUSED_TAG, main=VEILED_TAG)
    )


def _two_outputs(outputs: Any) -> tuple[beam.PCollection, beam.PCollection]:
    # Tagged outputs have the type Any, and Any is pickled: batches must go through our coder.
    for output in (outputs[VEILED_TAG], outputs[REFUSED_TAG]):
        output.element_type = pa.RecordBatch
    return outputs[VEILED_TAG], outputs[REFUSED_TAG]


def _decoded_batch(decoded: Decoded, raw: pa.RecordBatch, originals: Originals) -> pa.RecordBatch:
    columns = {"position": originals.positions, originals.name: originals.column}
    if kind_of(raw) == "messages" and "appended" in raw.schema.names:
        columns["appended"] = raw.column("appended")
    if decoded.rows is not None:
        rows: Column = pa.array(decoded.rows)
        columns = {name: column.take(rows) for name, column in columns.items()}
    columns = {"event": decoded.events, **columns, "drift": _drift_column(decoded, len(decoded.events))}
    return with_kind(pa.RecordBatch.from_arrays(list(columns.values()), list(columns)), "decoded")


def _marked(batch: pa.RecordBatch, like: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with the part and the clock of the one that it was made of."""
    part, clock = part_of(like), clock_of(like)
    batch = batch if part is None else with_part(batch, part)
    return batch if clock == Clock() else with_clock(batch, clock)


def without_tombstones(raw: pa.RecordBatch, policies: Sequence[tuple[str, str]]) -> pa.RecordBatch:
    """A raw batch without the messages that have no value: they are counted as filtered, and leave no trace."""
    originals = Originals(raw)
    if originals.name != "value" or not originals.column.null_count:
        return raw
    for policy, _ in policies:
        count(f"{policy}|filtered", originals.column.null_count)
    return raw.filter(originals.column.is_valid())


def _drift_column(decoded: Decoded, rows: int) -> Column:
    """For each event the known parents with unknown fields below them, a line each; null for nearly all."""
    if not decoded.drifting:
        return pa.nulls(rows, pa.string())
    told: list[str | None] = [None] * rows
    for path in sorted(decoded.drifting):
        for row in decoded.drifting[path].tolist():
            held = told[row]
            told[row] = path if held is None else f"{held}\n{path}"
    return pa.array(told, pa.string())


def _drift(column: Column) -> dict[str, np.ndarray[Any, np.dtype[np.int64]]]:
    if column.null_count == len(column):
        return {}
    found: dict[str, list[int]] = {}
    rows = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
    # Per-row Python over the drifting events alone: few, and their paths are few.
    for row, told in zip(rows.tolist(), pc.drop_null(column).to_pylist()):
        for path in told.split("\n"):
            found.setdefault(path, []).append(row)
    return {path: np.array(rows, np.int64) for path, rows in found.items()}


def count_codes(policy: str, codes: Sequence[str]) -> None:
    for code in sorted(set(codes)):
        count(f"{policy}|refused|{code}", codes.count(code))
