"""Durations as policies write them."""

from __future__ import annotations

import pytest

from eventveil.schemas.durations import Duration


@pytest.mark.parametrize(
    ("text", "fixed_us", "months"),
    [
        ("1s", 1_000_000, None),
        ("10min", 600_000_000, None),
        ("2h", 7_200_000_000, None),
        ("1d", 86_400_000_000, None),
        ("2w", 1_209_600_000_000, None),
        ("1mo", None, 1),
        ("2q", None, 6),
        ("3y", None, 36),
    ],
)
def test_a_duration_is_a_number_and_a_unit(text: str, fixed_us: int | None, months: int | None) -> None:
    found = Duration.parse(text)

    assert (text, fixed_us, months) == (str(found), found.fixed_us, found.months)


@pytest.mark.parametrize(
    "text", ["", "1", "d", "0d", "01d", "-1d", "1.5h", "1 d", "1D", "1m", "1ms", "1d ", "1d\n", "١d", "1234567890d", 5, None, True]
)
def test_anything_else_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="EV109"):
        Duration.parse(text)


def test_a_bare_m_is_told_its_two_meanings() -> None:
    with pytest.raises(ValueError, match="min for minutes or mo for months"):
        Duration.parse("5m")


@pytest.mark.parametrize(
    ("text", "days"), [("1d", 1), ("1mo", 28), ("1q", 90 - 1), ("6mo", 181), ("1y", 365), ("2y", 730), ("14mo", 365 + 59)]
)
def test_the_shortest_length_of_a_calendar_unit(text: str, days: int) -> None:
    assert days * 86_400_000_000 >= Duration.parse(text).shortest_us
    assert (days - 2) * 86_400_000_000 < Duration.parse(text).shortest_us
