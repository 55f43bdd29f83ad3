"""Veiled rows, and what stands in a table, for the tests of all tables."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from eventveil.transforms.batch import ORDER, ROLL, WINDOW, Part, with_part

PROVENANCE = {"policy": "orders", "version": "1", "digest": "d1", "domain": "shop", "keys": "k1", "eventveil": "1"}
DAY = 86_400_000_000
HOUR = 3_600_000_000
START = 16317 * DAY + 22 * HOUR

TAGS: Any = pa.list_(pa.struct([("t", pa.string()), ("n", pa.int64())]))
FIELDS: list[Any] = [
    ("name", pa.string()),
    ("tags", TAGS),
    ("n", pa.int64()),
    ("at", pa.timestamp("us", "UTC")),
    ("small", pa.int16()),
    ("price", pa.decimal128(9, 2)),
    ("ok", pa.bool_()),
    ("share", pa.float64()),
    ("raw", pa.binary()),
    ("day", pa.date32()),
]
SCHEMA = pa.schema(FIELDS)


def row(n: int) -> dict[str, Any]:
    return {
        "name": f"name {n}" if n % 7 else None,
        "tags": [{"t": "a" * (n % 5), "n": n}] * (n % 3) or None,
        "n": n,
        "at": START + n,
        "small": n % 100,
        "price": None,
        "ok": n % 2 == 0,
        "share": n / 3,
        "raw": bytes([n % 256]),
        "day": n,
    }


def batch_of(numbers: Sequence[int], windows: int | Sequence[int] | None = None, schema: pa.Schema = SCHEMA) -> pa.RecordBatch:
    """Rows by their numbers, each with its own key of order."""
    rows = [{name: value for name, value in row(n).items() if name in schema.names} for n in numbers]
    columns = [*pa.RecordBatch.from_pylist(rows, schema=schema).columns]
    columns.append(pa.array([hashlib.sha256(b"%d" % n).digest()[:16] for n in numbers], pa.binary(16)))
    names = [*schema.names, ORDER]
    if windows is not None:
        starts = [windows] * len(numbers) if isinstance(windows, int) else windows
        columns += [pa.array(starts, pa.int64()), pa.array([START] * len(numbers), pa.int64())]
        names += [WINDOW, ROLL]
    return with_part(pa.RecordBatch.from_arrays(columns, names), Part("orders/0", 0))


def cut(numbers: Sequence[int], seed: int, window: int | None = None) -> list[pa.RecordBatch]:
    """The rows in any order, in batches of different sizes, one of them empty, one a slice."""
    chance = random.Random(seed)
    mixed = chance.sample(list(numbers), len(numbers))
    bounds = sorted(chance.randint(0, len(mixed)) for _ in range(3))
    batches = [batch_of(mixed[first:last], window) for first, last in zip([0, *bounds], [*bounds, len(mixed)], strict=True)]
    return [batch_of([], window), *batches[:-1], batch_of([1, 2, 3, *mixed[bounds[-1] :]], window).slice(3)]


def published(sink: Any, batches: list[pa.RecordBatch], start: int = START, pane: int = 7) -> Any:
    return sink.publish_window(start, pane, lambda: iter(batches), sum(map(len, batches)), sum(batch.nbytes for batch in batches))


def multiset(rows: Sequence[dict[str, Any]]) -> Counter[str]:
    return Counter(json.dumps(one, sort_keys=True, default=repr) for one in rows)
