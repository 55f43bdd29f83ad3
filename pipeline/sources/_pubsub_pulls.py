"""Messages of a subscription as Arrow columns, by several pulls at a time: one call of the service gives a part of what it has.

Within this package a pulled batch has the columns of `PULLED`; `raw_batch` makes a raw batch of it, without what only the service needs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from eventveil.pipeline.sources._pubsub_client import Connection
from eventveil.pipeline.sources.stream import Unreachable

__all__ = ["MOST_AT_ONCE", "PULLED", "Puller", "acks_of", "position_of", "pulled_batch", "raw_batch"]

_PULLS = 4
_MESSAGES = 1000  # of a pull: the most that the service gives
MOST_AT_ONCE = _PULLS * _MESSAGES
_GUESSED_SIZE = 1024.0
_INSTANT = pa.timestamp("us", "UTC")
_LARGEST = (1 << 63) - 1
_HEADERS = pa.list_(pa.struct([("name", pa.string()), ("value", pa.binary())]))
_FIELDS: list[Any] = [
    ("value", pa.binary()),
    ("position", pa.int64()),
    ("key", pa.binary()),
    ("headers", _HEADERS),
    ("appended", _INSTANT),
    ("ack", pa.string()),
]
PULLED = pa.schema(_FIELDS)
"""`value` is null for a message of attributes alone, `key` where it has no ordering key; `appended` is when it was published."""

_pa: Any = pa  # the stubs know no column of offsets but its class


def position_of(message_id: str) -> int:
    """A number for a message's id, the same whenever the message comes: decimal ids as they are, of others 63 bits of BLAKE2b."""
    # Ids of the service are decimal. With a zero before it, it would be another id than the one without.
    if message_id.isascii() and message_id.isdigit() and len(message_id) < 20 and (message_id[0] != "0" or message_id == "0"):
        number = int(message_id)
        if number <= _LARGEST:
            return number
    return int.from_bytes(hashlib.blake2b(message_id.encode(), digest_size=8).digest(), "big") >> 1


def pulled_batch(received: Sequence[Any]) -> pa.RecordBatch:
    """Received messages, as the service tells them, as a pulled batch."""
    messages = [one.message for one in received]
    seconds = np.fromiter((one.publish_time.seconds for one in messages), np.int64, len(messages))
    nanos = np.fromiter((one.publish_time.nanos for one in messages), np.int64, len(messages))
    columns: list[Any] = [
        pa.array([one.data or None for one in messages], pa.binary()),
        pa.array([position_of(one.message_id) for one in messages], pa.int64()),
        pa.array([one.ordering_key.encode() or None for one in messages], pa.binary()),
        _headers([one.attributes for one in messages]),
        pa.array(seconds * 1_000_000 + nanos // 1000).cast(_INSTANT),
        pa.array([one.ack_id for one in received], pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=PULLED)


def _headers(told: Sequence[Any]) -> Any:
    offsets = np.zeros(len(told) + 1, np.int32)
    np.cumsum([len(attributes) for attributes in told], out=offsets[1:])
    # Their order is the map's own, and another each time.
    flat = [entry for attributes in told if attributes for entry in sorted(attributes.items())]
    names = pa.array([name for name, _ in flat], pa.string())
    values = pa.array([value.encode() for _, value in flat], pa.binary())
    entries = pa.StructArray.from_arrays([names, values], ["name", "value"])
    return _pa.ListArray.from_arrays(pa.array(offsets), entries)


def raw_batch(pulled: pa.RecordBatch, wants: frozenset[str], topic: str) -> pa.RecordBatch:
    """A pulled batch -> a raw batch: `value`, `position` and what is wanted of key, headers, topic, time and appended.

    Args:
        topic: the name of the subscription; the service does not tell which topic a message was sent to.
    """
    names = ["value", "position", *sorted(wants)]
    made: dict[str, Any] = {"time": pulled.column("appended")}
    if "topic" in wants:
        made["topic"] = _pa.repeat(pa.scalar(topic), pulled.num_rows)
    return pa.RecordBatch.from_arrays([made[name] if name in made else pulled.column(name) for name in names], names)


def acks_of(pulled: pa.RecordBatch) -> list[str]:
    """What the service wants to be told when the messages are done."""
    found: list[Any] = pulled.column("ack").to_pylist()
    return found


class Puller:
    """Pulls from one subscription. For one thread at a time."""

    def __init__(self, connection: Connection, subscription: str) -> None:
        self._connection = connection
        self._subscription = subscription
        self._size = _GUESSED_SIZE

    def pull(self, most_bytes: int) -> list[pa.RecordBatch]:
        """What is there now, at most about so many bytes and `MOST_AT_ONCE` messages; nothing where nothing is.

        Raises:
            Unreachable: for now. StorageError: for good.
        """
        most = int(min(_MESSAGES, max(1.0, most_bytes / self._size / _PULLS)))
        # Asked to wait instead, all pulls but one would sit out their time wherever there is little.
        begun = [self._begin(most, 10.0, return_immediately=True) for _ in range(_PULLS)]
        found: list[pa.RecordBatch] = []
        failed: list[Exception] = []
        for future in begun:
            try:
                self._take(future, found)
            except Unreachable as error:
                failed.append(error)
        if failed and not found:
            raise failed[0]
        return found

    def wait(self, seconds: float) -> list[pa.RecordBatch]:
        """What comes within this time, the first of it at once. A pull that does not wait may come back empty though there is something."""
        future = self._begin(_MESSAGES, seconds)
        found: list[pa.RecordBatch] = []
        try:
            self._take(future, found)
        except Unreachable as error:
            if "DEADLINE_EXCEEDED" not in error.problems[0].fact:
                raise
        return found

    def _begin(self, most: int, seconds: float, **more: Any) -> Any:
        return self._connection.future("Pull", seconds, subscription=self._subscription, max_messages=most, **more)

    def _take(self, future: Any, found: list[pa.RecordBatch]) -> None:
        received = self._connection.result(future, self._subscription).received_messages
        if received:
            found.append(pulled_batch(received))
            self._size = max(1.0, found[-1].nbytes / len(received))
