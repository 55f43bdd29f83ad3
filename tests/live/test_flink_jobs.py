"""Jobs on a real Flink (1.19, standalone, two TaskManagers, parallelism 2; Beam's runner 2.70).

Whatever is killed, each event comes out once.
"""

from __future__ import annotations

import json
import os
import random
import runpy
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eventveil.pipeline.runners._flink_rest import FlinkRest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
_DESK = runpy.run_path(str(HERE / "live_desk.py"))
eventually, files_of = _DESK["eventually"], _DESK["files_of"]
_FAULTS = runpy.run_path(str(HERE / "test_faults.py"))
Load, POLICY, FIELDS = _FAULTS["Load"], _FAULTS["POLICY"], _FAULTS["FIELDS"]
RECORD_ID = "eventveil-record-id"
WHO = "{pseudonymize: {class: person, stable: domain}}"


class FlinkDesk:
    """A job on Flink with two recipients, files and a topic, and a load of numbered events."""

    def __init__(self, desk: Any, flink: Any, topic: str, out_topic: str, seed: int) -> None:
        self.desk = desk
        self.flink = flink
        self.rest = FlinkRest(flink.address)
        self.topic = topic
        self.out_topic = out_topic
        self.load = Load(desk.kafka, topic, seed)
        self.out = desk.folder / "files"
        schema = {"type": "record", "name": "event", "fields": FIELDS}
        (desk.folder / "event.avsc").write_text(json.dumps(schema))
        for name in ("files", "messages"):
            (desk.folder / f"{name}.yaml").write_text(POLICY.format(name=name, version=1, who=WHO))
        self.job = desk.write_job(
            f"flink-{seed}-{os.getpid()}",
            f"kafka://{desk.kafka}/{topic}",
            [
                {"policy": "files.yaml", "output": {"uri": str(self.out), "format": "parquet"}},
                {"policy": "messages.yaml", "output": {"uri": f"kafka://{desk.kafka}/{out_topic}", "format": "json"}},
            ],
            runner="flink",
            workers=2,
            roll="2s",
            idle_after="3s",
            flink={"master": flink.address, "worker_pool": flink.pool, "job_server": str(flink.jars), "checkpointing": "2s"},
        )
        self.run: Any = None

    def start(self) -> None:
        """Returns when the job has published something."""
        before = len(files_of(self.out)) if self.out.exists() else 0
        self.run = self.desk.start(self.job)
        eventually(lambda: self._is_fine() and self.out.exists() and len(files_of(self.out)) > before, 240)

    def _is_fine(self) -> bool:
        assert self.run.process.poll() is None, self.run.log.read_text("utf-8")[-3000:]
        return True

    @property
    def id(self) -> str:
        return next(job.id for job in self.rest.jobs() if job.state not in ("FINISHED", "CANCELED", "FAILED"))

    def finish(self) -> None:
        """Let all windows close, and stop with a savepoint."""
        self.load.stop()
        wanted = self.load.good
        eventually(lambda: self._is_fine() and wanted <= {row["n"] for row in self.desk.rows(self.out)} and wanted <= self._numbers(), 120)
        assert 0 == self.run.drain(120), self.run.log.read_text("utf-8")[-3000:]

    def _numbers(self) -> set[int]:
        return {json.loads(message.value())["n"] for message in self.desk.messages(self.out_topic)}

    def check(self) -> None:
        """Lost 0; of files, twice 0; messages repeat byte for byte under their record id."""
        rows = Counter(row["n"] for row in self.desk.rows(self.out))
        assert self.load.good == set(rows)
        assert [] == [n for n, times in rows.items() if times > 1]
        by_id: dict[bytes, set[bytes]] = {}
        for message in self.desk.messages(self.out_topic):
            by_id.setdefault(dict(message.headers())[RECORD_ID], set()).add(message.value())
        assert [] == [values for values in by_id.values() if len(values) > 1]
        assert self.load.good == {json.loads(value)["n"] for values in by_id.values() for value in values}
        assert len(by_id) == len(self.load.good)
        # Each malformed event is kept for the custodian, at least once.
        assert self.load.malformed <= {
            int(event.split(b'"n": ')[1].split(b",")[0]) for header, event in self.desk.letters(self.job.stem) if header["code"] != "EV518"
        }

    def published(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in files_of(self.out)}

    def close(self) -> None:
        self.load.stop()
        for job in self.rest.jobs():
            if job.state not in ("FINISHED", "CANCELED", "FAILED"):
                self.rest.cancel(job.id)


