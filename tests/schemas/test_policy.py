"""The policy's grammar: what it reads, and what it says about what it does not."""

from __future__ import annotations

import json
import pickle
from pathlib import Path as FilePath
from typing import Any

import pytest

from eventveil.schemas.durations import Duration
from eventveil.schemas.errors import PolicyError
from eventveil.schemas.events.paths import Path
from eventveil.schemas.policy import (
    LATER,
    Policy,
    RuleDoc,
    StepDoc,
    SubjectDoc,
    TimeDoc,
    TypeDoc,
    WindowDoc,
    load_policy,
    parse_chain,
    parse_policy,
    policy_json_schema,
    read_policy,
)

HEAD = "policy: orders\nversion: 1\nschema: orders.avsc\ndomain: analytics\n"
FIELDS = "fields:\n  a: drop\n"


def read(text: str) -> Policy:
    return parse_policy(HEAD + text + ("" if "\nfields:" in f"\n{text}" else FIELDS), "p.yaml")


def refused(text: str) -> list[str]:
    """`line code fact` of everything that is wrong; lines count from the first one after the head."""
    with pytest.raises(PolicyError) as caught:
        read(text)
    return [f"{max(problem.line - 4, 0)} {problem.code} {problem.fact}" for problem in caught.value.problems]


def codes(text: str) -> list[str]:
    return [problem.split()[1] for problem in refused(text)]


def rules(text: str) -> tuple[RuleDoc, ...]:
    return read(f"fields:\n{text}").rules


class TestDefaults:
    def test_the_least_policy_has_all_of_them(self) -> None:
        found = read("")

        assert ("orders", 1, "orders.avsc", "analytics") == (found.name, found.version, found.schema_file, found.domain)
        assert (None, (), None, None, ()) == (found.time, found.id, found.subject, found.type, found.only_if)
        assert (Duration(1, "h"), WindowDoc(), None) == (found.max_ahead, found.window, found.allowed_lateness)
        assert ("drop", "keyed") == (found.unknown_fields, found.order)
        assert {None} == {value for _, value in found.for_}

    def test_for_says_who_what_and_why(self) -> None:
        found = read("for: {recipient: research, purpose: analysis, basis: consent, retention: 2y, owner: a@example.org}\n").for_

        assert ("research", "analysis", "consent", "a@example.org") == (found.recipient, found.purpose, found.basis, found.owner)
        assert Duration(2, "y") == found.retention


