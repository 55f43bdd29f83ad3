"""A seeded mutator of JSON messages: what bad producers, bad networks and bad people make of good events.

Nothing here knows how events are decoded. A mutation works on the bytes of a message, or on its values.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# The mutator must not be cleverer than the format: these stand where a value could.
HUGE = (
    "1" * 400,
    "-" + "9" * 40,
    "1e999",
    "-1e-999",
    "9223372036854775808",
    "-9223372036854775809",
    "2147483648",
    "1e10",
    "0.1",
    "-0",
    "1.0",
    "1E+2",
)
LITERALS = (
    "null",
    "true",
    "false",
    "NaN",
    "Infinity",
    "-Infinity",
    "[]",
    "{}",
    '""',
    "[null]",
    "[[]]",
    '{"a":1}',
    "0",
    "1",
    '"1"',
    "undefined",
)
TEXTS = (
    '"\\u0000"',
    '"\\ud800"',
    '"\\udc00\\ud800"',
    '"\\uD83D\\uDE42"',
    '"\\x"',
    '"\t"',
    '"\\/"',
    '"null"',
    '"NaN"',
    '"2014-13-45T99:99:99"',
    '"2014-03-30T01:30:00"',
    '"0000-00-00"',
    '"9999-12-31T23:59:60Z"',
    '"-1"',
    '"1e-7"',
    '"{\\"id\\": 1}"',
    '"=cmd()"',
    '"' + "x" * 300 + '"',
)
SHORT = (
    b"",
    b" ",
    b"\t\r",
    b"null",
    b"[]",
    b"{}",
    b"0",
    b'"a"',
    b"true",
    b"[{}]",
    b"{",
    b"}",
    b"}{",
    b"{}{}",
    b"\x00",
    b"\xef\xbb\xbf",
    b"\xef\xbb\xbf{}",
    b"{}]",
    b"//",
    b"{}//",
    b"nul",
)
BYTES = (0x00, 0x0A, 0x0D, 0x1F, 0x22, 0x2C, 0x3A, 0x5B, 0x5C, 0x5D, 0x7B, 0x7D, 0x7F, 0x80, 0xC0, 0xED, 0xF5, 0xFF)


def mutants(seeds: Sequence[bytes], count: int, seed: int) -> Iterator[bytes]:
    """`count` messages: each a seed that one to three mutations have gone over. A message may hold line ends."""
    chance = random.Random(seed)
    for _ in range(count):
        message = chance.choice(seeds)
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            message = chance.choice(MUTATIONS)(message, seeds, chance)
        yield message


def _flip(message: bytes, _: Sequence[bytes], chance: random.Random) -> bytes:
    data = bytearray(message)
    for _ in range(chance.choice((1, 1, 2, 8))):
        if data:
            at = chance.randrange(len(data))
            data[at] = chance.choice((data[at] ^ 1 << chance.randrange(8), chance.choice(BYTES)))
    return bytes(data)


def _cut(message: bytes, _: Sequence[bytes], chance: random.Random) -> bytes:
    at = chance.randrange(len(message) + 1)
    return chance.choice((message[:at], message[at:], message[:at] + b"}", message[:at] + b'"}', b"{" + message[at:]))


def _lose(message: bytes, _: Sequence[bytes], chance: random.Random) -> bytes:
    first, last = sorted(chance.randrange(len(message) + 1) for _ in range(2))
    return message[:first] + message[min(last, first + 40) :]


def _splice(message: bytes, seeds: Sequence[bytes], chance: random.Random) -> bytes:
    other = chance.choice(seeds)
    at, to = chance.randrange(len(message) + 1), chance.randrange(len(other) + 1)
    return chance.choice(
        (message[:at] + other[to:], message + other, message + b"," + other, message[:at] + other + message[at:], message + b" " + other)
    )


def _double(message: bytes, _: Sequence[bytes], chance: random.Random) -> bytes:
    """A key twice: the members of an object once more, with other values."""
    try:
        event = json.loads(message)
    except (ValueError, RecursionError):
        return message + message
    if not isinstance(event, dict) or not event:
        return message
    key = chance.choice(list(event))
    more = json.dumps({key: chance.choice((event[key], None, 0, "other"))}, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return b"{" + more[1:-1] + b", " + message[1:] if chance.random() < 0.5 else message[:-1] + b", " + more[1:-1] + b"}"


def _nest(message: bytes, _: Sequence[bytes], chance: random.Random) -> bytes:
    depth = chance.choice((1, 2, 60, 600)) if chance.random() < 0.95 else 3_000
    inner = chance.choice((b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth, b"[" * depth, b"{" * depth))
    return chance.choice((message[:-1] + b', "deep": ' + inner + b"}", inner, b"[" * depth + message + b"]" * depth))


def _space(message: bytes, _: Sequence[bytes], chance: random.Random) -> bytes:
    blank = chance.choice(
        (b" ", b"\t", b"\r", b" \t \r", b"\x0b", b"\x0c", b"\xc2\xa0", b"\xe2\x80\xa8", b"\x00", b"\xef\xbb\xbf", b" " * 300)
    )
    return chance.choice(
        (blank + message, message + blank, message.replace(b", ", b"," + blank, 1), message.replace(b": ", b":" + blank, 1))
    )


def _short(_: bytes, __: Sequence[bytes], chance: random.Random) -> bytes:
    return chance.choice(SHORT)


def _encoding(message: bytes, _: Sequence[bytes], chance: random.Random) -> bytes:
    text = message.decode("utf-8", "replace")
    at = chance.randrange(len(message) + 1)
    wrong = chance.choice((b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"\x80"))
    return chance.choice(
        (message[:at] + wrong + message[at:], text.encode("utf-16"), text.encode("latin-1", "replace"), text.encode("utf-32"))
    )


def _long(message: bytes, _: Sequence[bytes], chance: random.Random) -> bytes:
    size = chance.choice((300, 1_000, 5_000)) if chance.random() < 0.99 else 1 << 20
    what = chance.choice((b'"' + b"x" * size + b'"', b'"' + b"\\n" * (size // 2) + b'"', b"1" * size, b"[" + b"1," * (size // 2) + b"1]"))
    key = b"k" * size if chance.random() < 0.3 else b"long"
    return message[:-1] + b', "' + key + b'": ' + what + b"}"


def _value(message: bytes, _: Sequence[bytes], chance: random.Random) -> bytes:
    """Some value, at any depth, becomes another one, is lost, or gets a neighbour."""
    try:
        event = json.loads(message)
    except (ValueError, RecursionError):
        return message[::-1]
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key, below in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
            places.append((node, key))
            walk(below)

    try:
        walk(event)
    except RecursionError:
        return message
    if not places:
        return message
    node, key = chance.choice(places)
    change = chance.randrange(5)
    if change == 0:
        del node[key]
    elif change == 1 and isinstance(node, dict):
        node[chance.choice(("unknown", "", "a.b", "é", key + "\u0000", key.upper() + "_"))] = chance.choice(
            (None, 1, "text", [], {"a": [1]})
        )
    elif change == 2:
        other, from_ = chance.choice(places)
        if not isinstance(other[from_], (dict, list)):
            node[key] = other[from_]
    else:
        token = f"@{chance.randrange(10**9)}@"
        node[key] = token
        literal = chance.choice(chance.choice((HUGE, LITERALS, TEXTS)))
        return json.dumps(event, ensure_ascii=False).replace(f'"{token}"', literal).encode("utf-8", "surrogatepass")
    return json.dumps(event, ensure_ascii=False).encode("utf-8", "surrogatepass")


MUTATIONS: tuple[Callable[[bytes, Sequence[bytes], random.Random], bytes], ...] = (
    _flip,
    _flip,
    _cut,
    _lose,
    _splice,
    _double,
    _nest,
    _space,
    _short,
    _encoding,
    _long,
    _value,
    _value,
    _value,
    _value,
)
