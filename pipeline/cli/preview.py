"""eventveil preview: events before and after, side by side, with throw-away keys; nothing is written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import tee

import numpy as np
import pyarrow as pa
from rich.text import Text

from eventveil.pipeline.cli.screen import columns, printable, screen
from eventveil.pipeline.sources.files import MAX_EVENT_BYTES, list_ranges, read_range
from eventveil.schemas.errors import CODES
from eventveil.transforms.batch import ORDER, WINDOW, part_of
from eventveil.transforms.compile import load_plan
from eventveil.transforms.decode.reading import Decoders, Originals, Reading
from eventveil.transforms.encode.json_events import encode_json
from eventveil.transforms.keys.keyring import throw_away_keys
from eventveil.transforms.plan import Plan
from eventveil.transforms.release.renumber import WindowNumbers
from eventveil.transforms.veil import Veil

__all__ = ["preview_events"]

_PIECE = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},:]|[^\s\[\]{},:"]+')


@dataclass(frozen=True)
class _Fate:
    """What becomes of an event: one of the three."""

    after: str | None = None
    refused: dict[str, str] | None = None
    left_out: str | None = None

    @classmethod
    def refuse(cls, code: str, path: str) -> _Fate:
        return cls(refused={"code": code, "path": path, "meaning": CODES[code][0]})


def preview_events(policy: str, patterns: Sequence[str], number: int, input_format: str | None, *, as_json: bool) -> int:
    """Show the first events of the input as they are and as they become; returns the exit code."""
    plan = load_plan(policy)
    fates = _Fates(plan)
    console = screen()
    table = columns("before", "after", expand=True)
    shown = 0
    raws = _first(patterns, input_format, number)
    if plan.numbered:
        # What is numbered over all events of a window is known when all were seen; a preview has few.
        raws, again = tee(raws)
        fates.number(again)
    for raw in raws:
        for before, fate in fates.of(raw):
            shown += 1
            if as_json:
                print(_as_json(before, fate))
            else:
                # Text: an event is no markup.
                table.add_row(Text(printable(_laid_out(before))), Text(printable(_in_words(fate))))
    if as_json:
        return 0
    if not shown:
        console.print("the input holds no events")
        return 0
    console.print(table)
    console.print("the keys of this preview are thrown away: pseudonyms and noise will be others in a run", style="dim", soft_wrap=True)
    return 0


def _first(patterns: Sequence[str], input_format: str | None, number: int) -> Iterator[pa.RecordBatch]:
    """The first `number` events, as they are read."""
    for piece in list_ranges(patterns, input_format):
        for raw in read_range(piece):
            raw = raw.slice(0, number)
            yield raw
            number -= raw.num_rows
            if not number:
                return


class _Fates:
    """Treats events as a run would, one by one, so that each stands beside what becomes of it: output alone is sorted by key."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._keys = throw_away_keys()
        self._veil: Veil = plan.bind(self._keys)
        self._decoders = Decoders(Reading(plan.schema, plan.used, stream=plan.stream))
        self._numbers: dict[int, WindowNumbers] = {}

    def number(self, raws: Iterable[pa.RecordBatch]) -> None:
        """See the events that are numbered together, as far as the preview has them."""
        rule = self._plan.release_window
        assert rule is not None, "compile asks for a window where values are numbered within it"
        keys = self._keys.domain(self._plan.domain)
        for raw in raws:
            for veiled in self._veiled(raw).values():
                start = veiled.column(WINDOW)[0].as_py() if veiled.num_rows else None
                if start is not None:
                    found = self._numbers.setdefault(start, WindowNumbers(keys, start, rule, 1 << 30))
                    found.add(self._plan, veiled)

    def of(self, raw: pa.RecordBatch) -> Iterator[tuple[str, _Fate]]:
        """Each event as text, and its fate."""
        originals = Originals(raw)
        fates = self._strangers(raw)
        known = [row for row in range(raw.num_rows) if row not in fates]
        ours = raw.take(pa.array(known, pa.int64())) if fates else raw
        for at, fate in self._treated(ours).items():
            fates[known[at]] = fate
        for row in range(raw.num_rows):
            before: bytes = originals.take(pa.array([row]))[0].as_py()
            yield before.decode("utf-8", "replace").strip(), fates[row]

    def _strangers(self, raw: pa.RecordBatch) -> dict[int, _Fate]:
        """Events of a type that the policy is not for."""
        if self._plan.event_type is None:
            return {}
        from eventveil.transforms.decode.event_type import event_types

        field, mine = self._plan.event_type
        kinds, codes = event_types(raw, field, MAX_EVENT_BYTES)
        return {row: _Fate.refuse(code or "EV509", field) for row, (kind, code) in enumerate(zip(kinds, codes)) if kind != mine}

    def _treated(self, raw: pa.RecordBatch) -> dict[int, _Fate]:
        return {row: found if isinstance(found, _Fate) else self._shown(found) for row, found in self._outcomes(raw).items()}

    def _veiled(self, raw: pa.RecordBatch) -> dict[int, pa.RecordBatch]:
        strangers = self._strangers(raw)
        ours = raw.take(pa.array([row for row in range(raw.num_rows) if row not in strangers], pa.int64())) if strangers else raw
        return {row: found for row, found in self._outcomes(ours).items() if not isinstance(found, _Fate)}

    def _shown(self, veiled: pa.RecordBatch) -> _Fate:
        if self._plan.numbered:
            veiled = self._numbers[veiled.column(WINDOW)[0].as_py()].number(self._plan, veiled)
        visible = [name for name in veiled.schema.names if name not in (ORDER, WINDOW)]
        return _Fate(after=encode_json(veiled.select(visible))[0].as_py().decode().rstrip())

    def _outcomes(self, raw: pa.RecordBatch) -> dict[int, _Fate | pa.RecordBatch]:
        part = part_of(raw)
        positions = Originals(raw).positions
        decoded = self._decoders.decode(raw)
        refused = zip(decoded.refused_rows.tolist(), decoded.refused_codes, decoded.refused_paths)
        fates: dict[int, _Fate | pa.RecordBatch] = {row: _Fate.refuse(code, path) for row, code, path in refused}
        rows = decoded.rows.tolist() if decoded.rows is not None else range(raw.num_rows)
        for at, row in enumerate(rows):
            outcome = self._veil.apply(
                decoded.events.slice(at, 1),
                origin=part.origin if part else "",
                positions=positions.slice(row, 1),
                drift={path: np.zeros(1, np.int64) for path, found in decoded.drifting.items() if at in found},
            )
            if outcome.codes:
                fates[row] = _Fate.refuse(outcome.codes[0], outcome.paths[0])
            elif outcome.filtered:
                fates[row] = _Fate(left_out="only_if")
            else:
                fates[row] = outcome.veiled
        return fates


