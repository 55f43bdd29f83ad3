"""One event's text, walked token by token against the schema: why it is refused, or where it drifts.

Slow (tens of microseconds an event) and exact. It serves where the fast decoders are silent or say too much: refused
events, events that msgspec cannot read although pyarrow can (NaN, text that is not UTF-8, very deep nesting), and texts that must not
reach pyarrow's decimals. It keeps a stack for what the schema knows, and a mere depth for what it does not, so that no
nesting can exhaust anything.

What a scan calls certain is refused by pyarrow too (a test holds it to that); what it suspects counts only once
pyarrow has refused the event.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from decimal import Decimal

import pyarrow as pa

from eventveil.schemas.events.tree import Leaf, ListOf, MapOf, Node, Record
from eventveil.transforms.columns import Kind

__all__ = ["Scan", "Scanner"]

_TOKEN = re.compile(
    rb"""[ \t\r\n]*(?:([{}\[\]:,])|"([^"\\\x00-\x1f]*(?:\\.[^"\\\x00-\x1f]*)*)"|([^ \t\r\n{}\[\]:,"]+))""",
    re.DOTALL,
)
_INSIDE = re.compile(rb"""([{\[]+)|([}\]]+)|"([^"\\\x00-\x1f]*(?:\\.[^"\\\x00-\x1f]*)*)"|([^{}\[\]"]+)""", re.DOTALL)
_INTEGER = re.compile(rb"-?(?:0|[1-9][0-9]*)\Z")
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?\Z")
_LARGE = re.compile(rb"[eE]\+?0*[0-9]{3}|[0-9]{300}")  # may be more than a double can hold
_NOT_FINITE = re.compile(rb"-?(?:NaN|Inf|Infinity)\Z")
_DECIMAL = re.compile(rb"[+-]?(?P<whole>[0-9]*)(?:\.(?P<fraction>[0-9]*))?(?:[eE](?P<exponent>[+-]?[0-9]+))?\Z")
_BOOLEANS = (b"true", b"false")
_WORDS = (*_BOOLEANS, b"null")
_CONTAINERS = (Record, ListOf, MapOf)
_MOST_DIGITS = 38
_INT64 = range(-(2**63), 2**63)


@dataclass
class Scan:
    """Attributes:
    problem: code and known path of the first certain reason to refuse the event.
    suspicion: the same for a reason that pyarrow may or may not share.
    unreadable: the same for what pyarrow reads and msgspec does not; it counts where msgspec is the judge.
    drift: the labels of the known parents that have unknown fields, as ``shipping.?``.
    depth: how deep the text nests.
    """

    problem: tuple[str, str] | None = None
    suspicion: tuple[str, str] | None = None
    unreadable: tuple[str, str] | None = None
    drift: set[str] = field(default_factory=set)
    depth: int = 0


class _Known:
    """A node of the schema with its path, and what lies below it by name."""

    __slots__ = ("fields", "in_map", "item", "kind", "label", "path")

    def __init__(self, node: Node, path: str, in_map: bool = False) -> None:
        self.kind = type(node) if not isinstance(node, Leaf) else node.type
        self.path = path
        self.in_map = in_map
        self.label = f"{path}.?" if path else "?"
        self.fields: dict[str, _Known] = {}
        self.item: _Known | None = None
        if isinstance(node, Record):
            self.fields = {known.name: _Known(known.node, f"{path}.{known.name}" if path else known.name, in_map) for known in node.fields}
        elif isinstance(node, ListOf):
            self.item = _Known(node.item, f"{path}[]", in_map)
        elif isinstance(node, MapOf):
            self.item = _Known(node.value, f"{path}{{}}", True)


class Scanner:
    """Scans events of one schema. `root` is the event."""

    def __init__(self, root: Record) -> None:
        self._root = _Known(root, "")

    def scan(self, text: bytes) -> Scan:
        """Walk one event, up to its first certain problem. Text that is no JSON may yield any result, but no exception."""
        result = Scan()
        try:
            self._walk(text, result)
        except _Found as found:
            result.problem = (found.code, found.path)
        return result

    def _walk(self, text: bytes, result: Scan) -> None:
        stack: list[tuple[_Known, set[str]]] = []  # what is open, with the names seen in it
        known: _Known | None = self._root  # what the schema says of the next value
        label = "?"
        key_next = False
        at, size = 0, len(text)
        match = _TOKEN.match
        while True:
            token = match(text, at)
            if token is None:
                raise _Found("EV501")
            at = token.end()
            mark, quoted, word = token.groups()
            if mark is None and key_next:
                known, label = _named(*stack[-1], quoted, result)
                key_next = False
            elif mark is None:
                _scalar(quoted, word, known, label, result)
            elif mark == b",":
                if stack:
                    known = stack[-1][0].item
                    key_next = stack[-1][0].kind is not ListOf
            elif mark == b"{" or mark == b"[":
                if known is None:
                    at = _behind(text, at, label, len(stack), result)
                else:
                    if (mark == b"[") != (known.kind is ListOf) or known.kind not in _CONTAINERS:
                        raise _Found("EV502", known.path)
                    stack.append((known, set()))
                    result.depth = max(result.depth, len(stack))
                    known = known.item
                    key_next = mark == b"{"
            elif mark != b":":
                key_next = False
                if stack:
                    stack.pop()
                if not stack:
                    break
        if at < size:
            raise _Found("EV501")


def _behind(text: bytes, at: int, label: str, above: int, result: Scan) -> int:
    """Where a list or object that the schema does not know ends; `at` is behind its bracket. Takes runs of brackets in one step."""
    depth = deepest = 1
    while True:
        token = _INSIDE.match(text, at)
        if token is None:
            raise _Found("EV501")
        at = token.end()
        opening, closing, quoted, others = token.groups()
        if opening is not None:
            depth += len(opening)
            deepest = max(deepest, depth)
        elif closing is not None:
            depth -= len(closing)
            if depth <= 0:
                result.depth = max(result.depth, above + deepest)
                return at + depth
        elif quoted is not None:
            _scalar(quoted, None, None, label, result)
        elif _LARGE.search(others):
            result.suspicion = result.suspicion or ("EV507", label)
        elif b"N" in others or b"I" in others:
            result.unreadable = result.unreadable or ("EV505", label)


def _named(top: _Known, seen: set[str], quoted: bytes | None, result: Scan) -> tuple[_Known | None, str]:
    """What the schema says of the value under a name, and what its drift is called."""
    name = None if quoted is None else _unescaped(quoted)
    if name is None:
        raise _Found("EV501" if quoted is None or not _lone_surrogate(quoted) else "EV504")
    known = top.item if top.kind is MapOf else top.fields.get(name)
    if known is None:
        result.drift.add(top.label)
    elif name in seen:
        raise _Found("EV507", known.path)
    else:
        seen.add(name)
    return known, top.label


class _Found(Exception):
    """A certain problem."""

    def __init__(self, code: str, path: str = "") -> None:
        super().__init__(code)
        self.code = code
        self.path = path


def _scalar(quoted: bytes | None, word: bytes | None, known: _Known | None, label: str, result: Scan) -> None:
    """Raise what is certainly wrong with a scalar; note the rest."""
    kind = None if known is None else known.kind
    path = label if known is None else known.path
    if quoted is not None:
        if b"\\" in quoted and _unescaped(quoted) is None:
            raise _Found("EV504", path) if _lone_surrogate(quoted) else _Found("EV501")
        if not quoted.isascii() and not _is_utf8(quoted):
            result.unreadable = result.unreadable or ("EV504", path)
    elif word not in _WORDS and word is not None:
        if _NOT_FINITE.match(word):
            result.unreadable = result.unreadable or ("EV505", path)
        elif not _NUMBER.match(word):
            raise _Found("EV501")
        elif _LARGE.search(word):
            is_float = isinstance(kind, pa.DataType) and pa.types.is_floating(kind)
            result.suspicion = result.suspicion or ("EV505" if is_float else "EV507", path)
    if known is None or word == b"null":
        return
    if not isinstance(kind, pa.DataType):
        raise _Found("EV502", path)
    if pa.types.is_decimal(kind):
        _decimal(quoted, word, kind, path, result)
    elif pa.types.is_boolean(kind):
        if word not in _BOOLEANS:
            raise _Found("EV502", path)
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        _number(word, kind, known, result)
    elif quoted is None:
        raise _Found("EV502", path)


def _number(word: bytes | None, kind: Kind, known: _Known, result: Scan) -> None:
    if word is None or word in _BOOLEANS:
        raise _Found("EV502", known.path)
    if _NOT_FINITE.match(word):
        # In maps msgspec judges, to which NaN is no JSON; in other columns of floats it is found in the column.
        if known.in_map or pa.types.is_integer(kind):
            raise _Found("EV505", known.path)
    elif pa.types.is_integer(kind):
        if not _INTEGER.match(word):
            raise _Found("EV502", known.path)
        if len(word) > 20 or int(word) not in _INT64:
            raise _Found("EV507", known.path)


def _decimal(quoted: bytes | None, word: bytes | None, kind: Kind, path: str, result: Scan) -> None:
    if word in _BOOLEANS:
        raise _Found("EV502", path)
    raw = (word if quoted is None else (_unescaped(quoted) or "").encode()) or b""
    if not any(48 <= byte <= 57 for byte in raw) or _DECIMAL.match(raw) is None or _is_trap(raw, kind.scale):
        raise _Found("EV506", path)
    if not _fits(raw, kind):
        result.suspicion = result.suspicion or ("EV506", path)


def _fits(raw: bytes, kind: Kind) -> bool:
    if len(raw) > 2 * _MOST_DIGITS:
        return False
    try:
        value = Decimal(raw.decode("ascii"))
    except ArithmeticError:  # an exponent that no decimal has
        return False
    digits, exponent = value.as_tuple()[1:]
    assert isinstance(exponent, int)
    return len(digits) <= _MOST_DIGITS and -exponent <= kind.scale and value.adjusted() < kind.precision - kind.scale


def _is_trap(raw: bytes, scale: int) -> bool:
    """Whether pyarrow would shift a decimal by more than 38 digits: it reads outside its table then, and can kill the process."""
    found = _DECIMAL.match(raw)
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
