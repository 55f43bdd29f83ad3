"""eventveil preview: events before and after, side by side, with throw-away keys; nothing is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eventveil.pipeline.sources.files import list_ranges, read_range
from eventveil.schemas.errors import CODES
from eventveil.transforms.batch import part_of
from eventveil.transforms.compile import load_plan
from eventveil.transforms.decode.reading import Decoders, Originals, Reading
from eventveil.transforms.encode.json_events import encode_json
from eventveil.transforms.keys.keyring import throw_away_keys

__all__ = ["preview_events"]


def preview_events(policy: str, patterns: Sequence[str], number: int, format: str | None, *, as_json: bool) -> int:
    """Show the first events of the input as they are and as they become; returns the exit code."""
    plan = load_plan(policy)
    veil = plan.bind(throw_away_keys())
    decoders = Decoders(Reading(plan.schema, plan.used))
    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, expand=True, show_lines=True, pad_edge=False)
    table.add_column("before", ratio=1, overflow="fold")
    table.add_column("after", ratio=1, overflow="fold")
    shown = 0
    for piece in list_ranges(patterns, format):
        for raw in read_range(piece):
            raw = raw.slice(0, number - shown)
            part = part_of(raw)
            originals = Originals(raw)
            decoded = decoders.decode(raw)
            rows = decoded.rows.tolist() if decoded.rows is not None else list(range(raw.num_rows))
            after: dict[int, Any] = dict(zip(decoded.refused_rows.tolist(), map(_why, decoded.refused_codes, decoded.refused_paths)))
            # One by one, so that each event stands beside what becomes of it: the output alone is sorted by key.
            for at, row in enumerate(rows):
                drift = {path: found[found == at] * 0 for path, found in decoded.drifting.items()}
                outcome = veil.apply(
                    decoded.events.slice(at, 1),
                    origin=part.origin if part else "",
                    positions=originals.positions.slice(row, 1),
                    drift=drift,
                )
                after[row] = _outcome(outcome)
            for row in range(raw.num_rows):
                before = originals.take(pa.array([row]))[0].as_py()
                _show(table, before, after[row], as_json)
            shown += raw.num_rows
            if shown >= number:
                break
        if shown >= number:
            break
    if not as_json:
        console.print(table)
        console.print("keys of this preview are thrown away: pseudonyms and noise will be others in a run", style="dim")
    return 0


def _why(code: str, path: str) -> str:
    return f"refused: {code} {CODES[code][0]}" + (f" ({path})" if path else "")


def _outcome(outcome: Any) -> Any:
    if outcome.codes:
        return _why(outcome.codes[0], outcome.paths[0])
    if outcome.filtered:
        return "left out: only_if"
    rows = outcome.veiled.select([name for name in outcome.veiled.schema.names if not name.startswith("$")])
    return json.loads(encode_json(rows)[0].as_py())


def _show(table: Table, before: bytes, after: Any, as_json: bool) -> None:
    told = before.decode("utf-8", "replace").strip()
    if as_json:
        print(
            json.dumps(
                {"before": told, "after": after if isinstance(after, dict) else None, "note": None if isinstance(after, dict) else after}
            )
        )
        return
    try:
        told = json.dumps(json.loads(told), indent=2, ensure_ascii=False)
    except ValueError:
        pass
    veiled = json.dumps(after, indent=2, ensure_ascii=False) if isinstance(after, dict) else after
    # Text, not str: an event must not be read as markup, nor move the cursor.
    table.add_row(Text(_printable(told)), Text(_printable(veiled)))


def _printable(text: str) -> str:
    return "".join(one if one.isprintable() or one == "\n" else "\N{REPLACEMENT CHARACTER}" for one in text)
