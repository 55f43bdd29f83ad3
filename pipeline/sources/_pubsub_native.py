"""Pub/Sub as Dataflow itself reads it: the service acknowledges, leaves out what it delivers twice, and knows how far time has come.

Events are single for as short as can be: what is read is put together at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.gcp.pubsub import PubsubMessage, ReadFromPubSub

from eventveil.pipeline.sources._pubsub_pulls import position_of
from eventveil.pipeline.sources._singles import BatchSingles, DecodeMessages
from eventveil.pipeline.sources.decode_inside import DecodeInside, Decoding, tagged
from eventveil.pipeline.sources.stream import State
from eventveil.transforms.batch import Clock, Part, with_clock, with_kind, with_part
from eventveil.transforms.beam.split import SplitByType
from eventveil.transforms.columns import Column
from eventveil.transforms.seal import Sealing

__all__ = ["BatchMessages", "NativeSubscription", "read_pubsub_native"]

_INSTANT = pa.timestamp("us", "UTC")
_ENTRY = pa.struct([pa.field("name", pa.string()), pa.field("value", pa.binary())])


def read_pubsub_native(
    root: beam.Pipeline,
    subscription: str,
    *,
    wants: frozenset[str] = frozenset({"appended"}),
    batch_bytes: int = 4 << 20,
    timestamp_attribute: str | None = None,
) -> beam.PCollection:
    """Raw batches of a subscription; on Dataflow alone.

    Each batch has the earliest timestamp of its messages: when Pub/Sub took them, or what their `timestamp_attribute` says (milliseconds
    since 1970, or RFC 3339 in UTC). Event time is that far for Dataflow, too: what lies further behind than `allowed_lateness` comes late.

    Args:
        subscription: ``projects/PROJECT/subscriptions/NAME``.
        wants: columns beside `value` and `position`: key (the ordering key), headers (attributes), topic, time and appended (when Pub/Sub
            took the message).
        batch_bytes: a batch ends when it has as many.
    """
    read = ReadFromPubSub(subscription=subscription, with_attributes=True, timestamp_attribute=timestamp_attribute)
    messages = root | "ReadMessages" >> read
    return messages | "BatchMessages" >> beam.ParDo(BatchMessages(subscription, wants, batch_bytes)).with_output_types(pa.RecordBatch)


class BatchMessages(BatchSingles):
    """Messages of Pub/Sub -> raw batches; one ends with its bundle, or when it is large enough."""

    def __init__(self, subscription: str, wants: frozenset[str], batch_bytes: int) -> None:
        super().__init__(batch_bytes)
        self._subscription = subscription
        self._wants = wants

    def size_of(self, message: PubsubMessage) -> int:
        return len(message.data) + sum(map(len, message.attributes.values()))

    def batches_of(self, messages: list[PubsubMessage]) -> Iterable[pa.RecordBatch]:
        return [_batch(messages, self._subscription, self._wants)]


@dataclass(frozen=True)
class NativeSubscription:
    """What is read, for the graph of an engine. It begins where the subscription stands: a state of ours says nothing here.

    Attributes:
        subscription, wants, batch_bytes, timestamp_attribute: as for `read_pubsub_native`.
    """

    subscription: str
    wants: frozenset[str] = frozenset({"appended"})
    batch_bytes: int = 4 << 20
    timestamp_attribute: str | None = None

    def read(
        self, root: beam.Pipeline, state: State, decodings: Sequence[Decoding], split: SplitByType | None, sealing: Sealing
    ) -> tuple[dict[str, beam.PCollection], beam.PCollection]:
        """(Decoded batches by tag, letters)."""
        wants, batch_bytes, attribute = self.wants, self.batch_bytes, self.timestamp_attribute
        raw = read_pubsub_native(root, self.subscription, wants=wants, batch_bytes=batch_bytes, timestamp_attribute=attribute)
        decode = DecodeInside(decodings, split, sealing)
        return tagged(raw | "DecodeMessages" >> beam.ParDo(DecodeMessages(decode)).with_outputs(*decode.tags), decodings)


def _batch(messages: list[PubsubMessage], subscription: str, wants: frozenset[str]) -> pa.RecordBatch:
    appended: Column = pa.array([_micros(message.publish_time) for message in messages], pa.int64()).cast(_INSTANT)
    columns: dict[str, Column] = {
        # A message may have attributes alone.
        "value": pa.array([message.data or None for message in messages], pa.binary()),
        "position": pa.array([position_of(message.message_id or "") for message in messages], pa.int64()),
    }
    if "key" in wants:
        columns["key"] = pa.array([message.ordering_key.encode() if message.ordering_key else None for message in messages], pa.binary())
    if "headers" in wants:
        # Attributes have no order of their own: sorted, so that the same message is always the same.
        headers = [[(name, value.encode()) for name, value in sorted(message.attributes.items())] for message in messages]
        columns["headers"] = pa.array(headers, pa.list_(_ENTRY))
    if "topic" in wants:
        columns["topic"] = pa.array([subscription.rpartition("/")[2]] * len(messages), pa.string())
    columns |= {name: appended for name in ("time", "appended") if name in wants}
    batch = with_kind(pa.RecordBatch.from_arrays(list(columns.values()), list(columns)), "messages")
    batch = with_part(batch, Part(subscription, int(columns["position"][0].as_py())))
    # Said by the service, not by a clock of the worker: the same when the messages are delivered again.
    latest = max((told for told in appended.cast(pa.int64()).to_pylist() if told is not None), default=None)
    return with_clock(batch, Clock(now=latest))


def _micros(at: datetime | None) -> int | None:
    """Microseconds since 1970; in whole numbers, because seconds as a float are off by some."""
    if at is None:
        return None
    since = at - datetime.fromtimestamp(0, at.tzinfo)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
