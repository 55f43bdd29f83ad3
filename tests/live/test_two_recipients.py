"""Recipients of one stream put together what they got: by order, keys, ids, partitions, offsets and times they join no rows.

Chance is what timing itself tells. Whoever watches a topic sees which messages come together, and docs/decisions.md says so: what one
slice read of one partition leaves together, in the same turn for every recipient, and a file holds the events of its roll. Such a
group is known to be the same in both outputs. Within it, what is joined must lie in the 99.9 % band of chance; of a group of one there
is nothing to hide. What rows hold is another matter (docs/linkage.md): here they hold a number that tells the test what is right.

Keys and events are fixed, and each slice reads what was written before it: every figure comes out the same again.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from confluent_kafka import Producer

RECORD_ID = "eventveil-record-id"
ROOT = bytes(range(60, 92))
PARTITIONS, BURSTS, BURST = 4, 3, 1_200
# Messages of 2014 would be gone in five minutes.
FOR_EVER = {"retention_ms": "-1"}
DAY_MS = 1_409_788_800_000  # 2014-09-04
NAMES = ("id", "time", "who", "item")
SCHEMA = {
    "type": "record",
    "name": "event",
    "fields": [{"name": "n", "type": "long"}, *({"name": name, "type": "string"} for name in NAMES)],
}
POLICY = """\
policy: {name}
version: 1
schema: event.avsc
domain: {name}
order: {order}
event: {{time: time, id: id}}
window: 1d
fields:
  n: {{keep: {{because: it tells the test what is right}}}}
  id: drop
  time: drop
  who: {{pseudonymize: {{class: person}}}}
  item: {{pseudonymize: {{class: item, stable: domain}}}}
