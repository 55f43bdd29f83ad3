"""Events a second: right for short slices and for long ones, and 0 once nothing more is told."""

from __future__ import annotations

from eventveil.pipeline.report.rate import Rate


def test_is_the_growth_over_the_last_ten_seconds() -> None:
    rate = Rate()
    for second in range(31):
        rate.add(second, 100 * second if second <= 20 else 2_000 + 500 * (second - 20))

    assert 500 == rate.per_second(30)


def test_a_job_that_goes_on_after_a_restart_does_not_count_what_was_before() -> None:
    rate = Rate()
    rate.add(0, 1_000_000)
    rate.add(2, 1_000_500)

    assert 250 == rate.per_second(2)


def test_a_slice_longer_than_ten_seconds_is_not_counted_as_if_it_had_taken_ten() -> None:
    rate = Rate()
    rate.add(0, 0)
    rate.add(40, 4_000)

    assert 100 == rate.per_second(40)


def test_falls_to_nothing_by_itself() -> None:
    rate = Rate()
    rate.add(0, 0)
    rate.add(1, 1_000)

    assert [1_000, 200, 0] == [rate.per_second(at) for at in (1, 5, 12)]


def test_totals_that_begin_anew_are_no_negative_rate() -> None:
    rate = Rate()
    rate.add(0, 5_000)
    rate.add(1, 10)

    assert 0 == rate.per_second(1)


def test_before_anything_was_told_it_is_nothing() -> None:
    assert 0 == Rate().per_second(5)


def test_memory_is_bounded_by_ten_seconds() -> None:
    rate = Rate()
    for second in range(10_000):
        rate.add(second, second)

    assert len(rate._seen) < 15
