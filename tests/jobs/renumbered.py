"""Orders and carts of the same people, whose names give way to numbers when their window closes; and what must be true of the numbers."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

BEGIN = datetime(2024, 5, 6, tzinfo=timezone.utc)
PEOPLE = 25
TYPES = {"orders": ("order", "buyer"), "carts": ("cart", "visitor")}

Event = dict[str, Any]
Numbered = Counter[tuple[str, int, int]]
"""Variant, event and the number that stands for its person, each as often as it was published."""


def write_policies(folder: Path) -> None:
    """For each type of event a policy, both of one domain; and `research`, which gets the orders a second time."""
    for name, (kind, leaf) in {**TYPES, "research": TYPES["orders"]}.items():
        fields = [{"name": "n", "type": "long"}, *({"name": one, "type": "string"} for one in ("id", "at", "kind"))]
        fields.append({"name": leaf, "type": ["null", "string"]})
        (folder / f"{name}.avsc").write_text(json.dumps({"type": "record", "name": name, "fields": fields}))
        (folder / f"{name}.policy.yaml").write_text(
            f"policy: {name}\nversion: 1\nschema: {name}.avsc\ndomain: shop\n"
            f"event: {{time: at, id: id, type: {{field: kind, is: {kind}}}}}\n"
            "window: {release: 10min, keys: 1d}\nallowed_lateness: 1h\n"
            "fields:\n  n: {keep: {because: test}}\n  id: drop\n  at: drop\n  kind: drop\n"
            f"  {leaf}: [{{renumber: {{scope: window, class: person}}}}, {{rename: person}}]\n"
        )


def event(n: int, minute: float, person: int | None, kind: str = "order") -> Event:
    """`minute`: since the beginning."""
    leaf = next(leaf for one, leaf in TYPES.values() if one == kind)
    name = None if person is None else f"person-{person}@example.org"
    return {"id": f"event-{n}", "at": (BEGIN + timedelta(minutes=minute)).isoformat(), "kind": kind, leaf: name, "n": n}


def events(number: int = 600, windows: int = 3, people: Sequence[int] = (PEOPLE,) * 3) -> list[Event]:
    """Some in each window, of so many people; now and then of nobody."""
    rng = random.Random(3)
    found = []
    for n in range(number):
        window = n % windows
        person = None if n % 41 == 40 else rng.randrange(people[window])
        found.append(event(n, 10 * window + rng.uniform(0, 9.99), person, rng.choice(("order", "cart"))))
    return found


def shuffled(found: Iterable[Event], seed: int) -> list[Event]:
    mixed = list(found)
    random.Random(seed).shuffle(mixed)
    return mixed


def line(one: Event) -> bytes:
    return json.dumps(one).encode()


def window_of(one: Event) -> int:
    return int((datetime.fromisoformat(one["at"]) - BEGIN) / timedelta(minutes=10))


def person_of(one: Event) -> str | None:
    found: str | None = one.get("buyer", one.get("visitor"))
    return found


def numbered(rows: dict[str, list[dict[str, Any]]]) -> Numbered:
    return Counter((variant, row["n"], row["person"]) for variant, found in rows.items() for row in found)


def check(found: Numbered, of: Sequence[Event], variants: Sequence[str] = ("orders", "carts")) -> None:
    """Each event once for each variant of its type; within a window the same number for the same person, whatever the variant: 1 to n."""
    by_number = {one["n"]: one for one in of}
    expected = Counter((name, one["n"]) for name in variants for one in of if (name == "carts") == (one["kind"] == "cart"))
    assert expected == Counter((variant, n) for variant, n, _ in found.elements())

    people: dict[int, dict[str, set[int]]] = {}
    for _, n, number in found:
        person = person_of(by_number[n])
        if person is None:
            assert number is None
        else:
            people.setdefault(window_of(by_number[n]), {}).setdefault(person, set()).add(number)
    for numbers in people.values():
        assert all(len(one) == 1 for one in numbers.values())
        assert list(range(1, len(numbers) + 1)) == sorted(number for one in numbers.values() for number in one)
    # Nobody keeps a number: in two windows the order is another one.
    first, second, *_ = ({person: min(one) for person, one in people[window].items()} for window in sorted(people))
    assert first != second
