"""Runs whole jobs from job files in one folder, with keys that are always the same, and reads back all that they left."""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eventveil.pipeline.dead_letters.open import open_letter
from eventveil.pipeline.dead_letters.store import list_letters
from eventveil.pipeline.prepare import prepare
from eventveil.pipeline.report.summary import PolicySummary, summarize
from eventveil.pipeline.runners.local import run
from eventveil.schemas.job import load_job
from eventveil.transforms.keys.custodian import load_private, new_custodian
from eventveil.transforms.keys.keyring import load_keys

ROOT = bytes(range(200, 232))


@dataclass(frozen=True)
class Refused:
    """One opened dead letter."""

    origin: str
    position: int
    code: str
    path: str
    event: bytes


@dataclass(frozen=True)
class Ran:
    """One job that ran: its folders, and the counts of its policy."""

    out: Path
    refused: Path
    summary: PolicySummary
    desk: Desk

    def files(self) -> dict[str, bytes]:
        """What the output folder holds, by name, without what says who made it."""
        return {
            str(path.relative_to(self.out)): path.read_bytes()
            for path in sorted(self.out.rglob("*"))
            if path.is_file() and path.name[0] not in "._"
        }

    def lines(self) -> Counter[bytes]:
        """The output's records, each as often as it stands there; for jsonl."""
        return Counter(line for content in self.files().values() for line in content.splitlines())

    def letters(self) -> list[Refused]:
        """The refused events, by file and position."""
        private, key = load_private(self.desk.custodian_key), load_keys(str(self.desk.keyring)).letters_key()
        found = [
            Refused(*(letter.header[name] for name in ("origin", "position", "code", "path")), open_letter(letter, private, key))
            for letter in list_letters(self.refused)
        ]
        return sorted(found, key=lambda one: (one.origin, one.position))


class Desk:
    """A folder with a keyring and a custodian, where jobs of one policy run."""

    def __init__(self, folder: Path, policy: Path, root: bytes = ROOT) -> None:
        self.folder = folder
        self.policy = policy
        self.keyring = folder / "keyring.json"
        self.custodian = folder / "custodian.pub"
        self.custodian_key = folder / "custodian.key"
        folder.mkdir(parents=True, exist_ok=True)
        document = {"eventveil_keyring": 1, "root": base64.b64encode(root).decode(), "domains": {}}
        with open(os.open(self.keyring, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(document, file)
        new_custodian(folder / "custodian")

    def write_job(
        self, name: str, inputs: Sequence[Path], *, format: str = "jsonl", partition_by: str | None = None, **entries: Any
    ) -> Path:
        """A job file, which is JSON, and so YAML too."""
        path = self.folder / f"{name}.yaml"
        output = {"uri": str(self.folder / name / "out"), "format": format}
        document = {
            "job": name,
            "input": {"uri": [str(one) for one in inputs]},
            "variants": [{"policy": str(self.policy), "output": {**output, **({"partition_by": partition_by} if partition_by else {})}}],
            "keys": str(self.keyring),
            "dead_letters": {"uri": str(self.folder / name / "refused"), "custodian": str(self.custodian)},
            **entries,
        }
        path.write_text(json.dumps(document))
        return path

    def run(self, name: str, inputs: Sequence[Path], **entries: Any) -> Ran:
        """Run a job in this process."""
        job = load_job(self.write_job(name, inputs, **entries))
        prepared = prepare(job)
        counters = run(prepared, job.workers)
        described = [(variant.name, variant.plan.version, variant.plan.digest) for variant in prepared.variants]
        return self.ran(name, summarize(job.name, 0.0, prepared.keys_id, described, counters).policies[0])

    def ran(self, name: str, summary: PolicySummary) -> Ran:
        return Ran(self.folder / name / "out", self.folder / name / "refused", summary, self)
