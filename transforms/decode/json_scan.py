"""One event's text, walked token by token against the schema: why it is refused, or where it drifts.

Slow (tens of microseconds an event) and exact. It serves where the fast decoders are silent or say too much: refused
events, events that msgspec cannot read although pyarrow can (NaN, text that is not UTF-8, very deep nesting), and texts that must not
reach pyarrow's decimals. It keeps a stack for what the schema knows, and a mere depth for what it does not, so that no
nesting can exhaust anything.

What `scan` calls certain is refused by pyarrow too (a test holds it to that); what it suspects counts only once
pyarrow has refused the event.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from decimal import Decimal

import pyarrow as pa

from eventveil.schemas.events.tree import Leaf, ListOf, MapOf, Node, Record

__all__ = ["DECIMAL", "Scan", "exponent_trap", "scan"]

_TOKEN = re.compile(
    rb"""[ \t\r\n]*(?:(?P<mark>[{}\[\]:,])|"(?P<text>[^"\\\x00-\x1f]*(?:\\.[^"\\\x00-\x1f]*)*)"|(?P<word>[^ \t\r\n{}\[\]:,"]+))""",
    re.DOTALL,
)
_INTEGER = re.compile(rb"-?(?:0|[1-9][0-9]*)\Z")
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?\Z")
_LARGE = re.compile(rb"[eE]\+?0*[0-9]{3}")
_NOT_FINITE = re.compile(rb"-?(?:NaN|Inf|Infinity)\Z")
DECIMAL = re.compile(rb"[+-]?(?P<whole>[0-9]*)(?:\.(?P<fraction>[0-9]*))?(?:[eE](?P<exponent>[+-]?[0-9]+))?\Z")
_BOOLEANS = (b"true", b"false")
_WORDS = (*_BOOLEANS, b"null")
_MOST_DIGITS = 38
_INT64 = range(-(2**63), 2**63)


@dataclass
class Scan:
    """Attributes:
    problem: code and known path of the first certain reason to refuse the event.
    suspicion: the same for a reason that pyarrow may or may not share.
    drift: the labels of the known parents that have unknown fields, as ``shipping.?``.
    depth: how deep the text nests.
    """

    problem: tuple[str, str] | None = None
    suspicion: tuple[str, str] | None = None
    drift: set[str] = field(default_factory=set)
    depth: int = 0

    def suspect(self, code: str, path: str) -> None:
        self.suspicion = self.suspicion or (code, path)


class _Frame:
    """An open record, list or map that the schema knows."""

    __slots__ = ("in_map", "keys", "node", "path")

    def __init__(self, node: Record | ListOf | MapOf, path: str, in_map: bool) -> None:
        self.node = node
        self.path = path
        self.in_map = in_map
        self.keys: set[str] = set()


def scan(text: bytes, root: Record) -> Scan:
    """Walk one event. Returns at its first certain problem; text that is no JSON may yield anything but an exception."""
    result = Scan()
    stack: list[_Frame] = []
    unknown = 0  # how many containers that the schema does not know are open
    depth = 0
    node: Node | None = root  # of the next value; None: the schema does not know it
    path, label, in_map = "", "?", False
    key_next = False
    done = False
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            if not text[at:].strip(b" \t\r\n"):
                break
            result.problem = ("EV501", "")
            return result
        at = found.end()
        mark = found["mark"]
        if done:
            result.problem = ("EV501", "")
            return result
        if mark == b",":
            if not unknown and stack:
                key_next, node, path, label, in_map = _after_comma(stack[-1])
            elif unknown:
                key_next = False
            continue
        if mark == b":":
            key_next = False
            continue
        if mark in (b"}", b"]"):
            depth -= 1
            if unknown:
                unknown -= 1
            elif stack:
                stack.pop()
            done = not stack and not unknown
            key_next = False
            continue
        if key_next and not unknown:
            name = None if found["text"] is None else _unescaped(found["text"])
            if name is None:
                result.problem = ("EV501", "") if found["text"] is None or not _lone_surrogate(found["text"]) else ("EV504", "")
                return result
            top = stack[-1]
            node, path, label, in_map = _named(top, name)
            if node is not None and name in top.keys:
                result.problem = ("EV507", path)
                return result
            if node is None:
                result.drift.add(label)
            else:
                top.keys.add(name)
            continue
        if mark is not None:  # { or [
            depth += 1
            result.depth = max(result.depth, depth)
            if unknown or node is None:
                unknown += 1
                continue
            if isinstance(node, Leaf) or (mark == b"[") != isinstance(node, ListOf):
                result.problem = ("EV502", path)
                return result
            stack.append(_Frame(node, path, in_map or isinstance(node, MapOf)))
            key_next, node, path, label, in_map = _after_comma(stack[-1])
            continue
        here = None if unknown else node
        problem = _scalar(found["text"], found["word"], here, path if here is not None else label, in_map, result)
        if problem is not None:
            result.problem = problem
            return result
        done = not stack and not unknown
    if not done:
        result.problem = ("EV501", "")
    return result


def _after_comma(top: _Frame) -> tuple[bool, Node | None, str, str, bool]:
    """What comes next in an open container: a key, or an element."""
    if isinstance(top.node, ListOf):
        return False, top.node.item, f"{top.path}[]", "", top.in_map
    return True, None, top.path, "", top.in_map


def _named(top: _Frame, name: str) -> tuple[Node | None, str, str, bool]:
    """The node under a key, its path, the drift label if it is unknown, and whether it lies in a map."""
    if isinstance(top.node, MapOf):
        return top.node.value, f"{top.path}{{}}", "", True
    assert isinstance(top.node, Record)
    known = top.node.field(name)
    if known is None:
        return None, top.path, f"{top.path}.?" if top.path else "?", top.in_map
    return known.node, f"{top.path}.{name}" if top.path else name, "", top.in_map


def _scalar(text: bytes | None, word: bytes | None, node: Node | None, path: str, in_map: bool, result: Scan) -> tuple[str, str] | None:
    """What is certainly wrong with a scalar; the rest is noted as suspicion."""
    kind = node.type if isinstance(node, Leaf) else None
    if text is not None:
        if b"\\" in text and _unescaped(text) is None:
            return ("EV504", path) if _lone_surrogate(text) else ("EV501", "")
        if not text.isascii() and not _is_utf8(text):
            result.suspect("EV504", path)
    elif word is not None and word not in _WORDS:
        if _NOT_FINITE.match(word):
            result.suspect("EV505", path)
        elif not _NUMBER.match(word):
            return "EV501", ""
        elif len(word) > 300 or _LARGE.search(word):
            result.suspect("EV505" if kind is not None and pa.types.is_floating(kind) else "EV507", path)
    if node is None or word == b"null":
        return None
    if kind is None:
        return "EV502", path
    if pa.types.is_decimal(kind):
        return _decimal(text, word, kind, path, result)
    if pa.types.is_boolean(kind):
        return None if word in _BOOLEANS else ("EV502", path)
    if not pa.types.is_integer(kind) and not pa.types.is_floating(kind):
        return None if text is not None else ("EV502", path)
    if word is None or word in _BOOLEANS:
        return "EV502", path
    if pa.types.is_floating(kind):
        # In maps msgspec judges, to which NaN is no JSON; elsewhere it is found in the column.
        return ("EV505", path) if in_map and _NOT_FINITE.match(word) else None
    if _NOT_FINITE.match(word):
        return "EV505", path
    if not _INTEGER.match(word):
        return "EV502", path
    return None if len(word) <= 20 and int(word) in _INT64 else ("EV507", path)


def _decimal(text: bytes | None, word: bytes | None, kind: pa.DataType, path: str, result: Scan) -> tuple[str, str] | None:
    if word in (b"true", b"false"):
        return "EV502", path
    digits = _unescaped(text) if text is not None else (word or b"").decode("ascii", "replace")
    raw = (digits or "").encode()
    if not any(48 <= byte <= 57 for byte in raw) or DECIMAL.match(raw) is None:
        return "EV506", path
    if exponent_trap(raw, kind.scale):
        return "EV506", path
    if not _fits(raw, kind):
        result.suspect("EV506", path)
    return None


def _fits(raw: bytes, kind: pa.DataType) -> bool:
    if len(raw) > 2 * _MOST_DIGITS:
        return False
    value = Decimal(raw.decode("ascii"))
    digits, exponent = value.as_tuple()[1:]
    assert isinstance(exponent, int)
    return len(digits) <= _MOST_DIGITS and -exponent <= kind.scale and value.adjusted() < kind.precision - kind.scale


def exponent_trap(raw: bytes, scale: int) -> bool:
    """Whether pyarrow's decimals would read outside their table of powers: more than 38 digits to shift. Such a text can kill the process."""
    found = DECIMAL.match(raw)
    if found is None or not (found["exponent"] or b"").startswith(b"-"):
        return False
    digits = found["exponent"][1:].lstrip(b"0")
    return len(digits) > 4 or len(found["fraction"] or b"") + int(digits or b"0") - scale > _MOST_DIGITS


def _unescaped(text: bytes) -> str | None:
    """The text between the quotes; None where an escape is wrong or a surrogate stands alone."""
    plain = text.decode("utf-8", "replace")
    if "\\" not in plain:
        return plain
    try:
        read: str = json.loads(f'"{plain}"', strict=False)
        read.encode()
    except ValueError:
        return None
    return read


def _lone_surrogate(text: bytes) -> bool:
    try:
        json.loads('"' + text.decode("utf-8", "replace") + '"', strict=False)
    except ValueError:
        return False
    return True


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
