"""What a stream says beside an event: key, headers, topic and time leave where a policy says so, as it says; else nothing of them does."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HOUR = 3_600_000
PLANTED = "PLANTED"
HEAD = "version: 1\nschema: event.avsc\ndomain: shop\nwindow: 1d\n"
FIELDS = "  n: {keep: {because: test}}\n  who: {pseudonymize: {class: person}}\n"
BY_HEADER = "{{time: $time, id: $position, type: {{header: ce.type, is: {}}}}}"
BY_TOPIC = "{{time: $time, id: $position, type: {{topic: true, is: {}}}}}"
LEAVES = (
    FIELDS
    + "  $key: [{pseudonymize: {class: person}}, {rename: key}]\n"
    + "  $headers.region: [keep, {rename: region}]\n"
    + "  $headers.trace.id: [{mask: {keep_first: 2}}, {move: meta.trace}]\n"
    + "  $topic: [{replace: {with: some}}, {rename: topic}]\n"
    + "  $time: [{floor: 1h}, {rename: hour}]\n"
)


@pytest.fixture
def shop(desk: Any) -> Any:
    fields = [{"name": "n", "type": "long"}, {"name": "who", "type": ["null", "string"]}]
    (desk.folder / "event.avsc").write_text(json.dumps({"type": "record", "name": "event", "fields": fields}))
    return desk


def write_policy(desk: Any, name: str, event: str, fields: str) -> str:
    (desk.folder / f"{name}.policy.yaml").write_text(f"policy: {name}\n{HEAD}event: {event}\nfields:\n{fields}")
    return f"{name}.policy.yaml"


def send(desk: Any, topic: str, n: int, key: bytes | None, headers: list[tuple[str, bytes | None]], at_ms: int, **event: Any) -> None:
    value = json.dumps({"n": n, "who": f"{PLANTED}-{n}", **event}).encode()
    desk.produce(topic, [value], [key], headers=headers, timestamp=at_ms, partition=0)


def everything(folder: Path, but: str) -> dict[str, bytes]:
    """All that stands in a folder."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != but}


def said(messages: list[Any]) -> bytes:
    """All that messages hold."""
    parts = [part for one in messages for part in (one.key(), one.value(), *(text for header in one.headers() or () for text in header))]
    return b"\n".join(part.encode() if isinstance(part, str) else part or b"" for part in parts)


