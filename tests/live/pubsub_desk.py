"""A folder in which jobs read a subscription and write to a folder, and what they leave there; topics and subscriptions at an emulator."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from google.cloud import pubsub_v1
from google.pubsub_v1 import types

from eventveil.transforms.keys.custodian import new_custodian
from eventveil.transforms.keys.providers.keyring_file import new_keyring

HERE = Path(__file__).parent
PROJECT = "eventveil-tests"
SCHEMA = {
    "type": "record",
    "name": "Event",
    "fields": [{"name": "n", "type": "long"}, {"name": "at", "type": "long"}, {"name": "who", "type": ["null", "string"], "default": None}],
}
POLICY = """\
policy: counted
version: 1
schema: event.avsc
domain: live
event: {time: {field: at, unit: ms}, id: $position}
window: 1h
fields:
  n: {keep: {because: test}}
  at: drop
  who: pseudonymize
"""
BEGIN_MS = 1_700_000_000_000


def event(number: int, at_ms: int | None = None, who: str | None = None) -> bytes:
    """Ten milliseconds after the one before, unless told."""
    return json.dumps({"n": number, "at": BEGIN_MS + 10 * number if at_ms is None else at_ms, "who": who}).encode()


LAST = event(-1, BEGIN_MS + 86_400_000)
"""Of the next day: it closes all windows before it, and stays in its own."""


class PubsubDesk:
    """One topic with one subscription, and a job on it. Takes PUBSUB_EMULATOR_HOST as it stands."""

    def __init__(self, home: Path, ack_deadline_s: int = 10) -> None:
        self.home = home
        self.name = f"events-{uuid.uuid4().hex[:8]}"
        self.publisher, self.subscriber = pubsub_v1.PublisherClient(), pubsub_v1.SubscriberClient()
        self.topic = self.publisher.topic_path(PROJECT, self.name)
        self.subscription = self.subscriber.subscription_path(PROJECT, self.name)
        self.publisher.create_topic(name=self.topic)
        request = {"name": self.subscription, "topic": self.topic, "ack_deadline_seconds": ack_deadline_s}
        self.subscriber.create_subscription(request=request)
        (home / "event.avsc").write_text(json.dumps(SCHEMA))
        (home / "policy.yaml").write_text(POLICY)
        self.keyring = home / "keyring.json"
        new_keyring(self.keyring)
        new_custodian(home / "custodian")

    def publish(self, values: Iterable[bytes], **attributes: str) -> list[str]:
        """Returns the messages' ids."""
        messages = [types.PubsubMessage(data=value, attributes=attributes) for value in values]
        ids: list[str] = []
        for start in range(0, len(messages), 500):
            request = types.PublishRequest(topic=self.topic, messages=messages[start : start + 500])
            ids += self.publisher.transport.publish(request).message_ids
        return ids

    def write_job(self, policy: str = "policy.yaml", output: Mapping[str, Any] | None = None, **entries: Any) -> Path:
        document = {
            "job": "counted",
            "input": {"uri": f"pubsub://{PROJECT}/{self.name}"},
            "variants": [{"policy": policy, "output": output or {"uri": "out", "format": "jsonl"}}],
            "keys": "keyring.json",
            "dead_letters": {"uri": "refused", "custodian": "custodian.pub"},
            "checkpoint": "state",
            "stop_when_refused": "never",
            **entries,
        }
        path = self.home / "job.yaml"
        path.write_text(json.dumps(document))
        return path

    def run(self, happens: Mapping[str, Any] | None = None, *flags: str) -> int:
        """The job in a process of its own, to which something may happen (see killed_at.py), until it has caught up; its exit code."""
        command = [sys.executable, HERE / "killed_at.py", json.dumps(happens or {}), "run", "job.yaml", "--until-caught-up", *flags]
        with (self.home / "log").open("ab") as log:
            return subprocess.run(command, cwd=self.home, stdout=log, stderr=log, timeout=120, check=False, env=os.environ).returncode

    def log(self) -> str:
        return (self.home / "log").read_text("utf-8", "replace")

    @property
    def spool(self) -> list[Path]:
        return sorted((self.home / "state" / "spool").glob("*.spool"))

    def rows(self) -> list[dict[str, Any]]:
        """All that was published."""
        files = sorted((self.home / "out").glob("**/*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    def numbers(self) -> list[int]:
        return sorted(row["n"] for row in self.rows())

    def left(self) -> list[bytes]:
        """What the subscription gives out now."""
        pulled = self.subscriber.pull(request={"subscription": self.subscription, "max_messages": 1000}, timeout=2)
        return [one.message.data for one in pulled.received_messages]

    def close(self) -> None:
        self.publisher.transport.close()
        self.subscriber.close()