class TestEvent:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("time", TimeDoc(("time",))),
            ('"a.b{c}"', TimeDoc(("a.b{c}",))),
            ("[a, b]", TimeDoc(("a", "b"))),
            ("{field: ts, unit: ms, zone: Europe/London}", TimeDoc(("ts",), "ms", "Europe/London")),
            ("{field: [a, b]}", TimeDoc(("a", "b"))),
        ],
    )
    def test_time(self, text: str, expected: TimeDoc) -> None:
        assert expected == read(f"event: {{time: {text}}}\n").time

    @pytest.mark.parametrize(("text", "expected"), [("id", ("id",)), ("[a, b]", ("a", "b")), ("$position", ("$position",))])
    def test_id(self, text: str, expected: tuple[str, ...]) -> None:
        assert expected == read(f"event: {{id: {text}}}\n").id

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("a.b", SubjectDoc(("a.b",))),
            ("[a, b]", SubjectDoc(("a", "b"))),
            ("{first_of: [a, b], missing: unprotected}", SubjectDoc(("a", "b"), True, "unprotected")),
            ("{paths: a, missing: refuse}", SubjectDoc(("a",), False, "refuse")),
            ("{paths: [a, b]}", SubjectDoc(("a", "b"))),
        ],
    )
    def test_subject(self, text: str, expected: SubjectDoc) -> None:
        assert expected == read(f"event: {{subject: {text}}}\n").subject

    def test_type(self) -> None:
        assert TypeDoc("type", "order.shipped") == read("event: {type: {field: type, is: order.shipped}}\n").type

    def test_only_if_keeps_types_apart(self) -> None:
        found = read('event: {only_if: {consent.analytics: [true], n: [1, "1", 1.5]}}\n').only_if

        assert (("consent.analytics", (True,)), ("n", (1, "1", 1.5))) == found
        assert [bool, int, str, float] == [type(value) for _, values in found for value in values]

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("time: a..b", "1 EV110 event.time 'a..b': not a path"),
            ('time: "a[].b"', "1 EV110 event.time 'a[].b': this path may name many values"),
            ("id: a.*", "1 EV110 event.id 'a.*': this path may name many values"),
            ("time: $position", "1 EV110 event.time '$position': not a path"),
            ("id: [$position, a]", "1 EV110 event.id[0] '$position': not a path"),
            ("time: true", "1 EV108 event.time must be text, and true is a boolean"),
            ("time: 5", "1 EV108 event.time must be text, and 5 is a number"),
            ("time: [a, 5]", "1 EV108 event.time[1] must be text, and 5 is a number"),
            ("time: []", "1 EV107 event.time is empty"),
            ("time: [a, a]", "1 EV103 event.time: 'a' stands twice"),
            ('time: ""', "1 EV107 event.time is empty"),
            ("time: null", "1 EV107 event.time is empty"),
            ("time: {unit: ms}", "1 EV104 event.time.field is missing"),
            ("time: {field: a, unit: sec}", "1 EV103 event.time.unit cannot be 'sec'"),
            ("time: {field: a, zone: Europe/Londn}", "1 EV112 event.time.zone 'Europe/Londn': not a time zone"),
            ("time: {field: a, format: iso}", "1 EV102 unknown entry 'format' in event.time"),
            ("id: {field: a}", "1 EV103 event.id must be text, not a mapping"),
            ("subject: {}", "1 EV104 event.subject: no path is named"),
            ("subject: {paths: a, first_of: [b]}", "1 EV103 event.subject: both paths and first_of stand here"),
            ("subject: {paths: a, missing: drop}", "1 EV103 event.subject.missing cannot be 'drop'"),
            ("type: {is: x}", "1 EV104 event.type: the field of the type is missing"),
            ("type: {field: a}", "1 EV104 event.type.is is missing"),
            ("type: {field: a, is: 3}", "1 EV108 event.type.is must be text, and 3 is a number"),
            ("only_if: {}", "1 EV107 event.only_if is empty"),
            ("only_if: {a: []}", "1 EV107 event.only_if.a is empty"),
            ("only_if: {a: true}", "1 EV103 event.only_if.a must be a list, not true"),
            ("only_if: {a: [[1]]}", "1 EV103 event.only_if.a[0]: a list is no value to compare with"),
            ("only_if: {a: [null]}", "1 EV107 event.only_if.a[0] is empty"),
            ("only_if: {a: [1, 1]}", "1 EV103 event.only_if.a: 1 stands twice"),
            ('only_if: {"a[]": [1]}', "1 EV110 event.only_if.a[] 'a[]': this path may name many values"),
            ("max_ahead: 1", "1 EV109 event.max_ahead 1: not a duration"),
            ("tiem: a", "1 EV102 unknown entry 'tiem' in event"),
        ],
    )
    def test_what_is_wrong_says_where(self, text: str, expected: str) -> None:
        assert [expected] == refused(f"event: {{{text}}}\n")

    @pytest.mark.parametrize(
        "zone", ["localtime", "posix/Europe/London", "right/UTC", "../UTC", "/etc/localtime", "Europe", "a\\0b", "utc+1"]
    )
    def test_a_zone_is_one_that_every_machine_knows(self, zone: str) -> None:
        assert ["EV112"] == codes(f'event: {{time: {{field: a, zone: "{zone}"}}}}\n')


