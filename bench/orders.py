"""Write seeded shipping orders of about 450 bytes each, one a line.

    python bench/orders.py orders.jsonl --events 1000000
    python bench/orders.py malformed.jsonl --malformed 0.01
    python bench/orders.py shuffled.jsonl --shuffled

Each order has one e-mail, uniformly one of --emails (200,000), and one to four products, 2.5 on average, each uniformly one of
--products (10,000): 3.5 pseudonyms an event. Times go evenly, in order, through --hours (24); --shuffled deals the same times
out in another order, so that every batch holds all windows. Same arguments, same bytes; events are made in chunks of 10,000, each
from a generator of its own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

CHUNK = 10_000
START = 1_772_323_200  # 2026-03-01T00:00:00Z
FIRST = ("anna", "boris", "carla", "dmitri", "elena", "frank", "greta", "hans", "irina", "jonas")
LAST = ("abel", "brandt", "costa", "duval", "evans", "fontana", "garcia", "hoffmann", "ivanov", "jensen")
STREETS = ("Lindenstraße", "Bahnhofstrasse", "rue des Lilas", "calle Mayor", "via Garibaldi", "ul. Polna", "Main Street")
COUNTRIES = ("Germany", "France", "Spain", "Italy", "Poland", "Austria", "Netherlands", "United Kingdom")
CARRIERS = ("dhl", "dpd", "gls", "ups", "usps", "hermes")
STATUSES = ("pending", "shipped", "delivered", "returned")
TENANTS = ("contsco-ebay", "contsco-web", "contsco-b2b", "contsco-store")
GOODS = (
    "Stand mixer",
    "Teapot with strainer",
    "Coffee mill",
    "Chef's knife",
    "Mixing bowl",
    "Dough hook",
    "Salad spinner",
    "Kitchen scale",
)


def product(number: int) -> str:
    return f"sku-{number * 7919 % 1_000_003:06d}{'abcdef'[number % 6]}"


def chunk(seed: int, start: int, times: npt.NDArray[np.datetime64], emails: int, products: int) -> Iterator[bytes]:
    """The lines of one chunk, the first with number `start`."""
    rng = np.random.default_rng([seed, start])
    size = len(times)
    who = rng.integers(emails, size=size).tolist()
    pick = rng.integers(1 << 30, size=size).tolist()
    counts = rng.integers(1, 5, size=size)
    total = int(counts.sum())
    goods, amounts = rng.integers(products, size=total).tolist(), rng.geometric(0.3, size=total).tolist()
    cents = rng.integers(99, 39_999, size=total).tolist()
    clock = np.datetime_as_string(times).tolist()
    at = 0
    for row, number in enumerate(counts.tolist()):
        lines = ",".join(
            f'{{"id":"{product(goods[i])}","name":"{GOODS[goods[i] % 8]} no. {goods[i]}","quantity":{amounts[i]},"price":{cents[i] / 100}}}'
            for i in range(at, at + number)
        )
        at += number
        w, p = who[row], pick[row]
        first, last = FIRST[w % 10], LAST[w // 10 % 10]
        yield (
            f'{{"tenant":"{TENANTS[p % 4]}","id":"contsco-{start + row:010d}","time":"{clock[row]}","status":"{STATUSES[p // 4 % 4]}",'
            f'"shipping":{{"country":"{COUNTRIES[w % 8]}","zip":"{w * 31 % 100_000:05d}","line1":"{STREETS[w % 7]} {w % 240}",'
            f'"to":"{first.title()} {last.title()}","email":"{first}.{last}.{w}@example.org","carrier":"{CARRIERS[p // 16 % 6]}"}},'
            f'"products":[{lines}]}}\n'
        ).encode()


def spoil(line: bytes, kind: int) -> bytes:
    """One of the ways in which a line goes wrong: cut short, a wrong type, a missing field, not UTF-8, no object, a field twice."""
    if kind == 0:
        return line[: len(line) // 2] + b"\n"
    if kind == 1:
        return line.replace(b'"quantity":', b'"quantity":"many","was":', 1)
    if kind == 2:
        return line.replace(b'"email"', b'"mail"', 1)
    if kind == 3:
        return line.replace(b'"line1":"', b'"line1":"\xff', 1)
    if kind == 4:
        return b"[" + line[:-1] + b"]\n"
    return line.replace(b'"time":', b'"time":"2026-03-01T00:00:00","time":', 1)


def write(
    path: Path, events: int, *, seed: int, emails: int, products: int, hours: float, malformed: float, shuffled: bool
) -> dict[str, Any]:
    """Write the orders, never more than a chunk of them in memory (beside their times, when shuffled)."""
    span = hours * 3600
    order = np.random.default_rng([seed, 1 << 40]).permutation(events) if shuffled else None
    spoiled = 0
    with path.open("wb", buffering=1 << 20) as file:
        for start in range(0, events, CHUNK):
            rows = np.arange(start, min(start + CHUNK, events)) if order is None else order[start : start + CHUNK]
            times = (START + (rows * span / events).astype(np.int64)).astype("datetime64[s]")
            if not malformed:
                file.writelines(chunk(seed, start, times, emails, products))
                continue
            rng = np.random.default_rng([seed, start, 1])
            bad, kinds = rng.random(len(rows)) < malformed, rng.integers(6, size=len(rows))
            for line, is_bad, kind in zip(chunk(seed, start, times, emails, products), bad.tolist(), kinds.tolist()):
                file.write(spoil(line, kind) if is_bad else line)
            spoiled += int(bad.sum())
    size = path.stat().st_size
    return {
        "events": events,
        "bytes": size,
        "bytes_per_event": round(size / events, 1),
        "emails": emails,
        "products": products,
        "malformed": spoiled,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--emails", type=int, default=200_000, help="number of distinct e-mail addresses")
    parser.add_argument("--products", type=int, default=10_000, help="number of distinct product ids")
    parser.add_argument("--hours", type=float, default=24, help="what the times of all events span")
    parser.add_argument("--malformed", type=float, default=0, help="share of lines that are spoiled, 0 to 1")
    parser.add_argument("--shuffled", action="store_true", help="times in no order")
    arguments = vars(parser.parse_args())
    print(json.dumps(write(arguments.pop("path"), arguments.pop("events"), **arguments)))


if __name__ == "__main__":
    main()
