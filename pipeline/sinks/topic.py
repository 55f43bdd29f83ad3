"""A topic of Kafka as a sink: one message per row, under a keyed record id, with nothing of where the event came from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from time import time_ns
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from eventveil.pipeline.sinks import _producers
from eventveil.pipeline.sinks._order import keyed_places
from eventveil.pipeline.sinks._record_ids import RECORD_ID, Int64s, Names, RecordIds, bytes_of, column_of, key_field, texts_of
from eventveil.pipeline.sinks._registry import register
from eventveil.pipeline.sinks.publish import INTERNAL
from eventveil.schemas.errors import StorageError
from eventveil.schemas.events.paths import EACH, Path, parse_path
from eventveil.schemas.job import OutputDoc, RegistryDoc, StreamAddress
from eventveil.transforms.batch import ORDER, WINDOW, clock_of
from eventveil.transforms.encode.avro_events import output_avro_schema
from eventveil.transforms.encode.json_events import encode_json
from eventveil.transforms.encode.messages import avro_messages, json_messages, wire_header
from eventveil.transforms.keys.derive import Keys
from eventveil.transforms.plan import Plan
from eventveil.transforms.times import instants
from eventveil.transforms.windows import WindowRule

if TYPE_CHECKING:
    from eventveil.pipeline.sources.kafka import Cluster

__all__ = ["RECORD_ID", "MessageWriter", "TopicSink", "topic_sink"]

_SECONDS_TO_FIND = 15.0


def _now() -> int:
    return time_ns() // 1_000


@dataclass(frozen=True)
class TopicSink:
    """Writes the rows of one policy's output to one topic.

    | of a message | what it is |
    |---|---|
    | value | the row: JSON, or an Avro datum, behind the number of its schema where there is a registry |
    | key | the record id, or the output field that `key` names; where that is null or empty, the record id |
    | partition | by the key alone, as Java's clients choose it |
    | timestamp | the output field `timestamp`; else the start of the release window; else when the slice, or the job, began |
    | headers | ``eventveil-record-id``; ``-window``: its start; ``-policy -version -digest -domain -keys -format``: what made it |

    The record id is the keyed BLAKE2b of the event's release id, 128 bits in lower-case base32, under a sub-key of the key window, or
    of the domain where rows have no window. An event that is written again has the same id, and is the same in every byte, as long as
    the topic keeps its number of partitions: who must not see it twice leaves out ids that were seen. Rows of a policy without `event.id`
    that look alike share an id.

    Delivery is at least once. A message that the topic does not take stops the job (EV415): a row that is left out would be missed by
    nobody.

    Discloses what the rows hold, their release window, and by the order of batches when events came. Of the source's own keys, headers,
    timestamps, partitions and positions nothing leaves. Timestamps are of event time: a topic that keeps messages for a week
    forgets older events soon, unless it says ``message.timestamp.type=LogAppendTime``.

    Args:
        cluster, topic: where to; references to secrets are filled where a client is made.
        schema: the output's columns.
        domain: whose keys the record ids are made under.
        provenance: as of files: policy, version, digest, domain, keys, and eventveil, the version of the format.
        registry: registers the schema as ``<topic>-value``; for avro alone.
        key, timestamp: where these fields stand in the output.
        key_window: the windows that keys live for; None: record ids are the domain's.
        zone: in which times without offset are meant.
        order: keyed: the rows of a batch by `$order`, ties by the encoded row. keep: as they came.
        name: of the record, in avro.
        started_us: the time of rows that have no other, microseconds since 1970; a slice's own clock goes before.
    """

    cluster: Cluster
    topic: str
    schema: pa.Schema
    domain: str
    provenance: Mapping[str, str]
    format: Literal["jsonl", "avro"] = "jsonl"
    registry: RegistryDoc | None = None
    key: Names | None = None
    timestamp: Names | None = None
    key_window: WindowRule | None = None
    zone: str = "UTC"
    order: Literal["keyed", "keep"] = "keyed"
    name: str = "event"
    started_us: int = field(default_factory=_now, compare=False)

    def __post_init__(self) -> None:
        if self.format not in ("jsonl", "avro"):
            raise StorageError.of("EV406", f"messages cannot be of the format '{self.format}'", "name one of avro, jsonl")
        if self.registry is not None and self.format != "avro":
            raise StorageError.of("EV406", "a registry holds schemas of avro", "say format: avro, or name no registry")

    def prepare(self) -> None:
        """At the start of a job: see that the topic is there or comes into being, and register the schema.

        Raises:
            Unreachable: EV414, EV415 no answer. StorageError: EV414, EV415 for good.
        """
        self.find_topic()
        self.header()

    def find_topic(self, seconds: float = _SECONDS_TO_FIND) -> None:
        """See that the topic is there, or comes into being. Raises as `prepare` does, after so many seconds."""
        producer = _producers.take(self.cluster)
        producer.find_topic(self.topic, seconds)
        _producers.park(producer)

    def same_as(self, cluster: Cluster, topic: str) -> bool:
        """Whether this is that topic, under whatever names the brokers are addressed."""
        if topic != self.topic:
            return False
        if set(cluster.bootstrap.split(",")) & set(self.cluster.bootstrap.split(",")):
            return True
        producers = [_producers.take(one) for one in (cluster, self.cluster)]
        mine, other = (producer.cluster_id(_SECONDS_TO_FIND) for producer in producers)
        return mine is not None and mine == other

    def header(self) -> bytes:
        """What every value begins with: the number of the registered schema; nothing without a registry."""
        if self.registry is None:
            return b""
        return wire_header(register(self.registry, f"{self.topic}-value", output_avro_schema(self.schema, self.name)))

    def writer(self, keys: Keys) -> MessageWriter:
        """What writes, in this process and with these keys."""
        return MessageWriter(self, keys)


class MessageWriter:
    """Writes veiled batches as messages. For one thread at a time; holds keys, and refuses to be pickled.

    What was written is there when `flush` has returned; after any error, `abandon` it.

    Raises:
        Unreachable: EV414, EV415 no answer for as long as the client waits: the same may succeed later. StorageError: EV415 for good.
    """

    def __init__(self, sink: TopicSink, keys: Keys) -> None:
        self._sink = sink
        self._keys = keys.domain(sink.domain)
        self._header = sink.header()
        self._producer: _producers.Producer | None = None
        self._ids = RecordIds(self._keys, sink.key_window, sink.provenance)

    def __reduce__(self) -> Any:
        raise TypeError("a writer holds keys and is never pickled: make it where it writes")

    def write(self, batch: pa.RecordBatch) -> None:
        """Hand the rows of a veiled batch over: in keyed order, unless the sink keeps theirs."""
        if batch.num_rows:
            self._send(self._messages(batch))

    def flush(self) -> None:
        """Wait until the broker has acknowledged everything."""
        if self._producer is not None:
            self._producer.settle(self._sink.topic)
            _producers.park(self._producer)
            self._producer = None

    def abandon(self) -> None:
        """Forget what was not acknowledged: it will be written again, by another."""
        if self._producer is not None:
            self._producer.abandon()
            self._producer = None

    def _send(self, messages: Iterable[_producers.Message]) -> None:
        if self._producer is None:
            self._producer = _producers.take(self._sink.cluster)
        self._producer.send(self._sink.topic, messages)

    def _messages(self, batch: pa.RecordBatch) -> Iterator[_producers.Message]:
        visible = batch.select([name for name in batch.schema.names if name not in INTERNAL]).replace_schema_metadata(None)
        is_json = self._sink.format == "jsonl"
        ranked: Any = encode_json(visible) if is_json else visible
        values = json_messages(ranked) if is_json else avro_messages(visible, self._sink.schema, self._header)
        starts = batch.column(WINDOW).to_numpy() if WINDOW in batch.schema.names else None
        ids = bytes_of(self._ids.of(batch.column(ORDER), starts))
        keys = ids if self._sink.key is None else [one or ids[row] for row, one in enumerate(texts_of(column_of(visible, self._sink.key)))]
        millis = self._timestamps(batch, visible, starts)
        # All but the record id is the same for a window.
        windows = [None] * len(ids) if starts is None else starts.tolist()
        shared = {window: self._ids.entries(b"", window)[1:] for window in set(windows)}
        places = range(len(ids)) if self._sink.order == "keep" else keyed_places([batch], ranked).tolist()
        for row in places:
            yield values[row], keys[row], millis[row], [(RECORD_ID, ids[row]), *shared[windows[row]]]

    def _timestamps(self, batch: pa.RecordBatch, visible: pa.RecordBatch, starts: Int64s | None) -> list[int]:
        if starts is None:
            now = clock_of(batch).now
            starts = np.full(batch.num_rows, self._sink.started_us if now is None else now, np.int64)
        if self._sink.timestamp is not None:
            column = column_of(visible, self._sink.timestamp)
            micros, bad, skipped = instants(column, self._sink.zone, None)
            known = ~(bad | skipped | column.is_null().to_numpy(zero_copy_only=False).astype(bool))
            starts = np.where(known, micros, starts)
        return _millis(starts)


def topic_sink(output: OutputDoc, plan: Plan, format: str, provenance: Mapping[str, str]) -> TopicSink:
    """The sink that a job names for a policy.

    Args:
        output: its `stream`, `client`, `registry` and `key`, an output field outside of lists, as ``customer.id``.
        format: of its messages.

    Raises:
        PolicyError: EV103 the policy has no such field.
        SchemaError: EV219 a field's name or type cannot be written in Avro.
        StorageError: EV406 messages cannot be of this format.
    """
    from eventveil.pipeline.sources.kafka import Cluster

    assert isinstance(output.stream, StreamAddress), "what is no topic of Kafka has a sink of its own"
    sink = TopicSink(
        Cluster(output.stream.servers, output.client),
        output.stream.topics[0],
        plan.output_schema,
        plan.domain,
        dict(provenance),
        "jsonl" if format == "json" else format,  # type: ignore[arg-type]
        output.registry,
        key=None if output.key is None else key_field(plan, output.key),
        timestamp=_time_field(plan),
        key_window=plan.key_window,
        zone=plan.event.zone,
        order="keep" if plan.keep_order else "keyed",
    )
    if sink.format == "avro":
        output_avro_schema(sink.schema, sink.name)
    return sink


def _millis(micros: Int64s) -> list[int]:
    """Milliseconds, and never 0, which the client takes for now, nor less, which others take for no time at all."""
    found: list[int] = np.maximum(micros // 1_000, 1).tolist()
    return found


def _time_field(plan: Plan) -> Names | None:
    """Where the event's time stands in the output, if the policy lets it out as a time."""
    for time in plan.event.times:
        for one in plan.fields:
            steps = parse_path(one.name)
            if (
                one.source == str(Path(time))
                and steps is not None
                and EACH not in steps.steps
                and _is_time(plan.output_schema, steps.steps)
            ):
                return steps.steps
    return None


def _is_time(schema: pa.Schema, names: Names) -> bool:
    kind: Any = schema.field(names[0]).type
    for name in names[1:]:
        kind = kind.field(name).type
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))
