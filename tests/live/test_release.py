"""renumber within a window, over Kafka: what is published depends on the events of a window, and on nothing else.

All windows close at once, when events of the next day have come in every partition, so that no event of the first runs is late.
"""

from __future__ import annotations

import hashlib
import json
import runpy
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from eventveil.pipeline.prepare import prepare
from eventveil.pipeline.runners.local import run
from eventveil.schemas.job import load_job

made = runpy.run_path(str(Path(__file__).parents[1] / "jobs" / "renumbered.py"))
check, event, events, line, numbered, shuffled = (made[name] for name in ("check", "event", "events", "line", "numbered", "shuffled"))
NEXT_DAY = 24 * 60.0

Event = dict[str, Any]


class Shop:
    """Jobs over topics of orders and carts, at a desk."""

    def __init__(self, desk: Any, new_topic: Callable[..., str]) -> None:
        self.desk = desk
        self._new_topic = new_topic
        made["write_policies"](desk.folder)

    def topic(self, found: Sequence[Event], partitions: int = 4) -> str:
        topic = self._new_topic(partitions)
        self.send(topic, found, partitions)
        return topic

    def send(self, topic: str, found: Sequence[Event], partitions: int = 4, minute: float = NEXT_DAY) -> None:
        """These events, in any partition; then in each an event of either type, at which the windows before them close."""
        for partition in range(partitions):
            closing = [event(-1 - partition, minute, None, kind) for kind in ("order", "cart")]
            self.desk.produce(topic, [line(one) for one in (*found[partition::partitions], *closing)], partition=partition)

    def job(self, name: str, topic: str, **entries: Any) -> Path:
        variants = [{"policy": f"{one}.policy.yaml", "output": {"uri": f"{name}/{one}", "format": "jsonl"}} for one in ("orders", "carts")]
        path: Path = self.desk.write_job(name, f"kafka://{self.desk.kafka}/{topic}", variants, **{"slice": "1s", **entries})
        return path

    def published(self, name: str) -> Any:
        return numbered({one: self.desk.rows(self.desk.folder / name / one) for one in ("orders", "carts")})

    def ran(self, name: str, topic: str, **entries: Any) -> Any:
        self.desk.finish(self.job(name, topic, **entries))
        return self.published(name)

    def files(self, name: str) -> dict[str, bytes]:
        at = self.desk.folder / name
        return {str(path.relative_to(at)): path.read_bytes() for one in ("orders", "carts") for path in sorted((at / one).rglob("*.jsonl"))}

    def slices(self, name: str) -> int:
        found: int = json.loads((self.desk.folder / name / "state" / "checkpoint.json").read_text())["slice"]
        return found

    def bounded(self, found: Sequence[Event]) -> Any:
        """What a job over a file of the same events gives."""
        self.job("files", "none")
        document = json.loads((self.desk.folder / "files.yaml").read_text())
        (self.desk.folder / "files.jsonl").write_bytes(b"".join(line(one) + b"\n" for one in found))
        for entry in ("checkpoint", "stop_when_refused", "slice"):
            del document[entry]
        (self.desk.folder / "files.yaml").write_text(json.dumps({**document, "input": {"uri": "files.jsonl"}}))
        run(prepare(load_job(self.desk.folder / "files.yaml")), 1)
        return self.published("files")


@pytest.fixture
def shop(desk: Any, new_topic: Callable[..., str]) -> Shop:
    return Shop(desk, new_topic)


def test_numbers_depend_on_what_a_window_holds_and_on_nothing_else(shop: Shop) -> None:
    found = events()
    topic = shop.topic(found)
    first = shop.ran("first", topic)
    shop.ran("again", topic, max_slice_bytes=16_000)
    other = shop.ran("other", shop.topic(shuffled(found, 1), 1), max_slice_bytes=8_000, slice="2s")
    contents = {name: sorted(shop.files(name).values()) for name in ("first", "again")}

    check(first, found)
    assert first == other
    assert first == shop.bounded(shuffled(found, 2))
    # Cut in other places, and many more of them.
    assert shop.slices("other") > shop.slices("first") + 3
    # A replay is the same in every byte.
    assert 6 == len(contents["first"])
    assert contents["first"] == contents["again"]


def test_what_is_late_is_refused_counted_and_kept(shop: Shop) -> None:
    found = events()
    topic = shop.topic(found)
    first = shop.ran("shop", topic)
    before = shop.files("shop")
    late = [event(9_000, 5.0, 1), event(9_001, 25.0, 99, "cart")]
    in_time = event(9_002, NEXT_DAY + 3, 5)
    shop.send(topic, [*late, in_time], minute=2 * NEXT_DAY)
    run = shop.desk.finish(shop.job("shop", topic))
    letters = shop.desk.letters("shop")
    after = shop.files("shop")

    assert before == {name: after.get(name) for name in before}
    # The closing events of the first day stand in the window of the one that came in time.
    fresh = Counter({(name, -n): 1 for name in ("orders", "carts") for n in range(1, 5)} | {("orders", 9_002): 1})
    assert fresh == Counter((name, n) for name, n, _ in (shop.published("shop") - first).elements())
    assert {"EV518"} == {header["code"] for header, _ in letters}
    assert sorted(map(line, late)) == sorted(text for _, text in letters)
    assert Counter({"EV518": 2}) == sum((Counter(one["codes"]) for one in run.logs() if "codes" in one), Counter())


def test_a_window_that_is_too_large_is_withheld_and_the_job_goes_on(shop: Shop) -> None:
    found = events(people=(5, 200, 5))
    topic = shop.topic(found)
    run = shop.desk.finish(shop.job("shop", topic, max_window_bytes=1_024))
    rest = [one for one in found if made["window_of"](one) != 1]
    check(shop.published("shop"), rest)
    withheld = [one for one in run.logs() if one.get("code") == "EV603"]
    kept = sorted((shop.desk.folder / "shop" / "state" / "withheld").rglob("*.carry"))
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in kept]

    assert {"orders": 1, "carts": 1} == {one["policy"]: one["windows"] for one in withheld}
    assert len(found) - len(rest) == sum(one["events"] for one in withheld)
    assert ["carts", "orders"] == [path.parent.name for path in kept]
    assert not any(b"person-" in path.read_bytes() for path in kept)

    # It goes on, with more room, and what was withheld stays so.
    shop.send(topic, [event(9_000, NEXT_DAY + 3, 5)], minute=2 * NEXT_DAY)
    shop.desk.finish(shop.job("shop", topic))
    check(Counter({one: n for one, n in shop.published("shop").items() if 0 <= one[1] < 9_000}), rest)

    assert 9_000 in {n for _, n, _ in shop.published("shop")}
    assert digests == [hashlib.sha256(path.read_bytes()).hexdigest() for path in kept]
