"""Addresses of streams, and the settings that a job hands to their clients.

A stream is addressed as ``kafka://host:port,host:port/topic?group=name`` (``kafka+java://`` where Beam's own source for Java shall
read it), or as ``pubsub://project/subscription`` (where it is
written, ``pubsub://project/topic``). What its client needs beyond that, certificates and
passwords above all, stands beside the address, under the client's own names; those that decide what is read, written or kept are ours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = [
    "JAVA_KAFKA",
    "LATER_SCHEMES",
    "SCHEME",
    "STREAM_SCHEMES",
    "PubsubAddress",
    "RegistryDoc",
    "Settings",
    "StreamAddress",
    "is_secret",
    "is_stream",
    "owned",
    "parse_stream",
]

Settings = tuple[tuple[str, str], ...]
"""Names and values for a client, by name; values may hold references."""

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
JAVA_KAFKA = "kafka+java"
STREAM_SCHEMES = frozenset({"kafka", JAVA_KAFKA, "pubsub"})
LATER_SCHEMES = frozenset({"abfs", "gs", "hdfs", "s3"})

_SERVER = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252}))(?::([0-9]{1,5}))?\Z")
_PROJECT = re.compile(r"[a-z0-9][a-z0-9.:-]{1,98}[a-z0-9]\Z")
_PUBSUB_NAME = re.compile(r"(?!goog)[A-Za-z][A-Za-z0-9._~+%-]{2,254}\Z")
_KAFKA_NAME = re.compile(r"[A-Za-z0-9._-]{1,249}\Z")
_DEFAULT_PORT = 9092
_ADDRESS = "remove it: the address names the brokers"
_GROUP = "remove it: the address names the group, as ?group=name"
_START = "remove it: the address says where to start, as ?start=latest"
_OURS = "remove it: this setting is ours"
_OWNED = {
    "acks": _OURS,
    "auto.commit.interval.ms": _OURS,
    "auto.offset.reset": _START,
    "bootstrap.servers": _ADDRESS,
    "debug": _OURS,
    "enable.auto.commit": _OURS,
    "enable.auto.offset.store": _OURS,
    "enable.gapless.guarantee": _OURS,
    "enable.idempotence": _OURS,
    "enable.partition.eof": _OURS,
    "group.id": _GROUP,
    "group.instance.id": _OURS,
    "group.protocol": _OURS,
    "isolation.level": _OURS,
    "max.in.flight": _OURS,
    "max.in.flight.requests.per.connection": _OURS,
    "message.send.max.retries": _OURS,
    "metadata.broker.list": _ADDRESS,
    "offset.store.method": _OURS,
    "plugin.library.paths": _OURS,
    "request.required.acks": _OURS,
    "retries": _OURS,
    "transactional.id": _OURS,
}
_SECRET = re.compile(
    r"(?:^|[._-])(?:password|passwd|passphrase|pwd|secrets?|tokens?|credentials?|api[._-]?key|access[._-]?key|private[._-]?key)(?:$|[._-])"
)
_SECRETS = frozenset({"basic.auth.user.info", "sasl.jaas.config", "sasl.oauthbearer.config", "ssl.key.pem"})
"""Settings that hold a secret, and whose names do not say so."""
_NO_SECRET = re.compile(r"[._-](?:url|location|file|source|ms)\Z")


def is_stream(uri: str) -> bool:
    """Whether a stream is addressed, well or badly, and no file."""
    scheme = SCHEME.match(uri)
    return scheme is not None and scheme[1] in STREAM_SCHEMES


@dataclass(frozen=True)
class StreamAddress:
    """Where a stream is.

    Attributes:
        servers: ``host:port``, several with commas.
        group: the name under which the broker shows how far a job has come; None where it writes.
        start: where a job without a checkpoint begins: ``earliest`` or ``latest``.
    """

    scheme: str
    servers: str
    topics: tuple[str, ...]
    group: str | None = None
    start: str = "earliest"

    @classmethod
    def parse(cls, text: str) -> StreamAddress:
        """Raises ValueError (EV103) where it is none."""
        scheme, _, rest = text.partition("://")
        path, asked, query = rest.partition("?")
        servers, _, topics = path.partition("/")
        if "@" in servers:
            raise ValueError("EV103 credentials stand in an address: write them as settings of the client, as sasl.username")
        names = tuple(topics.split(","))
        for name in names:
            if not _KAFKA_NAME.match(name) or name in (".", ".."):
                raise ValueError(f"EV103 not an address of a stream: write {scheme}://host:port/topic, topics of letters, digits and . _ -")
        if len(set(names)) < len(names):
            raise ValueError("EV103 a topic stands twice: write it once")
        given = _query(query) if asked else {}
        return cls(scheme, ",".join(_server(server, scheme) for server in servers.split(",")), names, **given)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.servers}/{','.join(self.topics)}"


@dataclass(frozen=True)
class PubsubAddress:
    """Where a stream of Google Cloud Pub/Sub is.

    Attributes:
        name: of the subscription that is read, or of the topic that is written.
    """

    project: str
    name: str

    scheme = "pubsub"

    @classmethod
    def parse(cls, text: str) -> PubsubAddress:
        """Raises ValueError (EV103) where it is none."""
        project, _, name = text.partition("://")[2].partition("/")
        if _PROJECT.match(project) is None or _PUBSUB_NAME.match(name) is None:
            raise ValueError("EV103 not an address of a stream: write pubsub://project/subscription, or pubsub://project/topic to write to")
        return cls(project, name)

    def __str__(self) -> str:
        return f"pubsub://{self.project}/{self.name}"


def parse_stream(text: str) -> StreamAddress | PubsubAddress:
    """Raises ValueError (EV103) where it is none."""
    return PubsubAddress.parse(text) if text.startswith("pubsub://") else StreamAddress.parse(text)


@dataclass(frozen=True)
class RegistryDoc:
    """A schema registry, and the settings of its client."""

    url: str
    client: Settings = ()


def _server(text: str, scheme: str) -> str:
    found = _SERVER.match(text)
    port = _DEFAULT_PORT if found is None or found[2] is None else int(found[2])
    if found is None or not 0 < port < 65536:
        raise ValueError(f"EV103 not an address of a stream: write {scheme}://host:port/topic, several hosts with commas")
    return f"{found[1]}:{port}"


def _query(text: str) -> dict[str, str]:
    given: dict[str, str] = {}
    for entry in text.split("&"):
        name, _, value = entry.partition("=")
        if name not in ("group", "start"):
            raise ValueError("EV103 the address asks for something unknown: write ?group=name and &start=earliest or latest alone")
        if name in given:
            raise ValueError(f"EV103 {name} stands twice in the address: write it once")
        if name == "start" and value not in ("earliest", "latest"):
            raise ValueError("EV103 the address starts nowhere: write start=earliest or start=latest")
        if name == "group" and not _KAFKA_NAME.match(value):
            raise ValueError("EV103 the group of the address has no name: write group=name, of letters, digits and . _ -")
        given[name] = value
    return given


def owned(setting: str) -> str | None:
    """What to do instead of a client's setting that is ours: those that decide what is read, from where on, and what counts as written."""
    return _OWNED.get(setting, _OURS if setting.endswith("_cb") else None)


def is_secret(key: str) -> bool:
    """Whether a key names a secret: ``sasl.password``, ``apiKey``, ``auth_token``; not ``ssl.key.location``, which says where it is."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower()
    return spaced in _SECRETS or (_SECRET.search(spaced) is not None and _NO_SECRET.search(spaced) is None)
