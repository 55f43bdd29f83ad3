"""Producers of Kafka: they deliver in order and once, and say in our words what they could not deliver.

A producer belongs to one writer at a time. Between bundles it is parked, for connecting and asking for an identity cost more than a batch.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from eventveil.pipeline.sources.stream import Unreachable
from eventveil.schemas.errors import EventveilError, StorageError

if TYPE_CHECKING:
    from eventveil.pipeline.sources.kafka import Cluster

__all__ = ["Message", "Producer", "park", "take"]

Message = tuple[bytes, bytes, int, list[tuple[str, bytes]]]
"""Value, key, milliseconds since 1970, headers."""

_WANTED = {
    "batch.size": 1 << 17,  # a topic may take less than the client's usual megabyte, and refuses whole batches
    "compression.type": "lz4",
    "linger.ms": 20,
    "log_level": 0,  # its own lines on stderr name hosts, and repeat every second
    "message.max.bytes": 64 << 20,  # the topic decides what is too large, not the client
    "message.timeout.ms": 60_000,
    "queue.buffering.max.kbytes": 64 << 10,
    "topic.metadata.refresh.interval.ms": 60_000,
}
_DECIDED = {
    "acks": "all",
    "delivery.report.only.error": True,
    "enable.idempotence": True,
    # As Java's clients do it, so that others who write or read by the same key find the same partition.
    "partitioner": "murmur2_random",
}
# What may be over by itself, or with a fresh identity of the producer; everything else will come again.
_PASSING = frozenset(
    {
        "BROKER_NOT_AVAILABLE",
        "COORDINATOR_LOAD_IN_PROGRESS",
        "COORDINATOR_NOT_AVAILABLE",
        "INVALID_PRODUCER_EPOCH",
        "INVALID_PRODUCER_ID_MAPPING",
        "KAFKA_STORAGE_ERROR",
        "LEADER_NOT_AVAILABLE",
        "NETWORK_EXCEPTION",
        "NOT_COORDINATOR",
        "NOT_ENOUGH_REPLICAS",
        "NOT_ENOUGH_REPLICAS_AFTER_APPEND",
        "NOT_LEADER_FOR_PARTITION",
        "OUT_OF_ORDER_SEQUENCE_NUMBER",
        "REQUEST_TIMED_OUT",
        "THROTTLING_QUOTA_EXCEEDED",
        "UNKNOWN_PRODUCER_ID",
        "_ALL_BROKERS_DOWN",
        "_FATAL",
        "_GAPLESS_GUARANTEE",
        "_MSG_TIMED_OUT",
        "_RESOLVE",
        "_TIMED_OUT",
        "_TRANSPORT",
    }
)
_TOO_LARGE = frozenset({"MSG_SIZE_TOO_LARGE", "RECORD_LIST_TOO_LARGE"})
# Said by the client beside what then times out: it goes on trying, but it is refused for good.
_REFUSING = {
    "SASL_AUTHENTICATION_FAILED": "refuses the client's credentials",
    "_AUTHENTICATION": "refuses the client's credentials",
    "_SSL": "and the client do not accept each other's certificates",
}

_SECONDS_TO_FORGET = 1.0

_parked: dict[tuple[int, Cluster], list[Producer]] = {}
_lock = threading.Lock()


def take(cluster: Cluster) -> Producer:
    """A producer for the caller alone: one that was parked in this process, or a new one."""
    with _lock:
        free = _parked.get((os.getpid(), cluster))
        if free:
            return free.pop()
    return Producer(cluster)


def park(producer: Producer) -> None:
    """Leave a producer that has delivered everything to whoever takes it next."""
    with _lock:
        _parked.setdefault((os.getpid(), producer.cluster), []).append(producer)


class Producer:
    """One client of a cluster. Refuses to be pickled, as its client holds secrets.

    Raises:
        StorageError: EV415 the client is not installed, or does not take its settings.
        PolicyError: EV103 EV115 EV117, a reference in the settings cannot be filled.
    """

    def __init__(self, cluster: Cluster) -> None:
        try:
            import confluent_kafka
        except ImportError:
            fact, remedy = "the client for Kafka is not installed", "pip install 'eventveil[kafka]'"
            raise StorageError.of("EV415", fact, remedy) from None
        self.cluster = cluster
        self._failed: list[tuple[str, int]] = []
        self._cause = ""
        self._kafka_error: type[Exception] = confluent_kafka.KafkaException
        filled = cluster.filled()
        try:
            self._client: Any = confluent_kafka.Producer(
                {**_WANTED, **filled, **_DECIDED, "bootstrap.servers": cluster.bootstrap, "error_cb": self._hear}
            )
        except (confluent_kafka.KafkaException, TypeError, ValueError):
            # The client's own words quote the setting's value, which may be a secret.
            fact = f"the client does not take its settings: {', '.join(sorted(filled)) or 'none were given'}"
            remedy = "correct them; they are those of a producer of librdkafka"
            raise StorageError.of("EV415", fact, remedy, file=f"kafka://{cluster.bootstrap}") from None

    def __reduce__(self) -> Any:
        raise TypeError("a producer is never pickled: make it where it writes")

    def send(self, topic: str, messages: Iterable[Message]) -> None:
        """Hand messages over, in this order; waits where the client's queue is full. They are delivered when `settle` has returned."""
        produce, poll, note, kafka_error = self._client.produce, self._client.poll, self._note, self._kafka_error
        # Per-row Python: the client takes messages with headers one by one only.
        for number, (value, key, millis, headers) in enumerate(messages):
            while True:
                try:
                    produce(topic, value, key, on_delivery=note, timestamp=millis, headers=headers)
                    break
                except BufferError:
                    poll(0.1)
                    self._check(topic)
                except kafka_error as error:
                    raise self._told(topic, error.args[0].name(), len(value or b"") + len(key)) from None
            if not number & 0xFF:
                poll(0)
                self._check(topic)

    def settle(self, topic: str) -> None:
        """Wait until the broker has acknowledged everything that was sent; the client gives up after ``message.timeout.ms``."""
        while self._client.flush(0.5):
            self._check(topic)
        self._check(topic)
        self._cause = ""

    def abandon(self) -> None:
        """Forget what was not delivered yet; the producer is of no use any more."""
        self._client.purge(blocking=False)
        # A message holds on to us until its report was heard, and so to threads and connections: those of every attempt that failed.
        self._client.flush(_SECONDS_TO_FORGET)

    def find_topic(self, topic: str, seconds: float) -> None:
        """See that the topic is there, or comes into being where the broker makes topics that somebody asks for.

        Raises:
            Unreachable: EV415 no answer. StorageError: EV415 no such topic, or not for us.
        """
        end = time.monotonic() + seconds
        while True:
            found = self._metadata(topic, max(1.0, end - time.monotonic())).topics[topic]
            if found.error is None and found.partitions and all(one.leader >= 0 for one in found.partitions.values()):
                self._cause = ""
                return
            name = "UNKNOWN_TOPIC_OR_PART" if found.error is None else found.error.name()
            if name not in ("UNKNOWN_TOPIC_OR_PART", "LEADER_NOT_AVAILABLE") or time.monotonic() > end:
                raise self._told(topic, name, 0)
            time.sleep(0.2)

    def cluster_id(self, seconds: float) -> str | None:
        """What the brokers call their cluster; None where they do not answer."""
        try:
            found: str | None = self._client.list_topics(timeout=seconds).cluster_id
        except self._kafka_error:
            return None
        return found

    def _metadata(self, topic: str, seconds: float) -> Any:
        try:
            return self._client.list_topics(topic, timeout=seconds)
        except self._kafka_error as error:
            self._client.poll(0)
            raise self._told(topic, error.args[0].name(), 0) from None

    def _hear(self, error: Any) -> None:
        self._cause = _REFUSING.get(error.name(), self._cause)

    def _note(self, error: Any, message: Any) -> None:
        if error is not None:
            self._failed.append((error.name(), len(message.value() or b"") + len(message.key() or b"")))

    def _check(self, topic: str) -> None:
        if self._failed:
            # The one that will come again, before those that only fell with it.
            name, size = min(self._failed, key=lambda one: (one[0] in _PASSING, -one[1]))
            raise self._told(topic, name, size)

    def _told(self, topic: str, name: str, size: int) -> EventveilError:
        place = f"kafka://{self.cluster.bootstrap}/{topic}"
        if name in _TOO_LARGE:
            fact = f"a message of {size} bytes is larger than the topic takes, alone or with others in its batch"
            remedy = "raise the topic's max.message.bytes, lower the client's batch.size, or refuse such events with max_event_bytes"
            return StorageError.of("EV415", fact, remedy, file=place)
        if name in ("UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC"):
            return StorageError.of("EV415", "there is no such topic, and the broker makes none", "create it", file=place)
        if name in _REFUSING or (name in _PASSING and self._cause):
            fact = f"the broker {_REFUSING.get(name, self._cause)}"
            return StorageError.of("EV415", fact, "check the client's settings", file=place)
        if name in _PASSING:
            fact = f"the broker cannot be reached, or does not acknowledge ({name})"
            return Unreachable.of("EV415", fact, "check its address, and whether it runs", file=place)
        remedy = "check the topic, its limits, and what the client may do there"
        return StorageError.of("EV415", f"the broker does not take a message ({name})", remedy, file=place)
