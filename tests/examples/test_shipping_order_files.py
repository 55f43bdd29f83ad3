"""The files of examples/shipping_order: what the documents promise about them."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import fastavro
import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "shipping_order"


@pytest.fixture(scope="module")
def events() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (EXAMPLE / "orders.jsonl").read_text("utf-8").splitlines()]


def test_the_first_order_is_that_of_the_article(events: list[dict[str, Any]]) -> None:
    expected = {
        "tenant": "contsco-ebay",
        "id": "contsco-2024-09-10-0334",
        "time": "2014-09-04T22:57:55",
        "status": "pending",
        "shipping": {"country": "Russia", "zip": "450075", "line1": "Ufa ul.Zorge 66-61", "to": "Abdullin Rinat", "carrier": "usps"},
        "products": [
            {"id": "ksm6573er", "name": "Kitchen Aid 6573 Empire Red", "quantity": 1, "price": "200 EUR"},
            {"id": "ka1234", "name": "Plastic shield guard", "quantity": 10, "price": "7.99 EUR"},
        ],
    }

    assert expected == events[0]


def test_the_generator_still_makes_the_file(events: list[dict[str, Any]]) -> None:
    assert events == runpy.run_path(str(EXAMPLE / "generate.py"))["orders"]()


def test_every_order_fits_the_schema_and_has_an_id_of_its_own(events: list[dict[str, Any]]) -> None:
    schema = fastavro.parse_schema(json.loads((EXAMPLE / "shipping_order.avsc").read_text("utf-8")))

    assert all(fastavro.validate(event, schema, strict=True) for event in events)
    assert len(events) == len({event["id"] for event in events}) == 200
