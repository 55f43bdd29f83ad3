"""A peer: the same work as a plain loop over events with orjson and HMAC, as one would write it without eventveil.

    python bench/loop.py orders.jsonl out.jsonl
    python bench/loop.py kafka://127.0.0.1:9092/orders out.jsonl       a topic, up to where it ends now

It does what the result asks for: window keys, pseudonyms, noise that a retry repeats (one HMAC over id and quantities gives
four draws), refused lines counted. It does less than the job in that it looks for no unknown fields, keeps no refused lines,
takes the later of two equal keys, draws from a table of floats, neither sorts nor renames its file into place. With --memo (the
default) values already met in a window are looked up; --no-memo hashes every one.
"""

from __future__ import annotations

import argparse
import hmac
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
from measure import measured, pin, report

ROOT = bytes(range(32))
SCALE = 1.0
BATCH = 1_000
MEMO = 1_000_000


def laplace_table(scale: float, width: int = 60) -> list[int]:
    """Upper ends of the cumulated discrete Laplace distribution over -width..width, times 2^63."""
    weights = [math.exp(-abs(step) / scale) for step in range(-width, width + 1)]
    total, upper, table = sum(weights), 0.0, []
    for weight in weights[:-1]:
        upper += weight / total
        table.append(min(int(upper * 2.0**63), 2**63 - 1))
    return table


def pseudonym(key: bytes, value: str) -> str:
    # Hexadecimal, though the job writes base32: what Python does fastest.
    return hmac.digest(key, value.encode(), "sha256")[:16].hex()


class Window:
    """The sub-keys of one hour, and the pseudonyms already made in it."""

    def __init__(self, start: str) -> None:
        key = hmac.digest(ROOT, start.encode(), "sha256")
        self.customer, self.product, self.noise = (hmac.digest(key, name, "sha256") for name in (b"customer", b"product", b"noise"))
        self.customers: dict[str, str] = {}
        self.products: dict[str, str] = {}


def remembered(memo: dict[str, str], key: bytes, value: str) -> str:
    known = memo.get(value)
    if known is None:
        if len(memo) >= MEMO:
            memo.clear()
        known = memo[value] = pseudonym(key, value)
    return known


def plain(_: dict[str, str], key: bytes, value: str) -> str:
    return pseudonym(key, value)


def veil(
    event: dict[str, Any], windows: dict[str, Window], table: list[int], name: Callable[[dict[str, str], bytes, str], str]
) -> dict[str, Any]:
    """One event under the bench's policy. Raises KeyError, TypeError, ValueError or AttributeError where it does not fit."""
    minute = datetime.fromisoformat(event["time"]).replace(second=0, microsecond=0).isoformat()
    window = windows.get(minute[:13])
    if window is None:
        window = windows[minute[:13]] = Window(minute[:13])
    shipping, products, identity = event["shipping"], event["products"], event["id"]
    for leaf in (event["tenant"], event["status"], shipping["country"], shipping["line1"], shipping["to"], shipping["carrier"]):
        if type(leaf) is not str:
            raise TypeError
    zip_ = shipping["zip"]
    quantities = [item["quantity"] for item in products]
    group = []
    bits = b""
    for number, item in enumerate(products):
        if number % 4 == 0:
            bits = hmac.digest(window.noise, f"{identity} {number} {quantities}".encode(), "sha256")
        draw = int.from_bytes(bits[number % 4 * 8 : number % 4 * 8 + 8], "big") >> 1
        if type(item["quantity"]) is not int or type(item["name"]) is not str:
            raise TypeError
        group.append(
            {
                "ref": name(window.products, window.product, item["id"]),
                "delta": item["quantity"] + bisect_right(table, draw) - 60,
                "price": round(item["price"] / 10) * 10.0,
            }
        )
    return {
        "date": minute,
        "area": zip_[:3] if len(zip_) > 3 else None,
        "customer": name(window.customers, window.customer, shipping["email"]),
        "group": group,
    }


def lines_of(source: str) -> Iterator[bytes]:
    """The events of a file or a topic."""
    if not source.startswith("kafka://"):
        with open(source, "rb", buffering=1 << 20) as lines:
            yield from lines
        return
    import confluent_kafka as ck

    address, _, topic = source.removeprefix("kafka://").partition("/")
    consumer = ck.Consumer({"bootstrap.servers": address, "group.id": "loop", "enable.auto.commit": False})
    lanes = [ck.TopicPartition(topic, number, 0) for number in consumer.list_topics(topic, 10).topics[topic].partitions]
    missing = sum(consumer.get_watermark_offsets(lane, 10)[1] for lane in lanes)
    consumer.assign(lanes)
    while missing:
        for message in consumer.consume(min(missing, 1_000), 10):
            if message.error():
                raise SystemExit(message.error().str())
            missing -= 1
            yield message.value()
    consumer.close()


def run(source: Iterable[bytes], target: Path, memo: bool) -> dict[str, int]:
    windows: dict[str, Window] = {}
    table, name = laplace_table(SCALE), remembered if memo else plain
    events = refused = 0
    with target.open("wb", buffering=1 << 20) as out:
        batch: list[bytes] = []
        for line in source:
            events += 1
            try:
                batch.append(orjson.dumps(veil(orjson.loads(line), windows, table, name)))
            except (KeyError, TypeError, ValueError, AttributeError):
                refused += 1
            if len(batch) == BATCH:
                out.write(b"\n".join(batch) + b"\n")
                batch.clear()
        if batch:
            out.write(b"\n".join(batch) + b"\n")
    return {"events": events, "refused": refused}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("target", type=Path)
    parser.add_argument("--memo", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--core", type=int, help="keep to this core")
    arguments = parser.parse_args()
    pin(arguments.core)
    with measured() as cost:
        counts = run(lines_of(arguments.source), arguments.target, arguments.memo)
    report(cost, **counts, memo=arguments.memo)


if __name__ == "__main__":
    main()