class TestWindow:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("1d", WindowDoc(Duration(1, "d"), Duration(1, "d"))),
            ("{keys: 1d, release: 1d}", WindowDoc(Duration(1, "d"), Duration(1, "d"))),
            ("{keys: 1mo, release: 1d, zone: Europe/London}", WindowDoc(Duration(1, "mo"), Duration(1, "d"), "Europe/London")),
            ("{keys: 1w}", WindowDoc(Duration(1, "w"), Duration(1, "w"))),
            ("{release: 1h}", WindowDoc(Duration(1, "h"), Duration(1, "h"))),
            ("{keys: 1d, life: derived}", WindowDoc(Duration(1, "d"), Duration(1, "d"))),
        ],
    )
    def test_forms(self, text: str, expected: WindowDoc) -> None:
        assert expected == read(f"event: {{time: t}}\nwindow: {text}\n").window

    @pytest.mark.parametrize(
        ("keys", "release"),
        [
            ("1d", "1h"),
            ("1d", "8h"),
            ("1h", "20min"),
            ("3d", "1d"),
            ("4d", "48h"),
            ("1w", "1d"),
            ("2w", "1w"),
            ("2w", "2d"),
            ("1w", "12h"),
            ("1mo", "1d"),
            ("1mo", "1h"),
            ("1q", "1mo"),
            ("1y", "1q"),
            ("2y", "1y"),
            ("1y", "24h"),
        ],
    )
    def test_a_key_ends_where_a_window_ends(self, keys: str, release: str) -> None:
        assert Duration.parse(keys) == read(f"event: {{time: t}}\nwindow: {{keys: {keys}, release: {release}}}\n").window.keys

    @pytest.mark.parametrize(
        ("keys", "release"),
        [
            ("1h", "1d"),
            ("1d", "5h"),
            ("1w", "2d"),
            ("1w", "7d"),
            ("14d", "1w"),
            ("1w", "7h"),
            ("1mo", "2d"),
            ("1mo", "1w"),
            ("1mo", "7h"),
            ("1y", "5mo"),
            ("30d", "1mo"),
            ("1q", "1y"),
            ("1mo", "25h"),
        ],
    )
    def test_a_key_that_ends_within_a_window_is_refused(self, keys: str, release: str) -> None:
        expected = f"2 EV103 window: a key of {keys} does not end where a window of {release} ends"

        assert [expected] == refused(f"event: {{time: t}}\nwindow: {{keys: {keys}, release: {release}}}\n")

    @pytest.mark.parametrize(
        ("keys", "release"), [("1d", "1h"), ("1w", "12h"), ("1mo", "30min"), ("1q", "24h"), ("1y", "1s"), ("24h", "1d")]
    )
    @pytest.mark.parametrize("zone", ["Europe/London", "Asia/Kathmandu"])
    def test_clock_and_calendar_do_not_meet_in_a_zone(self, keys: str, release: str, zone: str) -> None:
        window = f"event: {{time: t}}\nwindow: {{keys: {keys}, release: {release}, zone: "
        expected = f"2 EV103 window: in {zone} a key of {keys} does not always end where a window of {release} ends"

        assert [expected] == refused(f"{window}{zone}}}\n")

    @pytest.mark.parametrize(("keys", "release"), [("6h", "2h"), ("1w", "1d"), ("1mo", "1d"), ("1y", "1mo")])
    def test_those_of_one_kind_do(self, keys: str, release: str) -> None:
        found = read(f"event: {{time: t}}\nwindow: {{keys: {keys}, release: {release}, zone: Asia/Kathmandu}}\n").window

        assert (Duration.parse(keys), Duration.parse(release)) == (found.keys, found.release)

    @pytest.mark.parametrize(
        ("text", "where"),
        [
            ("999999999d", ""),
            ("366001d", ""),
            ("999999999y", ""),
            ("4001q", ""),
            ("{release: 12001mo}", ".release"),
            ("{keys: 9000000h}", ".keys"),
        ],
    )
    def test_more_than_a_thousand_years_are_refused(self, text: str, where: str) -> None:
        (found,) = refused(f"event: {{time: t}}\nwindow: {text}\n")

        assert found.startswith(f"2 EV103 window{where}")
        assert found.endswith("a window is not so long")

    @pytest.mark.parametrize("text", ["1000y", "366000d", "12000mo", "999999999s"])
    def test_a_thousand_years_are_not(self, text: str) -> None:
        assert Duration.parse(text) == read(f"event: {{time: t}}\nwindow: {text}\n").window.keys

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("5m", "2 EV109 window '5m': not a duration"),
            ("5", "2 EV109 window 5: not a duration"),
            ("{}", "2 EV104 window: no length is named"),
            ("{zone: UTC}", "2 EV104 window: no length is named"),
            ("{keys: 1d, release: 1x}", "2 EV109 window.release '1x': not a duration"),
            ("{keys: 1d, zone: Mars}", "2 EV112 window.zone 'Mars': not a time zone"),
            ("{keys: 1d, life: long}", "2 EV103 window.life cannot be 'long'"),
        ],
    )
    def test_what_is_wrong_says_where(self, text: str, expected: str) -> None:
        assert [expected] == refused(f"event: {{time: t}}\nwindow: {text}\n")

    def test_a_window_without_event_time_is_refused(self) -> None:
        assert ["1 EV104 a window is named, and no event.time that falls into it"] == refused("window: 1d\n")


