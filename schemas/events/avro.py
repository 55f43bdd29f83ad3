"""Event schemas written in Avro (.avsc), read into the tree.

Of the types that Avro has all are read but two, which have no fixed set of leaves: recursive types, and unions of several types.
Source: Apache Avro 1.12, Specification.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from eventveil.schemas.document import LARGEST, kind, line_at, parse_document, shorten
from eventveil.schemas.errors import PolicyError, Problem, SchemaError
from eventveil.schemas.events.tree import EventSchema, Field, Leaf, ListOf, MapOf, Node, Record

__all__ = ["load_avro", "parse_avro"]

_DEEPEST = 64
_MOST_LEAVES = 10_000
_MOST_DIGITS = 38
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")

_PRIMITIVES: dict[str, pa.DataType] = {
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "bytes": pa.binary(),
    "string": pa.string(),
}
_COMPLEX = frozenset({"array", "enum", "error", "fixed", "map", "record"})
_LOGICAL = {
    ("int", "date"): Leaf(pa.date32()),
    ("int", "time-millis"): Leaf(pa.time32("ms")),
    ("long", "time-micros"): Leaf(pa.time64("us")),
    ("long", "timestamp-millis"): Leaf(pa.timestamp("ms", "UTC")),
    ("long", "timestamp-micros"): Leaf(pa.timestamp("us", "UTC")),
    ("long", "timestamp-nanos"): Leaf(pa.timestamp("ns", "UTC")),
    ("long", "local-timestamp-millis"): Leaf(pa.timestamp("ms")),
    ("long", "local-timestamp-micros"): Leaf(pa.timestamp("us")),
    ("long", "local-timestamp-nanos"): Leaf(pa.timestamp("ns")),
    ("string", "uuid"): Leaf(pa.string(), form="uuid"),
}


def load_avro(path: str | Path) -> EventSchema:
    """Read an Avro schema from a file.

    Raises SchemaError with everything that is wrong: EV201 where it is no Avro schema, EV202 where it cannot be protected.
    """
    file = str(path)
    try:
        with Path(path).open("rb") as stream:
            data = stream.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or "not a path").lower()
        raise SchemaError(Problem(file, 0, "EV201", f"the event schema cannot be read: {reason}", "correct the path")) from None
    if len(data) > LARGEST:
        raise SchemaError(Problem(file, 0, "EV201", f"the event schema is larger than {LARGEST} bytes", "split the event"))
    document, twice = _parse_json(data, file)
    problems = tuple(Problem(file, 0, "EV201", f"key '{shorten(name)}' stands twice", "remove one of the two") for name in twice)
    try:
        found = parse_avro(document, file)
    except SchemaError as error:
        problems += error.problems
    else:
        if not problems:
            return found
    # reading positions is slow, and only needed to say where the problems are
    try:
        return parse_avro(parse_document(data, file), file)
    except PolicyError as error:
        placed = [Problem(file, found.line, "EV201", found.fact, found.remedy) for found in error.problems if found.code == "EV106"]
        raise SchemaError(placed or problems) from None


def _parse_json(data: bytes, file: str) -> tuple[Any, list[str]]:
    """What the text holds, and the keys that stand twice in one object."""
    twice: list[str] = []

    def entries(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice.extend(_twice(name for name, _ in pairs))
        return dict(pairs)

    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=entries), twice
    except UnicodeDecodeError:
        raise SchemaError(Problem(file, 0, "EV201", "the event schema is not UTF-8 text", "save it as UTF-8")) from None
    except json.JSONDecodeError as error:
        raise SchemaError(Problem(file, error.lineno, "EV201", f"not JSON: {error.msg.lower()}", "correct the syntax")) from None
    except (RecursionError, ValueError):
        fact = "not JSON that can be read: nested too deep, or a number too long"
        raise SchemaError(Problem(file, 0, "EV201", fact, "write it flatter")) from None


def parse_avro(document: Any, file: str) -> EventSchema:
    """Read an Avro schema from what its JSON holds; `file` is its name in messages.

    Raises SchemaError with everything that is wrong: EV201 where it is no Avro schema, EV202 where it cannot be protected.
    """
    reader = _Reader(document, file)
    found = reader.read(document, _Place())
    if not isinstance(document, Mapping) or document.get("type") not in ("record", "error"):
        reader.add(_Place(), "EV201", "an event must be a record", 'write {"type": "record", "name": ..., "fields": [...]}')
    if reader.problems or found is None or not isinstance(found.node, Record):
        raise SchemaError(reader.problems)
    assert isinstance(found.canonical, dict)
    canonical = json.dumps(found.canonical, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return EventSchema(found.canonical["name"], found.node, canonical, file)


@dataclass(frozen=True)
class _Place:
    """Where reading stands: in the event, as a policy would write it, and in the document."""

    path: str = ""
    steps: tuple[str | int, ...] = ()
    namespace: str = ""
    depth: int = 0

    def below(self, *steps: str | int, path: str | None = None) -> _Place:
        deeper = self.depth + (path is not None)
        return _Place(self.path if path is None else path, (*self.steps, *steps), self.namespace, deeper)


@dataclass(frozen=True)
class _Found:
    """A type that was read: its node, what matters of it in canonical form, whether null is allowed, how deep and wide it is."""

    node: Node
    canonical: Any
    nullable: bool = False
    height: int = 0
    leaves: int = 1


@dataclass
class _Reader:
    """Reads types and gathers what is wrong with them; None stands for a type that is wrong."""

    document: Any
    file: str
    problems: list[Problem] = field(default_factory=list)
    named: dict[str, _Found | None] = field(default_factory=dict)
    """Named types read so far; None for those that were wrong."""
    open: set[str] = field(default_factory=set)
    """Named types that are being read: who names one of them is recursive."""

    def add(self, place: _Place, code: str, fact: str, remedy: str) -> None:
        named = f"field {shorten(place.path, 80)}: {fact}" if place.path else fact
        self.problems.append(Problem(self.file, line_at(self.document, place.steps), code, named, remedy))

    def read(self, schema: Any, place: _Place) -> _Found | None:
        if place.depth > _DEEPEST:
            self.add(place, "EV202", f"nested more than {_DEEPEST} deep", "flatten the event")
            return None
        if isinstance(schema, str):
            return self._read_name(schema, place)
        if isinstance(schema, list):
            return self._read_union(schema, place)
        if isinstance(schema, dict):
            return self._read_object(schema, place)
        self.add(place, "EV201", f"a type must be a name, an object or a union, not {kind(schema)}", "correct the type")
        return None

    def _read_name(self, name: str, place: _Place) -> _Found | None:
        if name in _PRIMITIVES:
            return _Found(Leaf(_PRIMITIVES[name]), name)
        if name == "null":
            self.add(place, "EV202", "is always null", "remove the field, or give it a type")
            return None
        if name in _COMPLEX:
            self.add(place, "EV201", f"'{name}' needs an object", f'write {{"type": "{name}", ...}}')
            return None
        full = name if "." in name or not place.namespace else f"{place.namespace}.{name}"
        if full in self.open:
            self.add(place, "EV202", f"the type {shorten(full)} contains itself", "write out as many levels as events have")
            return None
        if full not in self.named:
            self.add(
                place,
                "EV201",
                f"unknown type '{shorten(name)}'",
                "define it before it is used, and write its namespace",
            )
            return None
        found = self.named[full]
        if found is None:
            return None  # it was wrong where it was defined
        if place.depth + found.height > _DEEPEST:
            self.add(place, "EV202", f"nested more than {_DEEPEST} deep", "flatten the event")
            return None
        return _Found(found.node, full, False, found.height, found.leaves)

    def _read_union(self, branches: list[Any], place: _Place) -> _Found | None:
        if not branches:
            self.add(place, "EV201", "an empty union", "name its types")
            return None
        if any(isinstance(branch, list) for branch in branches):
            self.add(place, "EV201", "a union directly in a union", "write one union")
            return None
        types = [(number, branch) for number, branch in enumerate(branches) if not _is_null(branch)]
        nulls = len(branches) - len(types)
        if nulls > 1:
            self.add(place, "EV201", "a union that names null twice", "name it once")
        if not types:
            self.add(place, "EV202", "is always null", "remove the field, or give it a type")
            return None
        # all branches are read: later fields may name a type that is defined in one of them
        read = [self.read(branch, place.below(number)) for number, branch in types]
        if len(types) > 1:
            self.add(place, "EV202", f"a union of {len(types)} types", "give each type a field of its own; null may stand beside one type")
            return None
        found = read[0]
        if found is None:
            return None
        # the order counts for what is written in Avro's binary form
        canonical = ["null" if _is_null(branch) else found.canonical for branch in branches]
        return _Found(found.node, canonical, nulls > 0, found.height, found.leaves)

    def _read_object(self, schema: dict[str, Any], place: _Place) -> _Found | None:
        name = schema.get("type")
        if not isinstance(name, str):
            fact = "a type is missing" if name is None else f"the type of an object must be a name, not {kind(name)}"
            self.add(place.below("type"), "EV201", fact, 'write {"type": "string"} or {"type": "record", ...}')
            return None
        if name == "array":
            return self._read_items(schema, "items", place, f"{place.path}[]")
        if name == "map":
            return self._read_items(schema, "values", place, f"{place.path}{{}}")
        if name in ("record", "error", "enum", "fixed"):
            return self._read_named(schema, name, place)
        found = self._read_name(name, place)
        return found if found is None or name not in _PRIMITIVES else self._logical(schema, name, found, place)

    def _read_items(self, schema: dict[str, Any], key: str, place: _Place, path: str) -> _Found | None:
        inside = place.below(key, path=path)
        if key not in schema:
            self.add(place, "EV201", f"'{key}' is missing", f'write {{"type": "{schema["type"]}", "{key}": ...}}')
            return None
        found = self.read(schema[key], inside)
        if found is None:
            return None
        node: Node = ListOf(found.node, found.nullable) if key == "items" else MapOf(found.node, found.nullable)
        return _Found(node, {"type": schema["type"], key: found.canonical}, False, found.height + 1, found.leaves)

    def _logical(self, schema: dict[str, Any], name: str, found: _Found, place: _Place) -> _Found | None:
        logical = schema.get("logicalType")
        if name == "bytes" and logical == "decimal":
            return self._decimal(schema, found.canonical, None, place)
        leaf = _LOGICAL.get((name, logical)) if isinstance(logical, str) else None
        if leaf is None:
            return found  # what a reader does not know it ignores, says the specification
        return _Found(leaf, {"type": name, "logicalType": logical})

    def _decimal(self, schema: dict[str, Any], base: Any, size: int | None, place: _Place) -> _Found | None:
        precision, scale = _count(schema.get("precision")), _count(schema.get("scale", 0))
        if not precision:
            self.add(place.below("precision"), "EV201", "a decimal needs a precision of at least 1", "write how many digits it has")
            return None
        if scale is None or scale > precision:
            self.add(place.below("scale"), "EV201", "the scale of a decimal must lie between 0 and its precision", "correct the scale")
            return None
        if precision > _MOST_DIGITS:
            self.add(place.below("precision"), "EV202", f"a decimal of more than {_MOST_DIGITS} digits", "use fewer digits, or text")
            return None
        if size is not None and 10**precision > 1 << (8 * size - 1):
            self.add(place.below("precision"), "EV201", f"{precision} digits do not fit into {size} bytes", "correct size or precision")
            return None
        form = base if isinstance(base, dict) else {"type": base}
        canonical = {**form, "logicalType": "decimal", "precision": precision, "scale": scale}
        return _Found(Leaf(pa.decimal128(precision, scale), size=size or 0), canonical)

    def _read_named(self, schema: dict[str, Any], name: str, place: _Place) -> _Found | None:
        full = self._full_name(schema, place)
        if full is None:
            full = ""
        elif full in self.named or full in self.open:
            self.add(place.below("name"), "EV201", f"the type {shorten(full)} is defined twice", "give each type a name of its own")
            full = ""
        inside = _Place(place.path, place.steps, full.rpartition(".")[0] if full else place.namespace, place.depth)
        if full:
            self.open.add(full)
        read = {"enum": self._read_enum, "fixed": self._read_fixed}.get(name, self._read_record)
        found = read(schema, full, inside)
        if full:
            self.open.discard(full)
            self.named[full] = found
        return found

    def _full_name(self, schema: dict[str, Any], place: _Place) -> str | None:
        name, namespace = schema.get("name"), schema.get("namespace", place.namespace)
        if not isinstance(name, str):
            self.add(place.below("name"), "EV201", f"the {schema['type']} has no name", 'add "name"')
            return None
        full = name if "." in name or not namespace else f"{namespace}.{name}"
        parts = full.split(".") if isinstance(namespace, str) else [""]
        if not all(_NAME.match(part) for part in parts) or parts[-1] in _PRIMITIVES or parts[-1] == "null":
            self.add(place.below("name"), "EV201", f"'{shorten(name)}' cannot be the name of a type", "use letters, digits and underscores")
            return None
        return full

    def _read_enum(self, schema: dict[str, Any], full: str, place: _Place) -> _Found | None:
        symbols = schema.get("symbols")
        at = place.below("symbols")
        if not isinstance(symbols, list) or not symbols:
            self.add(at, "EV201", "an enum needs a list of symbols", 'add "symbols"')
            return None
        wrong = [symbol for symbol in symbols if not isinstance(symbol, str) or not _NAME.match(symbol)]
        if wrong:
            self.add(at, "EV201", "a symbol of an enum must be a name", "use letters, digits and underscores")
        twice = _twice(symbol for symbol in symbols if isinstance(symbol, str))
        for symbol in twice:
            self.add(at, "EV201", f"the symbol '{shorten(symbol)}' stands twice", "remove one of the two")
        if wrong or twice:
            return None
        return _Found(Leaf(pa.string(), form="enum", symbols=tuple(symbols)), {"type": "enum", "name": full, "symbols": list(symbols)})

    def _read_fixed(self, schema: dict[str, Any], full: str, place: _Place) -> _Found | None:
        size = _count(schema.get("size"))
        if not size or size > LARGEST:
            self.add(place.below("size"), "EV201", f"the size of a fixed must be a whole number from 1 to {LARGEST}", "correct the size")
            return None
        base = {"type": "fixed", "name": full, "size": size}
        logical = schema.get("logicalType")
        if logical == "decimal":
            return self._decimal(schema, base, size, place)
        if logical == "uuid" and size == 16:
            return _Found(Leaf(pa.string(), form="uuid", size=16), {**base, "logicalType": "uuid"})
        return _Found(Leaf(pa.binary(), form="fixed", size=size), base)

    def _read_record(self, schema: dict[str, Any], full: str, place: _Place) -> _Found | None:
        listed = schema.get("fields")
        if not isinstance(listed, list) or not listed:
            self.add(place.below("fields"), "EV201", "a record needs a list of fields", 'add "fields"')
            return None
        before = len(self.problems)
        names = [entry.get("name") if isinstance(entry, dict) else None for entry in listed]
        for name in _twice(name for name in names if isinstance(name, str)):
            second = len(names) - 1 - names[::-1].index(name)
            self.add(place.below("fields", second, "name"), "EV201", f"the name '{shorten(name)}' stands twice", "rename one of the two")
        read = [
            (str(name), self._read_field(entry, name, place.below("fields", number)))
            for number, (entry, name) in enumerate(zip(listed, names))
        ]
        if len(self.problems) > before or any(found is None for _, found in read):
            return None
        types = [(name, found) for name, found in read if found is not None]
        leaves = sum(found.leaves for _, found in types)
        if leaves > _MOST_LEAVES:
            self.add(place, "EV202", f"more than {_MOST_LEAVES} leaves", "split the event")
            return None
        return _Found(
            Record(tuple(Field(name, found.node, found.nullable) for name, found in types)),
            {"type": "record", "name": full, "fields": [{"name": name, "type": found.canonical} for name, found in types]},
            height=1 + max(found.height for _, found in types),
            leaves=leaves,
        )

    def _read_field(self, entry: Any, name: Any, place: _Place) -> _Found | None:
        if not isinstance(entry, dict):
            self.add(place, "EV201", f"a field must be an object, not {kind(entry)}", 'write {"name": ..., "type": ...}')
            return None
        if not isinstance(name, str) or not _NAME.match(name):
            fact = f"'{shorten(name)}' cannot be the name of a field" if isinstance(name, str) else "a field without a name"
            self.add(place.below("name"), "EV201", fact, "use letters, digits and underscores")
            return None
        inside = place.below(path=f"{place.path}.{name}" if place.path else name)
        if "type" not in entry:
            self.add(inside, "EV201", "the type is missing", 'add "type"')
            return None
        return self.read(entry["type"], inside.below("type"))


def _is_null(branch: Any) -> bool:
    return branch == "null" or (isinstance(branch, dict) and branch.get("type") == "null")


def _count(value: Any) -> int | None:
    """A whole number that is not negative; None for all else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _twice(names: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    twice: list[str] = []
    for name in names:
        if name in seen and name not in twice:
            twice.append(name)
        seen.add(name)
    return twice
