"""A topic of Google Cloud Pub/Sub as a sink: one message per row, with a keyed record id, and nothing of where the event came from."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from eventveil.pipeline.sinks._order import keyed_places
from eventveil.pipeline.sinks._record_ids import RECORD_ID, Names, RecordIds, bytes_of, column_of, key_field, texts_of
from eventveil.pipeline.sinks.publish import INTERNAL
from eventveil.pipeline.sources._pubsub_client import Connection, Project, connect, message_types
from eventveil.pipeline.sources.stream import Unreachable
from eventveil.schemas.errors import EventveilError, StorageError
from eventveil.schemas.job import OutputDoc
from eventveil.schemas.streams import PubsubAddress
from eventveil.transforms.batch import ORDER, WINDOW
from eventveil.transforms.encode.avro_events import output_avro_schema
from eventveil.transforms.encode.json_events import encode_json
from eventveil.transforms.encode.messages import avro_messages, json_messages
from eventveil.transforms.keys.derive import Keys
from eventveil.transforms.plan import Plan
from eventveil.transforms.windows import WindowRule

__all__ = ["PubsubSink", "PubsubWriter", "pubsub_sink"]

_CODE = "EV421"
# What the service takes: of a request so many messages, and 10 MB, of which a message alone may have as much.
_MESSAGES = 1000
_REQUEST_BYTES = 4_000_000
_MOST_BYTES = 10_000_000
_MOST_KEY_BYTES = 1024
_AT_ONCE = 4
_PATIENCE_S = 60.0
_LONGEST_PAUSE_S = 4.0


@dataclass(frozen=True)
class PubsubSink:
    """Writes the rows of one policy's output to one topic of Pub/Sub.

    | of a message | what it is |
    |---|---|
    | data | the row: JSON, or an Avro datum |
    | ordering key | the output field that `key` names, as text; none without it, and where it is null or empty |
    | attributes | ``eventveil-record-id``; ``-window``: its start; ``-policy -version -digest -domain -keys -format``: what made it |

    An event that is written again has the same record id and the same bytes; the service gives it another message id. Rows of a policy
    without `event.id` that look alike share a record id. Rows with an ordering key are sent one request after the other, so that those of
    one key keep their order.

    Delivery is at least once. A message that the service does not take stops the job (EV421): a row that is left out would be missed by
    nobody.

    Discloses what the rows hold, their release window, and by the time of publication and the order of batches when events came. Of the
    source's own keys, attributes, times and positions nothing leaves.

    Args:
        project, topic: where to, the topic by its short name.
        schema: the output's columns.
        domain: whose keys the record ids are made under.
        provenance: as of files.
        key: where this field stands in the output.
        key_window: the windows that keys live for; None: record ids are the domain's.
        order: keyed: the rows of a batch by `$order`, ties by the encoded row. keep: as they came.
        name: of the record, in avro.
    """

    project: Project
    topic: str
    schema: pa.Schema
    domain: str
    provenance: Mapping[str, str]
    format: Literal["jsonl", "avro"] = "jsonl"
    key: Names | None = None
    key_window: WindowRule | None = None
    order: Literal["keyed", "keep"] = "keyed"
    name: str = "event"

    def __post_init__(self) -> None:
        if self.format not in ("jsonl", "avro"):
            raise StorageError.of("EV406", f"messages cannot be of the format '{self.format}'", "name one of avro, jsonl")

    @property
    def path(self) -> str:
        """The full name of the topic."""
        return self.project.topic(self.topic)

    def prepare(self) -> None:
        """At the start of a job: see that the topic is there.

        Raises:
            Unreachable: EV421 no answer. StorageError: EV421 for good.
        """
        try:
            connect(self.project, _CODE).ask("GetTopic", topic=self.path)
        except Unreachable:
            raise
        except StorageError as error:
            # Who may publish need not be allowed to look at the topic.
            if "PERMISSION_DENIED" not in error.problems[0].fact:
                raise

    def writer(self, keys: Keys) -> PubsubWriter:
        """What writes, in this process and with these keys."""
        return PubsubWriter(self, keys)


class PubsubWriter:
    """Writes veiled batches as messages. For one thread at a time; holds keys, and refuses to be pickled.

    At most four requests are under way, so that what waits is bounded. What was written is there when `flush` has returned; after any
    error, `abandon` it.

    Raises:
        Unreachable: EV421 no answer for a minute: the same may succeed later. StorageError: EV421 for good.
    """

    def __init__(self, sink: PubsubSink, keys: Keys) -> None:
        self._sink = sink
        self._ids = RecordIds(keys.domain(sink.domain), sink.key_window, sink.provenance)
        self._connection: Connection = connect(sink.project, _CODE)
        self._message = message_types()["PubsubMessage"]
        self._waiting: list[Any] = []
        self._size = 0
        self._under_way: deque[tuple[Any, list[Any]]] = deque()

    def __reduce__(self) -> Any:
        raise TypeError("a writer holds keys and is never pickled: make it where it writes")

    def write(self, batch: pa.RecordBatch) -> None:
        """Hand the rows of a veiled batch over: in keyed order, unless the sink keeps theirs."""
        for message in self._messages(batch) if batch.num_rows else ():
            size = message.ByteSize()
            if size > _MOST_BYTES:
                remedy = "refuse such events with max_event_bytes, or drop fields of the policy"
                raise self._told(f"a message of {size} bytes is larger than the service takes, {_MOST_BYTES}", remedy)
            if self._waiting and (len(self._waiting) >= _MESSAGES or self._size + size > _REQUEST_BYTES):
                self._send()
            self._waiting.append(message)
            self._size += size

    def flush(self) -> None:
        """Wait until the service has taken everything."""
        if self._waiting:
            self._send()
        self._settle(0)

    def abandon(self) -> None:
        """Forget what was not taken: it will be written again, by another."""
        for future, _ in self._under_way:
            future.cancel()
        self._under_way.clear()
        self._waiting, self._size = [], 0

    def _send(self) -> None:
        # One after the other where their order counts.
        self._settle((_AT_ONCE if self._sink.key is None else 1) - 1)
        messages, self._waiting, self._size = self._waiting, [], 0
        self._under_way.append((self._connection.future("Publish", topic=self._sink.path, messages=messages), messages))

    def _settle(self, most: int) -> None:
        """Wait until at most so many requests are under way; what the service could not take just now is sent again."""
        while len(self._under_way) > most:
            future, messages = self._under_way[0]
            end, pause = time.monotonic() + _PATIENCE_S, 0.1
            while True:
                try:
                    self._connection.result(future, self._sink.path)
                    break
                except Unreachable:
                    if time.monotonic() > end:
                        raise
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
                future = self._connection.future("Publish", topic=self._sink.path, messages=messages)
                self._under_way[0] = future, messages
            self._under_way.popleft()

    def _messages(self, batch: pa.RecordBatch) -> Iterator[Any]:
        sink = self._sink
        visible = batch.select([name for name in batch.schema.names if name not in INTERNAL]).replace_schema_metadata(None)
        is_json = sink.format == "jsonl"
        ranked: Any = encode_json(visible) if is_json else visible
        values = json_messages(ranked) if is_json else avro_messages(visible, sink.schema)
        starts = batch.column(WINDOW).to_numpy() if WINDOW in batch.schema.names else None
        ids = [one.decode() for one in bytes_of(self._ids.of(batch.column(ORDER), starts))]
        keys = [""] * len(ids) if sink.key is None else [self._key(one) for one in texts_of(column_of(visible, sink.key))]
        windows = [None] * len(ids) if starts is None else starts.tolist()
        # All but the record id is the same for a window.
        shared = {one: {name: value.decode() for name, value in self._ids.entries(b"", one)[1:]} for one in set(windows)}
        places = range(len(ids)) if sink.order == "keep" else keyed_places([batch], ranked).tolist()
        for row in places:
            yield self._message(data=values[row], attributes={RECORD_ID: ids[row], **shared[windows[row]]}, ordering_key=keys[row])

    def _key(self, value: bytes | None) -> str:
        if not value:
            return ""
        if len(value) > _MOST_KEY_BYTES:
            remedy = "name another field as the key, or shorten this one in the policy"
            raise self._told(f"an ordering key of {len(value)} bytes is longer than the service takes, {_MOST_KEY_BYTES}", remedy)
        try:
            return value.decode()
        except UnicodeDecodeError:
            pass
        # Behind the handler: the other error holds the value.
        raise self._told("an ordering key is not text", "name a field of text as the key")

    def _told(self, fact: str, remedy: str) -> EventveilError:
        return StorageError.of(_CODE, fact, remedy, file=self._sink.path)


def pubsub_sink(output: OutputDoc, plan: Plan, format: str, provenance: Mapping[str, str]) -> PubsubSink:
    """The sink that a job names for a policy.

    Args:
        output: its `stream`, `client` and `key`, an output field outside of lists, as ``customer.id``.
        format: of its messages.

    Raises:
        PolicyError: EV103 the policy has no such field.
        SchemaError: EV219 a field's name or type cannot be written in Avro.
        StorageError: EV406 messages cannot be of this format.
    """
    assert isinstance(output.stream, PubsubAddress), "what is no topic of Pub/Sub has a sink of its own"
    sink = PubsubSink(
        Project(output.stream.project, output.client),
        output.stream.name,
        plan.output_schema,
        plan.domain,
        dict(provenance),
        "jsonl" if format == "json" else format,  # type: ignore[arg-type]
        key=None if output.key is None else key_field(plan, output.key),
        key_window=plan.key_window,
        order="keep" if plan.keep_order else "keyed",
    )
    if sink.format == "avro":
        output_avro_schema(sink.schema, sink.name)
    return sink