class TestHead:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("allowed_lateness: 1\n", "1 EV109 allowed_lateness 1: not a duration"),
            ("unknown_fields: keep\n", "1 EV103 unknown_fields cannot be 'keep'"),
            ("unknown_fields: true\n", "1 EV103 unknown_fields cannot be true"),
            ("order: 1\n", "1 EV103 order cannot be 1"),
            ("for: {purpose: no, basis: false}\n", "1 EV108 for.basis must be text, and false is a boolean"),
            ("for: research\n", "1 EV103 for must be a mapping, not 'research'"),
            ("for: {retention: long}\n", "1 EV109 for.retention 'long': not a duration"),
            ("event: t\n", "1 EV103 event must be a mapping, not 't'"),
            ("feilds: {}\n", "1 EV102 unknown entry 'feilds'"),
            ("fields: {}\n", "1 EV107 fields is empty"),
            ("fields:\n", "1 EV107 fields is empty"),
            ("fields: [a]\n", "1 EV103 fields must be a mapping, not a list"),
        ],
    )
    def test_what_is_wrong_says_where(self, text: str, expected: str) -> None:
        assert [expected] == refused(text)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("policy: a b", "1 EV103 policy 'a b': not a name"),
            ("policy: ../a", "1 EV103 policy '../a': not a name"),
            ("policy: 12", "1 EV108 policy must be text, and 12 is a number"),
            ("version: 0", "1 EV103 version must be at least 1, not 0"),
            ('version: "1"', "1 EV103 version must be a whole number, not '1'"),
            ("version: 1.0", "1 EV103 version must be a whole number, not 1.0"),
            ("version: true", "1 EV103 version must be a whole number, not true"),
            ("schema: ''", "1 EV107 schema is empty"),
            ("domain: [a]", "1 EV103 domain must be text, not a list"),
        ],
    )
    def test_what_must_stand_there(self, text: str, expected: str) -> None:
        name = text.partition(":")[0]
        others = "".join(f"{line}\n" for line in HEAD.splitlines() if not line.startswith(name))
        with pytest.raises(PolicyError) as caught:
            parse_policy(f"{text}\n{others}{FIELDS}", "p.yaml")

        assert [expected] == [f"{problem.line} {problem.code} {problem.fact}" for problem in caught.value.problems]

    @pytest.mark.parametrize("name", ["policy", "version", "schema", "domain", "fields"])
    def test_what_is_missing_is_named(self, name: str) -> None:
        text = "".join(
            f"{line}\n" for line in (HEAD + FIELDS).splitlines() if not line.startswith((name, "  ") if name == "fields" else name)
        )
        with pytest.raises(PolicyError) as caught:
            parse_policy(text, "p.yaml")

        assert [f"p.yaml: EV104 {name} is missing"] == [str(problem).splitlines()[0] for problem in caught.value.problems]

    def test_a_long_text_is_not_repeated(self) -> None:
        ((found),) = refused(f"order: {'x' * 500}\n")

        assert len(found) < 80

    def test_an_unknown_entry_is_told_the_nearest(self) -> None:
        with pytest.raises(PolicyError) as caught:
            read("widnow: 1d\n")

        assert caught.value.problems[0].remedy.startswith("did you mean 'window'? known: allowed_lateness, domain,")


class TestNotYet:
    @pytest.mark.parametrize(
        "text",
        [
            "release: {k_anonymity: {k: 5}}\n",
            "tombstones: pass_key\n",
            "event: {time: t}\nwindow: {keys: 1d, life: ratchet}\n",
            "event: {time: t}\nwindow: {keys: 1d, life: kms}\n",
            *(f"fields: {{a: {name}}}\n" for name in sorted(LATER)),
            "fields: {a: [{floor: 1d}, {release: k_anonymity}]}\n",
            "fields: {a: {into: {b: {tokenize: {}}}}}\n",
        ],
    )
    def test_it_is_named_and_not_available(self, text: str) -> None:
        assert {"EV111"} == set(codes(text))

    @pytest.mark.parametrize("name", ["$keys", "$timer", "key"])
    def test_other_names_are_fields(self, name: str) -> None:
        assert [name] == [rule.text for rule in rules(f"  {name}: drop\n")]


