"""What Confluent's own serializer writes against a real registry is what we read, version after version."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pyarrow as pa
import pytest

from eventveil.schemas.events.avro import parse_avro
from eventveil.schemas.streams import RegistryDoc
from eventveil.transforms.batch import with_kind
from eventveil.transforms.decode.reading import Decoders, Reading
from eventveil.transforms.decode.writer_schemas import WriterSchemas

pytest.importorskip("confluent_kafka.schema_registry")

FIELDS: list[dict[str, Any]] = [{"name": "id", "type": "string"}, {"name": "price", "type": "double"}]
ADDED = {"name": "note", "type": ["null", "string"], "default": None}


def record(*fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "record", "name": "Order", "namespace": "shop", "fields": list(fields)}


def test_versions_of_a_schema_are_read_as_their_writers_meant_them(registry: str) -> None:
    from confluent_kafka.schema_registry import SchemaRegistryClient
    from confluent_kafka.schema_registry.avro import AvroSerializer
    from confluent_kafka.serialization import MessageField, SerializationContext

    client = SchemaRegistryClient({"url": registry})
    place = SerializationContext(f"orders-{uuid.uuid4().hex}", MessageField.VALUE)
    first, second = (AvroSerializer(client, json.dumps(record(*FIELDS, *more))) for more in ((), (ADDED,)))
    values = [
        first({"id": "a", "price": 1.5}, place),
        second({"id": "b", "price": 2.5, "note": "new"}, place),
        first({"id": "c", "price": 3.5}, place),
        b"\0\x7f\xff\xff\xff\0",
    ]
    columns: list[Any] = [pa.array(values, pa.binary()), pa.array(range(len(values)))]
    raw = with_kind(pa.RecordBatch.from_arrays(columns, ["value", "position"]), "messages")
    reading = Reading(parse_avro(record(*FIELDS), ""), frozenset({"id", "price"}), "avro", registry=RegistryDoc(registry))
    found = Decoders(reading).decode(raw)

    assert [("a", 1.5), ("b", 2.5), ("c", 3.5)] == [(event["id"], event["price"]) for event in found.events.to_pylist()]
    assert {"?": [1]} == {label: rows.tolist() for label, rows in found.drifting.items()}
    assert [(3, "EV516")] == list(zip(found.refused_rows.tolist(), found.refused_codes))


def test_a_schema_that_refers_to_another_is_read_whole(registry: str) -> None:
    from confluent_kafka.schema_registry import Schema, SchemaReference, SchemaRegistryClient

    client = SchemaRegistryClient({"url": registry})
    name = uuid.uuid4().hex
    money = {"type": "record", "name": "Money", "namespace": "shop", "fields": [{"name": "amount", "type": "long"}]}
    client.register_schema(f"money-{name}", Schema(json.dumps(money), "AVRO"))
    whole = record(FIELDS[0], {"name": "price", "type": "shop.Money"})
    number = client.register_schema(
        f"orders-{name}", Schema(json.dumps(whole), "AVRO", [SchemaReference("shop.Money", f"money-{name}", 1)])
    )
    found = WriterSchemas(RegistryDoc(registry)).schema(number)

    assert found is not None
    assert money["fields"] == json.loads(found)["fields"][1]["type"]["fields"]
