"""The schemas that producers wrote with, asked of a schema registry by the numbers in their messages.

A number never changes its meaning: what was answered once is kept for the life of the process. While the registry is gone events wait,
for nothing can be said of them; no event is refused because a server was down.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar

from eventveil.schemas.errors import EventveilError, StorageError, Unreachable
from eventveil.schemas.references import fill_references
from eventveil.schemas.streams import RegistryDoc

__all__ = ["WriterSchemas", "writer_schemas"]

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")

# A job's settings are text, and the client takes these as numbers alone.
_NUMBERS = frozenset({"cache.capacity", "cache.latest.ttl.sec", "max.retries", "retries.max.wait.ms", "retries.wait.ms", "timeout"})
_DEFAULTS: dict[str, Any] = {"max.retries": 0, "timeout": 10}
_PATIENCE_S = 30.0
_LONGEST_PAUSE_S = 5.0
_KEPT = 4096
_UNKNOWN_FOR_S = 60.0
_MOST_REFERENCES = 64


@lru_cache(maxsize=8)
def writer_schemas(registry: RegistryDoc) -> WriterSchemas:
    """The schemas of a registry, shared by all who ask in this process."""
    return WriterSchemas(registry)


class WriterSchemas:
    """Asks a registry for schemas, each once.

    Args:
        patience_s: how long it waits for a registry that does not answer.
    """

    def __init__(self, registry: RegistryDoc, patience_s: float = _PATIENCE_S) -> None:
        self._registry = registry
        self._patience_s = patience_s
        self._found: OrderedDict[int, tuple[str | None, float]] = OrderedDict()
        self._lock = threading.Lock()

    def schema(self, number: int) -> str | None:
        """The Avro schema of a number, as JSON; None where the registry has none.

        Raises:
            Unreachable: EV414 no answer in time. StorageError: EV414 it refuses who asks.
        """
        with self._lock:
            text, until = self._found.get(number, (None, 0.0))
            if text is not None or time.monotonic() < until:
                return text
            text = self._patiently(lambda: _asked(self._registry, number))
            self._found[number] = (text, time.monotonic() + _UNKNOWN_FOR_S)
            if len(self._found) > _KEPT:
                self._found.popitem(last=False)
            return text

    def _patiently(self, ask: Callable[[], _T]) -> _T:
        end, pause = time.monotonic() + self._patience_s, 0.25
        while True:
            try:
                return ask()
            except Unreachable:
                if time.monotonic() + pause > end:
                    raise
            _LOG.warning("EV414 the schema registry %s does not answer: events wait for it", self._registry.url)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)


def _asked(registry: RegistryDoc, number: int) -> str | None:
    try:
        # Costs a fifth of a second, and a library for HTTP: only for those who have a registry.
        from confluent_kafka.schema_registry import SchemaRegistryClient, SchemaRegistryError
    except ImportError:
        raise StorageError.of("EV414", "the client of the registry is not installed", "pip install 'eventveil[kafka]'") from None
    filled = {name: fill_references(value) for name, value in registry.client}
    try:
        settings = {name: int(value) if name in _NUMBERS else value for name, value in filled.items()}
        client = SchemaRegistryClient({**_DEFAULTS, "url": registry.url, **settings})
        return _whole(client, client.get_schema(number))
    except SchemaRegistryError as error:
        status = int(error.http_status_code)
    except Exception as error:  # noqa: BLE001 - whatever its library for HTTP raises; texts may quote settings
        raise _unanswered(registry, error) from None
    if status == 404:
        return None
    if status >= 500 or status == 429:
        fact = f"the registry does not answer as it should (status {status})"
        raise Unreachable.of("EV414", fact, "look at the registry", file=registry.url)
    fact = f"the registry refuses who asks (status {status})"
    raise StorageError.of("EV414", fact, "check its address and the settings of its client", file=registry.url)


def _unanswered(registry: RegistryDoc, error: Exception) -> EventveilError:
    if type(error).__module__.startswith(("httpx", "httpcore")) or isinstance(error, OSError):
        return Unreachable.of("EV414", "the registry cannot be reached", "check its address, and that it runs", file=registry.url)
    told = ", ".join(name for name, _ in registry.client) or "none were given"
    fact = f"the registry's client does not take its settings, or its answer: {told}"
    return StorageError.of("EV414", fact, "correct the settings, and the address", file=registry.url)


def _whole(client: Any, schema: Any) -> str | None:
    """The text of an Avro schema with all that it refers to written out; None where it is of another language, or no JSON."""
    named: dict[str, Any] = {}
    waiting = list(schema.references or ())
    while waiting and len(named) < _MOST_REFERENCES:
        one = waiting.pop()
        if one.name not in named:
            found = client.get_version(one.subject, one.version).schema
            named[one.name] = found.schema_str
            waiting += found.references or ()
    if schema.schema_type not in (None, "AVRO"):
        return None
    if not named:
        return str(schema.schema_str)
    try:
        documents = {name: json.loads(text) for name, text in named.items()}
        return json.dumps(_written_out(json.loads(schema.schema_str), documents, set(), ""))
    except (ValueError, TypeError, RecursionError):
        return None


def _written_out(schema: Any, named: Mapping[str, Any], done: set[str], space: str) -> Any:
    """A schema in which each named type of others stands where it is used first."""
    if isinstance(schema, str):
        for name in (f"{space}.{schema}", schema):
            if name in done:
                return name
            if name in named:
                done.add(name)
                # A type without a namespace must not take that of the one it is written into.
                definition = named[name] if "." in name or not isinstance(named[name], dict) else {"namespace": "", **named[name]}
                return _written_out(definition, named, done, "")
        return schema
    if isinstance(schema, list):
        return [_written_out(one, named, done, space) for one in schema]
    name = schema.get("name", "")
    inner = name.rpartition(".")[0] if "." in name else schema.get("namespace", space)
    found = dict(schema)
    if "fields" in schema:
        found["fields"] = [{**one, "type": _written_out(one["type"], named, done, inner)} for one in schema["fields"]]
    for key in ("items", "values"):
        if key in schema:
            found[key] = _written_out(schema[key], named, done, inner)
    if "name" not in schema and not isinstance(schema.get("type"), str):
        found["type"] = _written_out(schema["type"], named, done, inner)
    return found