class TestFieldsOfAStream:
    def test_they_have_rules(self) -> None:
        found = rules("  $key: drop\n  $headers.trace: drop\n  $headers.ce.type: drop\n  $headers.*: drop\n  $topic: drop\n  $time: drop\n")

        assert [
            Path(("$key",)),
            Path(("$headers", "trace")),
            Path(("$headers", "ce.type")),
            Path(("$headers",), star=True),
            Path(("$topic",)),
            Path(("$time",)),
        ] == [path for rule in found for path in rule.paths]

    @pytest.mark.parametrize("key", ["$key.id", "$key[]", "$headers", "$headers{a}", "$headers.a[]", "$time.*", "$topic.a"])
    def test_other_paths_lead_nowhere(self, key: str) -> None:
        assert [f"2 EV110 '{key}' in fields is not a path"] == refused(f'fields:\n  "{key}": drop\n')

    def test_they_say_when_who_and_whether(self) -> None:
        found = read("event: {time: $time, id: [$topic, $key], subject: $headers.user, only_if: {$headers.consent: [yes]}}\n")

        assert (("$time",), ("$topic", "$key"), ("$headers.user",)) == (
            found.time and found.time.field,
            found.id,
            found.subject and found.subject.paths,
        )
        assert (("$headers.consent", ("yes",)),) == found.only_if

    @pytest.mark.parametrize(
        "entry", ["time: $key.a", "id: $headers", "id: ['$headers{a}']", "subject: $topic.a", "only_if: {$time.x: [a]}"]
    )
    def test_other_paths_of_an_event_lead_nowhere(self, entry: str) -> None:
        assert ["EV110"] == codes(f"event: {{{entry}}}\n")

    @pytest.mark.parametrize(
        ("written", "expected"),
        [
            ("{header: ce.type, is: a}", TypeDoc("$headers.ce.type", "a")),
            ("{field: $headers.ce.type, is: a}", TypeDoc("$headers.ce.type", "a")),
            ("{topic: true, is: a}", TypeDoc("$topic", "a")),
            ("{field: type, is: a}", TypeDoc("type", "a")),
        ],
    )
    def test_a_type_is_named_by_a_field_a_header_or_the_topic(self, written: str, expected: TypeDoc) -> None:
        assert expected == read(f"event: {{type: {written}}}\n").type

    @pytest.mark.parametrize(
        ("written", "expected"),
        [
            ("{field: a, header: b, is: x}", "EV103"),
            ("{header: b, topic: true, is: x}", "EV103"),
            ("{topic: false, is: x}", "EV103"),
            ("{topic: orders, is: x}", "EV103"),
            ("{header: 'a[]', is: x}", "EV103"),
            ("{header: a}", "EV104"),
            ("{topic: true}", "EV104"),
        ],
    )
    def test_by_one_of_them(self, written: str, expected: str) -> None:
        assert [expected] == codes(f"event: {{type: {written}}}\n")

    def test_tombstones_are_dropped(self) -> None:
        assert "drop" == read("").tombstones == read("tombstones: drop\n").tombstones
        assert ["EV103"] == codes("tombstones: keep\n")

    def test_a_policy_without_them_says_what_it_said_before(self) -> None:
        assert read("").canonical() == read("tombstones: drop\n").canonical()
        assert "tombstones" not in read("").canonical()


