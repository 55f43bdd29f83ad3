"""JSON messages and lines -> typed columns.

The verdict on one event, alone: it must be framed as one object (framing.py); pyarrow.json must read it under the full
schema, unknown fields ignored; its columns must pass the judge (judge.py). Drift is what a walk over it finds. pyarrow
is the only judge of syntax and type, except in maps, which it cannot read: there msgspec is a second judge.

A batch comes to the same verdicts faster. pyarrow converts value by value and n framed lines that parse to n
documents are one each, so a batch that parses is one whose events parse. If it parses even with unknown fields as an
error, no event drifts. Else msgspec sorts it: what it reads is parsed together, and taken apart if that fails; what it
refuses is scanned and, if that finds nothing certain, parsed alone. How msgspec sorts costs time, and never changes a verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from eventveil.schemas.events.tree import EventSchema, Leaf, ListOf, MapOf, Node, Record
from eventveil.transforms.columns import Column, Kind, flags
from eventveil.transforms.decode.decoded import Decoded, drift_labels
from eventveil.transforms.decode.framing import Frames, contents, frame, is_plain
from eventveil.transforms.decode.json_forms import parse_type, read_leaf
from eventveil.transforms.decode.json_maps import MapReader, has_maps
from eventveil.transforms.decode.json_parser import Parser
from eventveil.transforms.decode.json_scan import Scanner
from eventveil.transforms.decode.judge import Judge, assemble

__all__ = ["MAX_EVENT_BYTES", "JsonDecoder"]

_pc: Any = pc  # the stubs know no calls with an array and a scalar

Int64s = npt.NDArray[np.int64]

MAX_EVENT_BYTES = 10 << 20

# Values per call are limited so that no column can pass 2 GB.
_MOST_BYTES = 256 << 20
# A decimal whose exponent is far below zero makes pyarrow read outside a table, and can kill the process. Texts that
# might be one, or hide one behind escapes, are scanned before they are parsed.
_EXPONENT = r'[:,\[][ \t]*"?[+-]?[0-9.]+[eE]-[0-9]+"?[ \t]*[,\]}]|\\u00(3[0-9]|[46]5|2[dDeEbB])'
_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)
# After so many events that drift in a row there is no use in asking whether the next one does not.
_DRIFTING = 32


class JsonDecoder:
    """Decodes batches of JSON objects, and judges every leaf of the schema whatever is used.

    Nulls and missing fields are one. Integers are accepted for floats; times, dates and decimals also as text
    (decimals as numbers too); bytes and fixed are text whose code points 0 to 255 are the bytes.

    Args:
        schema: the event schema.
        used: paths of the leaves that go on; None: all, and no entry of a map.
        max_event_bytes: larger events are refused (EV515), white space around them not counted.
    """

    def __init__(self, schema: EventSchema, used: Set[str] | None = None, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self.schema = schema
        self._max_bytes = max_event_bytes
        self._judge = Judge(schema, used, read_leaf)
        scanner = Scanner(schema.root)
        self._scan = scanner.scan
        self._parser = Parser(schema.root, scanner)
        self._maps = MapReader(schema.root) if has_maps(schema.root) else None
        self._has_decimals = _has_decimals(schema.root)
        self._labels = drift_labels(schema)
        self._strict = msgspec.json.Decoder(_model(schema.root, True)).decode
        self._lax = msgspec.json.Decoder(_model(schema.root, False)).decode
        self._generic = msgspec.json.Decoder().decode
        self._walk = _walker_of_record(schema.root, "")

    @property
    def type(self) -> pa.StructType:
        """The type of the decoded events."""
        return self._judge.type

    def decode(self, values: Column) -> Decoded:
        """Decode one batch: binary or text values, one event each. A null value is no event (EV501)."""
        if not is_plain(values.type):
            values = values.cast(pa.large_binary())
        if len(values) > 1 and values.nbytes > _MOST_BYTES:
            half = len(values) // 2
            return _joined(self.decode(values[:half]), self.decode(values[half:]), half)
        frames = frame(values, self._max_bytes)
        refused: dict[int, tuple[str, str]] = {}
        for mask, code in ((frames.misframed, "EV501"), (frames.too_large, "EV515")):
            refused.update((row, (code, "")) for row in np.flatnonzero(mask).tolist())
        if self._has_decimals:
            self._guard_decimals(values, frames, refused)
        rows = np.arange(len(values)) if not refused else np.setdiff1d(np.arange(len(values)), np.fromiter(refused, np.int64, len(refused)))
        events, rows, drift = self._read(values, frames, rows, refused)
        read, verdicts = self._judge.judge(events)
        for at, verdict in verdicts.found.items():
            refused[int(rows[at])] = verdict
        return assemble(read, rows, refused, self._by_label(drift))

    def _by_label(self, drift: dict[int, tuple[str, ...]]) -> dict[str, Int64s]:
        found: dict[str, list[int]] = {}
        for row, labels in drift.items():
            for label in labels:
                found.setdefault(label, []).append(row)
        return {label: np.array(sorted(found[label]), np.int64) for label in self._labels if label in found}

    def _guard_decimals(self, values: Column, frames: Frames, refused: dict[int, tuple[str, str]]) -> None:
        raw = values.cast(
            pa.large_binary() if pa.types.is_large_binary(values.type) or pa.types.is_large_string(values.type) else pa.binary()
        )
        for row in np.flatnonzero(flags(_pc.match_substring_regex(raw, _EXPONENT))).tolist():
            if row not in refused:
                problem = self._scan(frames.value(row)).problem
                if problem is not None:
                    refused[row] = problem

    def _read(
        self, values: Column, frames: Frames, rows: Int64s, refused: dict[int, tuple[str, str]]
    ) -> tuple[Column, Int64s, dict[int, tuple[str, ...]]]:
        """Parse these rows: the events, the row of each, and the labels of those that drift. Adds to `refused`."""
        if not len(rows):
            return self._empty(), rows, {}
        if self._maps is None:
            data = _lines(values, rows, frames)
            events = self._parser.parse(data, len(rows), "error")
            if not isinstance(events, int):
                return events, rows, {}
        return self._sorted(frames, rows, refused)

    def _sorted(
        self, frames: Frames, rows: Int64s, refused: dict[int, tuple[str, str]]
    ) -> tuple[Column, Int64s, dict[int, tuple[str, ...]]]:
        """The same, when a batch did not parse as a whole."""
        likely: list[int] = []
        unlikely: list[int] = []
        suspects: list[int] = []
        texts = frames.texts(rows)
        drifting = 0
        for row, text in texts.items():  # event by event, because something is wrong with at least one of them
            if drifting < _DRIFTING:
                if _reads(self._strict, text):
                    likely.append(row)
                    drifting = 0
                    continue
                drifting += 1
            if _reads(self._lax, text):
                likely.append(row)
                suspects.append(row)
            else:
                unlikely.append(row)
        events, rows = self._parser.read(texts, likely, unlikely, refused)
        if events is None:
            return self._empty(), rows, {}
        if self._maps is not None:
            events, rows = self._maps.read(events, rows, texts, refused)
        drift = {}
        for row in (*suspects, *unlikely):
            if row not in refused and (labels := self._drift(texts[row])):
                drift[row] = labels
        return events, rows, drift

    def _drift(self, text: bytes) -> tuple[str, ...]:
        """The known parents with unknown fields of an event that was read, in the order of the schema."""
        found: set[str] = set()
        try:
            self._walk(self._generic(text), found)
        except _UNREADABLE:
            found = self._scan(text).drift
        return tuple(found) if len(found) < 2 else tuple(label for label in self._labels if label in found)

    def _empty(self) -> Column:
        return pa.array([], pa.struct([(field.name, _full(field.node)) for field in self.schema.root.fields]))


def _reads(decode: Callable[[bytes], Any], text: bytes) -> bool:
    try:
        decode(text)
    except _UNREADABLE:
        return False
    return True


def _lines(values: Column, rows: Int64s, frames: Frames) -> pa.Buffer:
    """The events in one buffer with a line feed behind each; copied only where rows are left out or have no line feed."""
    if len(rows) < len(frames):
        values = values.take(pa.array(rows))
    elif frames.one_per_line:
        return frames.lines
    if not frames.one_per_line:
        values = _pc.binary_join_element_wise(values, pa.scalar(b"", values.type), pa.scalar(b"\n", values.type))
    return contents(values)


def _joined(first: Decoded, second: Decoded, offset: int) -> Decoded:
    def rows(decoded: Decoded) -> Int64s:
        return np.arange(len(decoded.events)) if decoded.rows is None else decoded.rows

    drifting = dict(first.drifting)
    for label, found in second.drifting.items():
        drifting[label] = np.concatenate([drifting.get(label, found[:0]), found + len(first.events)])
    refused = np.concatenate([first.refused_rows, second.refused_rows + offset])
    return Decoded(
        pa.concat_arrays([first.events, second.events]),
        np.concatenate([rows(first), rows(second) + offset]) if len(refused) else None,
        refused,
        first.refused_codes + second.refused_codes,
        first.refused_paths + second.refused_paths,
        drifting,
    )


def _full(node: Node) -> Kind:
    """What a node is before it is judged."""
    if isinstance(node, Leaf):
        return parse_type(node)
    if isinstance(node, ListOf):
        return pa.list_(_full(node.item))
    if isinstance(node, Record):
        return pa.struct([pa.field(field.name, _full(field.node)) for field in node.fields])
    return pa.map_(pa.string(), _full(node.value))


def _has_decimals(node: Node) -> bool:
    if isinstance(node, Leaf):
        return pa.types.is_decimal(node.type)
    if isinstance(node, Record):
        return any(_has_decimals(field.node) for field in node.fields)
    return _has_decimals(node.item if isinstance(node, ListOf) else node.value)


def _model(node: Node, strict: bool) -> Any:
    """A msgspec type that reads what pyarrow would. Everything may be null or missing: that is judged later."""
    if isinstance(node, Leaf):
        kind = node.type
        if pa.types.is_boolean(kind):
            return bool
        if pa.types.is_integer(kind):
            return _Int64
        if pa.types.is_floating(kind):
            return float
        return int | float | str if pa.types.is_decimal(kind) else str
    if isinstance(node, ListOf):
        return list[_model(node.item, strict) | None]  # type: ignore[misc]
    if isinstance(node, MapOf):
        return dict[str, _model(node.value, strict) | None]  # type: ignore[misc]
    # Fields are numbered, because a name of the schema may be a word of Python's.
    fields = [(f"f{number}", _model(field.node, strict) | None, None) for number, field in enumerate(node.fields)]
    names = {f"f{number}": field.name for number, field in enumerate(node.fields)}
    return msgspec.defstruct("Known", fields, rename=names, forbid_unknown_fields=strict, gc=False)


_Walk = Callable[[Any, set[str]], None]


def _walker(node: Node, path: str) -> _Walk | None:
    """A function that adds the labels of a value's unknown fields to a set; None where there can be none.

    It is given what pyarrow has read, so that known values have the types of the schema.
    """
    if isinstance(node, Record):
        return _walker_of_record(node, path)
    if isinstance(node, Leaf):
        return None
    inner = _walker(node.item, f"{path}[]") if isinstance(node, ListOf) else _walker(node.value, f"{path}{{}}")
    if inner is None:
        return None
    walk, is_map = inner, isinstance(node, MapOf)

    def walk_each(found: Any, labels: set[str]) -> None:
        for value in found.values() if is_map else found:
            if value is not None:
                walk(value, labels)

    return walk_each


def _walker_of_record(node: Record, path: str) -> _Walk:
    known = frozenset(field.name for field in node.fields)
    label = f"{path}.?" if path else "?"
    walkers = [(field.name, _walker(field.node, f"{path}.{field.name}" if path else field.name)) for field in node.fields]
    below = [(name, walk) for name, walk in walkers if walk is not None]

    def walk_record(found: Any, labels: set[str]) -> None:
        if not known.issuperset(found):
            labels.add(label)
        for name, walk in below:
            value = found.get(name)
            if value is not None:
                walk(value, labels)

    return walk_record
