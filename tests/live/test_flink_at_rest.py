"""Whatever a job on Flink leaves on a disk, says or serves: no value of an event and no key is in it.

Looked for in every form that it could have taken (tests/jobs/everything/canary.py), in checkpoints while windows are open and rows wait,
in the savepoint, in temporary files, logs and answers of Flink and of its workers, and in what the job itself keeps.
"""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from eventveil.pipeline.prepare import prepare
from eventveil.pipeline.runners._flink_rest import ENDED, FlinkRest
from eventveil.schemas.job import load_job
from eventveil.transforms.keys.keyring import load_keys

pytest.importorskip("deltalake")

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
_rest = runpy.run_path(str(HERE / "test_at_rest.py"))
CANARY, KEPT, FOR_EVER = _rest["CANARY"], _rest["KEPT"], _rest["FOR_EVER"]
Snoop, all_keys, policies, told, write = (_rest[name] for name in ("Snoop", "all_keys", "policies", "told", "write"))
planted_event, planted_refusals = _rest["planted_event"], _rest["planted_refusals"]
eventually, files_of = _rest["eventually"], _rest["files_of"]
COMMAND = runpy.run_path(str(HERE / "live_desk.py"))["COMMAND"]

PARTITIONS = 2
GOOD = 4
NANOS = "  nanos: [{shift: {within: 1h, per: subject}}, {floor: 1min}]\n"
ZIP = b"PK\x03\x04"


class Watch(Snoop):  # type: ignore[misc]
    """As Snoop, but that it looks at Flink's processes and their workers, and leaves Flink's own jars out."""

    def __init__(self, flink: Any, *folders: Path) -> None:
        super().__init__(os.getpid(), flink.home / "flink", *folders)
        self._flink = flink

    def look(self) -> None:
        for process in self._processes():
            self._process = process
            super().look()
        time.sleep(0.1)

    def _processes(self) -> list[int]:
        named = [self._flink.process(name) for name in ("flink", "taskmanager-1", "taskmanager-2", "pool")]
        children = Path(f"/proc/{named[-1]}/task/{named[-1]}/children").read_text().split()
        return [*named, *map(int, children)]

    def _read(self, path: str) -> None:
        try:
            with open(path, "rb") as file:
                if file.read(4) == ZIP:
                    return
        except OSError:
            return
        super()._read(path)