def _as_json(before: str, fate: _Fate) -> str:
    """One line of JSON, with the veiled event as it is written. ASCII: an event may hold what a terminal would obey."""
    after = "null" if fate.after is None else re.sub(r"[^\x00-\x7f]", lambda found: json.dumps(found[0])[1:-1], fate.after)
    refused, left_out = json.dumps(fate.refused), json.dumps(fate.left_out)
    return f'{{"before": {json.dumps(before)}, "after": {after}, "refused": {refused}, "left_out": {left_out}}}'


def _in_words(fate: _Fate) -> str:
    if fate.refused is not None:
        path = f"\nat {fate.refused['path']}" if fate.refused["path"] else ""
        return f"refused: {fate.refused['code']} {fate.refused['meaning']}{path}"
    if fate.left_out is not None:
        return "left out: only_if does not hold"
    return _laid_out(fate.after or "")


def _laid_out(event: str) -> str:
    """A JSON event over several lines, its numbers, its keys and their order as they stand; anything else unchanged."""
    try:
        json.loads(event)
    except (ValueError, RecursionError):
        return event
    out: list[str] = []
    depth = 0
    before = ""
    for piece in _PIECE.findall(event):
        opened, closes = before in ("[", "{"), piece in ("]", "}")
        depth -= closes
        if opened != closes or before == ",":
            out.append("\n" + "  " * depth)
        out.append(": " if piece == ":" else piece)
        depth += piece in ("[", "{")
        before = piece
    return "".join(out)