def test_they_leave_as_the_policy_says_and_else_not_at_all(shop: Any, new_topic: Callable[..., str]) -> None:
    source, carts, silent = new_topic(1), new_topic(2), new_topic(2)
    uri = f"kafka://{shop.kafka}"
    variants = [
        {"policy": write_policy(shop, "orders", BY_HEADER.format("order"), LEAVES), "output": {"uri": "orders", "format": "jsonl"}},
        {"policy": write_policy(shop, "carts", BY_HEADER.format("cart"), LEAVES), "output": {"uri": f"{uri}/{carts}", "key": "key"}},
        {"policy": write_policy(shop, "silent", BY_HEADER.format("order"), FIELDS), "output": {"uri": f"{uri}/{silent}"}},
    ]
    job = shop.write_job("shop", f"{uri}/{source}", variants, roll="1h", slice="1s")
    now = time.time_ns() // 1_000_000
    begun = (now // HOUR - 3) * HOUR
    for n in range(20):
        # The key of the first ten is who the events of the last ten are about.
        who = f"{PLANTED}-{n - 10}" if n >= 10 else f"{PLANTED}-other"
        key = f"{PLANTED}-{n}" if n < 10 else f"{PLANTED}-key"
        headers = [("ce.type", b"cart" if n % 2 else b"order"), ("region", b"north"), ("trace.id", f"{PLANTED}-trace".encode())]
        headers.append((f"{PLANTED}-header", f"{PLANTED}-value".encode()))
        send(shop, source, n, key.encode(), headers, begun + n * 60_000, who=who)
    refused: list[tuple[int, bytes | None, list[tuple[str, bytes | None]], str]] = [
        (100, b"\xff", [("ce.type", b"order")], "EV519"),
        (101, b"k", [("ce.type", b"order"), ("region", b"a"), ("region", b"a")], "EV519"),
        (102, b"k", [("ce.type", b"order"), ("ce.type", b"order")], "EV519"),
        (103, b"k", [("ce.type", f"{PLANTED}-type".encode())], "EV509"),
        (104, b"k", [], "EV503"),
    ]
    for n, key, headers, _ in refused:
        send(shop, source, n, key, headers, begun)
    # Without key and headers, and so late that the roll before it is due.
    for n, kind in ((200, b"order"), (201, b"cart")):
        send(shop, source, n, None, [("ce.type", kind)], now)
    run = shop.finish(job)
    rows = {one["n"]: one for one in shop.rows(shop.folder / "orders")}
    messages = {json.loads(one.value())["n"]: one for one in shop.messages(carts)}
    values = {n: json.loads(one.value()) for n, one in messages.items()}

    assert ([*range(0, 20, 2)], [*range(1, 20, 2), 201]) == (sorted(rows), sorted(messages))
    for found in (rows, values):
        for n, row in found.items():
            expected = {"region": "north", "meta": {"trace": "PL********"}, "topic": "some"}
            if n < 200:
                assert expected == {name: row[name] for name in expected}
                assert row["hour"] == time.strftime("%Y-%m-%dT%H:00:00", time.gmtime(begun / 1000)) + row["hour"][19:]
    # One class: who is the key of one event, and the subject of another, has one pseudonym.
    together = {**rows, **values}
    assert [together[n]["who"] for n in range(10, 20)] == [together[n - 10]["key"] for n in range(10, 20)]
    assert 11 == len({together[n]["key"] for n in range(20)})
    assert all(one.key() == values[n]["key"].encode() for n, one in messages.items() if n < 200)
    assert (None, {"trace": None}) == (values[201]["region"], values[201]["meta"])

    # What no rule names does not leave; and the originals of what was refused are sealed. Policies of one schema and type share
    # their decoding, so what one of them cannot read is refused for all.
    quiet = [json.loads(one.value()) for one in shop.messages(silent)]
    assert {"n", "who"} == {name for row in quiet for name in row}
    assert [*range(0, 20, 2), 200] == sorted(row["n"] for row in quiet)
    found = everything(shop.folder / "shop", "") | everything(shop.folder / "orders", "") | {"log": run.log.read_bytes()}
    found |= {"carts": said(shop.messages(carts)), "silent": said(shop.messages(silent))}
    assert [] == [name for name, content in found.items() if PLANTED.encode() in content]
    assert source.encode() not in found["carts"]

    letters = Counter((header["code"], json.loads(event)["n"]) for header, event in shop.letters("shop"))
    assert {(code, n) for n, _, _, code in refused} == set(letters)


def test_the_topic_tells_the_type(shop: Any, new_topic: Callable[..., str]) -> None:
    orders, carts, copy = new_topic(1), new_topic(1), new_topic(1)
    uri = f"kafka://{shop.kafka}"
    variants = [
        {
            "policy": write_policy(shop, "orders", BY_TOPIC.format(orders), FIELDS),
            "output": {"uri": "orders", "format": "jsonl"},
        },
        {"policy": write_policy(shop, "carts", BY_TOPIC.format(carts), FIELDS), "output": {"uri": f"{uri}/{copy}"}},
    ]
    job = shop.write_job("shop", f"{uri}/{orders},{carts}", variants, roll="1h", slice="1s")
    now = time.time_ns() // 1_000_000
    for n in range(10):
        send(shop, carts if n % 2 else orders, n, None, [], now - 3 * HOUR)
    for topic in (orders, carts):
        shop.produce(topic, [None], [b"key"], timestamp=now - 3 * HOUR)
        send(shop, topic, 100, None, [], now)
    run = shop.finish(job)
    stopped = [one for one in run.logs() if one.get("state") == "stopped"][-1]["policies"]

    assert [*range(0, 10, 2)] == sorted(row["n"] for row in shop.rows(shop.folder / "orders"))
    assert [*range(1, 10, 2), 100] == sorted(json.loads(one.value())["n"] for one in shop.messages(copy))
    # A tombstone has a topic, and so a type: it is counted there, and leaves no trace.
    assert {"orders": (7, 1, 0), "carts": (7, 1, 0)} == {
        name: (one["read"], one["filtered"], one["refused"]) for name, one in stopped.items()
    }
