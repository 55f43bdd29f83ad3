"""Pub/Sub to a Delta table on a real Flink (1.19, standalone, parallelism 2; Beam's runner 2.70) and Google's emulator or pstest."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from eventveil.pipeline.runners._flink_rest import FlinkRest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
_DESK = runpy.run_path(str(HERE / "pubsub_desk.py"))
eventually = runpy.run_path(str(HERE / "live_desk.py"))["eventually"]
COMMAND = [sys.executable, "-c", "from eventveil.pipeline.cli.main import main; main()"]


@pytest.fixture
def desk(pubsub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", pubsub)
    made = _DESK["PubsubDesk"](tmp_path)
    yield made
    made.close()


def rows_of(table: Path) -> Counter[int]:
    if not (table / "_delta_log").is_dir():
        return Counter()
    return Counter(DeltaTable(str(table)).to_pyarrow_table().column("n").to_pylist())


@pytest.mark.faults
def test_each_message_is_in_the_table_once_whoever_is_killed(desk: Any, flink: Any, tmp_path: Path) -> None:
    lake, rest = tmp_path / "lake", FlinkRest(flink.address)
    job = desk.write_job(
        output={"uri": f"delta://{lake}"},
        runner="flink",
        workers=1,
        roll="5s",
        idle_after="3s",
        flink={"master": flink.address, "worker_pool": flink.pool, "job_server": str(flink.jars), "checkpointing": "2s"},
    )
    log = tmp_path / "run.log"
    with log.open("wb") as said:
        run = subprocess.Popen([*COMMAND, "run", str(job), "--log-json"], cwd=tmp_path, stdout=said, stderr=said)
    over = threading.Event()

    sent: set[int] = set()

    def publish() -> None:
        while not over.wait(0.5):
            numbers = range(len(sent), len(sent) + 100)
            desk.publish(_DESK["event"](number) for number in numbers)
            sent.update(numbers)

    publisher = threading.Thread(target=publish, daemon=True)
    publisher.start()
    try:

        def goes_on() -> bool:
            assert run.poll() is None, log.read_text("utf-8")[-3000:]
            return True

        eventually(lambda: goes_on() and rows_of(lake), 240)
        assert publisher.is_alive(), "windows are read while events still come"
        id_ = next(one.id for one in rest.jobs() if one.state == "RUNNING")
        pool = flink.process("pool")
        children = [int(one) for task in Path(f"/proc/{pool}/task").iterdir() for one in (task / "children").read_text().split()]
        for child in children:
            os.kill(child, signal.SIGKILL)
        eventually(lambda: rest.restarts(id_) > 0, 60)
        seen = len(rows_of(lake))
        eventually(lambda: goes_on() and len(rows_of(lake)) > seen, 120)
        over.set()
        publisher.join(60)
        # All event times are of the past, and what comes last is silent: event time goes on with the clock.
        eventually(lambda: goes_on() and set(rows_of(lake)) == sent, 240)
        time.sleep(3)
        assert {1} == set(rows_of(lake).values())
        run.send_signal(signal.SIGTERM)
        assert 0 == run.wait(120), log.read_text("utf-8")[-3000:]
        assert [] == desk.left()
    finally:
        over.set()
        publisher.join(60)
        if run.poll() is None:
            run.kill()
        for one in rest.jobs():
            if one.state not in ("FINISHED", "CANCELED", "FAILED"):
                rest.cancel(one.id)
