"""The limit: read the file and decode it with pyarrow.json under the explicit schema of all leaves, on one thread; nothing else.

    python bench/limit.py orders.jsonl

Tries blocks of 1, 4 and 16 MB and reports the cheapest, with the others beside it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.json as pj
from measure import measured, pin, report

BLOCKS_MB = (1, 4, 16)
TEXT = pa.string()
SCHEMA = pa.schema(
    [
        ("tenant", TEXT),
        ("id", TEXT),
        ("time", TEXT),
        ("status", TEXT),
        ("shipping", pa.struct([(name, TEXT) for name in ("country", "zip", "line1", "to", "email", "carrier")])),
        ("products", pa.list_(pa.struct([("id", TEXT), ("name", TEXT), ("quantity", pa.int64()), ("price", pa.float64())]))),
    ]
)


def blocks(path: Path, size: int) -> Iterator[bytes]:
    """The file in pieces of about `size` bytes that end with a line."""
    rest = b""
    with path.open("rb", buffering=0) as file:
        while piece := file.read(size):
            end = piece.rfind(b"\n") + 1
            if end:
                yield rest + piece[:end]
                rest = piece[end:]
            else:
                rest += piece
    if rest:
        yield rest


def decode(path: Path, size: int) -> int:
    """The number of events. Unknown fields are an error, as in the job's first attempt at a batch."""
    parse = pj.ParseOptions(explicit_schema=SCHEMA, unexpected_field_behavior="error")
    return sum(
        pj.read_json(pa.BufferReader(block), pj.ReadOptions(use_threads=False, block_size=len(block)), parse).num_rows
        for block in blocks(path, size)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--core", type=int, help="keep to this core")
    arguments = parser.parse_args()
    pin(arguments.core)
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    tried = {}
    for megabytes in BLOCKS_MB:
        with measured() as cost:
            events = decode(arguments.source, megabytes << 20)
        tried[megabytes] = {**cost, "events": events}
    best = min(tried, key=lambda megabytes: tried[megabytes]["cpu_s"])
    report({**tried[best], "block_mb": best}, all_blocks={f"{size}_mb": cost["cpu_s"] for size, cost in tried.items()})


if __name__ == "__main__":
    main()
