"""Clients of a Kafka cluster: how they are made, and what their errors mean. No text of the library is ever shown: it quotes settings."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import confluent_kafka as ck
from confluent_kafka.admin import AdminClient

from eventveil.pipeline.sources.stream import Unreachable
from eventveil.schemas.errors import Problem, StorageError
from eventveil.schemas.references import fill_references

__all__ = ["AT_ONCE", "UNKNOWN", "Cluster", "Connection", "explain"]

_LOG = logging.getLogger(__name__)

# Said by a broker or the client about a name, a right or a setting: asking again does not help.
_FOR_GOOD = {
    "UNKNOWN_TOPIC_OR_PART": "there is no such topic or partition",
    "_UNKNOWN_TOPIC": "there is no such topic or partition",
    "TOPIC_EXCEPTION": "the name of the topic is not valid",
    "TOPIC_AUTHORIZATION_FAILED": "the broker does not allow us to read the topic",
    "CLUSTER_AUTHORIZATION_FAILED": "the broker does not allow us to use the cluster",
    "SASL_AUTHENTICATION_FAILED": "the broker refuses the client's credentials",
    "UNSUPPORTED_SASL_MECHANISM": "the broker refuses the client's sasl.mechanisms",
    "_AUTHENTICATION": "the broker refuses the client's credentials",
    "_SSL": "no secure connection comes about: the certificates do not fit",
    "UNSUPPORTED_VERSION": "the broker is too old",
    "_UNSUPPORTED_FEATURE": "the broker is too old",
    "_FATAL": "the client has stopped",
}

AT_ONCE = frozenset({"CLUSTER_AUTHORIZATION_FAILED", "TOPIC_AUTHORIZATION_FAILED", "TOPIC_EXCEPTION", "_FATAL"})
"""What is so as soon as it is said. The rest is also said in passing, while brokers restart."""
UNKNOWN = frozenset({"UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC"})


@dataclass(frozen=True)
class Cluster:
    """Where a cluster is, and how to speak with it. Pickled to workers, so that no secret stands in it.

    Attributes:
        bootstrap: ``host:port``, several with commas.
        settings: of the client, under its own names. A secret is a reference, as ``${NAME}``, filled where the client is made.
    """

    bootstrap: str
    settings: tuple[tuple[str, str], ...] = ()

    def with_group(self, group: str) -> Cluster:
        return Cluster(self.bootstrap, (*((name, value) for name, value in self.settings if name != "group.id"), ("group.id", group)))

    def filled(self) -> dict[str, str]:
        """The settings as a client takes them, with their secrets: never to be kept, logged or shown."""
        return {name: fill_references(value) for name, value in self.settings}


class Connection:
    """Makes the clients of a cluster, and keeps what they say between their answers: by name alone, for the error that may come of it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._said: list[str] = []

    def consumer(self, **callbacks: Any) -> ck.Consumer:
        """A consumer that decides nothing by itself: what is read, from where on, and what counts as read is ours."""
        defaults = {
            "group.id": "eventveil",
            # The end of a partition is told once a fetch came back empty: so long a slice may wait for it.
            "fetch.wait.max.ms": 100,
            "queued.max.messages.kbytes": 32 << 10,
        }
        ours = {
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }
        made: ck.Consumer = self._made(ck.Consumer, {**defaults, **self._cluster.filled(), **ours, **callbacks})
        return made

    def admin(self) -> AdminClient:
        settings = {name: value for name, value in self._cluster.filled().items() if name != "group.id"}
        made: AdminClient = self._made(AdminClient, settings)
        return made

    def note(self, name: str) -> None:
        if len(self._said) < 64:
            self._said.append(name)

    def succeeded(self) -> None:
        self._said.clear()

    def failure(self, place: str) -> StorageError:
        """The error for what did not succeed in time: for good where anything that was said since the last success is."""
        said = next((name for name in self._said if name in _FOR_GOOD), self._said[-1] if self._said else "_TIMED_OUT")
        return explain(said, place)

    def _made(self, client: Any, settings: dict[str, Any]) -> Any:
        common = {"client.id": "eventveil", "reconnect.backoff.max.ms": 2000}
        ours = {"bootstrap.servers": self._cluster.bootstrap, "error_cb": lambda error: self.note(error.name()), "logger": _Quiet()}
        try:
            return client({**common, **settings, **ours})
        except (ck.KafkaException, ValueError, TypeError) as error:
            fact, remedy = _unfit(str(error), [name for name, _ in self._cluster.settings])
        raise StorageError.of("EV413", fact, remedy, file=self._cluster.bootstrap)


def explain(name: str, place: str) -> StorageError:
    """The error for what a client calls `name`, as ``TOPIC_AUTHORIZATION_FAILED``: `Unreachable`, unless it is for good."""
    if name in _FOR_GOOD:
        fact, remedy = f"{_FOR_GOOD[name]} ({name})", "check the name of the topic, its rights and the client's settings"
        return _storage_error(StorageError, fact, remedy, place)
    return _storage_error(
        Unreachable, f"the stream cannot be reached just now ({name})", "check the address, and whether the brokers run", place
    )


def _storage_error(kind: type[StorageError], fact: str, remedy: str, place: str) -> StorageError:
    return kind(Problem(place, 0, "EV413", fact, remedy))


def _unfit(text: str, names: Iterable[str]) -> tuple[str, str]:
    """Which settings a client does not take, told from its text, which may hold their values, by their names alone."""
    quoted = set(re.findall(r'property "([^"]*)"', text))
    wrong = sorted(name for name in names if name in quoted) or sorted(name for name in names if re.search(rf"\b{re.escape(name)}\b", text))
    if wrong:
        return f"the client does not take the setting {', '.join(wrong)}", "correct its name or value: see the settings of librdkafka"
    return "the client does not take its settings", "correct them: see the settings of librdkafka"


class _Quiet:
    """Takes the client's log lines: they name hosts and users, so that only what they are about is told, to who debugs."""

    def log(self, level: int, text: str, *values: Any) -> None:
        _LOG.debug("the kafka client says %s", values[0] if values else "something")