class TestRules:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("drop", [("drop", None)]),
            ("{round: 10}", [("round", 10)]),
            ("{mask: {keep_last: 4}}", [("mask", {"keep_last": 4})]),
            ("{mask: {}}", [("mask", {})]),
            ("[keep, {rename: b}]", [("keep", None), ("rename", "b")]),
            ("[{normalize: [trim, lower]}, {cast: int64}]", [("normalize", ["trim", "lower"]), ("cast", "int64")]),
            ("{noise: {null: refuse}}", [("noise", {"null": "refuse"})]),
            ("{rename: group}", [("rename", "group")]),
            ("[{floor: 1d}, {rename: b}, {move: c.b}]", [("floor", "1d"), ("rename", "b"), ("move", "c.b")]),
            ("[{parse: '{x:text}'}, {into: {x: keep}}]", [("parse", "{x:text}"), ("into", {"x": "keep"})]),
            ("no", [("no", None)]),
        ],
        ids=str,
    )
    def test_a_chain_is_read_in_order(self, text: str, expected: list[tuple[str, Any]]) -> None:
        (rule,) = rules(f"  a: {text}\n")

        assert expected == [(step.name, step.given) for step in rule.steps]

    def test_steps_know_their_lines(self) -> None:
        (rule,) = rules("  a:\n  - floor: 1d\n  - rename: b\n")

        assert (6, [7, 8]) == (rule.line, [step.line for step in rule.steps])

    @pytest.mark.parametrize(
        ("key", "expected"),
        [
            ("a.b", [("a", "b")]),
            ("before|after.email", [("before", "email"), ("after", "email")]),
            ("before|after", [("before",), ("after",)]),
            ("before|after[].x", [("before", "[]", "x"), ("after", "[]", "x")]),
            ("before|after{k}", [("before", "{k}"), ("after", "{k}")]),
            ("p{a|b}", [("p", "{a|b}")]),
        ],
    )
    def test_a_key_names_one_place_or_two(self, key: str, expected: list[tuple[str, ...]]) -> None:
        (rule,) = rules(f'  "{key}": drop\n')

        assert key == rule.text
        assert [Path(steps) for steps in expected] == list(rule.paths)

    def test_a_star_stands_in_both_places(self) -> None:
        (rule,) = rules("  before|after.*: drop\n")

        assert (Path(("before",), star=True), Path(("after",), star=True)) == rule.paths

    @pytest.mark.parametrize(
        "key", ["a..b", "a|b|c", "a|a", "a|", "|a", "a.b|c", "a|b.c|d", "*", "a.*.b", "a[0]", "a b", "a.", "1a|b", "-a"]
    )
    def test_a_key_that_is_no_path_is_refused(self, key: str) -> None:
        assert [f"2 EV110 '{key}' in fields is not a path"] == refused(f'fields:\n  "{key}": drop\n')

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("", "EV107 fields.a is empty"),
            ("null", "EV107 fields.a is empty"),
            ('""', "EV107 fields.a is empty"),
            ("{}", "EV107 fields.a is empty"),
            ("[]", "EV107 fields.a is empty"),
            ("[keep, null]", "EV107 fields.a[1] is empty"),
            ("{keep: }", "EV107 fields.a.keep is empty"),
            ("[{mask: {keep_last: }}]", "EV107 fields.a[0].mask.keep_last is empty"),
            ("{into: {}}", "EV107 fields.a.into is empty"),
            ("{into: {b: }}", "EV107 fields.a.into.b is empty"),
            ("{into: {b: []}}", "EV107 fields.a.into.b is empty"),
            ("{into: b}", "EV103 fields.a.into must be a mapping, not 'b'"),
            ("true", "EV108 fields.a must be an operator, not true"),
            ("5", "EV108 fields.a must be an operator, not 5"),
            ("[keep, 5]", "EV108 fields.a[1] must be an operator, not 5"),
            ("[[keep]]", "EV103 fields.a[0] is a list in a list"),
            ("{floor: 1d, rename: b}", "EV103 fields.a holds 2 operators in one mapping"),
            ("[drop, {rename: b}]", "EV113 drop stands in a chain in fields.a"),
            ("[keep, drop]", "EV113 drop stands in a chain in fields.a"),
            ("[{rename: b}, {floor: 1d}]", "EV113 'floor' follows rename in fields.a"),
            ("[{move: b}, {floor: 1d}]", "EV113 'floor' follows move in fields.a"),
            ("[{rename: b}, {into: {c: keep}}]", "EV113 'into' follows rename in fields.a"),
            ("[{into: {c: keep}}, keep]", "EV113 'keep' follows into in fields.a"),
            ("[{into: {c: keep}}, {rename: b}]", "EV113 'rename' follows into in fields.a"),
            ("[{rename: b}, {rename: c}]", "EV113 'rename' stands twice in fields.a"),
            ("{into: {b: [drop, keep]}}", "EV113 drop stands in a chain in fields.a.into.b"),
        ],
        ids=str,
    )
    def test_a_chain_that_cannot_be_run_is_refused(self, text: str, expected: str) -> None:
        assert [f"2 {expected}"] == refused(f"fields:\n  a: {text}\n")

    def test_an_unknown_operator_is_left_to_compile(self) -> None:
        assert [("maks", None)] == [(step.name, step.given) for step in rules("  a: maks\n")[0].steps]

    def test_branches_are_not_endless(self) -> None:
        text = "{into: {b: " * 12 + "keep" + "}}" * 12

        assert ["EV103"] == codes(f"fields:\n  a: {text}\n")


