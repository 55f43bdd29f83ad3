"""Seeded events of everything.avsc, as JSON has them; all text that may be any text comes from one function."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

WORDS = ("anna", "Müller", "ул. Зорге", "日本", 'a"b', "c\\d", "e\tf", "", " g ", "ſ", "🙂", "longer than most of the others are, by far")


def event(
    number: int,
    chance: random.Random,
    text: Callable[[str], str] | None = None,
    whole: Callable[[str], int] | None = None,
) -> dict[str, Any]:
    """One valid event; `text` and `whole` give the value of a leaf by its path, by default from `chance`."""
    word = text or (lambda _: f"{chance.choice(WORDS)}{chance.randrange(30)}")
    long = whole or (lambda _: chance.choice((0, 1, -1, 7, 10**6 + chance.randrange(10**7), -(10**12), 2**53)))
    day, second = chance.randrange(3), chance.randrange(86_400)
    time = f"2014-09-{4 + day:02}T{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"
    instant = f"{time}.{chance.randrange(10**6):06}Z"

    def maybe(value: Any) -> Any:
        return value if text or chance.random() < 0.7 else None

    def many(make: Callable[[], Any], most: int = 3) -> list[Any]:
        return [make() for _ in range(2 if text else chance.randrange(most + 1))]

    def line() -> dict[str, Any]:
        place = {
            "street": word("lines[].place.street"),
            "shown": maybe(word("lines[].place.shown")),
            "east": long("lines[].place.east") / 8,
        }
        return {
            "ref": word("lines[].ref"),
            "name": maybe(word("lines[].name")),
            "quantity": chance.randrange(100),
            "notes": many(lambda: word("lines[].notes[]")),
            "place": maybe(place),
            "counts": {word("lines[].counts{}"): long("lines[].counts{}")},
        }

    made = {
        "id": f"{word('id')}-{number}",
        "at": time,
        "consent": True if text else chance.choice((True, True, True, False, None)),
        "who": f"{word('who')}",
        "kept": word("kept"),
        "dropped": word("dropped"),
        "nick": maybe(word("nick")),
        "email": word("email"),
        "phone": f"+49 {chance.randrange(10**9)}",
        "login": word("login"),
        "zip": word("zip"),
        "ip": maybe(chance.choice(("203.0.113.77", "2001:db8:85a3:8d3:1319:8a2e:370:7348", "::ffff:192.0.2.7"))),
        "country": chance.choice(("Atlantis", "France", "Kenya", "Peru")),
        "state": chance.choice(("open", "shut")),
        "tier": chance.choice(("gold", word("tier"))),
        "rank": maybe(word("rank")),
        "vote": chance.choice(("yes", "no", "abstain")),
        "note": maybe(word("note")),
        "comment": word("comment"),
        "price": f"{chance.randrange(1000)}.{chance.randrange(100):02} EUR",
        "code": word("code"),
        "digits": str(chance.randrange(10**6)),
        "ref": word("ref"),
        "small": maybe(chance.randrange(-(2**31), 2**31)),
        "big": long("big"),
        "capped": long("capped"),
        "real": chance.choice((0.0, -1.5, 12345.678, 1e9)),
        "single": chance.choice((0.5, 12.25, 345.0)),
        "money": f"{chance.randrange(10**6)}.{chance.randrange(10**4):04}",
        "flag": chance.random() < 0.5,
        "raw": maybe("".join(chr(chance.randrange(1, 256)) for _ in range(chance.randrange(40)))),
        "mark": "".join(chr(chance.randrange(1, 256)) for _ in range(16)),
        "uuid": f"{chance.getrandbits(128):032x}",
        "day": f"2014-0{chance.randrange(1, 10)}-1{chance.randrange(10)}",
        "clock": f"{chance.randrange(24):02}:10:11.{chance.randrange(1000):03}",
        "tick": f"{chance.randrange(24):02}:10:11.{chance.randrange(10**6):06}",
        "millis": f"{time}.{chance.randrange(1000):03}Z",
        "micros": maybe(instant),
        "nanos": f"{time}.{chance.randrange(10**9):09}Z",
        "local": f"{time}.{chance.randrange(10**6):06}",
        "props": {"version": word("props{version}"), "a.b": word("props{a.b}"), word("props{}"): word("props{}")},
        "meta": maybe(
            {name: {"label": word(f"meta{{{name}}}.label"), "number": maybe(long("meta{}.number"))} for name in ("main", "rest")}
        ),
        "tags": many(lambda: maybe(word("tags[]"))),
        "grid": maybe(many(lambda: many(lambda: long("grid[][]")))),
        "lines": many(line),
        "holder": maybe(
            {
                "title": word("holder.title"),
                "inner": maybe({"secret": word("holder.inner.secret"), "shown": maybe(word("holder.inner.shown"))}),
            }
        ),
    }
    made["uuid"] = "-".join(made["uuid"][at:to] for at, to in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32)))
    return made
