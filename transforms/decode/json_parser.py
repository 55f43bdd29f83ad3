"""Calls of pyarrow.json: over many events at once, and, where that fails, over fewer, down to the ones that are refused.

pyarrow's messages quote values, so none leaves this module. Only the number of a row is taken from one, as a hint where
to look first; whatever it says, the event there is judged alone.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.json

from eventveil.schemas.events.tree import Leaf, ListOf, Node, Record
from eventveil.transforms.columns import Column, Kind
from eventveil.transforms.decode.json_forms import parse_type
from eventveil.transforms.decode.json_scan import Scanner

__all__ = ["Parser"]

Int64s = npt.NDArray[np.int64]
Verdict = tuple[str, str]

_MANY, _SHARE = 64, 8
_ROW = re.compile(r"in row ([0-9]{1,9})$")


class Parser:
    """Parses framed events (framing.py) under the full schema, maps left out.

    Args:
        root: the event.
        scan: says why an event is refused.
    """

    def __init__(self, root: Record, scanner: Scanner) -> None:
        self._scan = scanner.scan
        parsed = [(field.name, _type(field.node)) for field in root.fields]
        self._schema = pa.schema([pa.field(name, kind) for name, kind in parsed if kind is not None])
        self._type = pa.struct(list(self._schema))

    def parse(self, lines: pa.Buffer, events: int, unexpected: Literal["error", "ignore"]) -> Column | int:
        """The events of `lines`, one on each. If pyarrow refuses anything: the number of an event that may be the reason, or -1."""
        try:
            table = pyarrow.json.read_json(
                pa.BufferReader(lines),  # type: ignore[arg-type]
                pyarrow.json.ReadOptions(use_threads=False, block_size=lines.size + 1),
                pyarrow.json.ParseOptions(explicit_schema=self._schema, newlines_in_values=False, unexpected_field_behavior=unexpected),
            )
        except (pa.ArrowException, ValueError) as error:
            hint = _ROW.search(str(error))
            return -1 if hint is None else int(hint[1])
        if table.num_rows != events:
            return -1
        columns: list[Column] = [column.chunk(0) if column.num_chunks == 1 else column.combine_chunks() for column in table.columns]
        return pa.StructArray.from_buffers(self._type, events, [None], 0, 0, columns)

    def read(
        self, texts: Mapping[int, bytes], likely: Sequence[int], unlikely: Sequence[int], refused: dict[int, Verdict]
    ) -> tuple[Column | None, Int64s]:
        """Parse events by row, unknown fields ignored: the events, and the row of each, ascending. Adds to `refused`.

        Args:
            texts: the event of each row.
            likely, unlikely: rows that are tried together, and rows that are tried alone. This is about time only.
        """
        pieces: list[tuple[Sequence[int], Column]] = []
        waiting = deque([likely]) if likely else deque()
        while waiting:
            rows = waiting.popleft()
            parsed = self._together(texts, rows)
            if not isinstance(parsed, int):
                pieces.append((rows, parsed))
            elif len(rows) == 1:
                refused[rows[0]] = self._reason(texts[rows[0]])
            elif 0 <= parsed < len(rows):
                good, odd = self._by_hints(texts, rows, refused)
                waiting.extendleft([good] if good else [])
                unlikely = [*unlikely, *odd]
            else:
                half = len(rows) // 2
                waiting.extendleft((rows[half:], rows[:half]))
        for row in unlikely:
            problem = self._scan(texts[row]).problem
            parsed = self._together(texts, [row]) if problem is None else -1
            if isinstance(parsed, int):
                refused[row] = problem or self._reason(texts[row])
            else:
                pieces.append(([row], parsed))
        return _in_order(pieces)

    def _together(self, texts: Mapping[int, bytes], rows: Sequence[int]) -> Column | int:
        return self.parse(_lines(texts, rows), len(rows), "ignore")

    def _by_hints(self, texts: Mapping[int, bytes], rows: Sequence[int], refused: dict[int, Verdict]) -> tuple[list[int], list[int]]:
        """The rows without those that pyarrow points at, and these. A search leads on from where the last one stopped: one pass in all."""
        lines = _lines(texts, rows)
        starts = np.cumsum([0, *(len(texts[row]) + 1 for row in rows)]).tolist()
        good: list[int] = []
        odd: list[int] = []
        at = 0
        while at < len(rows):
            parsed = self.parse(lines.slice(starts[at]), len(rows) - at, "ignore")
            if not isinstance(parsed, int) or not 0 <= parsed < len(rows) - at:
                break
            good += rows[at : at + parsed]
            odd.append(rows[at + parsed])
            at += parsed + 1
            if len(odd) >= _MANY and len(odd) * _SHARE > at:
                # Past a share of bad events it is cheaper to scan each of the others than to search for the next one.
                for row in rows[at:]:
                    problem = self._scan(texts[row]).problem
                    if problem is None:
                        good.append(row)
                    else:
                        refused[row] = problem
                return good, odd
        return [*good, *rows[at:]], odd

    def _reason(self, text: bytes) -> Verdict:
        """Code and path of an event that pyarrow refuses."""
        found = self._scan(text)
        return found.problem or found.suspicion or ("EV501", "")


def _lines(texts: Mapping[int, bytes], rows: Sequence[int]) -> pa.Buffer:
    return pa.py_buffer(b"\n".join([texts[row] for row in rows]) + b"\n")


def _in_order(pieces: list[tuple[Sequence[int], Column]]) -> tuple[Column | None, Int64s]:
    if not pieces:
        return None, np.zeros(0, np.int64)
    rows = np.concatenate([np.array(piece[0], np.int64) for piece in pieces])
    events = pieces[0][1] if len(pieces) == 1 else pa.concat_arrays([piece[1] for piece in pieces])
    if (np.diff(rows) > 0).all():
        return events, rows
    order = np.argsort(rows)
    return events.take(pa.array(order)), rows[order]


def _type(node: Node) -> Kind | None:
    """What pyarrow.json is asked for: everything but maps, whose keys it could only take for fields."""
    if isinstance(node, Leaf):
        return parse_type(node)
    if isinstance(node, ListOf):
        item = _type(node.item)
        return None if item is None else pa.list_(item)
    if isinstance(node, Record):
        fields = [(field.name, _type(field.node)) for field in node.fields]
        return pa.struct([pa.field(name, kind) for name, kind in fields if kind is not None])
    return None
