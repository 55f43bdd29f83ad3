"""What a stream says beside an event, under a policy: denied unless it is named, and then a field like any other."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from eventveil.schemas.errors import EventveilError
from eventveil.transforms.compile import load_plan
from eventveil.transforms.keys.keyring import throw_away_keys
from eventveil.transforms.plan import Plan
from eventveil.transforms.veil import Outcome

SCHEMA = {
    "type": "record",
    "name": "Change",
    "fields": [
        {"name": side, "type": ["null", {"type": "record", "name": f"Row_{side}", "fields": ROW}]}
        for ROW in [[{"name": "id", "type": "long"}, {"name": "at", "type": "long"}, {"name": "email", "type": ["null", "string"]}]]
        for side in ("before", "after")
    ],
}
HEAD = "policy: test\nversion: 1\nschema: change.avsc\ndomain: analytics\n"
NOON = dt.datetime(2024, 5, 6, 12, 0, tzinfo=dt.timezone.utc)


@pytest.fixture
def compiled(tmp_path: Path) -> Callable[..., Plan]:
    (tmp_path / "change.avsc").write_text(json.dumps(SCHEMA))

    def compile_(rules: str = "", head: str = "", star: str = "drop") -> Plan:
        (tmp_path / "policy.yaml").write_text(f"{HEAD}{head}fields:\n  before.*: {star}\n  after.*: drop\n{rules}")
        return load_plan(tmp_path / "policy.yaml")

    return compile_


def treated(plan: Plan, *events: dict[str, Any]) -> Outcome:
    """The events, with the types that the decoder gives."""
    row = pa.struct([pa.field(name, kind) for name, kind in (("id", pa.int64()), ("at", pa.int64()), ("email", pa.string()))])
    headers = [leaf.removeprefix("$headers.") for leaf in plan.stream if leaf.startswith("$headers.")]
    beside: dict[str, Any] = {"$key": pa.string(), "$topic": pa.string(), "$time": pa.timestamp("us", "UTC")}
    fields: list[Any] = [pa.field("before", row), pa.field("after", row)]
    fields += [pa.field(leaf, kind) for leaf, kind in beside.items() if leaf in plan.stream]
    fields += [pa.field("$headers", pa.struct([pa.field(name, pa.string()) for name in headers]))] if headers else []
    return plan.bind(throw_away_keys()).apply(pa.array(events, pa.struct(fields)), origin="t/0", positions=pa.array(range(len(events))))


KEEP_ONE = "  before.id: keep\n"


class TestDeniedByDefault:
    def test_they_need_no_rule_and_are_not_read(self, compiled: Callable[..., Plan]) -> None:
        plan = compiled(KEEP_ONE)

        assert ((), ["before"]) == (plan.stream, plan.output_schema.names)

    def test_a_drop_says_no_more(self, compiled: Callable[..., Plan]) -> None:
        plan = compiled(KEEP_ONE + "  $key: drop\n  $headers.a: drop\n  $headers.*: drop\n  $time: drop\n  $topic: drop\n")

        assert ((), ["before"]) == (plan.stream, plan.output_schema.names)

    def test_read_for_the_event_they_still_do_not_leave(self, compiled: Callable[..., Plan]) -> None:
        head = "event: {time: $time, id: [$topic, $key], subject: $headers.user, only_if: {$headers.consent: [yes]}}\nwindow: 1d\n"
        plan = compiled(KEEP_ONE, head)

        assert ("$headers.consent", "$headers.user", "$key", "$time", "$topic") == plan.stream
        assert ["before"] == plan.output_schema.names
        assert frozenset({"before.id"}) == plan.used

    @pytest.mark.parametrize("rule", ["$key: keep", "$headers.a: keep", "$time: {floor: 1d}", "$headers.a: [keep, {move: $order}]"])
    def test_none_leaves_under_a_name_of_ours(self, compiled: Callable[..., Plan], rule: str) -> None:
        with pytest.raises(EventveilError, match=r"EV219|EV110"):
            compiled(KEEP_ONE + f"  {rule}\n")

    def test_nor_does_a_branch(self, compiled: Callable[..., Plan]) -> None:
        with pytest.raises(EventveilError, match="EV110"):
            compiled("  $key: {into: {$order: keep}}\n")

    @pytest.mark.parametrize(
        ("rules", "code"),
        [
            ("  $headers.a: keep\n  $headers.a.b: {mask: {}}\n", "EV219"),
            ("  $headers.*: keep\n", "EV209"),
            ("  $time: {mask: {}}\n", "EV207"),
        ],
    )
    def test_rules_are_judged_as_any(self, compiled: Callable[..., Plan], rules: str, code: str) -> None:
        with pytest.raises(EventveilError, match=code):
            compiled(KEEP_ONE + rules)


class TestTreated:
    def test_they_leave_under_names_of_their_own(self, compiled: Callable[..., Plan]) -> None:
        rules = (
            "  $key: {into: {start: {truncate: 2}, whole: keep}}\n"
            "  $headers.ce.type: [keep, {rename: kind}]\n"
            "  $headers.a: [keep, {move: meta.a}]\n"
            "  $topic: [keep, {rename: topic}]\n"
            "  $time: [{floor: 1h}, {rename: time}]\n"
        )
        plan = compiled(rules)
        event = {"$key": "key", "$headers": {"ce.type": "t", "a": "x"}, "$topic": "orders", "$time": NOON + dt.timedelta(minutes=5)}
        none = {"$headers": {}}
        veiled = treated(plan, event, none).veiled

        assert ["start", "whole", "kind", "meta", "topic", "time"] == plan.output_schema.names
        shown = {"start": "ke", "whole": "key", "kind": "t", "meta": {"a": "x"}, "topic": "orders", "time": NOON}
        assert [shown, {**dict.fromkeys(shown), "meta": {"a": None}}] == veiled.select(plan.output_schema.names).to_pylist()

    def test_time_and_place_in_the_stream_make_an_event(self, compiled: Callable[..., Plan]) -> None:
        head = "event: {time: $time, id: [$topic, $key], subject: $key}\nwindow: 1d\n"
        plan = compiled("  before.email: {pseudonymize: {class: person}}\n", head)
        row = {"id": 1, "at": 0, "email": "a@b.c"}
        said = {"$time": NOON, "$topic": "t", "$key": "k"}
        outcome = treated(plan, {"before": row, **said}, {"before": row, **said, "$time": None}, {"before": row, **said, "$key": None})

        assert [("EV510", "$time"), ("EV512", "$key")] == list(zip(outcome.codes, outcome.paths))
        assert 1 == outcome.veiled.num_rows
        assert [int(NOON.replace(hour=0).timestamp() * 1_000_000)] == outcome.veiled.column("$window").to_pylist()

    def test_only_those_with_the_header_are_let_in(self, compiled: Callable[..., Plan]) -> None:
        plan = compiled(KEEP_ONE, "event: {only_if: {$headers.consent: [yes]}}\n")
        events = [{"before": {"id": n}, "$headers": {"consent": value}} for n, value in enumerate(("yes", "no", None, "yes"))]
        outcome = treated(plan, *events)

        assert (2, [0, 3]) == (outcome.filtered, [row["before"]["id"] for row in outcome.veiled.to_pylist()])

    @pytest.mark.parametrize(
        ("entry", "events", "path"),
        [
            (
                "{header: ce.type, is: a}",
                [{"$headers": {"ce.type": "a"}}, {"$headers": {"ce.type": "b"}}, {"$headers": {}}],
                "$headers.ce.type",
            ),
            ("{topic: true, is: a}", [{"$topic": "a"}, {"$topic": "b"}, {}], "$topic"),
        ],
    )
    def test_a_policy_is_for_one_type(self, compiled: Callable[..., Plan], entry: str, events: list[dict[str, Any]], path: str) -> None:
        plan = compiled(KEEP_ONE, f"event: {{type: {entry}}}\n")
        outcome = treated(plan, *({"before": {"id": 1}, **event} for event in events))

        assert ((path, "a"), (path,)) == (plan.event_type, plan.stream)
        assert [("EV509", path)] * 2 == list(zip(outcome.codes, outcome.paths))

    def test_time_and_topic_are_not_always_text(self, compiled: Callable[..., Plan]) -> None:
        with pytest.raises(EventveilError, match="EV103"):
            compiled(KEEP_ONE, "event: {type: {field: $time, is: a}}\n")


class TestChangesWithTwoSides:
    HEAD = (
        "event: {time: {field: [after.at, before.at], unit: s}, id: $position, subject: {first_of: [after.email, before.email]}}\n"
        "window: 1d\n"
    )
    ROW = {"id": 1, "at": 1_700_000_000, "email": "a@b.c"}

    def test_either_may_be_missing(self, compiled: Callable[..., Plan]) -> None:
        rules = "  before|after.email: {pseudonymize: {class: person}}\n  before|after.at: {floor: 1d}\n"
        plan = compiled(rules, self.HEAD)
        outcome = treated(plan, {"after": self.ROW}, {"before": self.ROW}, {"before": self.ROW, "after": {**self.ROW, "email": None}}, {})
        rows = outcome.veiled.to_pylist()

        assert [("EV510", "after.at")] == list(zip(outcome.codes, outcome.paths))
        assert [(None, True), (True, None), (True, True)] == [tuple(row[side] and True for side in ("before", "after")) for row in rows]
        # One class: before and after show that it is the same person.
        assert 1 == len({row[side]["email"] for row in rows for side in ("before", "after") if row[side]} - {None})
        assert {dt.datetime(2023, 11, 14, tzinfo=dt.timezone.utc)} == {
            row[side]["at"] for row in rows for side in ("before", "after") if row[side]
        }

    def test_the_time_of_one_that_did_not_decide_is_judged_too(self, compiled: Callable[..., Plan]) -> None:
        plan = compiled("  before|after.at: {floor: 1d}\n", self.HEAD)
        outcome = treated(plan, {"after": self.ROW, "before": {**self.ROW, "at": 1 << 62}})

        assert [("EV510", "before.at")] == list(zip(outcome.codes, outcome.paths))


class TestDigest:
    def test_they_belong_to_it(self, compiled: Callable[..., Plan]) -> None:
        plain = compiled(KEEP_ONE)

        assert plain.digest != compiled(KEEP_ONE + "  $key: [keep, {rename: key}]\n").digest
        assert plain.digest == compiled(KEEP_ONE, "tombstones: drop\n").digest

    def test_lateness_is_the_policys(self, compiled: Callable[..., Plan]) -> None:
        plan = compiled(KEEP_ONE, "event: {time: $time, max_ahead: 5min}\nwindow: 1d\nallowed_lateness: 2h\n")

        assert (300_000_000, 7_200_000_000) == (plan.max_ahead_us, plan.lateness_us)
        assert (3_600_000_000, 0) == (compiled(KEEP_ONE).max_ahead_us, compiled(KEEP_ONE).lateness_us)
