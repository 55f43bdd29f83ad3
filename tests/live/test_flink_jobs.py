"""Jobs on a real Flink (1.19, standalone, two TaskManagers, parallelism 2; Beam's runner 2.70).

Whatever is killed, each event comes out once.
"""

from __future__ import annotations

import json
import os
import random
import runpy
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import eventveil.pipeline
import eventveil.schemas
import eventveil.transforms
from eventveil.pipeline.runners._flink_rest import FlinkRest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
_DESK = runpy.run_path(str(HERE / "live_desk.py"))
LiveDesk, COMMAND = _DESK["LiveDesk"], _DESK["COMMAND"]
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
        self.seed = seed
        self.rest = FlinkRest(flink.address)
        self.topic = topic
        self.out_topic = out_topic
        self.load = Load(desk.kafka, topic, seed)
        self.out = desk.folder / "files"
        schema = {"type": "record", "name": "event", "fields": FIELDS}
        (desk.folder / "event.avsc").write_text(json.dumps(schema))
        for name in ("files", "messages"):
            (desk.folder / f"{name}.yaml").write_text(POLICY.format(name=name, version=1, who=WHO))
        self.job = self.write_job(flink.pool)
        self.run: Any = None

    def write_job(self, pool: str) -> Path:
        desk, flink = self.desk, self.flink
        job: Path = desk.write_job(
            f"flink-{self.seed}-{os.getpid()}",
            f"kafka://{desk.kafka}/{self.topic}",
            [
                {"policy": "files.yaml", "output": {"uri": str(self.out), "format": "parquet"}},
                {"policy": "messages.yaml", "output": {"uri": f"kafka://{desk.kafka}/{self.out_topic}", "format": "json"}},
            ],
            runner="flink",
            workers=2,
            roll="2s",
            idle_after="3s",
            flink={"master": flink.address, "worker_pool": pool, "job_server": str(flink.jars), "checkpointing": "2s", "restarts": 3},
        )
        return job

    def start(self, **environment: str) -> None:
        """Returns when the job has published something."""
        before = len(files_of(self.out)) if self.out.exists() else 0
        self.run = self.desk.start(self.job, **environment)
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
        withheld = list(self.desk.folder.glob("*/state/engine/withheld/*"))
        assert [] == withheld
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


def workers_of(pool: int) -> list[int]:
    """Its threads start them."""
    return sorted(int(child) for task in Path(f"/proc/{pool}/task").iterdir() for child in (task / "children").read_text().split())


@pytest.mark.faults
def test_whatever_is_killed_each_event_comes_out_once(
    flink: Any, flink_server: Any, broker: Any, new_topic_at: Any, tmp_path: Path, seed: int
) -> None:
    """In one submitted job: a worker, a TaskManager, the broker and the launcher are killed; then it is told to stop, and goes on."""
    desk = LiveDesk(tmp_path, broker.address)
    topics = new_topic_at(broker)
    job, dice = FlinkDesk(desk, flink, topics(4), topics(4), seed), random.Random(seed)

    def worker() -> None:
        os.kill(dice.choice(workers_of(flink.process("pool"))[-2:]), signal.SIGKILL)

    def task_manager() -> None:
        flink_server.kill_part(f"taskmanager-{dice.choice((1, 2))}")
        flink_server.start()

    def kafka() -> None:
        broker.kill()
        broker.start()

    def launcher() -> None:
        # The job goes on: another launcher finds it, and does not start it twice.
        job.run.kill()
        job.run = desk.start(job.job)
        eventually(lambda: any(line.get("event") == "started" for line in job.run.logs()))

    try:
        job.load.start()
        job.start()
        before, id_ = job.published(), job.id
        for kill in dice.sample((worker, task_manager, kafka, launcher), 4):
            time.sleep(dice.uniform(0, 4))
            seen, restarts = len(job.published()), job.rest.restarts(id_)
            kill()
            if kill in (worker, task_manager):
                eventually(lambda restarts=restarts: job.rest.restarts(id_) > restarts, 90)
            eventually(lambda seen=seen: job._is_fine() and len(job.published()) > seen + 2, 180)
        assert job.id == id_
        assert 0 == job.run.drain(120), job.run.log.read_text("utf-8")[-3000:]
        job.start()
        job.finish()
        job.check()
        assert before == {name: content for name, content in job.published().items() if name in before}
    finally:
        job.close()
        desk.close()


def test_poison_is_kept_and_a_job_that_gets_nowhere_is_given_up(on_flink: Callable[[], FlinkDesk]) -> None:
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

    # What no event has caused: the folder is gone. The job restarts, gets nowhere, and is given up; nothing is lost meanwhile.
    job.out.rename(aside := job.out.with_name("aside"))
    job.out.write_text("no folder")
    assert 4 == job.run.wait(180)
    told = job.run.log.read_text("utf-8")
    assert "EV419" in told
    assert "EV404" in told
    assert [] == [one for one in job.rest.jobs() if one.state not in ("FINISHED", "CANCELED", "FAILED")]
    job.out.unlink()
    aside.rename(job.out)
    job.start()
    job.finish()
    rows = Counter(row["n"] for row in job.desk.rows(job.out))
    assert (job.load.good, 1) == (set(rows), max(rows.values()))


def test_windows_appear_while_events_arrive_and_a_newer_version_goes_on_from_a_savepoint(
    on_flink: Callable[[], FlinkDesk], tmp_path: Path
) -> None:
    newer = tmp_path / "newer"
    for package in (eventveil.schemas, eventveil.transforms, eventveil.pipeline):
        (place,) = package.__path__
        name = package.__name__.replace(".", "/")
        shutil.copytree(place, newer / name, ignore=shutil.ignore_patterns("__pycache__"))
    source = newer / "eventveil" / "pipeline" / "sources" / "kafka_stream.py"
    patched = source.read_text().replace(
        "        self._decode.setup()\n", "        self._decode.setup()\n        self._is_newer = True\n", 1
    )
    assert "_is_newer" in patched
    source.write_text(patched)

    job = on_flink()
    job.load.start()
    job.start()
    eventually(lambda: job._numbers(), 60)
    assert job.load.is_alive()
    logs = eventually(lambda: [line for line in job.run.logs() if line.get("event") == "slice" and line["read"] > 0], 60)
    assert "running" == logs[-1]["state"]
    assert 0 == job.run.drain(120)
    before = job.published()
    environment = {**os.environ, "PYTHONPATH": str(newer)}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    pool = subprocess.Popen([*COMMAND, "worker-pool", "--listen", address], env=environment, stdout=subprocess.DEVNULL)
    try:
        job.job = job.write_job(address)
        job.start(PYTHONPATH=str(newer))
        (worker, *_) = workers_of(pool.pid)
        assert str(newer) in Path(f"/proc/{worker}/environ").read_text()
        job.finish()
        job.check()
        assert before == {name: content for name, content in job.published().items() if name in before}
    finally:
        job.close()
        pool.terminate()
        pool.wait(30)
