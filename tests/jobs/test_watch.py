"""Watched folders: every file that comes to rest is read once, whenever it came and whatever happened to the job in between.

What is published is what a run over the same files gives, read once. The clock is real, so files are dated back where a test does not
wait for them to come to rest.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eventveil.pipeline.dead_letters.store import list_letters
from eventveil.pipeline.prepare import prepare
from eventveil.pipeline.report.reporter import Reporter
from eventveil.pipeline.runners.local import run as run_once
from eventveil.pipeline.runners.slices import Drain, run
from eventveil.schemas.errors import EventveilError
from eventveil.schemas.job import load_job
from eventveil.transforms.keys.custodian import new_custodian
from eventveil.transforms.keys.providers.keyring_file import new_keyring

CHILD = Path(__file__).parents[1] / "live" / "killed_at.py"
SCHEMA = {
    "type": "record",
    "name": "Visit",
    "fields": [
        {"name": "n", "type": "long"},
        {"name": "at", "type": "string"},
        {"name": "who", "type": "string"},
    ],
}
POLICY = """\
policy: visits
version: 1
schema: event.avsc
domain: research
event: {time: at, id: n}
window: 1d
fields: {n: {keep: {because: test}}, at: {floor: 1min}, who: {pseudonymize: {class: person}}}
"""
BEGIN = datetime(2024, 5, 6, tzinfo=timezone.utc)

Event = dict[str, Any]


def events(numbers: Sequence[int]) -> list[Event]:
    return [{"n": n, "at": (BEGIN + timedelta(seconds=n)).isoformat(), "who": f"person-{n % 7}"} for n in numbers]


def lines(found: Sequence[Event]) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in found)


class Folder:
    """A watched folder, a job on it, and what the job has published."""

    def __init__(self, at: Path) -> None:
        self.at = at
        self.inbox = at / "in"
        self.inbox.mkdir()
        (at / "policy.yaml").write_text(POLICY)
        (at / "event.avsc").write_text(json.dumps(SCHEMA))
        new_keyring(at / "keyring.json")
        new_custodian(at / "custodian")

    def put(self, name: str, content: bytes, age_s: float = 60) -> Path:
        """A file as a careful writer leaves it: whole at once, under its name."""
        path = self.inbox / name
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden = path.with_name(f".{path.name}")
        hidden.write_bytes(content)
        before = time.time() - age_s
        os.utime(hidden, (before, before))
        return hidden.rename(path)

    def close_windows(self, name: str = "zz.jsonl", days: int = 30) -> None:
        """An event so late that all windows before it are due; it stays in its own, which is open."""
        self.put(name, lines([{"n": -1, "at": (BEGIN + timedelta(days=days)).isoformat(), "who": "nobody"}]))

    def job(self, **entries: Any) -> Path:
        document = {
            "job": "visits",
            "input": {"uri": str(self.inbox), **entries.pop("input", {})},
            "variants": [{"policy": "policy.yaml", "output": {"uri": "out", "format": "jsonl"}}],
            "keys": "keyring.json",
            "dead_letters": {"uri": "refused", "custodian": "custodian.pub"},
            "watch": True,
            "checkpoint": "state",
            "roll": "1h",
            "slice": "1s",
            **entries,
        }
        path = self.at / "job.yaml"
        path.write_text(json.dumps({name: value for name, value in document.items() if value is not None}))
        return path

    def finish(self, from_now: bool = False, **entries: Any) -> Mapping[str, int]:
        """Work off what is there; what was counted."""
        return self.run(Drain(), True, from_now, **entries)

    def run(self, drain: Drain, until_caught_up: bool, from_now: bool = False, **entries: Any) -> Mapping[str, int]:
        ready = prepare(load_job(self.job(**entries)))
        with Reporter(ready.name, log_json=True, quiet=True) as reporter:
            return run(ready, 1, drain, reporter, until_caught_up=until_caught_up, from_now=from_now)

    def killed(self, place: str, when: str, call: int = 1, **entries: Any) -> None:
        """A run that kills itself there."""
        kill = {"kill": {"place": place, "call": call, "when": when}}
        command = [sys.executable, str(CHILD), json.dumps(kill), "run", str(self.job(**entries)), "--until-caught-up", "--log-json"]
        assert -9 == subprocess.run(command, cwd=self.at, timeout=120, capture_output=True, check=False).returncode

    def published(self) -> Counter[str]:
        paths = sorted(path for path in (self.at / "out").rglob("*.jsonl") if path.name[0] not in "._")
        return Counter(line for path in paths for line in path.read_text().splitlines())

    def numbers(self) -> Counter[int]:
        return Counter(n for line, times in self.published().items() for n in [json.loads(line)["n"]] * times)

    def expected(self, found: Sequence[Event]) -> Counter[str]:
        """What a run over a single file gives for these events."""
        home = self.at / "once"
        home.mkdir(exist_ok=True)
        (home / "events.jsonl").write_bytes(lines(found))
        document = {
            "job": "once",
            "input": {"uri": str(home / "events.jsonl")},
            "variants": [{"policy": str(self.at / "policy.yaml"), "output": {"uri": str(home / "out"), "format": "jsonl"}}],
            "keys": str(self.at / "keyring.json"),
            "allow_loss": True,
        }
        (home / "job.yaml").write_text(json.dumps(document))
        run_once(prepare(load_job(home / "job.yaml")))
        rows = Counter(line for path in (home / "out").glob("*.jsonl") for line in path.read_text().splitlines())
        assert len(found) == rows.total()
        return rows


class Running(threading.Thread):
    """The job, running on beside the test."""

    def __init__(self, folder: Folder, **entries: Any) -> None:
        super().__init__(daemon=True)
        self._folder, self._entries = folder, entries
        self._drain = Drain()
        self.error: BaseException | None = None
        self.counted: Mapping[str, int] = {}

    def run(self) -> None:
        try:
            self.counted = self._folder.run(self._drain, False, **self._entries)
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        self._drain.ask()
        self.join(60)
        assert not self.is_alive()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.chdir(tmp_path)
    return Folder(tmp_path)


@pytest.fixture
def running(folder: Folder) -> Iterator[Callable[..., Running]]:
    made: list[Running] = []

    def start(**entries: Any) -> Running:
        made.append(Running(folder, **entries))
        made[-1].start()
        return made[-1]

    yield start
    for one in made:
        one.stop()


def eventually(holds: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def code_of(caught: pytest.ExceptionInfo[EventveilError]) -> str:
    return caught.value.problems[0].code


class TestFilesThatAppear:
    def test_while_the_job_runs_each_is_read_once(self, folder: Folder, running: Callable[..., Running]) -> None:
        folder.put("a.jsonl", lines(events(range(50))))
        job = running()
        for number in range(1, 4):
            # Its name sorts before those that were read: what is new is told by the folder, not by the order of names.
            folder.put(f"a-{number}.jsonl", lines(events(range(number * 100, number * 100 + 50))))
            folder.close_windows(f"zz-{number}.jsonl", days=30 * number)
            eventually(lambda number=number: number * 100 + 49 in folder.numbers())  # type: ignore[misc]
        job.stop()
        numbers = [*range(50), *range(100, 150), *range(200, 250), *range(300, 350)]

        assert job.error is None
        assert folder.expected(events(numbers)) == Counter({line: n for line, n in folder.published().items() if '"n":-1' not in line})

    def test_between_runs_each_is_read_once(self, folder: Folder) -> None:
        for number in range(3):
            folder.put(f"{3 - number}.jsonl", lines(events(range(number * 10, number * 10 + 10))))
            counted = folder.finish()
            assert 10 == counted["visits|in"]
        folder.close_windows()
        folder.finish()

        assert folder.expected(events(range(30))) == folder.published()

    def test_nothing_new_is_no_slice(self, folder: Folder) -> None:
        folder.put("a.jsonl", lines(events(range(3))))
        folder.finish()
        before = (folder.at / "state" / "checkpoint.json").read_bytes()

        assert ({}, before) == (dict(folder.finish()), (folder.at / "state" / "checkpoint.json").read_bytes())

    def test_a_folder_that_is_empty_yet(self, folder: Folder) -> None:
        assert {} == dict(folder.finish())

        folder.put("deep/er/a.jsonl", lines(events(range(3))))
        folder.close_windows()
        folder.finish()

        assert folder.expected(events(range(3))) == folder.published()

    def test_one_that_has_just_been_written_is_waited_for(self, folder: Folder) -> None:
        folder.put("a.jsonl", lines(events(range(3))), age_s=0)

        assert 3 == folder.finish()["visits|in"]


class TestFilesAtRest:
    def test_one_that_is_being_written_is_read_when_it_is_complete(self, folder: Folder, running: Callable[..., Running]) -> None:
        job = running()
        with (folder.inbox / "growing.jsonl").open("wb", buffering=0) as file:
            for n in range(16):
                file.write(lines(events([n])))
                time.sleep(0.25)
                assert not folder.published()
        time.sleep(2.5)
        folder.close_windows()
        eventually(lambda: folder.published())
        job.stop()

        assert job.error is None
        assert folder.expected(events(range(16))) == folder.published()

    def test_what_was_changed_after_it_was_read_stops_the_job_and_loses_nothing(self, folder: Folder) -> None:
        path = folder.put("a.jsonl", lines(events(range(10))))
        folder.finish()
        modified = path.stat().st_mtime_ns
        folder.put("b.jsonl", lines(events(range(10, 20))))
        with path.open("ab") as file:
            file.write(lines(events([99])))
        with pytest.raises(EventveilError) as caught:
            folder.finish()
        assert ("EV402", str(path)) == (code_of(caught), caught.value.problems[0].file)

        # As it was, and what was added in a file of its own.
        os.truncate(path, len(lines(events(range(10)))))
        os.utime(path, ns=(modified, modified))
        folder.put("c.jsonl", lines(events([99])))
        folder.close_windows()
        folder.finish()

        assert folder.expected(events([*range(20), 99])) == folder.published()

    def test_what_was_changed_may_be_moved_away(self, folder: Folder) -> None:
        path = folder.put("a.jsonl", lines(events(range(10))))
        folder.finish()
        path.write_bytes(b"something else\n")
        with pytest.raises(EventveilError, match="move it away"):
            folder.finish()
        path.rename(folder.at / "a.jsonl")
        folder.close_windows()
        folder.finish()

        assert folder.expected(events(range(10))) == folder.published()


class TestRemovedFiles:
    def test_one_that_was_read_may_go(self, folder: Folder) -> None:
        path = folder.put("a.jsonl", lines(events(range(10))))
        folder.finish()
        path.unlink()
        folder.close_windows()
        folder.finish()

        assert folder.expected(events(range(10))) == folder.published()

    def test_one_that_a_slice_was_to_read_is_missed_until_it_is_back(self, folder: Folder) -> None:
        path = folder.put("a.jsonl", lines(events(range(10))))
        folder.killed("pipeline.checkpoint.folder:CheckpointFolder.write_intent", "after")
        kept = path.rename(folder.at / "kept.jsonl")
        with pytest.raises(EventveilError) as caught:
            folder.finish()
        assert "EV412" == code_of(caught)

        kept.rename(path)
        folder.close_windows()
        folder.finish()

        assert folder.expected(events(range(10))) == folder.published()

    def test_without_it_the_job_goes_on_from_now(self, folder: Folder) -> None:
        path = folder.put("a.jsonl", lines(events(range(10))))
        folder.killed("pipeline.checkpoint.folder:CheckpointFolder.write_intent", "after")
        path.unlink()
        folder.finish(from_now=True)
        folder.put("b.jsonl", lines(events(range(10, 20))))
        folder.close_windows()
        folder.finish()

        assert folder.expected(events(range(10, 20))) == folder.published()
        assert (folder.at / "state" / "set-aside-1" / "intent.json").exists()


class TestForms:
    def test_of_all_kinds_side_by_side(self, folder: Folder) -> None:
        parts = [events(range(number * 10, number * 10 + 10)) for number in range(5)]
        folder.put("plain.jsonl", lines(parts[0]))
        folder.put("2024/05/packed.jsonl.gz", gzip.compress(lines(parts[1][:5])) + gzip.compress(lines(parts[1][5:])))
        folder.put("2024/packed.ndjson.zst", pa.compress(lines(parts[2]), "zstd", asbytes=True))
        pq.write_table(pa.Table.from_pylist(parts[3]), folder.inbox / ".columns", row_group_size=3)
        (folder.inbox / ".columns").rename(folder.inbox / "columns.parquet")
        with (folder.inbox / ".rows").open("wb") as file:
            fastavro.writer(file, fastavro.parse_schema(SCHEMA), parts[4], sync_interval=50)
        (folder.inbox / ".rows").rename(folder.inbox / "rows.avro")
        folder.close_windows()
        folder.finish()

        assert folder.expected([event for part in parts for event in part]) == folder.published()
        assert [] == list(list_letters(folder.at / "refused"))

    def test_without_a_row(self, folder: Folder) -> None:
        folder.put("empty.jsonl", b"")
        pq.write_table(pa.Table.from_pylist(events([0])).slice(0, 0), folder.inbox / ".columns")
        (folder.inbox / ".columns").rename(folder.inbox / "columns.parquet")
        folder.put("a.jsonl", lines(events(range(3))))

        assert 3 == folder.finish()["visits|in"]

    def test_hidden_and_foreign_names_are_not_read(self, folder: Folder) -> None:
        for name in (".a.jsonl", "_a.jsonl", "_SUCCESS", "a.jsonl.tmp", "a.jsonl.part", "a.csv", "_folder/a.jsonl", ".folder/a.jsonl"):
            folder.put(name, lines(events([99])))
        folder.put("a.jsonl", lines(events(range(3))))
        folder.close_windows()
        folder.finish()

        assert folder.expected(events(range(3))) == folder.published()

    def test_what_cannot_be_read_stops_the_job_and_is_read_when_it_is_mended(self, folder: Folder) -> None:
        whole = gzip.compress(lines(events(range(10))))
        path = folder.put("a.jsonl.gz", whole[:-9])
        folder.put("b.jsonl", lines(events(range(10, 20))))
        with pytest.raises(EventveilError) as caught:
            folder.finish()
        assert "EV403" == code_of(caught)

        path.unlink()
        with pytest.raises(EventveilError) as caught:
            folder.finish()
        assert "EV412" == code_of(caught)


class TestSlices:
    def test_a_large_file_is_read_over_several(self, folder: Folder) -> None:
        folder.put("large.jsonl", lines(events(range(600))))
        folder.put("small.jsonl", lines(events(range(600, 610))))
        folder.close_windows()
        folder.finish(part_bytes=3_000, max_slice_bytes=9_000)
        slices = json.loads((folder.at / "state" / "checkpoint.json").read_text())["slice"]

        assert folder.expected(events(range(610))) == folder.published()
        assert len(lines(events(range(600)))) // 9_000 < slices < 10

    def test_one_that_goes_away_in_the_middle_is_missed(self, folder: Folder) -> None:
        path = folder.put("large.jsonl", lines(events(range(600))))
        folder.killed("pipeline.checkpoint.folder:CheckpointFolder.commit", "after", 3, part_bytes=3_000, max_slice_bytes=9_000)
        kept = path.rename(folder.at / "kept.jsonl")
        with pytest.raises(EventveilError) as caught:
            folder.finish(part_bytes=3_000)
        assert "EV412" == code_of(caught)

        kept.rename(path)
        folder.close_windows()
        folder.finish(part_bytes=3_000)

        assert folder.expected(events(range(600))) == folder.published()

    def test_many_small_files(self, folder: Folder) -> None:
        for n in range(400):
            folder.put(f"{n % 10}/{n}.jsonl", lines(events([n])))
        folder.close_windows()
        folder.finish(max_slice_bytes=9_000)

        assert folder.expected(events(range(400))) == folder.published()


class TestKilled:
    @pytest.mark.parametrize(
        ("place", "when"),
        [
            pytest.param("pipeline.checkpoint.folder:CheckpointFolder.write_intent", "after", id="before it reads"),
            pytest.param("pipeline.checkpoint.folder:CheckpointFolder.commit", "before", id="before the checkpoint"),
            pytest.param("pipeline.sinks.files:FolderSink.publish_window", "after", id="behind a window"),
        ],
    )
    def test_nothing_is_lost_or_doubled(self, folder: Folder, place: str, when: str) -> None:
        folder.put("a.jsonl", lines(events(range(100))))
        folder.put("b.jsonl", lines(events(range(100, 8_000, 79))))
        folder.close_windows()
        folder.killed(place, when)
        # It is there before the slice that stands in the intent is done, and sorts before what that reads.
        folder.put("0.jsonl", lines(events(range(10_000, 10_010))))
        folder.finish()
        numbers = [*range(100), *range(100, 8_000, 79), *range(10_000, 10_010)]

        assert folder.expected(events(numbers)) == folder.published()


class TestFromNow:
    def test_what_is_there_is_skipped(self, folder: Folder) -> None:
        folder.put("old.jsonl", lines(events(range(10))))
        assert {} == dict(folder.finish(from_now=True))

        folder.put("new.jsonl", lines(events(range(10, 20))))
        folder.close_windows()
        folder.finish()

        assert folder.expected(events(range(10, 20))) == folder.published()

    def test_what_is_still_being_written_is_read(self, folder: Folder) -> None:
        folder.put("old.jsonl", lines(events(range(10))))
        folder.put("fresh.jsonl", lines(events(range(10, 20))), age_s=0)

        assert 10 == folder.finish(from_now=True)["visits|in"]

    def test_a_checkpoint_that_can_go_on_goes_on(self, folder: Folder) -> None:
        folder.finish()
        folder.put("a.jsonl", lines(events(range(10))))

        assert 10 == folder.finish(from_now=True)["visits|in"]


class TestApart:
    @pytest.mark.parametrize("place", ["out", "state", "refused"])
    def test_what_a_job_writes_is_not_watched(self, folder: Folder, place: str) -> None:
        entries: dict[str, Any] = {
            "out": {"variants": [{"policy": "policy.yaml", "output": {"uri": "in/out", "format": "jsonl"}}]},
            "state": {"checkpoint": "in/state"},
            "refused": {"dead_letters": {"uri": "in/refused", "custodian": "custodian.pub"}},
        }[place]
        with pytest.raises(EventveilError) as caught:
            folder.finish(**entries)

        assert "EV120" == code_of(caught)
