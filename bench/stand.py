"""A Kafka of one's own for a measurement, topics in it, and live jobs on it; all of it ends with the measurement, however it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LOCAL = ROOT / "deploy" / "local"
EVENTVEIL = [sys.executable, "-c", "from eventveil.pipeline.cli.main import main; main()"]


@contextmanager
def kafka(work: Path) -> Iterator[str]:
    """host:port of a broker that runs within the block; its topics go with it."""
    signal.signal(signal.SIGTERM, _interrupt)
    home = work / "kafka"
    down = [LOCAL / "down", "--home", home, "--purge"]
    subprocess.run(down, check=True)
    try:
        up = [LOCAL / "up", "--home", home, "--while", str(os.getpid())]
        done = subprocess.run(up, check=False, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(done.returncode)
        yield done.stdout.strip().removeprefix("kafka://")
    finally:
        subprocess.run(down, check=False)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def make_topic(address: str, name: str, partitions: int = 4, config: Mapping[str, str] | None = None) -> None:
    from confluent_kafka.admin import AdminClient, NewTopic

    admin = AdminClient({"bootstrap.servers": address})
    admin.create_topics([NewTopic(name, partitions, 1, config=dict(config or {}))])[name].result()


def new_keys(work: Path) -> None:
    """keyring.json and custodian.pub, unless they are there."""
    for made, command in (("keyring.json", ["keys", "new", "keyring.json"]), ("custodian.pub", ["keys", "custodian", "custodian"])):
        if not (work / made).exists():
            subprocess.run([*EVENTVEIL, *command], cwd=work, check=True, stdout=subprocess.DEVNULL)


class LiveJob:
    """A live job in a folder that is its own: checkpoint, out, refused and job.log lie there. Ended at the end of the block."""

    def __init__(self, folder: Path, policy: Path, source: str, keys: Path, *flags: str, cores: set[int] | None = None) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._metrics = f"127.0.0.1:{free.getsockname()[1]}"
        self.folder = folder
        command = [*EVENTVEIL, "run", "--policy", str(policy), "--input", source, "--output", "out", "--checkpoint", "checkpoint"]
        command += ["--keys", str(keys / "keyring.json"), "--dead-letters", "refused", "--custodian", str(keys / "custodian.pub")]
        self.command = [*command, "--metrics", self._metrics, *flags]
        self._cores = cores

    def __enter__(self) -> LiveJob:
        own = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self._cores or own)  # a child inherits it
        with open(self.folder / "job.log", "wb") as log:
            self.process = subprocess.Popen(self.command, cwd=self.folder, stdout=log, stderr=log)
        os.sched_setaffinity(0, own)
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def figures(self) -> dict[str, float]:
        """Its metrics by name; of those by outcome, `name outcome`. Empty while it does not answer."""
        try:
            with urllib.request.urlopen(f"http://{self._metrics}/metrics", timeout=10) as answer:
                text = answer.read().decode()
        except OSError:
            return {}
        found: dict[str, float] = {}
        for line in text.splitlines():
            if line[0] != "#":
                name, _, value = line.rpartition(" ")
                name, _, labels = name.partition("{")
                which = [label.split('"')[1] for label in labels.split(",") if label.startswith(("outcome=", "code="))]
                key = " ".join([name, *which])
                found[key] = found.get(key, 0) + float(value)
        return found

    def wait_until(self, what: str, reached: Any, seconds: float = 120) -> dict[str, float]:
        """The first figures for which `reached` is true."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < deadline:
            figures = self.figures()
            if figures and reached(figures):
                return figures
            time.sleep(0.2)
        log = (self.folder / "job.log").read_text(errors="replace")[-2000:]
        raise SystemExit(f"the job did not come to: {what}\n{log}")

    def cpu_s(self) -> float:
        return self.figures()["process_cpu_seconds_total"]

    def end(self) -> int:
        """Ask it to stop; returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)

    def units(self) -> Iterator[dict[str, Any]]:
        """The manifests of what was published."""
        for path in sorted((self.folder / "out").glob("_eventveil-*-p*.json")):
            yield json.loads(path.read_text())

    def rows(self) -> int:
        return sum(file["rows"] for unit in self.units() for file in unit["files"])


def folder_bytes(folder: Path) -> int:
    """The size of all files below; those that go meanwhile count nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def quietly(process: subprocess.Popen[Any] | None) -> None:
    if process is not None and process.poll() is None:
        process.kill()
        process.wait()


def median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
