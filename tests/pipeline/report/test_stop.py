"""When a job stops because too much is refused, and when it does not."""

from __future__ import annotations

from fractions import Fraction

import pytest

from eventveil.pipeline.report.stop import RefusedGate
from eventveil.schemas.errors import LimitError

TEN_MINUTES = 600_000_000


@pytest.fixture
def gate() -> RefusedGate:
    return RefusedGate(Fraction(5, 100), TEN_MINUTES)


def is_closed(gate: RefusedGate) -> bool:
    try:
        gate.check()
    except LimitError:
        return True
    return False


class TestCloses:
    def test_when_more_than_the_share_of_the_last_ten_minutes_was_refused(self, gate: RefusedGate) -> None:
        for second in range(600):
            gate.add(second, "orders", 1_000, {"EV502": 50})
        assert not is_closed(gate)

        gate.add(600, "orders", 1_000, {"EV502": 51})
        gate.add(601, "orders", 1_000, {"EV502": 51})

        assert is_closed(gate)

    def test_at_once_when_a_flood_comes_right_after_the_start(self, gate: RefusedGate) -> None:
        gate.add(0.4, "orders", 10_000, {"EV501": 10_000})

        assert is_closed(gate)

    def test_sixty_of_a_hundred_on_a_quiet_stream(self, gate: RefusedGate) -> None:
        for number in range(100):
            assert not is_closed(gate)
            gate.add(number, "orders", 1, {"EV502": 1} if number % 5 < 3 else {})

        assert is_closed(gate)

    def test_a_stream_too_quiet_for_ten_minutes_is_judged_by_its_last_hundred_events(self, gate: RefusedGate) -> None:
        closed_after = None
        for minute in range(200):
            gate.add(minute * 60, "orders", 1, {"EV502": 1})
            if is_closed(gate):
                closed_after = minute + 1
                break

        assert 100 == closed_after

    def test_one_policy_of_several(self, gate: RefusedGate) -> None:
        gate.add(0, "orders", 10_000, {})
        gate.add(0, "returns", 200, {"EV503": 20})

        with pytest.raises(LimitError) as caught:
            gate.check()

        assert ["returns"] == [problem.fact.split(":")[0] for problem in caught.value.problems]

    def test_when_nothing_at_all_may_be_refused(self) -> None:
        gate = RefusedGate(Fraction(0), TEN_MINUTES, least=1)
        gate.add(0, "orders", 5, {})
        assert not is_closed(gate)

        gate.add(1, "orders", 5, {"EV502": 1})

        assert is_closed(gate)


class TestStaysOpen:
    def test_over_one_of_three(self, gate: RefusedGate) -> None:
        gate.add(0, "orders", 3, {"EV502": 1})

        assert not is_closed(gate)

    def test_at_exactly_the_share(self, gate: RefusedGate) -> None:
        gate.add(0, "orders", 1_000, {"EV502": 50})

        assert not is_closed(gate)

    def test_once_a_burst_is_more_than_ten_minutes_ago(self, gate: RefusedGate) -> None:
        gate.add(0, "orders", 100_000, {})
        gate.add(1, "orders", 4_000, {"EV502": 4_000})
        gate.add(700, "orders", 1_000, {})

        assert not is_closed(gate)

    def test_on_a_quiet_stream_over_what_has_been_mended(self, gate: RefusedGate) -> None:
        gate.add(0, "orders", 60, {"EV502": 60})
        for number in range(200):
            gate.add(3_600 + 60 * number, "orders", 1, {})
            assert not is_closed(gate)

    def test_over_one_more_refused_after_long_quiet_good_times(self, gate: RefusedGate) -> None:
        for number in range(200):
            gate.add(600 * number, "orders", 1, {})
        gate.add(130_000, "orders", 1, {"EV502": 1})

        assert not is_closed(gate)

    @pytest.mark.parametrize("over_us", [TEN_MINUTES, 0])
    def test_where_everything_may_be_refused(self, over_us: int) -> None:
        gate = RefusedGate(Fraction(1), over_us)
        gate.add(0, "orders", 10_000, {"EV502": 10_000})

        assert not is_closed(gate)

    def test_over_late_events_which_are_not_counted_at_all(self, gate: RefusedGate) -> None:
        gate.add(0, "orders", 10_000, {"EV518": 9_000, "EV502": 50})
        assert not is_closed(gate)

        gate.add(1, "orders", 10_000, {"EV518": 10_000, "EV502": 0})
        assert not is_closed(gate)

        gate.add(2, "orders", 9_010, {"EV518": 9_000, "EV502": 10})
        assert is_closed(gate)

    def test_with_nothing_read(self, gate: RefusedGate) -> None:
        gate.add(0, "orders", 0, {})

        assert not is_closed(gate)


class TestSays:
    def test_policy_counts_and_the_two_most_frequent_codes(self) -> None:
        gate = RefusedGate(Fraction(5, 1000), TEN_MINUTES, letters="refused")
        gate.add(0, "orders", 1_000, {"EV503": 2, "EV501": 1, "EV520": 3})
        gate.add(1, "orders", 1_000, {"EV501": 2, "EV502": 600})

        with pytest.raises(LimitError) as caught:
            gate.check()

        assert 1 == caught.value.exit_code
        assert (
            "EV602 orders: 608 of 2,000 events in 600 s refused, more than 0.5%: "
            "600 EV502 (a value has another type than the schema says), 3 EV501 (not one JSON object)\n"
            "  see why: eventveil dead-letters list refused; has the producer changed? Then correct schema or policy, or raise "
            "--stop-when-refused"
        ) == str(caught.value)

    def test_when_it_had_to_look_further_back(self, gate: RefusedGate) -> None:
        for minute in range(100):
            gate.add(minute * 60, "orders", 1, {"EV502": 1})

        with pytest.raises(LimitError) as caught:
            gate.check()

        assert "orders: 100 of the last 100 events refused, more than 5%: 100 EV502" in str(caught.value)


class TestMemory:
    @pytest.mark.parametrize("gap", [0.01, 7, 61, 3_600], ids=lambda gap: f"every_{gap}_s")
    def test_is_bounded_whatever_the_pace(self, gate: RefusedGate, gap: float) -> None:
        for number in range(20_000):
            gate.add(number * gap, "orders", 1, {"EV502": 1})

        assert len(gate._buckets["orders"]) <= 160

    def test_buckets_hold_what_they_should(self, gate: RefusedGate) -> None:
        """By a count that forgets nothing."""
        fed = [(second * 3.7, 10 + second % 7, second % 3) for second in range(1_000)]
        for at, events, refused in fed:
            gate.add(at, "orders", events, {"EV502": refused} if refused else {})
        now = int(fed[-1][0] // 10)
        expected = [(events, refused) for at, events, refused in fed if int(at // 10) > now - 60]

        recent = [one for one in gate._buckets["orders"] if gate._is_recent(one)]

        assert (sum(one for one, _ in expected), sum(one for _, one in expected)) == (
            sum(one.events for one in recent),
            sum(one.refused for one in recent),
        )
