"""Turn the lines of the Online Retail data into order events: all lines with one invoice number become one event.

    python make_orders.py DATA.csv.gz > orders.jsonl
    python make_orders.py DATA.csv.gz --sample 300 > sample.jsonl

The time of an order is that of its first line. A sample takes whole customers, so that some of them order again, and only
orders of at most 20 lines. Same input, same output.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

LONGEST_IN_SAMPLE = 20


def open_text(path: Path) -> TextIO:
    """The file as text, unpacked where its name ends in .gz."""
    return gzip.open(path, "rt", encoding="utf-8", newline="") if path.suffix == ".gz" else path.open(encoding="utf-8", newline="")


def invoices(lines: Iterable[dict[str, str]]) -> Iterator[dict[str, Any]]:
    """One event per invoice, in the order of their first lines."""
    found: dict[str, dict[str, Any]] = {}
    for line in lines:
        event = found.get(line["InvoiceNo"])
        if event is None:
            event = found[line["InvoiceNo"]] = {
                "invoice": line["InvoiceNo"],
                "time": line["InvoiceDate"].replace(" ", "T"),
                "customer": line["CustomerID"].removesuffix(".0") or None,
                "country": line["Country"],
                "lines": [],
            }
        event["lines"].append(
            {
                "stock_code": line["StockCode"],
                "description": line["Description"] or None,
                "quantity": int(line["Quantity"]),
                "unit_price": float(line["UnitPrice"]),
            }
        )
    return iter(found.values())


def sample(events: Iterable[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """About `count` events of whole customers (an order without one stands for itself), chosen by a hash, in their order."""
    small = [event for event in events if len(event["lines"]) <= LONGEST_IN_SAMPLE]
    orders: dict[str, list[int]] = {}
    for number, event in enumerate(small):
        orders.setdefault(event["customer"] or event["invoice"], []).append(number)
    chosen: list[int] = []
    for who in sorted(orders, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if len(chosen) >= count:
            break
        chosen += orders[who]
    return [small[number] for number in sorted(chosen)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="CSV with the columns InvoiceNo, StockCode, Description, ...; plain or .gz")
    parser.add_argument("--sample", type=int, metavar="N", help="about N orders instead of all")
    arguments = parser.parse_args()
    with open_text(arguments.data) as file:
        events: Iterable[dict[str, Any]] = invoices(csv.DictReader(file))
        if arguments.sample:
            events = sample(events, arguments.sample)
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
        for event in events:
            sys.stdout.write(json.dumps(event, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
