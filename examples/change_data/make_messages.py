"""Writes messages.jsonl: what Debezium says of some customers who come, change and go. Always the same."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BEGIN_MS = 1_714_980_000_000
# What Kafka Connect writes around an event, unless schemas.enable is false.
SCHEMA = {"type": "struct", "optional": False, "name": "shop.public.customers.Envelope", "fields": []}


def changes(number: int = 60) -> list[dict[str, Any]]:
    rng = random.Random(11)
    rows: dict[int, dict[str, Any]] = {}
    found = []
    for n in range(number):
        op = rng.choice("cud") if len(rows) > 3 else "c"
        one = 1000 + n if op == "c" else rng.choice(sorted(rows))
        before = rows.pop(one, None)
        after = None
        if op != "d":
            name = f"Customer {one}"
            after = {
                "id": one,
                "email": f"{one}@example.com",
                "name": name,
                "postcode": f"{one * 37 % 90000 + 10000}",
                "newsletter": n % 2 > 0,
            }
            if op == "u" and before is not None:
                after = {**before, "email": f"{one}.{n}@example.com", "newsletter": not before["newsletter"]}
            rows[one] = after
        source = {"db": "shop", "table": "customers", "txId": 500 + n, "lsn": 24_000_000 + 8 * n}
        found.append({"before": before, "after": after, "source": source, "op": op, "ts_ms": BEGIN_MS + n * 61_000})
    return found


def messages() -> list[dict[str, Any]]:
    """Every third one without the wrapper: a connector whose settings were changed writes both."""
    return [change if n % 3 == 2 else {"schema": SCHEMA, "payload": change} for n, change in enumerate(changes())]


if __name__ == "__main__":
    (HERE / "messages.jsonl").write_text("".join(json.dumps(one, separators=(",", ":")) + "\n" for one in messages()))
