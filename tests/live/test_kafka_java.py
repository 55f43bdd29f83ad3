"""kafka+java:// on a real Flink (1.19, standalone; Beam's runner and KafkaIO 2.70, expanded by Beam's own expansion service)."""

from __future__ import annotations

import json
import os
import runpy
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from eventveil.pipeline.runners._flink_rest import FlinkRest

pytestmark = pytest.mark.slow

eventually = runpy.run_path(str(Path(__file__).parent / "live_desk.py"))["eventually"]

FIELDS = [{"name": "n", "type": "long"}, {"name": "time", "type": "string"}, {"name": "who", "type": "string"}]
POLICY = """policy: {name}
version: 1
schema: event.avsc
domain: java
event: {{time: time, id: n}}
window: {{keys: 1d, release: 2s}}
fields:
  n: {{keep: {{because: test}}}}
  time: drop
  who: {{pseudonymize: {{class: person, stable: domain}}}}
  $topic: [{{keep: {{because: test}}}}, {{rename: topic}}]
"""


def events(numbers: range) -> list[bytes]:
    now = datetime.now(timezone.utc).isoformat()
    return [json.dumps({"n": n, "time": now, "who": f"person-{n % 10}"}).encode() for n in numbers]


@pytest.mark.thorough
def test_events_come_through_while_they_are_produced_and_after_a_savepoint(
    desk: Any, flink: Any, flink_server: Any, new_topic: Any, tmp_path: Path
) -> None:
    (tmp_path / "event.avsc").write_text(json.dumps({"type": "record", "name": "event", "fields": FIELDS}))
    (tmp_path / "files.yaml").write_text(POLICY.format(name="files"))
    topic, out = new_topic(2), tmp_path / "out"
    job = desk.write_job(
        f"java-{os.getpid()}",
        f"kafka+java://{desk.kafka}/{topic}?group=java-{os.getpid()}",
        [{"policy": "files.yaml", "output": {"uri": str(out), "format": "jsonl"}}],
        input={"expansion_service": flink_server.said("java.address"), "client": {"max.poll.records": "200"}},
        runner="flink",
        workers=2,
        roll="2s",
        flink={"master": flink.address, "worker_pool": flink.pool, "job_server": str(flink.jars), "checkpointing": "2s", "restarts": 3},
    )
    hostile = [b"", b"\xff", b'{"n": 1e999}', None]
    rest = FlinkRest(flink.address)
    try:
        desk.produce(topic, events(range(500)))
        run = desk.start(job)
        eventually(lambda: _fine(run) and _numbers(desk, out) >= set(range(500)), 180)
        # While it runs.
        desk.produce(topic, [*events(range(500, 800)), *hostile])
        eventually(lambda: _fine(run) and _numbers(desk, out) >= set(range(800)), 120)
        assert 0 == run.drain(120), run.log.read_text("utf-8")[-3000:]
        desk.produce(topic, events(range(800, 1000)))
        run = desk.start(job)
        eventually(lambda: _fine(run) and _numbers(desk, out) >= set(range(1000)), 180)
        assert 0 == run.drain(120), run.log.read_text("utf-8")[-3000:]
        rows = desk.rows(out)
        assert dict.fromkeys(range(1000), 1) == Counter(row["n"] for row in rows)
        assert ({topic}, 10) == ({row["topic"] for row in rows}, len({row["who"] for row in rows}))
        letters = desk.letters(job.stem)
        assert {event for _, event in letters} >= {event for event in hostile if event}
    finally:
        for one in rest.jobs():
            if job.stem in one.name and one.state not in ("FINISHED", "CANCELED", "FAILED"):
                rest.cancel(one.id)


def test_no_expansion_service_is_said_at_once(desk: Any, flink: Any, tmp_path: Path) -> None:
    (tmp_path / "event.avsc").write_text(json.dumps({"type": "record", "name": "event", "fields": FIELDS}))
    (tmp_path / "files.yaml").write_text(POLICY.format(name="files"))
    job = desk.write_job(
        "java",
        "kafka+java://localhost:9/orders",
        [{"policy": "files.yaml", "output": {"uri": str(tmp_path / "out"), "format": "jsonl"}}],
        input={"expansion_service": "127.0.0.1:9"},
        runner="flink",
        roll="2s",
        flink={"master": flink.address, "worker_pool": flink.pool, "job_server": str(flink.jars)},
    )

    run = desk.start(job)

    assert 4 == run.wait(120)
    assert "the expansion service for Java (127.0.0.1:9) does not give" in run.log.read_text("utf-8")


def _fine(run: Any) -> bool:
    assert run.process.poll() is None, run.log.read_text("utf-8")[-3000:]
    return True


def _numbers(desk: Any, out: Path) -> set[int]:
    return {row["n"] for row in desk.rows(out)} if out.exists() else set()
