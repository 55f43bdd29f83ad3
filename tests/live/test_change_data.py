"""A table's changes over Kafka, as Debezium writes them: the example's policy, with the wrapper of Kafka Connect and without."""

from __future__ import annotations

import json
import runpy
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eventveil.pipeline.prepare import prepare
from eventveil.pipeline.runners.local import run
from eventveil.schemas.job import load_job

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "change_data"
made = runpy.run_path(str(EXAMPLE / "make_messages.py"))


@pytest.fixture
def customers(desk: Any) -> Any:
    for name in ("policy.yaml", "customer_change.avsc", "messages.jsonl"):
        shutil.copy(EXAMPLE / name, desk.folder / name)
    return desk


def row(found: Any) -> str:
    return json.dumps(found, sort_keys=True)


def key_of(change: dict[str, Any]) -> bytes:
    """The primary key, as Debezium writes it."""
    return json.dumps({"id": (change["after"] or change["before"])["id"]}).encode()


def bounded(desk: Any) -> Counter[str]:
    """What a job over the example's file gives, under the same keyring."""
    document = {
        "job": "files",
        "input": {"uri": "messages.jsonl", "envelope": "debezium"},
        "variants": [{"policy": "policy.yaml", "output": {"uri": "files"}}],
        "keys": str(desk.keyring),
        "allow_loss": True,
    }
    (desk.folder / "files.yaml").write_text(json.dumps(document))
    run(prepare(load_job(desk.folder / "files.yaml")))
    return Counter(map(row, desk.rows(desk.folder / "files")))


def test_inserts_updates_deletes_and_tombstones(customers: Any, new_topic: Callable[..., str]) -> None:
    # Its changes are of 2024: a topic that keeps messages for a week would forget them at once.
    source, sink = new_topic(2), new_topic(2, retention_ms="-1")
    changes, messages = made["changes"](), made["messages"]()
    values: list[bytes | None] = []
    keys: list[bytes | None] = []
    for change, message in zip(changes, messages, strict=True):
        values.append(json.dumps(message).encode())
        keys.append(key_of(change))
        if change["op"] == "d":
            values.append(None)
            keys.append(key_of(change))
    deleted = sum(change["op"] == "d" for change in changes)
    # A wrapper without an event, one that can be read in two ways, and an event that is none of this table.
    wrong = [b'{"schema": null, "payload": null}', b'{"schema": null, "payload": {"op": "c"}, "payload": {"op": "d"}}', b'{"op": "c"}']
    customers.produce(source, [*values, *wrong], [*keys, *[b"wrong"] * 3])
    uri = f"kafka://{customers.kafka}"
    variants = [{"policy": "policy.yaml", "output": {"uri": f"{uri}/{sink}", "key": "after.id"}}]
    job = customers.write_job("changes", f"{uri}/{source}", variants, input={"envelope": "debezium"}, slice="1s")
    finished = customers.finish(job)
    told = [one for one in finished.logs() if one.get("state") == "stopped"][-1]["policies"]["customer-changes"]
    found = customers.messages(sink)
    rows = [json.loads(one.value()) for one in found]

    assert deleted > 5
    assert (len(values) + 3, len(changes), deleted, 3) == tuple(told[name] for name in ("read", "out", "filtered", "refused"))
    assert bounded(customers) == Counter(map(row, rows))
    # The key of a change is the customer's pseudonym; of a delete, which has no new row, the record's id.
    for message, one in zip(found, rows, strict=True):
        record_id = dict(message.headers())["eventveil-record-id"]
        assert message.key() == (record_id if one["after"] is None else one["after"]["id"].encode())
    assert Counter(["EV503", "EV507", "EV517"]) == Counter(header["code"] for header, _ in customers.letters("changes"))
    assert sorted(wrong) == sorted(event for _, event in customers.letters("changes"))

    everything = [part or b"" for one in found for part in (one.key(), one.value(), *(text for _, text in one.headers()))]
    everything += [path.read_bytes() for path in (customers.folder / "changes").rglob("*") if path.is_file()]
    everything.append(finished.log.read_bytes())
    assert not [part for part in everything if b"example.com" in part or b"Customer 1" in part or b'"lsn"' in part]
