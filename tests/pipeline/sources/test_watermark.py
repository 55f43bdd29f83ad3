"""How far a stream has come, and that neither a clock nor a silent partition nor a restart makes it jump."""

from __future__ import annotations

import json

import pytest

from eventveil.pipeline.sources.watermark import Watermark

LANES = ("a", "b")


def read(watermark: Watermark, now: int = 0, idle: tuple[str, ...] = (), **latest: int) -> int | None:
    return watermark.advance(latest, now=now, lanes=LANES, idle=idle)


class TestLanesThatAreRead:
    def test_it_is_the_least_of_the_highest(self) -> None:
        watermark = Watermark()

        assert read(watermark, a=50, b=30) == 30
        assert read(watermark, b=70) == 50

    def test_nothing_is_known_until_every_lane_has_shown_a_time(self) -> None:
        assert read(Watermark(), a=50) is None

    def test_it_never_falls(self) -> None:
        watermark = Watermark()
        read(watermark, a=50, b=50)

        assert read(watermark, a=10, b=10) == 50

    def test_a_lane_that_is_new_holds_it_without_lowering_it(self) -> None:
        watermark = Watermark()
        read(watermark, a=50, b=50)

        assert watermark.advance({"a": 90, "b": 90}, now=0, lanes=("a", "b", "c")) == 50
        assert watermark.advance({"c": 60}, now=0, lanes=("a", "b", "c")) == 60


class TestSilence:
    def test_an_idle_lane_holds_nothing_back(self) -> None:
        watermark = Watermark()

        assert read(watermark, idle=("b",), a=50) == 50

    def test_a_lane_that_wakes_up_late_does_not_lower_it(self) -> None:
        watermark = Watermark()
        read(watermark, idle=("b",), a=50)

        assert read(watermark, a=60, b=10) == 50

    def test_where_all_are_idle_event_time_goes_on_by_what_passes(self) -> None:
        watermark = Watermark()
        read(watermark, now=1_000, a=50, b=40)

        assert read(watermark, now=1_000, idle=LANES) == 50
        assert read(watermark, now=1_007, idle=LANES) == 57

    def test_it_does_not_jump_to_the_clock(self) -> None:
        watermark = Watermark()
        read(watermark, now=10**15, a=50, b=50)

        assert read(watermark, now=10**15 + 3, idle=LANES) == 53

    def test_time_that_passed_while_events_came_does_not_count(self) -> None:
        watermark = Watermark()
        read(watermark, now=0, a=50, b=50)
        read(watermark, now=500, a=60, b=60)

        assert read(watermark, now=501, idle=LANES) == 61

    def test_all_idle_from_the_beginning_tell_nothing(self) -> None:
        assert read(Watermark(), now=5, idle=LANES) is None


class TestClocks:
    def test_one_that_was_set_back_stands_still(self) -> None:
        watermark = Watermark()
        read(watermark, now=1_000, a=50, b=50)

        assert read(watermark, now=400, idle=LANES) == 50
        assert read(watermark, now=1_000, idle=LANES) == 50
        assert read(watermark, now=1_002, idle=LANES) == 52


def test_what_a_checkpoint_keeps_goes_on_the_same_way() -> None:
    watermark = Watermark()
    read(watermark, now=100, a=50, b=40)
    kept = Watermark.from_json(json.loads(json.dumps(watermark.as_json())))

    steps = [{"now": 105, "idle": LANES}, {"now": 106, "a": 80, "b": 90}, {"now": 109, "idle": ("a",), "b": 95}]

    assert [read(watermark, **step) for step in steps] == [read(kept, **step) for step in steps]  # type: ignore[arg-type]


def test_what_was_acted_on_holds_for_a_checkpoint_that_is_older() -> None:
    watermark = Watermark()
    read(watermark, now=100, a=50, b=40)
    kept = Watermark.from_json(json.loads(json.dumps(watermark.as_json())))
    acted_on = read(watermark, now=160, idle=LANES)

    kept.raise_to(acted_on)
    kept.raise_to(None)
    kept.raise_to(45)

    assert kept.value == acted_on
    assert read(kept, now=161, a=51, b=51) == acted_on


@pytest.mark.parametrize("times", [{"a": -5, "b": -7}, {"a": 0, "b": 0}], ids=["before 1970", "at its beginning"])
def test_any_time_is_a_time(times: dict[str, int]) -> None:
    assert read(Watermark(), **times) == min(times.values())