class TestChains:
    def test_a_branch_is_read_alone(self) -> None:
        assert (StepDoc("keep", None, 7), StepDoc("rename", "b", 7)) == parse_chain(
            ["keep", {"rename": "b"}], "fields.a.into.b", 7, "p.yaml"
        )

    def test_its_problems_say_where(self) -> None:
        with pytest.raises(PolicyError) as caught:
            parse_chain([{"rename": "b"}, "keep"], "fields.a.into.b", 7, "p.yaml")

        assert ["p.yaml:7: EV113 'keep' follows rename in fields.a.into.b"] == [
            str(found).splitlines()[0] for found in caught.value.problems
        ]


class TestAllAtOnce:
    TEXT = "version: 1\nschema: a\nevent: {time: a..b}\nfields:\n  a: drop\n  b: [drop, keep]\n  c: {tokenize: {}}\n  d: maks\n"

    def test_head_and_rules_come_together(self) -> None:
        with pytest.raises(PolicyError) as caught:
            parse_policy(self.TEXT, "p.yaml")

        found = sorted((problem.line, problem.code) for problem in caught.value.problems)
        assert [(0, "EV104"), (0, "EV104"), (3, "EV110"), (6, "EV113"), (7, "EV111")] == found

    def test_what_could_be_read_is_handed_on(self) -> None:
        reading = read_policy(self.TEXT, "p.yaml")

        assert reading.policy is None
        assert ["a", "d"] == [rule.text for rule in reading.rules]
        assert 5 == len(reading.problems)

    def test_a_sound_policy_has_no_problems(self) -> None:
        reading = read_policy(HEAD + FIELDS, "p.yaml")

        assert ((), read("")) == (reading.problems, reading.policy)


class TestCanonical:
    LONG = HEAD + "event: {time: [t], id: [i]}\nwindow: {keys: 1d, release: 1d, zone: UTC}\nfields:\n  a: [keep]\n  b: {round: 10}\n"

    @pytest.mark.parametrize(
        "text",
        [
            pytest.param(LONG.replace("domain", "# a comment\ndomain"), id="comment"),
            pytest.param(LONG.replace("{keys: 1d, release: 1d, zone: UTC}", "1d"), id="short window"),
            pytest.param(LONG.replace("[keep]", "keep"), id="short chain"),
            pytest.param(LONG.replace("[t]", "t").replace("[i]", "i"), id="short paths"),
            pytest.param(LONG.replace("event: {", "event: {max_ahead: 1h, "), id="default"),
            pytest.param("\n".join(reversed(HEAD.splitlines())) + "\n" + LONG.removeprefix(HEAD), id="order"),
            pytest.param(LONG.replace("a: [keep]\n  b: {round: 10}", "b: {round: 10}\n  a: keep"), id="order of rules"),
            pytest.param(LONG.replace("10", "0xA"), id="number"),
        ],
    )
    def test_it_does_not_see_how_it_is_written(self, text: str) -> None:
        assert parse_policy(self.LONG, "p.yaml").canonical() == parse_policy(text, "q.yaml").canonical()

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("version: 1", "version: 2"),
            ("orders.avsc", "others.avsc"),
            ("analytics", "research"),
            ("[t]", "[u]"),
            ("[t]", "{field: t, unit: s}"),
            ("[i]", "[i, j]"),
            ("[i]", "i, max_ahead: 2h"),
            ("[i]", "i, subject: s"),
            ("[i]", "i, only_if: {c: [true]}"),
            ("[i]", "i, type: {field: f, is: x}"),
            ("keys: 1d", "keys: 2d"),
            ("zone: UTC", "zone: Europe/London"),
            ("[keep]", "drop"),
            ("[keep]", "[keep, {rename: x}]"),
            ("round: 10", "round: 11"),
            ("round: 10", "round: '10'"),
            ("  b:", "  c:"),
            ("event:", "order: keep\nevent:"),
            ("event:", "unknown_fields: refuse\nevent:"),
            ("event:", "allowed_lateness: 1h\nevent:"),
            ("event:", "for: {recipient: x}\nevent:"),
        ],
    )
    def test_it_sees_every_meaning(self, old: str, new: str) -> None:
        assert old in self.LONG
        assert parse_policy(self.LONG, "p.yaml").canonical() != parse_policy(self.LONG.replace(old, new, 1), "p.yaml").canonical()

    def test_it_is_json_with_sorted_keys(self) -> None:
        found = parse_policy(self.LONG, "p.yaml").canonical()

        assert found == json.dumps(json.loads(found), ensure_ascii=False, sort_keys=True, separators=(",", ":"))

    def test_the_branches_of_into_are_chains_too(self) -> None:
        assert read("fields:\n  a: {into: {b: keep}}\n").canonical() == read("fields:\n  a: [{into: {b: [keep]}}]\n").canonical()


