"""For tests of policies: the real job over real files, in a folder that vanishes.

    with run_job("policy.yaml", events, keys=b"\\x00" * 32) as result:
        assert result.rows == [...]

A test that runs a job and looks at nothing proves nothing: leaving the block without having read `rows`, `files` or
`refused` is an AssertionError.
"""

from __future__ import annotations

import base64
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eventveil.pipeline.dead_letters.open import open_letter
from eventveil.pipeline.dead_letters.store import list_letters
from eventveil.pipeline.prepare import job_of_flags, prepare
from eventveil.pipeline.report.summary import PolicySummary, summarize
from eventveil.transforms.keys.custodian import load_private, new_custodian
from eventveil.transforms.keys.keyring import load_keys

__all__ = ["JobResult", "run_job"]


class JobResult:
    """What a job made of events.

    Attributes:
        folder: the output's folder. summary: the counts.
    """

    def __init__(self, folder: Path, refused: Path, private: Path, keys: str, summary: PolicySummary) -> None:
        self.folder = folder
        self.summary = summary
        self._refused = refused
        self._private = private
        self._keys = keys
        self.was_read = False

    @property
    def files(self) -> list[Path]:
        """The output's files, sorted by path."""
        self.was_read = True
        return sorted(path for path in self.folder.rglob("*") if path.is_file() and not path.name.startswith(("_", ".")))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The veiled events, in the order of files and lines."""
        found: list[dict[str, Any]] = []
        for path in self.files:
            if path.suffix == ".parquet":
                import pyarrow.parquet as pq

                found += pq.read_table(path).to_pylist()
            elif path.suffix == ".avro":
                import fastavro

                with path.open("rb") as file:
                    found += list(fastavro.reader(file))  # type: ignore[arg-type]
            else:
                found += [json.loads(line) for line in path.read_bytes().splitlines()]
        return found

    @property
    def refused(self) -> list[tuple[str, str, bytes]]:
        """Code, path and original bytes of each refused event, by position."""
        self.was_read = True
        private, key = load_private(self._private), load_keys(self._keys).letters_key()
        letters = sorted(list_letters(self._refused), key=lambda letter: (letter.header["origin"], letter.header["position"]))
        return [(letter.header["code"], letter.header["path"], open_letter(letter, private, key)) for letter in letters]


@contextmanager
def run_job(
    policy: str | Path,
    events: Sequence[bytes | dict[str, Any]] | Sequence[Path],
    *,
    keys: bytes | None = None,
    format: str = "jsonl",
    workers: int = 1,
    **flags: Any,
) -> Iterator[JobResult]:
    """Run a policy over events, or over files of events, on the local runner.

    Args:
        events: JSON messages as bytes or objects, written to one file; or paths of files.
        keys: 32 bytes of root secret; None: random ones.
        flags: as of ``eventveil run``, with underscores.

    Raises:
        EventveilError: as the job would.
        AssertionError: when the block is left without having looked at the result.
    """
    from eventveil.pipeline.runners.local import run

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keyring, custodian = folder / "keyring.json", folder / "custodian"
        descriptor = os.open(keyring, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as file:
            json.dump({"eventveil_keyring": 1, "root": base64.b64encode(keys or os.urandom(32)).decode(), "domains": {}}, file)
        new_custodian(custodian)
        given = {
            "policy": str(policy),
            "input": _input(folder, events),
            "output": str(folder / "out"),
            "format": format,
            "keys": str(keyring),
            "dead_letters": str(folder / "refused"),
            "custodian": f"{custodian}.pub",
            "workers": workers,
            **flags,
        }
        job = prepare(job_of_flags(given))
        counters = run(job, workers)
        described = [(variant.name, variant.plan.version, variant.plan.digest) for variant in job.variants]
        summary = summarize(job.name, 0.0, job.keys_id, described, counters).policies[0]
        result = JobResult(folder / "out", folder / "refused", Path(f"{custodian}.key"), str(keyring), summary)
        yield result
        assert result.was_read, "the job's output was not looked at: read rows, files or refused"


def _input(folder: Path, events: Sequence[Any]) -> list[str]:
    if events and all(isinstance(event, Path) for event in events):
        return [str(event) for event in events]
    path = folder / "events.jsonl"
    lines = [event if isinstance(event, bytes) else json.dumps(event, ensure_ascii=False).encode() for event in events]
    path.write_bytes(b"".join(line.rstrip(b"\n") + b"\n" for line in lines))
    return [str(path)]
