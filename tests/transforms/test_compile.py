"""Policy + event schema -> plan: coverage, names, types; and every way in which a policy does not fit its schema."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eventveil.schemas.errors import EventveilError, PolicyError, SchemaError
from eventveil.transforms.compile import load_plan
from eventveil.transforms.plan import Numbered, Plan

ORDER = {
    "type": "record",
    "name": "Order",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "email", "type": ["null", "string"]},
        {"name": "age", "type": "int"},
        {
            "name": "ship",
            "type": [
                "null",
                {"type": "record", "name": "Ship", "fields": [{"name": "zip", "type": "string"}, {"name": "to", "type": "string"}]},
            ],
        },
        {
            "name": "items",
            "type": {
                "type": "array",
                "items": {
                    "type": "record",
                    "name": "Item",
                    "fields": [
                        {"name": "sku", "type": "string"},
                        {"name": "price", "type": "string"},
                        {"name": "tags", "type": {"type": "array", "items": "string"}},
                    ],
                },
            },
        },
        {"name": "props", "type": {"type": "map", "values": "string"}},
        {"name": "pay", "type": {"type": "enum", "name": "Pay", "symbols": ["CARD", "CASH"]}},
    ],
}
HEAD = """policy: test
version: 1
for: {recipient: tests}
schema: order.avsc
domain: analytics
event: {time: at, id: id, subject: email}
window: 1d
"""
REST = {
    "id": "drop",
    "at": "drop",
    "email": "drop",
    "age": "keep",
    "ship": "drop",
    "items": "drop",
    "props": "drop",
    "pay": "drop",
}


@pytest.fixture
def compiled(tmp_path: Path) -> Callable[..., Plan]:
    (tmp_path / "order.avsc").write_text(json.dumps(ORDER))

    def compile_(rules: dict[str, Any], head: str = HEAD, without: tuple[str, ...] = ()) -> Plan:
        covered = {path: rule for path, rule in REST.items() if path not in without and path not in rules}
        text = head + "fields:\n" + "".join(f"  {json.dumps(path)}: {json.dumps(rule)}\n" for path, rule in {**covered, **rules}.items())
        (tmp_path / "policy.yaml").write_text(text)
        return load_plan(tmp_path / "policy.yaml")

    return compile_


def codes_of(error: EventveilError) -> list[str]:
    return [problem.code for problem in error.problems]


class TestCoverage:
    def test_every_leaf_without_a_rule_is_named_at_once(self, compiled: Callable[..., Plan]) -> None:
        with pytest.raises(SchemaError) as caught:
            compiled({}, without=("age", "ship", "props"))

        facts = [problem.fact for problem in caught.value.problems]
        assert facts == [
            "field age has no rule",
            "field ship.to has no rule",
            "field ship.zip has no rule",
            "map props has no rule",
        ]
        assert codes_of(caught.value) == ["EV203", "EV203", "EV203", "EV218"]

    def test_a_star_drops_what_has_no_rule_of_its_own(self, compiled: Callable[..., Plan]) -> None:
        plan = compiled({"ship.*": "drop", "ship.zip": {"truncate": 2}}, without=("ship",))

        assert [field.name for field in plan.fields] == ["age", "ship.zip"]

    def test_a_star_may_match_nothing(self, compiled: Callable[..., Plan]) -> None:
        assert compiled({"ship.later.*": "drop"}).fields

    @pytest.mark.parametrize(
        ("rules", "code"),
        [
            pytest.param({"shop": "drop"}, "EV204", id="matches nothing"),
            pytest.param({"ship": "drop", "ship.zip": "keep"}, "EV205", id="a rule below a drop"),
            pytest.param({"before|age": "keep"}, "EV204", id="alternative that is no field"),
            pytest.param({"ship": "keep"}, "EV209", id="a record kept"),
            pytest.param({"items": {"mask": {}}}, "EV209", id="a list masked"),
            pytest.param({"props": "keep"}, "EV209", id="a map kept"),
            pytest.param({"ship.*": "keep"}, "EV209", id="a star that keeps"),
            pytest.param({"shop.*": "keep"}, "EV209", id="a star that keeps nothing"),
            pytest.param({"shop.*": {"maks": {}}}, "EV101", id="a star with an unknown operator"),
            pytest.param({"ship.*": {"maks": {}}}, "EV101", id="a star over fields with an unknown operator"),
        ],
    )
    def test_a_rule_that_does_not_meet_its_field_is_refused(self, compiled: Callable[..., Plan], rules: dict[str, Any], code: str) -> None:
        with pytest.raises(EventveilError) as caught:
            compiled(rules)

        assert code in codes_of(caught.value)

    def test_a_star_below_a_map_drops_it(self, compiled: Callable[..., Plan]) -> None:
        assert [field.name for field in compiled({"props.*": "drop"}, without=("props",)).fields] == ["age"]

    def test_entries_of_a_map_are_named_and_others_do_not_survive(self, compiled: Callable[..., Plan]) -> None:
        plan = compiled({"props{app.version}": "keep"}, without=("props",))

        assert str(plan.output_schema.field("props").type) == "struct<app.version: string>"


class TestNames:
    def test_records_and_lists_are_renamed_and_leaves_below_keep_their_input_paths(self, compiled: Callable[..., Plan]) -> None:
        plan = compiled(
            {
                "items": {"rename": "group"},
                "items[].sku": [{"mask": {}}, {"rename": "ref"}],
                "items[].price": "drop",
                "items[].tags": {"rename": "labels"},
                "items[].tags[]": "keep",
            },
            without=("items",),
        )

        assert [field.name for field in plan.fields] == ["age", "group[].ref", "group[].labels[]"]

    def test_a_leaf_moves_within_its_list(self, compiled: Callable[..., Plan]) -> None:
        plan = compiled({"ship.zip": ["keep", {"move": "meta.area.code"}], "ship.to": "drop"}, without=("ship",))

        assert [field.name for field in plan.fields] == ["age", "meta.area.code"]
        # The record it came from may be null; the records it moved to never are.
        assert plan.output_schema.field("meta").nullable is False

    @pytest.mark.parametrize(
        ("rules", "code"),
        [
            pytest.param({"ship.zip": ["keep", {"rename": "age"}], "ship.to": [{"mask": {}}, {"move": "age"}]}, "EV206", id="two leaves"),
            pytest.param({"ship": {"rename": "items"}, "ship.zip": "keep", "ship.to": "drop"}, None, id="a dropped list frees its name"),
            pytest.param({"ship.zip": ["keep", {"move": "items[].zip"}], "ship.to": "drop"}, "EV216", id="into a list"),
            pytest.param({"ship.zip": ["keep", {"move": "a..b"}], "ship.to": "drop"}, "EV1", id="no path"),
        ],
    )
    def test_output_names(self, compiled: Callable[..., Plan], rules: dict[str, Any], code: str | None) -> None:
        if code is None:
            assert compiled(rules, without=("ship",)).fields
            return
        with pytest.raises(EventveilError) as caught:
            compiled(rules, without=("ship",))

        assert any(found.startswith(code) for found in codes_of(caught.value))

    def test_a_leaf_cannot_leave_its_list(self, compiled: Callable[..., Plan]) -> None:
        with pytest.raises(SchemaError) as caught:
            compiled({"items[].sku": ["keep", {"move": "sku"}], "items[].price": "drop", "items[].tags": "drop"}, without=("items",))

        assert codes_of(caught.value) == ["EV216"]

    def test_nothing_left_is_refused(self, compiled: Callable[..., Plan]) -> None:
        with pytest.raises(SchemaError) as caught:
            compiled({"age": "drop"})

        assert codes_of(caught.value) == ["EV221"]


class TestChains:
    @pytest.mark.parametrize(
        ("rule", "code"),
        [
            pytest.param({"maks": {}}, "EV101", id="unknown operator"),
            pytest.param({"mask": {"keep_frist": 2}}, "EV102", id="unknown parameter"),
            pytest.param({"mask": {"keep_first": "two"}}, "EV103", id="wrong type"),
            pytest.param({"truncate": {}}, "EV104", id="parameter missing"),
            pytest.param({"round": 10}, "EV207", id="type not accepted"),
            pytest.param(["keep", {"tokenize": {}}], "EV111", id="later"),
            pytest.param({"rename": "mail"}, "EV114", id="rename alone"),
            pytest.param({"normalize": ["trim"]}, "EV114", id="normalize alone"),
            pytest.param({"cast": "int64"}, "EV114", id="cast alone"),
            pytest.param({"parse": "{a:text}-{b:text}"}, "EV113", id="parse without into"),
            pytest.param([{"parse": "{a:text}-{b:text}"}, {"mask": {}}], "EV113", id="an operator behind parse"),
            pytest.param([{"parse": "{a:text}-{b:text}"}, {"into": {"c": "keep"}}], "EV204", id="no such capture"),
            pytest.param({"into": {"a": {"rename": "b"}}}, "EV113", id="rename within into"),
            pytest.param([{"renumber": {"scope": "event"}}, {"renumber": {"scope": "event"}}], "EV113", id="numbered twice"),
            pytest.param({"generalize": {"hierarchy": "none.csv", "level": 1}}, "EV115", id="file missing"),
        ],
    )
    def test_a_chain_that_cannot_run_is_refused_with_its_line(self, compiled: Callable[..., Plan], rule: Any, code: str) -> None:
        with pytest.raises(EventveilError) as caught:
            compiled({"email": rule})

        assert codes_of(caught.value)[0] == code
        assert all(problem.line > 0 for problem in caught.value.problems)

    @pytest.mark.parametrize(
        ("rule", "code"),
        [
            pytest.param({"allow": ["CARD"]}, None, id="listed"),
            pytest.param({"allow": ["CARD", "CHECK"]}, "EV217", id="no symbol listed"),
            pytest.param(["keep", {"allow": ["CHECK"]}], None, id="behind another"),
            pytest.param({"into": {"a": {"allow": ["CHECK"]}}}, "EV217", id="first in a branch"),
            pytest.param([{"replace": {"with": "x"}}, {"into": {"a": {"allow": ["x"]}}}], None, id="in a branch behind another"),
            pytest.param({"randomize": {"epsilon": 1, "choices": ["CARD", "CASH"], "per": "event"}}, None, id="choices"),
            pytest.param({"randomize": {"epsilon": 1, "choices": ["CARD", "CHECK"], "per": "event"}}, "EV217", id="no symbol chosen"),
        ],
    )
    def test_an_enum_has_no_other_values_than_its_symbols(self, compiled: Callable[..., Plan], rule: Any, code: str | None) -> None:
        if code is None:
            assert compiled({"pay": rule})
            return
        with pytest.raises(EventveilError) as caught:
            compiled({"pay": rule})

        assert [(code, True)] == [
            (problem.code, "is no symbol of the enum: CARD, CASH" in problem.fact) for problem in caught.value.problems
        ]

    def test_problems_of_the_document_and_of_its_rules_come_together(self, compiled: Callable[..., Plan]) -> None:
        with pytest.raises(PolicyError) as caught:
            compiled({"email": {"maks": {}}}, head=HEAD.replace("version: 1", "version: one").replace("1d", "1m"))

        assert codes_of(caught.value) == ["EV103", "EV109", "EV101"]

    def test_one_leaf_feeds_several_outputs(self, compiled: Callable[..., Plan]) -> None:
        plan = compiled({"email": [{"normalize": ["lower"]}, {"into": {"who": {"pseudonymize": {}}, "letter": {"truncate": 1}}}]})

        assert [field.name for field in plan.fields] == ["who", "letter", "age"]
        assert plan.fields[0].operators == ("normalize", "pseudonymize")


class TestNeeds:
    def head(self, event: str, window: str = "window: 1d\n") -> str:
        return HEAD.replace("event: {time: at, id: id, subject: email}", f"event: {event}").replace("window: 1d\n", window)

    @pytest.mark.parametrize(
        ("rule", "event", "window", "code"),
        [
            pytest.param({"noise": {"laplace_scale": 1, "per": "event"}}, "{time: at}", "window: 1d\n", "EV211", id="per event, no id"),
            pytest.param({"noise": {"laplace_scale": 1, "per": "subject"}}, "{time: at}", "window: 1d\n", "EV212", id="per subject, none"),
            pytest.param({"pseudonymize": {}}, "{time: at}", "", "EV104", id="a key without window"),
        ],
    )
    def test_what_a_rule_needs_must_be_named(self, compiled: Callable[..., Plan], rule: Any, event: str, window: str, code: str) -> None:
        with pytest.raises(EventveilError) as caught:
            compiled({"age": rule}, head=self.head(event, window))

        assert code in codes_of(caught.value)

    @pytest.mark.parametrize(
        ("event", "code"),
        [
            pytest.param("{time: when}", "EV204", id="no such field"),
            pytest.param("{time: email}", None, id="text is read as ISO 8601"),
            pytest.param("{time: age}", "EV210", id="a number without unit"),
            pytest.param("{time: {field: age, unit: s}}", None, id="a number with its unit"),
            pytest.param("{time: 'items[].sku'}", "EV2", id="in a list"),
            pytest.param("{time: at, id: ship}", "EV204", id="a record as id"),
            pytest.param("{time: at, only_if: {age: ['x']}}", "EV103", id="text compared with a number"),
            pytest.param("{time: at, only_if: {pay: [CARD]}}", None, id="a symbol"),
            pytest.param("{time: at, only_if: {pay: [CARD, CHECK]}}", "EV103", id="no symbol"),
            pytest.param("{time: {field: email, unit: s}}", "EV217", id="a unit for text"),
            pytest.param("{time: {field: at, unit: ms}}", "EV217", id="a unit for a timestamp"),
            pytest.param("{time: {field: [at, age], unit: ms}}", None, id="a unit for one of two"),
        ],
    )
    def test_the_events_own_fields(self, compiled: Callable[..., Plan], event: str, code: str | None) -> None:
        if code is None:
            assert compiled({}, head=self.head(event)).event.times
            return
        with pytest.raises(EventveilError) as caught:
            compiled({}, head=self.head(event))

        assert any(found.startswith(code) or found == "EV110" for found in codes_of(caught.value))

    def test_a_shift_wider_than_the_window_is_refused(self, compiled: Callable[..., Plan]) -> None:
        with pytest.raises(SchemaError) as caught:
            compiled({"at": {"shift": {"within": "2d", "per": "event"}}})

        assert codes_of(caught.value) == ["EV213"]

    def test_one_class_over_two_types_is_refused(self, compiled: Callable[..., Plan]) -> None:
        with pytest.raises(SchemaError) as caught:
            compiled({"email": {"pseudonymize": {"class": "who"}}, "age": {"pseudonymize": {"class": "who"}}})

        assert codes_of(caught.value) == ["EV208"]
        as_text = [{"cast": "string"}, {"pseudonymize": {"class": "who"}}]
        assert compiled({"email": {"pseudonymize": {"class": "who"}}, "age": as_text}).fields

    def test_the_subjects_class_may_not_be_stable(self, compiled: Callable[..., Plan]) -> None:
        with pytest.raises(SchemaError) as caught:
            compiled({"email": {"pseudonymize": {"class": "who", "stable": "domain"}}})

        assert codes_of(caught.value) == ["EV214"]


class TestDigest:
    def test_it_is_the_same_whatever_the_formatting(self, compiled: Callable[..., Plan]) -> None:
        plain = compiled({"email": {"truncate": 2}})
        spelled = compiled({"email": [{"truncate": {"keep_first": 2}}]}, head="# a comment\n" + HEAD)

        assert compiled({"email": {"truncate": 3}}).digest != plain.digest
        assert plain.digest == compiled({"email": {"truncate": 2}}, head="# a comment\n" + HEAD).digest
        assert spelled.fields == plain.fields


class TestNumbersWithinAWindow:
    RULE = {"renumber": {"scope": "window", "class": "person"}}

    def test_leave_as_integers_and_wait_as_digests(self, compiled: Callable[..., Plan]) -> None:
        rules = {
            "email": [self.RULE, {"rename": "who"}],
            "items": {"rename": "lines"},
            "items[].sku": {"into": {"ref": {"renumber": "window"}, "start": {"truncate": 1}}},
            "items[].price": "drop",
            "items[].tags[]": self.RULE,
        }
        plan = compiled(rules, without=("items",))

        assert (
            Numbered(("who",), "person"),
            Numbered(("lines", "[]", "ref"), "items[].sku>ref"),
            Numbered(("lines", "[]", "tags", "[]"), "person"),
        ) == plan.numbered
        leaves = "list<item: struct<ref: {0} not null, start: string, tags: list<item: {0} not null> not null> not null> not null"
        for schema, kind in ((plan.output_schema, "int64"), (plan.veiled_schema, "fixed_size_binary[16]")):
            assert kind == str(schema.field("who").type)
            assert leaves.format(kind) == f"{schema.field('lines').type} not null"
        assert plan.output_schema.names == plan.veiled_schema.names[:-2]
        assert "int64" == next(one.type for one in plan.fields if one.name == "lines[].ref")
        assert pickle.loads(pickle.dumps(plan)).numbered == plan.numbered

    def test_of_an_event_wait_for_nothing(self, compiled: Callable[..., Plan]) -> None:
        assert () == compiled({"email": {"renumber": "event"}}).numbered

    @pytest.mark.parametrize(
        ("rules", "code", "text"),
        [
            pytest.param({"email": [RULE, {"bin": {"width": 2}}]}, "EV113", "bin stands behind renumber", id="treated further"),
            pytest.param({"email": [RULE, RULE]}, "EV113", "renumber stands behind renumber", id="twice"),
            pytest.param({"email": [RULE, "keep"]}, "EV113", "only rename and move may follow", id="kept"),
            pytest.param({"email": [RULE, {"into": {"a": "keep"}}]}, "EV113", "taken apart behind renumber", id="taken apart"),
            pytest.param(
                {"email": RULE, "id": {"renumber": {"scope": "event", "class": "person"}}},
                "EV217",
                "class person is numbered within the event in fields.id and within the window in fields.email",
                id="two scopes",
            ),
            pytest.param({"email": RULE, "age": RULE}, "EV208", "class person", id="two types"),
            pytest.param({"items": "drop", "props": RULE}, "EV209", "props", id="a map"),
        ],
    )
    def test_what_does_not_fit(self, compiled: Callable[..., Plan], rules: dict[str, Any], code: str, text: str) -> None:
        with pytest.raises(EventveilError, match=code) as caught:
            compiled(rules)

        assert code in codes_of(caught.value)
        assert text in str(caught.value)

    @pytest.mark.parametrize(
        "head", [HEAD.replace("window: 1d\n", ""), HEAD.replace("time: at, ", "").replace("window: 1d\n", "")], ids=["window", "time"]
    )
    def test_time_and_window_must_be_named(self, compiled: Callable[..., Plan], head: str) -> None:
        with pytest.raises(EventveilError) as caught:
            compiled({"email": self.RULE}, head=head)

        assert "EV104" in codes_of(caught.value)

    def test_may_be_renamed_and_moved(self, compiled: Callable[..., Plan]) -> None:
        plan = compiled({"email": [self.RULE, {"move": "a.b"}], "id": [{"normalize": ["lower"]}, self.RULE]})

        assert [("a", "b"), ("id",)] == sorted(one.location for one in plan.numbered)
