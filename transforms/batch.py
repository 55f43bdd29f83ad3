"""What one Beam element is: an Arrow RecordBatch, raw, decoded or veiled, with the part of the input it belongs to.

A raw batch has the columns `value` (binary), `position` (int64: byte offset, row number or stream offset) and, where a source
has them and a policy asks, `key` (binary), `headers` (list of struct<name: string, value: binary>), `topic` (string), `time`
(timestamp[us, UTC]) and `appended` (timestamp[us, UTC]: when the broker took it, null where only the producer says so).
A decoded batch has `event` (struct) beside `value` and `position`, and `appended` where the raw batch has it.
A veiled batch has the output columns, and some that never leave: `$order` (16 bytes, keyed), `$window`
(start of the release window, microseconds) and, where files are rolled, `$roll` (start of the roll). A refused batch has
`code`, `path`, `rule`, `position`, `window`, `value` and never leaves the DoFn that made it: what leaves are letters, sealed.

What a batch is and the part it belongs to stand in the schema's metadata, which we alone write: names of columns prove
nothing, since an event may have fields of any name. A part says which output part the rows go to, the number of the batch
within it, and whether it is the last one. A sink that has not seen all numbers of a part refuses to publish it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa

__all__ = [
    "LETTERS",
    "ORDER",
    "REFUSED",
    "ROLL",
    "WINDOW",
    "Clock",
    "Kind",
    "Part",
    "clock_of",
    "kind_of",
    "part_of",
    "refused_batch",
    "with_clock",
    "with_kind",
    "with_part",
]

ORDER = "$order"
WINDOW = "$window"
ROLL = "$roll"
_PART = b"eventveil.part"
_KIND = b"eventveil.kind"
_CLOCK = b"eventveil.clock"

Kind = Literal["messages", "rows", "decoded"]

_REFUSED_FIELDS: list[Any] = [
    pa.field("code", pa.string(), nullable=False),
    pa.field("path", pa.string(), nullable=False),
    pa.field("rule", pa.string(), nullable=False),
    pa.field("position", pa.int64(), nullable=False),
    pa.field("window", pa.int64()),
    pa.field("value", pa.large_binary(), nullable=False),
]
REFUSED = pa.schema(_REFUSED_FIELDS)

# One line of JSON each, sealed; null where the event is lost, because there is nobody to seal it to.
LETTERS = pa.schema([pa.field("letter", pa.binary())])


@dataclass(frozen=True)
class Part:
    """A piece of the input that becomes one output part.

    Attributes:
        origin: where it was read: a file's path, or topic and partition.
        start: position of its first event within the origin: identifies the part together with it.
        number: of this batch within the part, from 0.
        last: whether the part ends with this batch.
    """

    origin: str
    start: int
    number: int = 0
    last: bool = True


def with_part(batch: pa.RecordBatch, part: Part) -> pa.RecordBatch:
    """The batch, marked as belonging to `part`."""
    metadata = {**(batch.schema.metadata or {}), _PART: json.dumps(asdict(part)).encode()}
    return batch.replace_schema_metadata(metadata)


def part_of(batch: pa.RecordBatch) -> Part | None:
    """The part a batch belongs to; None for a batch that no source of ours has made."""
    marked = (batch.schema.metadata or {}).get(_PART)
    return None if marked is None else Part(**json.loads(marked))


@dataclass(frozen=True)
class Clock:
    """How far a stream had come when a batch was read. Decided before the batch is read, and the same when it is read again.

    Attributes:
        watermark: microseconds since 1970; windows that end, lateness included, at or before it are closed. None: none is.
        now: microseconds since 1970; events dated further ahead of it than the policy's `max_ahead` are refused, unless the
            broker says when it took them. None: none is refused.
    """

    watermark: int | None = None
    now: int | None = None


def with_clock(batch: pa.RecordBatch, clock: Clock) -> pa.RecordBatch:
    """The batch, marked with how far its stream had come."""
    return batch.replace_schema_metadata({**(batch.schema.metadata or {}), _CLOCK: json.dumps(asdict(clock)).encode()})


def clock_of(batch: pa.RecordBatch) -> Clock:
    """How far the batch's stream had come; of bounded input nothing is late, or ahead."""
    marked = (batch.schema.metadata or {}).get(_CLOCK)
    return Clock() if marked is None else Clock(**json.loads(marked))


def with_kind(batch: pa.RecordBatch, kind: Kind) -> pa.RecordBatch:
    """The batch, marked by us as raw messages, raw rows or decoded. Names of columns say nothing: an event schema may have them too."""
    return batch.replace_schema_metadata({**(batch.schema.metadata or {}), _KIND: kind.encode()})


def kind_of(batch: pa.RecordBatch) -> str:
    """How the batch was marked; empty for a batch that is not ours."""
    return (batch.schema.metadata or {}).get(_KIND, b"").decode()


def refused_batch(
    codes: list[str], paths: list[str], rules: list[str], positions: pa.Array[Any], windows: pa.Array[Any], values: pa.Array[Any]
) -> pa.RecordBatch:
    """A refused batch: `value` holds the events as they came, to be sealed before anything is written."""
    columns: list[Any] = [
        pa.array(codes, pa.string()),
        pa.array(paths, pa.string()),
        pa.array(rules, pa.string()),
        positions.cast(pa.int64()),
        windows.cast(pa.int64()),
        values.cast(pa.large_binary()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=REFUSED)