class Planted:
    """A job on Flink over a topic in whose every message something is planted.

    Windows of the first day stay open until `close_windows`. One variant is rolled, one numbers within a window and finds the first day
    too large, and one writes messages.
    """

    def __init__(self, desk: Any, flink: Any, source: str, target: str) -> None:
        self.desk, self.flink, self.source, self.target = desk, flink, source, target
        self.rest = FlinkRest(flink.address)
        self.canaries = CANARY.Canaries()
        self.home = desk.folder / "home"
        self.home.mkdir()
        self.out = desk.folder / "out"
        places = {
            "rolled": {"uri": str(self.out / "rolled"), "format": "parquet", "partition_by": "window"},
            "numbered": {"uri": f"delta://{self.out}/numbered"},
            "keyed": {"uri": f"kafka://{desk.kafka}/{target}", "format": "json"},
        }
        named = policies(desk.folder)
        numbered = named["numbered"].read_text()
        assert 1 == numbered.count(NANOS)
        # Delta has no form for nanoseconds.
        named["numbered"].write_text(numbered.replace(NANOS, "  nanos: drop\n"))
        self.path = desk.write_job(
            "job",
            f"kafka://{desk.kafka}/{source}",
            [{"name": name, "policy": str(named[name]), "output": place} for name, place in places.items()],
            roll="15min",
            idle_after="1d",
            # Two e-mails and no more.
            max_window_bytes=32,
            runner="flink",
            workers=2,
            flink={"master": flink.address, "worker_pool": flink.pool, "job_server": str(flink.jars), "checkpointing": "2s"},
        )
        variants = prepare(load_job(self.path)).variants
        self.keys = all_keys(desk.keyring, variants)
        for domain in {variant.plan.domain for variant in variants}:
            of = load_keys(str(desk.keyring)).domain(domain)
            for purpose in ("group", "ledger"):
                self.keys.add_bytes(f"{purpose} {domain}", of.for_domain(purpose))
        self.refused = {name: line for name, (_, line) in planted_refusals(self.canaries).items() if name != "last second"}

    def write(self) -> None:
        first = [self._good(f"good{number}", number) for number in range(GOOD)]
        first += [self._good("alone", 0, at="2014-09-06T12:00:00")]
        first += [self._message(name, line, number) for number, (name, line) in enumerate(self.refused.items())]
        first += [self._good("ahead", 0, at="2500-01-01T00:00:00"), (b"{}", b"\xff" + self.canaries.text("strange/key").encode(), [], 0)]
        write(self.desk.kafka, self.source, first)

    def close_windows(self) -> None:
        ends = [self._good(f"end{number}", number, at="2014-09-20T12:00:00") for number in range(PARTITIONS)]
        write(self.desk.kafka, self.source, ends)

    def _good(self, name: str, number: int, **changed: str) -> Any:
        return self._message(name, json.dumps({**planted_event(self.canaries, name), **changed}).encode(), number)

    def _message(self, name: str, value: bytes, number: int) -> tuple[bytes, bytes, list[tuple[str, bytes]], int]:
        text = self.canaries.text
        headers = [("trace", text(f"{name}/trace").encode()), ("other", text(f"{name}/other").encode()), (text(f"{name}/header"), b"x")]
        return value, text(f"{name}/key").encode(), headers, number % PARTITIONS

    def start(self, command: Sequence[str]) -> Any:
        return self.desk.start(self.path, "--debug", command=command, HOME=str(self.home), TMPDIR=str(self.home))

    @property
    def id(self) -> str:
        return next(job.id for job in self.rest.jobs() if job.state not in ENDED)

    def until_checkpointed(self, run: Any) -> None:
        """Until a checkpoint was begun after all had been read: letters are written behind the source."""

        def is_read() -> bool:
            assert run.process.poll() is None, run.log.read_text("utf-8")[-3000:]
            return len(self.desk.messages(self.target)) >= GOOD + 1 and len(self.desk.letters("job")) >= len(self.refused)

        eventually(is_read, 300)
        for _ in range(2):
            before = self.rest.last_checkpoint(self.id)
            eventually(lambda before=before: self.rest.last_checkpoint(self.id) != before, 120)

    def served(self) -> Iterator[bytes]:
        """What Flink shows of the job to whoever asks."""
        base = f"/jobs/{self.id}"
        vertices = [f"{base}/vertices/{one['id']}" for one in json.loads(self._get(base))["vertices"]]
        for path in ("", "/config", "/exceptions", "/accumulators", "/plan", "/checkpoints", "/checkpoints/config"):
            yield self._get(base + path)
        for vertex in vertices:
            listed = self._get(f"{vertex}/metrics")
            ours = [one["id"] for one in json.loads(listed) if "eventveil" in one["id"]]
            yield listed
            # A URL has an end.
            for at in range(0, len(ours), 10):
                yield self._get(f"{vertex}/metrics?get={urllib.parse.quote(','.join(ours[at : at + 10]), safe=',')}")
            for path in ("/accumulators", "/subtasks/accumulators", "/taskmanagers"):
                yield self._get(vertex + path)

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.rest.address + path, timeout=30) as answer:
            return bytes(answer.read())

    def close(self) -> None:
        for job in self.rest.jobs():
            if job.state not in ENDED:
                self.rest.cancel(job.id)


@pytest.fixture
def planted(desk: Any, flink: Any, new_topic: Callable[..., str]) -> Iterator[Planted]:
    made = Planted(desk, flink, new_topic(PARTITIONS), new_topic(1, **FOR_EVER))
    yield made
    made.close()


