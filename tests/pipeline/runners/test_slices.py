"""What a slice that is done again, a lane of which nothing is accepted, and a signal in the wrong moment must not do."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from eventveil.pipeline.checkpoint.folder import CheckpointFolder
from eventveil.pipeline.dead_letters.store import list_letters
from eventveil.pipeline.prepare import prepare
from eventveil.pipeline.report.reporter import Reporter
from eventveil.pipeline.runners._pass import _rank
from eventveil.pipeline.runners.slices import Drain, run
from eventveil.schemas.errors import EventveilError, StorageError, Unreachable
from eventveil.schemas.job import load_job
from eventveil.transforms.keys.custodian import new_custodian
from eventveil.transforms.keys.providers.keyring_file import new_keyring

SCHEMA = {"type": "record", "name": "Visit", "fields": [{"name": name, "type": "string"} for name in ("id", "at", "who")]}
POLICY = """\
policy: visits
version: 1
schema: event.avsc
domain: research
event: {time: at, id: id, only_if: {who: [ann, bob]}}
window: {keys: 1d, release: 10s}
allowed_lateness: 1s
fields: {id: drop, at: drop, who: {renumber: {scope: window}}}
"""
BEGIN = datetime(2024, 5, 6, tzinfo=timezone.utc)


class Folder:
    def __init__(self, at: Path) -> None:
        self.at = at
        (at / "in").mkdir()
        (at / "event.avsc").write_text(json.dumps(SCHEMA))
        (at / "policy.yaml").write_text(POLICY)
        new_keyring(at / "keyring.json")
        new_custodian(at / "custodian")
        document = {
            "job": "visits",
            "input": {"uri": str(at / "in")},
            "variants": [{"policy": "policy.yaml", "output": {"uri": "out", "format": "jsonl"}}],
            "keys": "keyring.json",
            "dead_letters": {"uri": "refused", "custodian": "custodian.pub"},
            "watch": True,
            "checkpoint": "state",
            "idle_after": "1s",
            "stop_when_refused": "never",
        }
        (at / "job.yaml").write_text(json.dumps(document))

    def put(self, name: str, who: str, *seconds: int) -> None:
        lines = [
            {"id": f"{name}-{n}", "at": (BEGIN + timedelta(seconds=second)).isoformat(), "who": who} for n, second in enumerate(seconds)
        ]
        hidden = self.at / "in" / f".{name}.jsonl"
        hidden.write_text("".join(json.dumps(line) + "\n" for line in lines))
        before = time.time() - 60
        os.utime(hidden, (before, before))
        hidden.rename(self.at / "in" / f"{name}.jsonl")

    def run(self, drain: Drain, until_caught_up: bool = False) -> Mapping[str, int]:
        ready = prepare(load_job(self.at / "job.yaml"))
        with Reporter(ready.name, log_json=True, quiet=True) as reporter:
            return run(ready, 1, drain, reporter, until_caught_up=until_caught_up)

    @property
    def manifests(self) -> list[str]:
        return sorted(path.name for path in (self.at / "out").glob("_eventveil-*.json"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.chdir(tmp_path)
    return Folder(tmp_path)


def test_a_window_that_was_closed_by_the_clock_stays_closed_when_its_slice_is_done_again(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = CheckpointFolder.commit

    def broken(self: CheckpointFolder, checkpoint: Any, withheld: Any = ()) -> None:
        if folder.manifests:
            raise StorageError.of("EV404", "the disk is full", "make room")
        commit(self, checkpoint, withheld)

    folder.put("a", "ann", 1, 8)
    monkeypatch.setattr(CheckpointFolder, "commit", broken)
    with pytest.raises(StorageError):
        folder.run(Drain())
    published = {path.name: path.read_bytes() for path in (folder.at / "out").iterdir()}
    monkeypatch.undo()
    monkeypatch.chdir(folder.at)

    folder.run(Drain(), until_caught_up=True)
    folder.put("b", "bob", 5)
    counted = folder.run(Drain(), until_caught_up=True)

    assert counted["visits|refused|EV518"] == 1
    assert {path.name: path.read_bytes() for path in (folder.at / "out").iterdir()} == published
    assert folder.manifests == ["_eventveil-2024-05-06T00-00-00Z-p000000.json"]


def test_events_that_are_all_filtered_hold_no_window(folder: Folder) -> None:
    folder.put("a", "ann", 1, 8)
    drain = Drain()
    job = threading.Thread(target=folder.run, args=(drain,), daemon=True)
    job.start()
    end = time.monotonic() + 60
    number = 0
    while not folder.manifests and time.monotonic() < end:
        folder.put(f"b{number}", "zoe", number)
        number += 1
        time.sleep(0.2)
    drain.ask()
    job.join(60)

    assert folder.manifests


def test_events_that_are_accepted_hold_their_window_open(folder: Folder) -> None:
    drain = Drain()
    job = threading.Thread(target=folder.run, args=(drain,), daemon=True)
    job.start()
    # For far longer than a lane may be silent, and than the window and its lateness are; event time stands still.
    end = time.monotonic() + 16
    number = 0
    while time.monotonic() < end:
        folder.put(f"a{number}", "ann", 1)
        number += 1
        time.sleep(0.2)
    published = folder.manifests
    drain.ask()
    job.join(60)

    assert not published


def test_a_slice_that_has_begun_needs_its_checkpoint(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise StorageError.of("EV404", "the disk is full", "make room")

    folder.put("a", "ann", 1)
    with monkeypatch.context() as patched:
        patched.setattr("eventveil.pipeline.runners.slices.run_pass", broken)
        with pytest.raises(StorageError):
            folder.run(Drain())
    (folder.at / "state" / "checkpoint.json").unlink()

    with pytest.raises(StorageError) as caught:
        folder.run(Drain())

    assert [problem.code for problem in caught.value.problems] == ["EV411"]


def test_a_job_may_be_asked_to_stop_in_the_midst_of_waiting() -> None:
    drain = Drain()
    began = time.monotonic()
    threading.Timer(0.1, drain.ask).start()

    drain.wait(30)
    drain.wait(30)

    assert drain.is_asked
    assert time.monotonic() - began < 10


def test_a_defect_is_told_only_where_nothing_else_is() -> None:
    away = Unreachable.of("EV413", "away", file="kafka://a")
    over = EventveilError.of("EV901", "this attempt is over")

    assert min([over, away], key=_rank) is away


def test_a_checkpoint_that_is_begun_anew_leaves_the_letters_of_the_one_before(tmp_path: Path) -> None:
    """The same name and position, as in a topic that was made anew: another event was refused there, and its letter must stay."""
    folder = Folder(tmp_path)
    path = tmp_path / "in" / "a.jsonl"
    for content in ("no event\n" * 5, ""):
        if content:
            path.write_text(content)
            os.utime(path, (time.time() - 60,) * 2)
        else:
            path.unlink()
            folder.put("a", "ann", 1)
            shutil.rmtree(tmp_path / "state")
        folder.run(Drain(), until_caught_up=True)

    assert ["EV501"] * 5 == [letter.header["code"] for letter in list_letters(tmp_path / "refused")]
