"""The schema of an output, registered: readers find it by the number that each message begins with."""

from __future__ import annotations

import json
import threading
from typing import Any

from eventveil.pipeline.sources.stream import Unreachable
from eventveil.schemas.errors import EventveilError, StorageError
from eventveil.schemas.job import RegistryDoc
from eventveil.schemas.references import fill_references

__all__ = ["register"]

# A job's settings are text, and the client takes these as numbers alone.
_NUMBERS = frozenset({"cache.capacity", "cache.latest.ttl.sec", "max.retries", "retries.max.wait.ms", "retries.wait.ms", "timeout"})

_ids: dict[tuple[RegistryDoc, str, str], int] = {}
_lock = threading.Lock()


def register(registry: RegistryDoc, subject: str, schema: dict[str, Any]) -> int:
    """The number of a schema under a subject: registered if it is not there yet, and asked for once per process.

    Raises:
        Unreachable: EV414 no answer. StorageError: EV414 it refuses the schema, or who asks.
    """
    text = json.dumps(schema, ensure_ascii=False)
    with _lock:
        if (registry, subject, text) not in _ids:
            _ids[registry, subject, text] = _ask(registry, subject, text)
        return _ids[registry, subject, text]


def _ask(registry: RegistryDoc, subject: str, text: str) -> int:
    try:
        # Costs a fifth of a second, and a library for HTTP: only for those who have a registry.
        from confluent_kafka.schema_registry import Schema, SchemaRegistryClient, SchemaRegistryError
    except ImportError:
        raise StorageError.of("EV414", "the client of the registry is not installed", "pip install 'eventveil[kafka]'") from None
    filled = {name: fill_references(value) for name, value in registry.client}
    schema = Schema(text, "AVRO")
    try:
        numbers = {name: int(value) for name, value in filled.items() if name in _NUMBERS}
        client = SchemaRegistryClient({"url": registry.url, **filled, **numbers})
        try:
            # Who may only read finds what somebody has registered before.
            return int(client.lookup_schema(subject, schema).schema_id)  # type: ignore[arg-type]
        except SchemaRegistryError as error:
            if error.http_status_code != 404:
                raise
        return int(client.register_schema(subject, schema))
    except SchemaRegistryError as error:
        raise _told(registry, subject, int(error.http_status_code)) from None
    except Exception as error:  # noqa: BLE001 - whatever its library for HTTP raises; texts may quote settings
        if type(error).__module__.startswith("httpx"):
            raise Unreachable.of(
                "EV414", "the registry cannot be reached", "check its address, and that it runs", file=registry.url
            ) from None
        fact = f"the registry's client does not take its settings, or its answer: {', '.join(sorted(filled)) or 'none were given'}"
        raise StorageError.of("EV414", fact, "correct the settings, and the address", file=registry.url) from None


def _told(registry: RegistryDoc, subject: str, status: int) -> EventveilError:
    if status >= 500 or status == 429:
        return Unreachable.of("EV414", f"the registry does not answer as it should (status {status})", "see why", file=registry.url)
    if status in (401, 403):
        return StorageError.of("EV414", "the registry refuses who asks", "check the settings of its client", file=registry.url)
    if status == 409:
        fact = f"the output's schema is not compatible with what {subject} holds"
        return StorageError.of("EV414", fact, "write to another topic, or change the subject's compatibility", file=registry.url)
    return StorageError.of("EV414", f"the registry does not take the schema of {subject} (status {status})", "see why", file=registry.url)