def test_nothing_of_an_event_and_no_key(planted: Planted) -> None:
    desk, flink, canaries = planted.desk, planted.flink, planted.canaries
    watch = Watch(flink, planted.home, desk.folder / "job", planted.out)
    planted.write()
    watch.start()
    run = planted.start(COMMAND)
    planted.until_checkpointed(run)
    served = list(planted.served())
    state = sum(len(content) for name, content in watch.found.items() if "/checkpoints/" in name)
    planted.close_windows()
    withheld = desk.folder / "job" / "state" / "engine" / "withheld"
    eventually(lambda: files_of(planted.out / "rolled") and list(planted.out.rglob("numbered/*.parquet")) and withheld.is_dir(), 240)
    served += planted.served()
    assert 0 == run.drain(120), run.log.read_text("utf-8")[-3000:]
    found = watch.end()
    for path in (*flink.home.glob("*.log*"), run.log):
        found[str(path)] = path.read_bytes()

    # What was to be looked through, was.
    assert state > 5_000
    for part in ("/flink/checkpoints/", "/flink/savepoints/", "/flink/tmp/", "/engine/published/", "/engine/withheld/", "/job/refused/"):
        assert any(part in name for name in found), part
    assert all(found[str(flink.home / f"{name}.log")] for name in ("flink", "taskmanager-1", "taskmanager-2", "pool"))
    assert any(b'"library"' in line for line in run.log.read_bytes().splitlines())
    assert any("eventveil-job-server-" in name and name.split()[0].endswith("/log") for name in found)
    assert any(b"everything" in answer or b"rolled" in answer for answer in served)
    # What Flink was sent with the job is what the cluster was started from; its own of Akka it unpacks from one of these.
    jars = {digest(path) for path in flink.jars.glob("*.jar")}
    packed = [path for path in flink.home.rglob("*") if path.is_file() and path.open("rb").read(4) == ZIP]
    assert [] == [path for path in packed if digest(path) not in jars and not path.name.startswith("flink-rpc-akka")]

    # Rows that are published lie in the recipient's folder before they have their name.
    outputs = {name: content for name, content in found.items() if name.startswith(str(planted.out)) or f" {planted.out}" in name}
    first, alone = {f"good{number}/{leaf}" for number in range(GOOD) for leaf in KEPT}, {f"alone/{leaf}" for leaf in KEPT}
    of = {name: canaries.found(*(content for path, content in outputs.items() if f"/{name}/" in path)) for name in ("rolled", "numbered")}
    assert {"rolled": first | alone, "numbered": alone} == of
    ends = {f"end{number}/{leaf}" for number in range(PARTITIONS) for leaf in KEPT}
    sent = [part for one in desk.messages(planted.target) for part in (one.value(), one.key(), repr(one.headers()))]
    assert first | alone | ends == canaries.found(*sent)
    rest = {name: content for name, content in found.items() if name not in outputs}
    assert {} == told(canaries, rest)
    assert set() == canaries.found(*served)
    assert {} == told(planted.keys, found)
    assert set() == planted.keys.found(*served, *sent)
    opened = [event for _, event in desk.letters("job")]
    assert set(planted.refused) | {"ahead"} <= {name.split("/")[0] for name in canaries.found(*opened)}


@pytest.mark.thorough
def test_a_batch_that_crosses_a_group_by_key_as_it_is_would_be_found(planted: Planted) -> None:
    """A search that finds nothing proves nothing."""
    watch = Watch(planted.flink)
    planted.write()
    watch.start()
    run = planted.start([sys.executable, str(HERE / "flink_canary.py")])
    planted.until_checkpointed(run)
    assert 0 == run.drain(120), run.log.read_text("utf-8")[-3000:]

    found = watch.end()
    for part in ("checkpoints", "savepoints"):
        state = [content for name, content in found.items() if f"/flink/{part}/" in name]
        # A leaf that all policies drop.
        assert {f"good{number}/dropped" for number in range(GOOD)} <= planted.canaries.found(*state), part


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
