"""Write invented shipping orders with the times of now into a Kafka topic, at a steady rate.

    python produce.py kafka://127.0.0.1:9092/orders --rate 50 --seconds 20
    python produce.py kafka://127.0.0.1:9092/orders --rate 2000 --count 1000000 --late 3

Each order is JSON in the form of shipping_order.avsc, under its id as key. With --late its time lies up to so many seconds back: the
events of one topic are never quite in order. Same --seed, same orders, but for their times. Needs eventveil[kafka].

`orders` makes the same orders without Kafka and without waiting.
"""

from __future__ import annotations

import argparse
import json
import random
import runpy
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

_generate = runpy.run_path(str(Path(__file__).with_name("generate.py")))


def orders(seed: int, count: int | None, start: datetime, rate: float = 50, late_s: float = 0) -> Iterator[dict[str, Any]]:
    """`count` orders (None: for ever), `rate` of them a second from `start` (UTC) on; each up to `late_s` seconds before its turn."""
    rng = random.Random(seed)
    buyers = _generate["customers"](rng, 1_000)
    numbers = iter(int, 1) if count is None else range(count)
    for number, _ in enumerate(numbers):
        when = start + timedelta(seconds=number / rate - rng.uniform(0, late_s))
        yield _generate["order"](rng, buyers, f"contsco-{start:%Y-%m-%d}-{seed:04d}-{number:07d}", when.isoformat(timespec="milliseconds"))


def produce(address: str, topic: str, events: Iterator[dict[str, Any]], rate: float) -> int:
    """Write each event when its turn has come; returns how many the broker has confirmed."""
    from confluent_kafka import KafkaError, Message, Producer

    confirmed = 0
    refused: list[KafkaError] = []

    def delivered(error: KafkaError | None, _: Message) -> None:
        nonlocal confirmed
        if error is None:
            confirmed += 1
        else:
            refused.append(error)

    producer = Producer(
        {"bootstrap.servers": address, "enable.idempotence": True, "linger.ms": 20, "delivery.timeout.ms": 60_000, "log_level": 3}
    )
    begun = time.monotonic()
    try:
        for number, event in enumerate(events):
            while (ahead := begun + number / rate - time.monotonic()) > 0:
                producer.poll(min(ahead, 0.1))
            while True:
                try:
                    producer.produce(topic, json.dumps(event, ensure_ascii=False).encode(), event["id"], on_delivery=delivered)
                    break
                except BufferError:  # the broker is slower than we
                    producer.poll(0.1)
            if refused:
                break
    except KeyboardInterrupt:
        pass
    waiting = producer.flush(65)
    if refused or waiting:
        raise SystemExit(f"{address} did not take every order: {refused[0].str() if refused else f'{waiting} unconfirmed'}")
    return confirmed


def shown(events: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for event in events:
        print(json.dumps(event, ensure_ascii=False), flush=True)
        yield event


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topic", metavar="kafka://HOST:PORT/TOPIC")
    parser.add_argument("--rate", type=float, default=50, help="orders a second (50)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=float, help="for how long; for ever unless told")
    length.add_argument("--count", type=int, help="how many")
    parser.add_argument("--late", type=float, default=0, help="seconds that an order's time may lie back (0)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="print the orders too, one a line")
    given = parser.parse_args()
    address, slash, topic = given.topic.removeprefix("kafka://").partition("/")
    if not (given.topic.startswith("kafka://") and address and slash and topic):
        parser.error("the topic is written kafka://HOST:PORT/TOPIC")
    if not given.rate > 0:
        parser.error("--rate must be above 0")
    count = given.count if given.seconds is None else max(1, round(given.seconds * given.rate))
    start = datetime.now(timezone.utc).replace(tzinfo=None)
    events = orders(given.seed, count, start, given.rate, given.late)
    confirmed = produce(address, topic, shown(events) if given.show else events, given.rate)
    print(f"{confirmed} orders written to {topic}", file=sys.stderr)


if __name__ == "__main__":
    main()
