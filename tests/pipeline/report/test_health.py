"""Alive and ready: two questions, over the whole life of a job."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from eventveil.pipeline.report.health import Health
from eventveil.pipeline.report.meter import METER
from eventveil.pipeline.report.pulse import Pulse


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Iterator[Clock]:
    METER.reset()
    yield Clock()
    METER.reset()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(clock)


def said(health: Health) -> tuple[bool, bool, str]:
    found = health.judge()
    return found.alive, found.ready, found.state


class TestItsLife:
    def test_is_alive_from_the_start_and_ready_with_the_first_slice(self, health: Health) -> None:
        assert (True, False, "starting") == said(health)

        for state in ("running", "idle"):
            health.update(Pulse("live", state))  # type: ignore[arg-type]
            assert (True, True, state) == said(health)

    @pytest.mark.parametrize("state", ["draining", "stopped"])
    def test_is_alive_and_not_ready_while_it_ends(self, health: Health, clock: Clock, state: str) -> None:
        health.update(Pulse("live", state))  # type: ignore[arg-type]

        assert (True, False, state) == said(health)

    def test_a_job_that_has_failed_is_neither(self, health: Health) -> None:
        health.update(Pulse("live", "running"))
        health.fail("EV411")

        found = health.judge()
        assert (False, False, "failed", "EV411") == (found.alive, found.ready, found.state, found.reason)


class TestStuck:
    @pytest.mark.parametrize(
        ("slice_s", "every_s", "patience"), [(0.3, 1, 180), (30, 1, 300), (0.3, 600, 6_000)], ids=["short", "slow", "rare"]
    )
    def test_after_ten_slices_and_at_least_three_minutes(
        self, health: Health, clock: Clock, slice_s: float, every_s: float, patience: float
    ) -> None:
        health.update(Pulse("live", "running", slice_s=slice_s, every_s=every_s))
        clock.now += patience
        assert (True, True, "running") == said(health)

        clock.now += 1
        assert (False, False, "stuck") == said(health)

        health.update(Pulse("live", "running"))
        assert (True, True, "running") == said(health)

    def test_a_start_that_never_ends(self, health: Health, clock: Clock) -> None:
        clock.now += 181

        assert (False, False, "stuck") == said(health)

    def test_an_idle_job_that_looks_again_and_again_is_not(self, health: Health, clock: Clock) -> None:
        for _ in range(1_000):
            clock.now += 10
            health.update(Pulse("live", "idle"))

        assert (True, True, "idle") == said(health)

    def test_a_slice_that_takes_hours_and_reads_on_is_not(self, health: Health, clock: Clock) -> None:
        health.update(Pulse("live", "running", slice_s=0.3))
        for _ in range(1_000):
            clock.now += 150
            METER.add(read=1)
            assert (True, True, "running") == said(health)

    def test_a_job_that_has_stopped_is_not(self, health: Health, clock: Clock) -> None:
        health.update(Pulse("live", "stopped"))
        clock.now += 1_000

        assert (True, False, "stopped") == said(health)


class TestWaiting:
    def test_is_ready_for_five_minutes_and_alive_for_ever(self, health: Health, clock: Clock) -> None:
        verdicts = []
        for _ in range(41):
            health.update(Pulse("live", "waiting", reason="EV413"))
            verdicts.append(said(health)[:2])
            clock.now += 15

        assert [(True, True)] * 21 + [(True, False)] * 20 == verdicts
        found = health.judge()
        assert ("EV413", 615.0, 15.0) == (found.reason, found.waiting_s, found.silent_s)

    def test_begins_anew_after_it_has_ended(self, health: Health, clock: Clock) -> None:
        health.update(Pulse("live", "waiting", reason="EV413"))
        clock.now += 400
        health.update(Pulse("live", "running"))
        health.update(Pulse("live", "waiting", reason="EV414"))

        found = health.judge()
        assert (True, 0.0, "EV414") == (found.ready, found.waiting_s, found.reason)

    def test_a_wait_that_tries_no_more_is_stuck(self, health: Health, clock: Clock) -> None:
        health.update(Pulse("live", "waiting", reason="EV413"))
        clock.now += 181

        assert (False, False, "stuck") == said(health)