@pytest.fixture
def on_flink(desk: Any, flink: Any, new_topic: Any) -> Iterator[Callable[[int], FlinkDesk]]:
    made: list[FlinkDesk] = []

    def make(seed: int = 1) -> FlinkDesk:
        made.append(FlinkDesk(desk, flink, new_topic(4), new_topic(4), seed))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_windows_appear_while_events_arrive_and_a_savepoint_goes_on(on_flink: Callable[[], FlinkDesk]) -> None:
    job = on_flink()
    job.load.start()
    job.start()
    eventually(lambda: job._numbers(), 60)
    assert job.load.is_alive()
    logs = eventually(lambda: [line for line in job.run.logs() if line.get("event") == "slice" and line["read"] > 0], 60)
    assert "running" == logs[-1]["state"]

    assert 0 == job.run.drain(120)
    before = job.published()
    job.start()
    job.finish()
    job.check()
    assert before == {name: content for name, content in job.published().items() if name in before}


def workers_of(pool: int) -> list[int]:
    """Its threads start them."""
    return sorted(int(child) for task in Path(f"/proc/{pool}/task").iterdir() for child in (task / "children").read_text().split())


@pytest.mark.faults
def test_whatever_is_killed_each_event_comes_out_once(on_flink: Callable[[int], FlinkDesk], seed: int) -> None:
    """In one submitted job: a worker, a TaskManager, a worker again, and the launcher; then it is told to stop, and goes on."""
    job, dice = on_flink(seed), random.Random(seed)
    job.load.start()
    job.start()
    before = job.published()

    def kill(process: int) -> None:
        seen, restarts = len(job.published()), job.rest.restarts(job.id)
        os.kill(process, signal.SIGKILL)
        eventually(lambda: job.rest.restarts(job.id) > restarts, 60)
        eventually(lambda: len(job.published()) > seen + 2, 120)

    time.sleep(dice.uniform(0, 4))
    kill(dice.choice(workers_of(job.flink.process("pool"))))
    # The launcher, and not the job, is killed: another one finds it.
    job.run.kill()
    job.run = job.desk.start(job.job)
    time.sleep(dice.uniform(0, 4))
    kill(dice.choice(workers_of(job.flink.process("pool"))))
    job.finish()
    job.check()
    assert before == {name: content for name, content in job.published().items() if name in before}


def test_what_cannot_be_decoded_is_kept_and_the_job_goes_on(on_flink: Callable[[], FlinkDesk]) -> None:
    job = on_flink()
    job.load.all_good = True
    job.load.start()
    job.start()
    hostile = [
        b"null",
        b"",
        b"\xff\xfe",
        b'{"n": 1e999}',
        b"[" * 100_000,
        b'{"n": 1}{"n": 2}',
        b'{"n": 5, "time": "2500-01-01T00:00:00Z"}',
        None,
    ]
    job.desk.produce(job.topic, hostile)
    letters = eventually(lambda: len(job.desk.letters(job.job.stem)) >= len(hostile) - 1 and job.desk.letters(job.job.stem), 60)
    assert {event for _, event in letters} >= {value for value in hostile if value}
    assert 0 == job.rest.restarts(job.id)
    job.finish()
    rows = Counter(row["n"] for row in job.desk.rows(job.out))
    assert (job.load.good, 1) == (set(rows), max(rows.values()))
