"""A folder in which a job on a stream runs in a process of its own, is killed and started again, and what it left is read back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from confluent_kafka import Consumer, Producer, TopicPartition

from eventveil.pipeline.dead_letters.open import open_letter
from eventveil.pipeline.dead_letters.store import list_letters
from eventveil.transforms.keys.custodian import load_private, new_custodian
from eventveil.transforms.keys.keyring import load_keys
from eventveil.transforms.keys.providers.keyring_file import new_keyring

COMMAND = [sys.executable, "-c", "from eventveil.pipeline.cli.main import main; main()"]


class Run:
    """One process of a job."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    def logs(self) -> list[dict[str, Any]]:
        """What it has logged so far: one JSON object a line; a line that is none is told under "text"."""
        found = []
        for line in self.log.read_text("utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                found.append({"text": line})
        return found

    def wait(self, seconds: float = 60) -> int:
        return self.process.wait(seconds)

    def drain(self, seconds: float = 60) -> int:
        """SIGTERM, as an operator would; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait(seconds)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait(30)


class LiveDesk:
    """A folder with a keyring, a custodian, and jobs over streams."""

    def __init__(self, folder: Path, kafka: str) -> None:
        self.folder = folder
        self.kafka = kafka
        self.keyring = folder / "keyring.json"
        new_keyring(self.keyring)
        new_custodian(folder / "custodian")
        self._runs: list[Run] = []

    # -- jobs -------------------------------------------------------------------------------------------------------

    def write_job(self, name: str, uri: str, variants: Sequence[dict[str, Any]], **entries: Any) -> Path:
        """A job file: `variants` as in a job; `input` entries are given as `input={...}`."""
        document = {
            "job": name,
            "input": {"uri": uri, **entries.pop("input", {})},
            "variants": list(variants),
            "keys": str(self.keyring),
            "dead_letters": {"uri": str(self.folder / name / "refused"), "custodian": str(self.folder / "custodian.pub")},
            "checkpoint": str(self.folder / name / "state"),
            "stop_when_refused": "never",
            **entries,
        }
        (self.folder / name).mkdir(exist_ok=True)
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps(document))
        return path

    def start(self, job: Path, *flags: str, command: Sequence[str] = COMMAND, **environment: str) -> Run:
        """Run a job in a process of its own. `command`: another way to start it, as one that kills itself at some point."""
        log = self.folder / f"{job.stem}-{len(self._runs)}.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [*command, "run", str(job), "--log-json", *flags],
                stdout=sink,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
                env={**os.environ, **environment},
            )
        self._runs.append(Run(process, log))
        return self._runs[-1]

    def finish(self, job: Path, *flags: str, seconds: float = 120) -> Run:
        """Work off what is there; fails unless it ends well."""
        run = self.start(job, "--until-caught-up", *flags)
        code = run.wait(seconds)
        assert code == 0, run.log.read_text("utf-8")[-2000:]
        return run

    def close(self) -> None:
        for run in self._runs:
            if run.process.poll() is None:
                run.kill()

    # -- topics -----------------------------------------------------------------------------------------------------

    def produce(self, topic: str, values: Sequence[bytes | None], keys: Sequence[bytes | None] | None = None, **more: Any) -> None:
        """Write messages, and wait until all are there. `more`: as for confluent_kafka's produce, for all of them."""
        producer = Producer({"bootstrap.servers": self.kafka, "linger.ms": 5, "enable.idempotence": True})
        for number, value in enumerate(values):
            while True:
                try:
                    producer.produce(topic, value, None if keys is None else keys[number], **more)
                    break
                except BufferError:
                    producer.poll(0.1)
        assert producer.flush(60) == 0

    def messages(self, topic: str) -> list[Any]:
        """All messages that stand in a topic now, partition by partition."""
        consumer = Consumer({"bootstrap.servers": self.kafka, "group.id": "reader", "enable.auto.commit": False})
        found: list[Any] = []
        try:
            for partition in sorted(consumer.list_topics(topic, timeout=10).topics[topic].partitions):
                at, end = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)
                if at >= end:
                    continue
                consumer.assign([TopicPartition(topic, partition, at)])
                begun = time.monotonic()
                while at < end:
                    assert time.monotonic() - begun < 60, "the topic cannot be read to its end"
                    for message in consumer.consume(5000, 0.5):
                        assert not message.error(), message.error()
                        if message.offset() < end:
                            found.append(message)
                        at = message.offset() + 1
        finally:
            consumer.close()
        return found

    # -- what is left -----------------------------------------------------------------------------------------------

    def rows(self, folder: Path) -> list[dict[str, Any]]:
        """The rows of all files of an output folder, in the order of names."""
        found: list[dict[str, Any]] = []
        for path in files_of(folder):
            if path.suffix == ".parquet":
                found += pq.read_table(path).to_pylist()
            else:
                found += [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        return found

    def letters(self, name: str) -> list[tuple[dict[str, Any], bytes]]:
        """Header and opened event of each dead letter of a job."""
        private, key = load_private(self.folder / "custodian.key"), load_keys(str(self.keyring)).letters_key()
        return [(dict(letter.header), open_letter(letter, private, key)) for letter in list_letters(self.folder / name / "refused")]


def files_of(folder: Path) -> list[Path]:
    """The data files of an output folder: what a reader that skips hidden and underscored names sees."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name[0] not in "._")


def eventually(holds: Callable[[], Any], seconds: float = 60) -> Any:
    """The first truthy answer of `holds`, asked again and again; fails when none comes in time."""
    end = time.monotonic() + seconds
    while True:
        found = holds()
        if found:
            return found
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)