class TestPositions:
    @pytest.mark.parametrize(
        ("keys", "line"),
        [
            (("policy",), 1),
            (("event", "time"), 5),
            (("fields", "a"), 8),
            (("fields", "a", 1), 10),
            (("fields", "b"), 0),
            (("x",), 0),
            (("event", "id", "x"), 0),
        ],
    )
    def test_line_of(self, keys: tuple[str | int, ...], line: int) -> None:
        assert line == read("event: {time: t,\n  id: i}\nfields:\n  a:\n  - keep\n  - {rename: c}\n").line_of(*keys)


class TestFiles:
    def test_a_policy_is_read_from_its_file(self, tmp_path: FilePath) -> None:
        (tmp_path / "p.yaml").write_bytes(b"\xef\xbb\xbf" + (HEAD + FIELDS).encode())
        found = load_policy(tmp_path / "p.yaml")

        assert (str(tmp_path / "p.yaml"), "orders") == (found.file, found.name)

    def test_a_policy_may_be_json(self) -> None:
        text = json.dumps(
            {"policy": "orders", "version": 1, "schema": "orders.avsc", "domain": "analytics", "fields": {"a": "drop"}}, indent=1
        )

        assert read("").canonical() == parse_policy(text, "p.json").canonical()

    def test_a_policy_survives_pickling(self) -> None:
        found = read("event: {time: t}\nwindow: 1d\nfields:\n  a: [{into: {b: keep}}]\n")
        back = pickle.loads(pickle.dumps(found))

        assert (found, found.canonical(), found.line_of("window")) == (back, back.canonical(), back.line_of("window"))

    def test_a_missing_file_is_named(self, tmp_path: FilePath) -> None:
        with pytest.raises(PolicyError) as caught:
            load_policy(tmp_path / "p.yaml")

        assert [("EV115", str(tmp_path / "p.yaml"))] == [(found.code, found.file) for found in caught.value.problems]


class TestJsonSchema:
    def test_the_rules_are_filled_in(self) -> None:
        found = policy_json_schema({"oneOf": [{"$ref": "#/$defs/drop"}], "$defs": {"drop": {"const": "drop"}}})

        assert {"$ref": "#/$defs/rule"} == found["properties"]["fields"]["additionalProperties"]
        assert {"oneOf": [{"$ref": "#/$defs/drop"}]} == found["$defs"]["rule"]
        assert {"const": "drop"} == found["$defs"]["drop"]

    def test_it_has_what_the_language_has_now(self) -> None:
        found = policy_json_schema()

        assert {
            "policy",
            "version",
            "for",
            "schema",
            "domain",
            "event",
            "window",
            "allowed_lateness",
            "unknown_fields",
            "order",
            "tombstones",
            "fields",
        } == set(found["properties"])
        assert ["policy", "version", "schema", "domain", "fields"] == found["required"]
        assert found["additionalProperties"] is False
