"""A subscription read without slices, by Beam's own runner, without an end: in a process that is killed when enough was seen."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("google.pubsub_v1")

made = runpy.run_path(str(Path(__file__).with_name("pubsub_desk.py")))
PROJECT, BEGIN_MS, event = made["PROJECT"], made["BEGIN_MS"], made["event"]
AGAIN_S = 11.5


class Reading:
    def __init__(self, desk: Any, number: int, idle_after_s: float, deaf: bool) -> None:
        self.decoded, self.letters = desk.home / f"decoded-{number}", desk.home / f"letters-{number}"
        self.log = desk.home / f"log-{number}"
        given = {
            "policy": str(desk.home / "policy.yaml"),
            "keys": str(desk.keyring),
            "decoded": str(self.decoded),
            "letters": str(self.letters),
            "project": PROJECT,
            "subscription": desk.name,
            "idle_after_s": idle_after_s,
            "deaf": deaf,
        }
        child = Path(__file__).with_name("pubsub_child.py")
        with self.log.open("w") as log:
            self.process = subprocess.Popen([sys.executable, child, json.dumps(given)], stdout=log, stderr=log)

    def notes(self, file: Path | None = None) -> list[dict[str, Any]]:
        file = file or self.decoded
        lines = file.read_text().splitlines(True) if file.exists() else []
        return [note for note in (json.loads(line) for line in lines if line.endswith("\n")) if note["rows"]]

    def told(self, name: str) -> list[int]:
        return [one for note in self.notes() for one in note[name]]

    def until(self, holds: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.2)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def desk(tmp_path: Path, pubsub: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", pubsub)
    one = made["PubsubDesk"](tmp_path)
    yield one
    one.close()


@pytest.fixture
def reading(desk: Any) -> Iterator[Callable[..., Reading]]:
    begun: list[Reading] = []

    def begin(idle_after_s: float = 60.0, deaf: bool = False) -> Reading:
        begun.append(Reading(desk, len(begun), idle_after_s, deaf))
        return begun[-1]

    yield begin
    for one in begun:
        one.kill()


class TestReadSubscription:
    def test_gives_every_event_once_and_acknowledges_it(self, desk: Any, reading: Any) -> None:
        desk.publish(event(number) for number in range(3_000))
        job = reading()
        job.until(lambda: len(job.told("numbers")) >= 3_000)
        desk.publish(event(number) for number in range(3_000, 3_100))
        job.until(lambda: len(job.told("numbers")) >= 3_100)

        time.sleep(AGAIN_S)
        job.kill()

        assert sorted(job.told("numbers")) == list(range(3_100))
        assert not desk.left()
        starts = [note["start"] for note in job.notes()]
        assert len(set(starts)) == len(starts)

    def test_killed_before_the_bundle_is_durable_gives_all_again_at_the_same_positions(self, desk: Any, reading: Any) -> None:
        desk.publish(event(number) for number in range(3_000))
        first = reading(deaf=True)
        first.until(lambda: len(first.told("numbers")) >= 3_000)
        first.kill()
        time.sleep(AGAIN_S)
        second = reading()

        second.until(lambda: len(set(second.told("numbers"))) >= 3_000)

        assert sorted(zip(second.told("positions"), second.told("numbers"))) == sorted(zip(first.told("positions"), first.told("numbers")))
        assert {note["origin"] for note in first.notes() + second.notes()} == {desk.subscription}

    def test_event_time_is_the_highest_that_came_and_never_falls(self, desk: Any, reading: Any) -> None:
        job = reading()
        for number in range(4):
            desk.publish(event(one) for one in range(100 * number, 100 * number + 100))
            job.until(lambda: len(job.told("numbers")) >= 100 * (number + 1))  # noqa: B023

        told = [note["watermark"] for note in job.notes()]
        known = [one for one in told if one is not None]
        assert told[0] is None
        assert known
        assert known == sorted(known)
        assert known[-1] <= (BEGIN_MS + 10 * 399) * 1000
        assert all(note["stamp"] >= note["watermark"] for note in job.notes() if note["watermark"] is not None)

    def test_a_silent_subscription_goes_on_with_the_clock(self, desk: Any, reading: Any) -> None:
        job = reading(idle_after_s=1.0)
        desk.publish([event(0)])
        job.until(lambda: len(job.notes()) >= 1)
        time.sleep(5)
        desk.publish([event(1)])

        job.until(lambda: len(job.notes()) >= 2)

        assert job.notes()[-1]["watermark"] > BEGIN_MS * 1000 + 1_000_000

    def test_what_cannot_be_decoded_becomes_letters(self, desk: Any, reading: Any) -> None:
        desk.publish([event(0), b"no event"])
        job = reading()

        job.until(lambda: bool(job.notes(job.letters)))

        assert [(desk.subscription, 1)] == [(note["origin"], note["rows"]) for note in job.notes(job.letters)]
