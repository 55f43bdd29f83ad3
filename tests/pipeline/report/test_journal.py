"""What a log says of a job: once, at once where it is new, and never so much that nobody reads it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from eventveil.pipeline.report.journal import Journal
from eventveil.pipeline.report.logs import written_logs
from eventveil.pipeline.report.pulse import PolicyCounts, Pulse, State
from eventveil.schemas.errors import LimitError, Problem, StorageError

ORDERS = PolicyCounts("orders", 1_000, 990, 0, 500, 0, {"EV502": 10}, {"?": 1}, {"published": 2})
START = Pulse("live", "starting", (ORDERS,), slice=7, lag=50, read=1_000, now=100_000_000, watermark=96_000_000)


class Told:
    """A journal with its clock, and what it has said since it was last asked."""

    def __init__(self, stream: io.StringIO) -> None:
        self.now = 0.0
        self.journal = Journal(lambda: self.now)
        self._stream = stream

    def after(self, seconds: float, pulse: Pulse) -> list[dict[str, Any]]:
        self.now += seconds
        self.journal.update(pulse, per_second=123.456)
        return self.lines()

    def lines(self) -> list[dict[str, Any]]:
        text = self._stream.getvalue()
        self._stream.truncate(0)
        self._stream.seek(0)
        lines = [json.loads(line) for line in text.splitlines()]
        return [{name: value for name, value in line.items() if name != "time"} for line in lines]


@pytest.fixture
def told() -> Iterator[Told]:
    stream = io.StringIO()
    with written_logs(as_json=True, level=logging.INFO, stream=stream):
        yield Told(stream)


def events(lines: list[dict[str, Any]]) -> list[str]:
    return [line["event"] for line in lines]


class TestTheLifeOfAJob:
    def test_begins_with_what_the_checkpoint_holds_and_counts_nothing_of_it_as_new(self, told: Told) -> None:
        expected = {"level": "info", "event": "started", "job": "live", "slice": 7, "policies": ["orders"], "lag": 50}

        assert [expected] == told.after(0, START)
        assert [] == told.after(1, replace(START, state="idle"))

    def test_stands_in_a_line_every_ten_seconds(self, told: Told) -> None:
        told.after(0, START)
        seen = [events(told.after(1, replace(START, state="running", slice=8 + n))) for n in range(35)]

        assert [10, 20, 30] == [number + 1 for number, found in enumerate(seen) if found == ["slice"]]
        assert 32 == seen.count([])

    def test_says_where_it_stands_without_the_time_of_an_event(self, told: Told) -> None:
        told.after(0, START)
        (line,) = told.after(11, replace(START, state="running", slice=8, slice_s=0.26, open_windows=3, carry_bytes=4_096))

        outcomes = {"read": 1_000, "out": 990, "filtered": 0, "refused": 10, "published": 500, "withheld": 0}
        assert {
            "level": "info",
            "event": "slice",
            "job": "live",
            "slice": 8,
            "state": "running",
            "lag": 50,
            "read": 1_000,
            "open_windows": 3,
            "carry_bytes": 4_096,
            "behind_s": 4.0,
            "policies": {"orders": outcomes},
            "per_second": 123.5,
            "slice_s": 0.26,
        } == line

    def test_a_job_that_finds_nothing_says_nothing(self, told: Told) -> None:
        told.after(0, START)

        assert [] == [line for _ in range(100) for line in told.after(10, replace(START, state="idle"))]

    def test_ends_with_what_was_not_told_yet(self, told: Told) -> None:
        told.after(0, START)
        told.after(1, replace(START, state="running", policies=(replace(ORDERS, refused={"EV502": 11}),)))
        last = replace(START, slice=9, policies=(replace(ORDERS, refused={"EV502": 15}),))

        assert ["stopping"] == events(told.after(1, replace(last, state="draining")))
        assert [] == told.after(1, replace(last, state="draining"))
        refused, stopped = told.after(1, replace(last, state="stopped", uptime_s=3.14))
        assert ({"EV502": 4}, "stopped", 9, 3.1) == (refused["codes"], stopped["event"], stopped["slice"], stopped["uptime_s"])
        assert [] == told.after(1, replace(last, state="stopped"))

    def test_a_failure_is_told_with_code_fact_and_remedy(self, told: Told) -> None:
        told.after(0, START)
        told.journal.fail(StorageError.of("EV411", "is cut short", "restore it", file="state/checkpoint"))
        told.journal.fail(LimitError([Problem("", 0, "EV602", "orders: too many"), Problem("", 0, "EV602", "returns: too many")]))

        assert [
            {"level": "error", "event": "failed", "job": "live", "code": "EV411", "fact": "is cut short", "remedy": "restore it"}
            | {"file": "state/checkpoint"},
            {"level": "error", "event": "failed", "job": "live", "code": "EV602", "fact": "orders: too many"},
            {"level": "error", "event": "failed", "job": "live", "code": "EV602", "fact": "returns: too many"},
        ] == told.lines()


class TestCounts:
    def test_a_new_code_is_told_at_once_and_an_old_one_every_ten_seconds(self, told: Told) -> None:
        told.after(0, START)

        def refused(**codes: int) -> list[tuple[int, dict[str, int]]]:
            pulse = replace(START, state="idle", policies=(replace(ORDERS, refused=codes),))
            return [(line["events"], line["codes"]) for line in told.after(1, pulse) if line["event"] == "refused"]

        assert [(3, {"EV502": 3})] == refused(EV502=13)
        assert [] == refused(EV502=20)
        assert [(9, {"EV502": 8, "EV503": 1})] == refused(EV502=21, EV503=1)
        for _ in range(9):
            assert [] == refused(EV502=22, EV503=2)
        assert [(2, {"EV502": 1, "EV503": 1})] == refused(EV502=22, EV503=2)
        assert [] == refused(EV502=22, EV503=2)

    def test_names_policy_and_level(self, told: Told) -> None:
        told.after(0, START)
        more = replace(
            ORDERS,
            published=800,
            withheld=70,
            drift={"?": 1, "shipping.?": 4},
            windows={"published": 4, "withheld": 1, "conflict": 1},
        )

        of = {"job": "live", "policy": "orders"}
        assert [
            {"level": "warning", "event": "drift", **of, "events": 4, "paths": {"shipping.?": 4}},
            {"level": "info", "event": "window published", **of, "events": 300, "windows": 2},
            {"level": "warning", "event": "window withheld", **of, "code": "EV603", "events": 70, "windows": 1},
            {"level": "warning", "event": "window conflict", **of, "code": "EV416", "windows": 1},
        ] == told.after(1, replace(START, state="running", policies=(more,)))

    def test_policies_are_told_apart(self, told: Told) -> None:
        returns = replace(ORDERS, policy="returns")
        told.after(0, replace(START, policies=(ORDERS, returns)))
        more = (replace(ORDERS, refused={"EV502": 11}), replace(returns, refused={"EV502": 12}))

        lines = told.after(1, replace(START, state="running", policies=more))

        assert [("orders", {"EV502": 1}), ("returns", {"EV502": 2})] == [(line["policy"], line["codes"]) for line in lines]


class TestWaiting:
    def test_is_told_at_once_then_every_minute_and_when_it_ends(self, told: Told) -> None:
        told.after(0, START)
        waiting = replace(START, state="waiting", reason="EV413")
        found = [(told.now, line) for _ in range(9) for line in told.after(15, waiting)]

        assert [(15, 0), (75, 60), (135, 120)] == [(at, line["for_s"]) for at, line in found]
        first = {"level": "warning", "event": "waiting", "job": "live", "code": "EV413", "fact": "the stream cannot be read", "for_s": 0.0}
        assert first == found[0][1]
        ended = {"level": "info", "event": "resumed", "job": "live", "after_s": 135.0}
        assert [ended] == told.after(15, replace(START, state="running"))

    def test_says_what_is_away_where_and_what_to_do(self, told: Told) -> None:
        problem = Problem("kafka://broker:9092/orders", 0, "EV413", "the stream cannot be reached just now", "check the address")
        told.after(0, START)

        (line,) = told.after(1, replace(START, state="waiting", reason="EV413", problem=problem))

        expected = {"code": "EV413", "fact": problem.fact, "remedy": problem.remedy, "file": problem.file}
        assert expected == {name: line[name] for name in expected}

    @pytest.mark.parametrize("state", ["draining", "stopped"])
    def test_that_ends_because_the_job_does_is_not_over(self, told: Told, state: State) -> None:
        told.after(0, START)
        told.after(1, replace(START, state="waiting", reason="EV413"))

        assert "resumed" not in events(told.after(1, replace(START, state=state)))

    def test_another_reason_is_told_at_once(self, told: Told) -> None:
        told.after(0, START)
        told.after(1, replace(START, state="waiting", reason="EV413"))

        (line,) = told.after(1, replace(START, state="waiting", reason="EV415"))

        assert ("EV415", 1.0) == (line["code"], line["for_s"])

    def test_before_the_checkpoint_was_opened_counts_nothing_of_it_as_new(self, told: Told) -> None:
        first = Pulse("live", "waiting", (PolicyCounts("orders"),), reason="EV413")

        assert ["waiting"] == events(told.after(0, first))
        assert ["resumed", "started"] == events(told.after(1, START))
        assert [] == told.after(1, replace(START, state="running"))