"""
TOPICS, FILES, KEPT = ("analytics", "research"), "warehouse", ("kept-one", "kept-two")


def _linkage() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "bench" / "linkage.py"
    spec = importlib.util.spec_from_file_location("linkage", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["linkage"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


linkage = _linkage()


@dataclass(frozen=True)
class Row:
    """What a recipient has of an event. Of a file: `place` is the file, and `at` the number of the row."""

    n: int
    place: str
    at: int
    texts: frozenset[str]
    key: bytes = b""
    record_id: bytes = b""
    at_ms: int = 0
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outputs:
    """By recipient the rows, by number. `group`: of each event what timing tells. `offset`: where it stood in the source."""

    rows: dict[str, dict[int, Row]]
    group: dict[int, tuple[int, int]]
    offset: dict[int, int]


def events() -> list[list[dict[str, Any]]]:
    """Some bursts, each within three hours, in no order of time."""
    rng = random.Random(5)

    def event(n: int) -> dict[str, Any]:
        return {
            "n": n,
            "id": f"{rng.getrandbits(64):016x}",
            "time": f"2014-09-04T{3 * (n // BURST) + rng.randrange(3):02d}:{rng.randrange(60):02d}:00",
            "who": f"person-{rng.randrange(200)}",
            "item": f"item-{rng.randrange(50)}",
        }

    return [[event(burst * BURST + number) for number in range(BURST)] for burst in range(BURSTS)]


@pytest.fixture
def outputs(desk: Any, kafka: str, new_topic: Callable[..., str]) -> Outputs:
    """One job, one read, five recipients; two of them under policies that keep the order, so that there is something to find."""
    os.remove(desk.keyring)
    with open(os.open(desk.keyring, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump({"eventveil_keyring": 1, "root": base64.b64encode(ROOT).decode(), "domains": {}}, file)
    (desk.folder / "event.avsc").write_text(json.dumps(SCHEMA))
    source, targets = new_topic(PARTITIONS), {name: new_topic(2, **FOR_EVER) for name in (*TOPICS, *KEPT)}
    variants = []
    for name in (*TOPICS, *KEPT, FILES):
        policy = desk.folder / f"{name}.yaml"
        policy.write_text(POLICY.format(name=name, order="keep" if name in KEPT else "keyed"))
        to_topic = {"uri": f"kafka://{kafka}/{targets.get(name)}", "format": "json"}
        # One has a key of the row's own.
        to_topic |= {"key": "who"} if name == "research" else {}
        output = {"uri": str(desk.folder / "out"), "format": "jsonl"} if name == FILES else to_topic
        variants.append({"policy": str(policy), "output": output})
    job = desk.write_job("job", f"kafka://{kafka}/{source}", variants, roll="1h", slice="1s", idle_after="1d")
    return run_all(desk, job, kafka, source, targets)


def run_all(desk: Any, job: Path, kafka: str, source: str, targets: dict[str, str]) -> Outputs:
    producer = Producer({"bootstrap.servers": kafka})
    group: dict[int, tuple[int, int]] = {}
    offset: dict[int, int] = {}
    offsets = Counter[int]()
    last = [{"n": -1 - one, "id": f"last-{one}", "time": "2014-09-04T23:00:00", "who": "x", "item": "x"} for one in range(PARTITIONS)]
    for number, burst in enumerate([*events(), last]):
        for at, event in enumerate(burst):
            partition = at % PARTITIONS
            group[event["n"]], offset[event["n"]] = (number, partition), offsets[partition]
            offsets[partition] += 1
            headers = [("from", f"header-{event['n']}".encode())]
            producer.produce(source, json.dumps(event).encode(), f"key-{event['n']}", partition, headers=headers)
        assert 0 == producer.flush(60)
        # Works off what is there, as one slice.
        desk.finish(job)
    rows: dict[str, dict[int, Row]] = {}
    for name, target in targets.items():
        rows[name] = {}
        for message in desk.messages(target):
            held, headers = json.loads(message.value()), dict(message.headers())
            if held["n"] >= 0:
                texts = frozenset(text for text in held.values() if isinstance(text, str))
                place, at_ms = str(message.partition()), message.timestamp()[1]
                row = Row(held["n"], place, message.offset(), texts, message.key(), headers[RECORD_ID], at_ms, tuple(sorted(headers)))
                assert row.n not in rows[name]
                rows[name][row.n] = row
    rows[FILES] = {}
    for path in sorted((desk.folder / "out").glob("part-*")):
        for at, line in enumerate(path.read_text().splitlines()):
            held = json.loads(line)
            assert held["n"] not in rows[FILES]
            rows[FILES][held["n"]] = Row(held["n"], path.name, at, frozenset(text for text in held.values() if isinstance(text, str)))
    return Outputs(rows, group, offset)


# -- the attack -----------------------------------------------------------------------------------------------------------------


def by_order(outputs: Outputs, ours: str, theirs: str) -> Any:
    """Rows that come together: in the order of offsets, or of rows, on one side and on the other."""
    left, right = outputs.rows[ours], outputs.rows[theirs]
    groups: dict[Any, list[int]] = defaultdict(list)
    for n in left:
        groups[outputs.group[n], left[n].place, right[n].place].append(n)
    return linkage.compare_orders(
        (
            np.array(sorted(found, key=lambda n: left[n].at), np.int64),
            np.array(sorted(found, key=lambda n: right[n].at), np.int64),
        )
        for _, found in sorted(groups.items())
    )


def by_source(outputs: Outputs, ours: str) -> Any:
    """Rows that come together, and the events in the source."""
    rows = outputs.rows[ours]
    groups: dict[Any, list[int]] = defaultdict(list)
    for n in rows:
        groups[outputs.group[n], rows[n].place].append(n)
    return linkage.compare_orders(
        (
            np.array(sorted(found, key=lambda n: rows[n].at), np.int64),
            np.array(sorted(found, key=lambda n: outputs.offset[n]), np.int64),
        )
        for _, found in sorted(groups.items())
    )


def by_text(outputs: Outputs, ours: str, theirs: str, of: Callable[[Row], bytes]) -> Any:
    """All rows, in the order of their ids or keys on either side; of equal keys, as they stand."""
    left, right = outputs.rows[ours], outputs.rows[theirs]
    orders = (sorted(rows, key=lambda n, rows=rows: (of(rows[n]), rows[n].at, n % 7)) for rows in (left, right))
    return linkage.compare_orders([tuple(np.array(order, np.int64) for order in orders)])


def same(left: Sequence[Any], right: Sequence[Any]) -> tuple[int, float, float]:
    """How often both are the same; how often by chance, and its deviation, if each side kept its own numbers."""
    mine, other = Counter(left), Counter(right)
    chance = sum(mine[value] * other[value] for value in mine) / len(left) ** 2
    return sum(a == b for a, b in zip(left, right)), chance * len(left), (len(left) * chance * (1 - chance)) ** 0.5


def shared_pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    return list(combinations(names, 2))


def test_recipients_join_nothing(outputs: Outputs) -> None:
    everybody = (*TOPICS, FILES)
    whole = set(range(BURSTS * BURST))

    # Each has all of it.
    assert all(set(rows) == whole for rows in outputs.rows.values())

    # No pseudonym, key or record id is known to two.
    texts = {name: frozenset().union(*(row.texts for row in outputs.rows[name].values())) for name in outputs.rows}
    ids = {name: {row.record_id for row in outputs.rows[name].values()} for name in TOPICS}
    keys = {name: {row.key for row in outputs.rows[name].values()} for name in TOPICS}
    assert all(len(found) == 250 for found in texts.values())
    assert all(not texts[one] & texts[other] for one, other in shared_pairs(texts))
    assert len(ids["analytics"]) == len(ids["research"]) == len(whole)
    assert not ids["analytics"] & ids["research"] and not keys["analytics"] & keys["research"]

    # Order: of offsets and rows, of ids, of keys.
    for one, other in shared_pairs(everybody):
        found = by_order(outputs, one, other)
        assert found.groups >= 24, (one, other, found)
        assert found.is_chance, (one, other, found)
    for name in everybody:
        assert by_source(outputs, name).is_chance, (name, by_source(outputs, name))
    for what in (lambda row: row.record_id, lambda row: row.key):
        assert by_text(outputs, *TOPICS, what).is_chance

    # Partitions: of both, and of the source.
    one, other = ([outputs.rows[name][n].place for n in sorted(whole)] for name in TOPICS)
    for left, right in ((one, other), *((places, [str(outputs.group[n][1] % 2) for n in sorted(whole)]) for places in (one, other))):
        found, chance, deviation = same(left, right)
        assert abs(found - chance) < 3.291 * deviation, (found, chance)

    # Times tell the window, and names of headers nothing.
    for name in TOPICS:
        assert {DAY_MS} == {row.at_ms for row in outputs.rows[name].values()}
        assert 1 == len({row.names for row in outputs.rows[name].values()})
        assert all(header.startswith("eventveil-") for header in outputs.rows[name][0].names)

    # The attack finds what there is to find.
    for pair in (KEPT, (KEPT[0], "source")):
        found = by_source(outputs, pair[0]) if pair[1] == "source" else by_order(outputs, *pair)
        assert not found.is_chance
        assert found.z > 10
