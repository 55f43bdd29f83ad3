"""The counts of a run: sorted by policy, for a person and for a program."""

from __future__ import annotations

import json

import pytest

from eventveil.pipeline.report.summary import PolicySummary, Summary, summarize

POLICIES = [("orders", 3, "ab" * 32), ("returns", 1, "cd" * 32)]
COUNTERS = {
    "orders|in": 1_000_000,
    "orders|out": 999_990,
    "orders|filtered": 7,
    "orders|refused|EV503": 1,
    "orders|refused|EV502": 2,
    "orders|drift|shipping.?": 4,
    "orders|drift|?": 3,
    "orders|rule|fields.status otherwise": 5,
    "orders|rule|fields.a|b": 6,
}


@pytest.fixture
def summary() -> Summary:
    return summarize("nightly", 2.5, "00ff00ff00ff00ff", POLICIES, COUNTERS)


class TestSummarize:
    def test_sorts_counters_by_policy_and_kind(self, summary: Summary) -> None:
        orders, returns = summary.policies

        assert (
            PolicySummary(
                policy="orders",
                version=3,
                digest="ab" * 32,
                into=1_000_000,
                out=999_990,
                filtered=7,
                refused={"EV502": 2, "EV503": 1},
                drift={"?": 3, "shipping.?": 4},
                rules={"fields.a|b": 6, "fields.status otherwise": 5},
            )
            == orders
        )
        assert PolicySummary("returns", 1, "cd" * 32) == returns

    def test_keeps_the_order_of_the_job(self) -> None:
        backwards = summarize("nightly", 0, "", POLICIES[::-1], dict(reversed(COUNTERS.items())))

        assert ["returns", "orders"] == [one.policy for one in backwards.policies]

    @pytest.mark.parametrize("missing", ["out", "filtered", "refused|EV502"])
    def test_is_balanced_only_when_every_event_is_accounted_for(self, summary: Summary, missing: str) -> None:
        short = summarize("nightly", 0, "", POLICIES, {**COUNTERS, f"orders|{missing}": 0})

        assert [True, True] == [one.balanced for one in summary.policies]
        assert not short.policies[0].balanced


class TestForAProgram:
    def test_keys_stand_in_the_order_in_which_they_are_read(self, summary: Summary) -> None:
        told = json.loads(json.dumps(summary.as_json()))

        assert ["job", "seconds", "keys", "policies"] == list(told)
        assert ["policy", "version", "digest", "in", "out", "filtered", "refused", "drift", "rules"] == list(told["policies"][0])

    def test_counts_are_sorted_by_name_whatever_the_runner_gives(self, summary: Summary) -> None:
        (orders, _) = summary.as_json()["policies"]

        assert (["EV502", "EV503"], ["?", "shipping.?"]) == (list(orders["refused"]), list(orders["drift"]))


class TestForAPerson:
    def test_says_what_became_of_the_events_and_why(self, summary: Summary) -> None:
        assert [
            "orders (version 3, policy digest abababababab)",
            "  in 1,000,000  out 999,990  refused 3  filtered 7",
            "  refused 2: EV502 a value has another type than the schema says",
            "  refused 1: EV503 a required field is missing or null",
            "  drift 3: fields that the schema does not know, at ?",
            "  drift 4: fields that the schema does not know, at shipping.?",
            "returns (version 1, policy digest cdcdcdcdcdcd)",
            "  in 0  out 0  refused 0",
            "2.5 s, 400,000 events/s, start-up included",
        ] == list(summary.lines())

    def test_without_events_there_is_no_rate(self) -> None:
        assert "0.4 s, start-up included" == list(summarize("nightly", 0.4, "", POLICIES, {}).lines())[-1]
