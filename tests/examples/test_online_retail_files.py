"""The files of examples/online_retail: the sample is what the script makes of the real records."""

from __future__ import annotations

import csv
import json
import os
import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import fastavro
import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "online_retail"
MAKE = runpy.run_path(str(EXAMPLE / "make_orders.py"))


@pytest.fixture(scope="module")
def sample() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (EXAMPLE / "sample.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    if "EVENTVEIL_DATA" not in os.environ:
        pytest.skip("EVENTVEIL_DATA does not name a folder of real records")
    with MAKE["open_text"](Path(os.environ["EVENTVEIL_DATA"], "online_retail", "2010-12_to_2011-06.csv.gz")) as file:
        return list(MAKE["invoices"](csv.DictReader(file)))


def line(invoice: str, customer: str, **other: str) -> dict[str, str]:
    row = {"InvoiceNo": invoice, "StockCode": "85123A", "Description": "LANTERN", "Quantity": "6", "InvoiceDate": "2010-12-01 08:26:00"}
    return {**row, "UnitPrice": "2.55", "CustomerID": customer, "Country": "United Kingdom", **other}


class TestInvoices:
    def test_lines_of_one_invoice_become_one_event_with_the_time_of_the_first(self) -> None:
        lines = [
            line("1", "17850.0"),
            line("2", ""),
            line("1", "17850.0", InvoiceDate="2010-12-01 08:27:00", Quantity="-1", Description=""),
        ]

        first, second = MAKE["invoices"](lines)

        assert first == {
            "invoice": "1",
            "time": "2010-12-01T08:26:00",
            "customer": "17850",
            "country": "United Kingdom",
            "lines": [
                {"stock_code": "85123A", "description": "LANTERN", "quantity": 6, "unit_price": 2.55},
                {"stock_code": "85123A", "description": None, "quantity": -1, "unit_price": 2.55},
            ],
        }
        assert second["customer"] is None

    @pytest.mark.data
    def test_no_line_of_the_real_records_is_lost(self, records: list[dict[str, Any]]) -> None:
        assert (12_795, 245_903) == (len(records), sum(len(event["lines"]) for event in records))


class TestSample:
    def test_fits_the_schema(self, sample: list[dict[str, Any]]) -> None:
        schema = fastavro.parse_schema(json.loads((EXAMPLE / "invoice.avsc").read_text("utf-8")))

        assert all(fastavro.validate(event, schema, strict=True) for event in sample)

    def test_some_customers_order_again_on_the_same_day(self, sample: list[dict[str, Any]]) -> None:
        orders = Counter((event["customer"], event["time"][:10]) for event in sample if event["customer"])

        assert sum(number > 1 for number in orders.values()) >= 10

    def test_every_country_has_its_region(self, sample: list[dict[str, Any]]) -> None:
        known = {row.split(";")[0] for row in (EXAMPLE / "regions.csv").read_text("utf-8").splitlines()}

        assert {event["country"] for event in sample} <= known

    @pytest.mark.data
    def test_is_what_the_script_makes_of_the_real_records(self, sample: list[dict[str, Any]], records: list[dict[str, Any]]) -> None:
        assert sample == MAKE["sample"](records, 300)
