"""Veil.apply on hand-made Arrow data: consent, time, id, subject, windows, lists, refusals; and what a plan and a veil are."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from eventveil.schemas.durations import Duration
from eventveil.schemas.errors import PolicyError, SchemaError
from eventveil.schemas.events.avro import parse_avro
from eventveil.schemas.policy import parse_policy
from eventveil.transforms.batch import Clock
from eventveil.transforms.compile import compile_policy
from eventveil.transforms.decode.decoded import decoded_type
from eventveil.transforms.keys.derive import HeldKeys
from eventveil.transforms.plan import Plan
from eventveil.transforms.veil import Outcome
from eventveil.transforms.windows import WindowRule

ROOT = bytes(range(32))
DAY_US = 86_400_000_000
TEXT = ["null", "string"]
NUMBER = ["null", "int"]
EVENT = {"id": "string", "at": "string", "who": TEXT, "n": NUMBER}
RULES = {"id": "drop", "at": "drop", "who": "drop", "n": "keep"}


def record(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": [{"name": one, "type": kind} for one, kind in fields.items()]}


def listed(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


def planned(
    rules: Mapping[str, Any] | None = None,
    fields: Mapping[str, Any] | None = None,
    *,
    event: str = "{time: at, id: id}",
    window: str = "1d",
    more: str = "",
) -> Plan:
    """The plan for an event of `EVENT` and further fields, under `RULES` and others."""
    head = ["policy: test", "version: 1", "for: {recipient: tests}", "schema: e.avsc", "domain: d", f"event: {event}"]
    head += [f"window: {window}"] if window else []
    texts = {path: rule if isinstance(rule, str) else json.dumps(rule) for path, rule in {**RULES, **(rules or {})}.items()}
    text = "\n".join([*head, *([more] if more else []), "fields:", *(f"  {json.dumps(path)}: {rule}" for path, rule in texts.items())])
    return compile_policy(parse_policy(text, "p.yaml"), parse_avro(record("Event", {**EVENT, **(fields or {})}), "e.avsc"))


def event(**other: Any) -> dict[str, Any]:
    return {"id": "a", "at": "2024-05-06T12:30:00Z", "who": "ann", "n": 1, **other}


def batch(plan: Plan, events: Sequence[Mapping[str, Any] | None]) -> pa.StructArray:
    return pa.array(list(events), decoded_type(plan.schema, plan.used))


def apply(plan: Plan, events: Sequence[Mapping[str, Any]] | pa.StructArray, root: bytes = ROOT, **where: Any) -> Outcome:
    given = events if isinstance(events, pa.Array) else batch(plan, events)
    outcome = plan.bind(HeldKeys(root)).apply(given, **where)
    for column in outcome.veiled.columns:
        column.validate(full=True)
    assert outcome.veiled.schema == plan.veiled_schema
    return outcome


def rows(outcome: Outcome) -> list[dict[str, Any]]:
    return outcome.veiled.select([name for name in outcome.veiled.schema.names if name[0] != "$"]).to_pylist()


def values(plan: Plan, events: Sequence[Mapping[str, Any]], name: str = "n") -> list[Any]:
    """One output column; nothing may be refused."""
    outcome = apply(plan, events)
    assert [] == outcome.codes
    return outcome.veiled.column(name).to_pylist()


def refusals(outcome: Outcome) -> list[tuple[int, str, str, str]]:
    return list(zip(outcome.refused_rows.tolist(), outcome.codes, outcome.paths, outcome.rules))


class TestConsent:
    def test_all_entries_must_hold_and_null_does_not_match(self) -> None:
        plan = planned(event="{time: at, id: id, only_if: {who: [ann, bob], n: [1, 2]}}")
        events = [event(), event(who="bob", n=2), event(who=None), event(who="eve"), event(n=3), event(n=None)]

        outcome = apply(plan, events)

        assert [{"n": 1}, {"n": 2}] == rows(outcome)
        assert (4, []) == (outcome.filtered, outcome.codes)

    def test_a_flag_in_a_nested_record_that_may_be_missing(self) -> None:
        fields = {"consent": ["null", record("Consent", {"analytics": ["null", "boolean"]})]}
        plan = planned({"consent": "drop"}, fields, event="{time: at, id: id, only_if: {consent.analytics: [true]}}")
        flags = [{"analytics": True}, {"analytics": False}, {"analytics": None}, None]

        outcome = apply(plan, [event(n=number, consent=flag) for number, flag in enumerate(flags)])

        assert [{"n": 0}] == rows(outcome)
        assert 3 == outcome.filtered

    def test_who_did_not_consent_leaves_no_trace(self) -> None:
        # Neither refused for a bad time, nor in drift, nor in the counts of the rules.
        plan = planned(event="{time: at, id: id, only_if: {who: [ann]}}")
        events = [event(who="eve", at="junk"), event(), event(who="eve")]

        outcome = apply(plan, events, drift={"?": np.array([0, 1, 2]), "n.?": np.array([2])})

        assert ([], {"?": 1}, {"fields.n": 1}) == (refusals(outcome), outcome.drift, outcome.counts)

    def test_rows_are_those_of_the_batch_that_was_given(self) -> None:
        plan = planned(event="{time: at, id: id, only_if: {who: [ann]}}")

        outcome = apply(plan, [event(who="eve"), event(), event(at="junk")])

        assert [(2, "EV510", "at", "event.time")] == refusals(outcome)

    @pytest.mark.parametrize("value", [3_000_000_000, 2**70, -(2**31) - 1])
    def test_a_number_that_the_field_cannot_hold_is_found_when_it_is_compiled(self, value: int) -> None:
        with pytest.raises(PolicyError, match=r"EV103 event\.only_if: n is int32, and a value listed is not"):
            planned(event=f"{{time: at, id: id, only_if: {{n: [{value}]}}}}")


class TestEventTime:
    def test_what_cannot_be_read_is_refused_without_window(self) -> None:
        outcome = apply(planned(), [event(), event(at="yesterday"), event(at="")])

        assert [(1, "EV510", "at", "event.time"), (2, "EV510", "at", "event.time")] == refusals(outcome)
        assert [None, None] == outcome.refused_windows.to_pylist()

    def test_local_time_is_read_in_the_zone(self) -> None:
        plan = planned({"at": {"floor": "1h"}}, event="{time: {field: at, zone: Europe/London}, id: id}", window="{keys: 1d, release: 1d}")
        times = ["2024-07-01T00:30:00", "2024-07-01T00:30:00Z", "2024-01-01T00:30:00"]

        outcome = apply(plan, [event(at=at) for at in times])

        # The window is UTC's; the text leaves as the wall clock of the event's zone.
        assert [datetime(2024, 7, 1), datetime(2024, 7, 1, 1), datetime(2024, 1, 1)] == outcome.veiled.column("at").to_pylist()
        days = [datetime(2024, 6, 30), datetime(2024, 7, 1), datetime(2024, 1, 1)]
        assert [day.replace(tzinfo=timezone.utc).timestamp() * 1e6 for day in days] == outcome.veiled.column("$window").to_pylist()

    def test_the_skipped_hour_is_refused_and_the_repeated_one_is_the_earlier(self) -> None:
        plan = planned({"at": {"floor": "1min"}}, event="{time: {field: at, zone: Europe/Berlin}, id: id}")
        local = ["2024-03-31T01:59:00", "2024-03-31T02:30:00", "2024-03-31T03:00:00"]

        outcome = apply(plan, [event(at=at) for at in local])

        assert [(1, "EV511", "at", "event.time")] == refusals(outcome)
        assert [None] == outcome.refused_windows.to_pylist()
        # 02:30 comes twice on that day: hourly windows tell which of the two is meant.
        repeated = planned(event="{time: {field: at, zone: Europe/Berlin}, id: id}", window="{release: 1h}")
        windows = apply(repeated, [event(at="2024-10-27T02:30:00")]).veiled.column("$window").to_pylist()
        assert [datetime(2024, 10, 27, 0, tzinfo=timezone.utc).timestamp() * 1e6] == windows

    @pytest.mark.parametrize(
        ("kind", "entry", "value"),
        [
            ("long", "{field: at, unit: ms}", 1_714_998_600_000),
            ("long", "{field: at, unit: s}", 1_714_998_600),
            ("double", "{field: at, unit: s}", 1_714_998_600.0),
            ({"type": "long", "logicalType": "timestamp-millis"}, "at", datetime(2024, 5, 6, 12, 30, tzinfo=timezone.utc)),
            ({"type": "long", "logicalType": "local-timestamp-micros"}, "at", datetime(2024, 5, 6, 12, 30)),
            ("string", "at", "2024-05-06 12:30:00"),
            ("string", "at", "2024-05-06T14:30:00.000000+02:00"),
        ],
        ids=["ms", "s", "float", "instant", "local", "blank for T", "offset"],
    )
    def test_every_kind_of_time_names_its_window(self, kind: Any, entry: str, value: Any) -> None:
        plan = planned(fields={"at": kind}, event=f"{{time: {entry}, id: id}}", window="{release: 1h}")

        windows = apply(plan, [event(at=value)]).veiled.column("$window").to_pylist()

        assert [datetime(2024, 5, 6, 12, tzinfo=timezone.utc).timestamp() * 1e6] == windows

    def test_of_several_fields_the_first_that_is_there_decides(self) -> None:
        plan = planned({"sent": "drop"}, {"at": TEXT, "sent": NUMBER}, event="{time: {field: [at, sent], unit: s}, id: id}")
        events = [
            event(at="2024-05-06T12:30:00Z", sent=0),
            event(at=None, sent=86_400 * 3),
            event(at=None, sent=None),
            event(at="junk", sent=1),
        ]

        outcome = apply(plan, events)

        assert [int(datetime(2024, 5, 6, tzinfo=timezone.utc).timestamp()) * 1_000_000, 3 * DAY_US] == outcome.veiled.column(
            "$window"
        ).to_pylist()
        assert [(2, "EV510", "at", "event.time"), (3, "EV510", "at", "event.time")] == refusals(outcome)

    def test_another_time_that_cannot_be_read_never_passes_as_null(self) -> None:
        plan = planned({"sent": {"floor": "1h"}}, {"sent": TEXT}, event="{time: [at, sent], id: id}")

        outcome = apply(plan, [event(sent="junk"), event(sent=None), event(sent="2024-05-06T09:59:00Z")])

        assert [{"sent": None, "n": 1}, {"sent": datetime(2024, 5, 6, 9), "n": 1}] == [
            {name: row[name] for name in ("sent", "n")} for row in rows(outcome)
        ]
        assert [(0, "EV510", "sent", "event.time")] == refusals(outcome)
        assert [int(datetime(2024, 5, 6, tzinfo=timezone.utc).timestamp()) * 1_000_000] == outcome.refused_windows.to_pylist()


class TestEventId:
    def test_equal_ids_draw_equal_noise_and_others_do_not(self) -> None:
        plan = planned({"n": {"noise": {"laplace_scale": 10_000, "per": "event"}}})

        first, again, other = values(plan, [event(), event(at="2024-05-06T12:31:00Z"), event(id="b")])

        assert first == again != other

    def test_parts_of_an_id_do_not_run_together(self) -> None:
        plan = planned(
            {"n": {"noise": {"laplace_scale": 10_000, "per": "event"}}, "line": "drop"},
            {"line": "string"},
            event="{time: at, id: [id, line]}",
        )
        ids = [("ab", "c"), ("a", "bc"), ("abc", ""), ("", "abc"), ("ab", "c")]

        drawn = values(plan, [event(id=one, line=line) for one, line in ids])

        assert drawn[0] == drawn[4]
        assert 4 == len(set(drawn))

    def test_an_id_that_is_missing_is_refused(self) -> None:
        plan = planned({"line": "drop"}, {"line": TEXT}, event="{time: at, id: [id, line]}")

        outcome = apply(plan, [event(line="1"), event(line=None)])

        assert [(1, "EV512", "line", "event.id")] == refusals(outcome)

    def test_position_stands_for_an_id_within_its_origin(self) -> None:
        plan = planned({"n": {"noise": {"laplace_scale": 10_000, "per": "event"}}}, event="{time: at, id: $position}")
        events = [event(), event(), event()]

        def drawn(origin: str, positions: list[int]) -> list[int]:
            return apply(plan, events, origin=origin, positions=pa.array(positions)).veiled.column("n").to_pylist()

        first = drawn("a.jsonl", [0, 70, 140])

        assert 3 == len(set(first))
        assert first[::-1] == drawn("a.jsonl", [140, 70, 0])
        assert not set(first) & set(drawn("b.jsonl", [0, 70, 140]))

    def test_the_order_key_is_the_same_for_equal_ids_and_differs_by_domain_key(self) -> None:
        plan = planned()

        one, same, other = apply(plan, [event(), event(n=5), event(id="b")]).veiled.column("$order").to_pylist()

        assert one == same != other
        assert one != apply(plan, [event()], root=bytes(32)).veiled.column("$order")[0].as_py()

    def test_without_an_id_rows_are_ordered_by_what_they_show(self) -> None:
        plan = planned(event="{time: at}")

        one, same, other = apply(plan, [event(id="x"), event(id="y"), event(n=2)]).veiled.column("$order").to_pylist()

        assert one == same != other


SUBJECT = {"n": {"noise": {"laplace_scale": 10_000, "per": "subject"}}}


class TestSubject:
    def test_events_of_one_subject_share_their_noise_within_a_key_window(self) -> None:
        plan = planned(SUBJECT, event="{time: at, subject: who}")
        events = [event(), event(id="b"), event(who="bob"), event(at="2024-05-07T00:00:00Z")]

        drawn = values(plan, events)

        assert drawn[0] == drawn[1]
        assert 3 == len(set(drawn))

    def test_the_first_of_several_that_is_there_is_the_subject(self) -> None:
        plan = planned({**SUBJECT, "anon": "drop"}, {"anon": TEXT}, event="{time: at, subject: {first_of: [who, anon]}}")
        events = [event(who="ann", anon="x"), event(who="ann", anon=None), event(who=None, anon="ann"), event(who=None, anon="x")]

        drawn = values(plan, events)

        assert drawn[0] == drawn[1] == drawn[2] != drawn[3]

    def test_a_subject_of_several_fields_is_there_when_all_are(self) -> None:
        plan = planned({**SUBJECT, "anon": "drop"}, {"anon": TEXT}, event="{time: at, subject: [who, anon]}")
        events = [event(who="ab", anon="c"), event(who="a", anon="bc"), event(who="a", anon=None), event(who=None, anon="c")]

        outcome = apply(plan, events)

        assert 2 == len(set(outcome.veiled.column("n").to_pylist()))
        assert [(2, "EV513", "who", "event.subject"), (3, "EV513", "who", "event.subject")] == refusals(outcome)

    @pytest.mark.parametrize(
        ("rule", "missing", "refused"),
        [
            ("keep", "", 0),
            ("keep", ", missing: unprotected", 0),
            ("keep", ", missing: refuse", 1),
            (SUBJECT["n"], "", 1),
            (SUBJECT["n"], ", missing: refuse", 1),
            (SUBJECT["n"], ", missing: unprotected", 1),
        ],
        ids=["not looked at", "unprotected", "refuse", "drawn per subject", "drawn and refuse", "drawn and unprotected"],
    )
    def test_missing(self, rule: Any, missing: str, refused: int) -> None:
        plan = planned({"n": rule}, event=f"{{time: at, subject: {{first_of: [who]{missing}}}}}")

        outcome = apply(plan, [event(), event(who=None)])

        assert [(1, "EV513", "who", "event.subject")] * refused == refusals(outcome)


PSEUDONYM = {"who": {"pseudonymize": {"class": "person"}}, "n": "drop"}


class TestWindows:
    def test_a_pseudonym_ends_with_its_key_window(self) -> None:
        days = ["2024-05-06T00:00:00Z", "2024-05-06T23:59:59.999999Z", "2024-05-07T00:00:00Z", "2024-05-06T12:00:00Z"]

        texts = values(planned(PSEUDONYM), [event(at=at) for at in days], "who")

        assert texts[0] == texts[1] == texts[3] != texts[2]

    def test_months_of_a_zone_begin_at_its_midnights(self) -> None:
        plan = planned(PSEUDONYM, window="{keys: 1mo, release: 1mo, zone: Europe/London}")
        # British summer time: June ends at 23:00 UTC; winter time: January at midnight.
        times = ["2024-06-30T22:59:59Z", "2024-06-30T23:00:00Z", "2024-07-31T22:59:59Z", "2024-01-31T23:00:00Z", "2024-02-01T00:00:00Z"]

        june, july, late_july, january, february = values(plan, [event(at=at) for at in times], "who")

        assert july == late_july
        assert 4 == len({june, july, january, february})

    def test_keys_may_live_longer_than_the_release_window(self) -> None:
        plan = planned(PSEUDONYM, window="{keys: 1w, release: 1d}")

        outcome = apply(plan, [event(at="2024-05-06T12:00:00Z"), event(at="2024-05-12T12:00:00Z"), event(at="2024-05-13T12:00:00Z")])

        monday, sunday, next_monday = outcome.veiled.column("who").to_pylist()
        assert monday == sunday != next_monday
        assert [0, 6 * DAY_US, 7 * DAY_US] == [start - 1_714_953_600_000_000 for start in outcome.veiled.column("$window").to_pylist()]

    def test_a_class_that_is_stable_has_one_pseudonym_for_all_windows(self) -> None:
        plan = planned({"who": {"pseudonymize": {"class": "thing", "stable": "domain"}}, "n": "drop"})

        texts = values(plan, [event(at=f"2024-05-{day:02}T00:00:00Z") for day in range(1, 31)], "who")

        assert 1 == len(set(texts))

    def test_many_windows_in_one_batch_are_each_treated_as_alone(self) -> None:
        rules = {"who": {"pseudonymize": {"class": "person"}}, "at": {"shift": {"within": "1h", "per": "event"}}}
        plan = planned({**rules, "n": {"noise": {"laplace_scale": 3, "per": "event"}}})
        start = datetime(2024, 1, 1)
        events = [event(id=str(i), at=(start + timedelta(hours=37 * i % 4_000)).isoformat(), who=f"w{i % 7}") for i in range(300)]

        together = apply(plan, events).veiled.to_pylist()

        assert together == [apply(plan, [one]).veiled.to_pylist()[0] for one in events]

    def test_a_shifted_event_time_stays_in_its_window(self) -> None:
        plan = planned({"at": {"shift": {"within": "1d", "per": "event"}}})
        events = [event(id=str(i), at=f"2024-05-06T{i % 24:02}:00:00Z") for i in range(500)]

        assert {datetime(2024, 5, 6).date()} == {moved.date() for moved in values(plan, events, "at")}

    def test_no_window_no_column(self) -> None:
        outcome = apply(planned(window=""), [event()])

        assert ["n", "$order"] == outcome.veiled.schema.names


class TestLists:
    def test_null_and_empty_lists_null_elements_and_records(self) -> None:
        fields = {"items": ["null", listed(["null", record("Item", {"sku": TEXT, "q": NUMBER})])]}
        plan = planned({"items[].sku": {"truncate": 1}, "items[].q": "keep", "items": {"rename": "group"}}, fields)
        lists = [None, [], [None], [{"sku": "abc", "q": 1}, None, {"sku": None, "q": None}]]

        expected = [None, [], [None], [{"sku": "a", "q": 1}, None, {"sku": None, "q": None}]]

        assert expected == values(plan, [event(items=one) for one in lists], "group")

    def test_lists_of_lists(self) -> None:
        plan = planned({"grid[][]": {"clamp": {"max": 5}}}, {"grid": listed(listed(NUMBER))})

        assert [[[1, 5], [], [None]], []] == values(plan, [event(grid=[[1, 9], [], [None]]), event(grid=[])], "grid")

    def test_elements_are_numbered_through_lists_of_lists_for_their_draws(self) -> None:
        plan = planned({"grid[][]": {"noise": {"laplace_scale": 10_000, "per": "event"}}}, {"grid": listed(listed("int"))})

        (one,), (other,) = ([values(plan, [event(grid=grid)], "grid")[0]] for grid in ([[0, 0], [0, 0]], [[0], [0, 0, 0]]))

        flat = [value for part in one for value in part]
        assert 4 == len(set(flat))
        assert flat == [value for part in other for value in part]

    def test_a_record_that_may_be_missing_is_missing_afterwards(self) -> None:
        fields = {"ship": ["null", record("Ship", {"zip": "string", "to": ["null", record("To", {"name": "string"})]})]}
        plan = planned({"ship.zip": {"truncate": 2}, "ship.to.name": [{"mask": {}}, {"rename": "person"}]}, fields)
        ships = [None, {"zip": "1234", "to": None}, {"zip": "1234", "to": {"name": "Ann"}}]

        expected = [None, {"zip": "12", "to": None}, {"zip": "12", "to": {"person": "********"}}]

        assert expected == values(plan, [event(ship=ship) for ship in ships], "ship")

    def test_what_stands_under_a_null_record_never_shows(self) -> None:
        plan = planned({"ship.zip": "keep"}, {"ship": ["null", record("Ship", {"zip": "string"})]})
        events = batch(plan, [event(ship={"zip": "secret"})])
        hidden = pa.StructArray.from_arrays([pa.array(["secret"])], ["zip"], mask=pa.array([True]))
        columns = [hidden if field.name == "ship" else events.field(field.name) for field in events.type]

        outcome = apply(plan, pa.StructArray.from_arrays(columns, fields=list(events.type)))

        assert [{"n": 1, "ship": None}] == rows(outcome)
        assert 0 == outcome.counts["fields.ship.zip"]

    def test_entries_of_a_map_are_fields(self) -> None:
        plan = planned({"props{app.version}": {"truncate": 1}, "props{size}": "keep"}, {"props": {"type": "map", "values": "string"}})

        found = values(plan, [event(props={"app.version": "2.1", "size": None})], "props")

        assert [{"app.version": "2", "size": None}] == found

    def test_moved_leaves_stand_elsewhere_in_the_same_list(self) -> None:
        fields = {"items": listed(record("Item", {"price": record("Price", {"amount": "int", "unit": "string"})}))}
        plan = planned({"items[].price.amount": ["keep", {"move": "items[].cost"}], "items[].price.unit": "drop"}, fields)

        assert [[{"cost": 5}]] == values(plan, [event(items=[{"price": {"amount": 5}}])], "items")

    def test_taken_apart_and_written_to_siblings(self) -> None:
        rule = [
            {"parse": {"form": "{amount:number} {currency:text}"}},
            {"into": {"amount": {"round": 10}, "currency": {"allow": {"values": ["EUR"], "otherwise": "other"}}}},
        ]
        plan = planned({"items[].price": rule}, {"items": listed(record("Item", {"price": TEXT}))})
        prices = ["26 EUR", None, " 4.99 XXX "]

        (found,) = values(plan, [event(items=[{"price": price} for price in prices])], "items")

        expected = [{"amount": 30, "currency": "EUR"}, {"amount": None, "currency": None}, {"amount": 0, "currency": "other"}]
        assert expected == found


class TestTogether:
    def test_one_class_counts_over_two_lists_and_a_leaf_in_the_order_of_the_schema(self) -> None:
        rule = {"renumber": {"scope": "event", "class": "person"}}
        fields = {"to": listed(TEXT), "cc": listed(record("Copy", {"name": "string"}))}
        # The order of the rules in the policy does not count.
        plan = planned({"cc[].name": rule, "to[]": rule, "who": rule}, fields)
        events = [event(who="c", to=["a", None, "c", "b"], cc=[{"name": "b"}, {"name": "d"}]), event(who=None, to=["b"], cc=[])]

        expected = [
            {"who": 1, "n": 1, "to": [2, None, 1, 3], "cc": [{"name": 3}, {"name": 4}]},
            {"who": None, "n": 1, "to": [1], "cc": []},
        ]

        assert expected == rows(apply(plan, events))

    def test_a_chain_goes_on_behind_the_numbers(self) -> None:
        rule = [{"normalize": ["lower"]}, {"renumber": {"scope": "event"}}, {"bin": {"width": 2}}]
        plan = planned({"tags[]": rule}, {"tags": listed("string")})

        assert [["[0,2)", "[2,4)", "[0,2)", "[2,4)"]] == values(plan, [event(tags=["A", "b", "a", "C"])], "tags")

    def test_times_that_move_together_keep_their_distance(self) -> None:
        rule = {"shift": {"within": "2h", "per": "event", "together": "stay"}}
        kind = {"type": "long", "logicalType": "timestamp-micros"}
        plan = planned(
            {"came": rule, "went": rule, "else": {"shift": {"within": "2h", "per": "event"}}}, {"came": kind, "went": kind, "else": kind}
        )
        came = datetime(2024, 5, 6, 8, tzinfo=timezone.utc)
        events = [event(id=str(i), came=came, went=came + timedelta(hours=i), **{"else": came}) for i in range(20)]

        outcome = apply(plan, events)

        moved = [[row[name] for name in ("came", "went", "else")] for row in outcome.veiled.to_pylist()]
        assert [timedelta(hours=i) for i in range(20)] == [went - first for first, went, _ in moved]
        assert 20 == len({first for first, _, _ in moved})
        assert all(first != alone for first, _, alone in moved)


class TestRefusals:
    def test_the_earliest_reason_is_told_in_the_order_of_an_events_treatment(self) -> None:
        plan = planned(
            {"n": {"allow": {"values": [1]}}, "line": "drop"},
            {"line": TEXT},
            event="{time: at, id: line, subject: {first_of: [who], missing: refuse}}",
            more="unknown_fields: refuse",
        )
        worst = event(at="junk", line=None, who=None, n=2)
        events = [worst, worst, {**worst, "at": event()["at"]}, event(line="1", who=None, n=2), event(line="1", n=2), event(line="1")]

        outcome = apply(plan, events, drift={"?": np.array([0])})

        expected = [
            (0, "EV508", "?", "unknown_fields"),
            (1, "EV510", "at", "event.time"),
            (2, "EV512", "line", "event.id"),
            (3, "EV513", "who", "event.subject"),
            (4, "EV520", "n", "fields.n"),
        ]
        assert expected == refusals(outcome)
        day = int(datetime(2024, 5, 6, tzinfo=timezone.utc).timestamp()) * 1_000_000
        assert [None, None, day, day, day] == outcome.refused_windows.to_pylist()

    def test_of_two_rules_the_first_in_the_order_of_the_schema_is_told(self) -> None:
        # The policy's digest does not know the order of its rules: two policies with one digest refuse alike.
        allow = {"allow": {"values": ["x"]}}
        plans = [
            planned({**order, "n": {"allow": {"values": [7]}}}) for order in ({"id": allow, "who": allow}, {"who": allow, "id": allow})
        ]

        found = [refusals(apply(plan, [event()])) for plan in plans]

        assert plans[0].digest == plans[1].digest
        assert [[(0, "EV520", "id", "fields.id")]] * 2 == found

    def test_a_nested_element_refuses_its_event_and_no_other(self) -> None:
        plan = planned({"tags[]": {"allow": {"values": ["a"]}}}, {"tags": listed("string")})

        outcome = apply(plan, [event(tags=["a"]), event(tags=["a", "b", "c"]), event(tags=[])])

        assert [(1, "EV520", "tags[]", "fields.tags[]")] == refusals(outcome)
        assert [["a"], []] == outcome.veiled.column("tags").to_pylist()

    def test_a_step_of_a_chain_is_told_by_its_place(self) -> None:
        plan = planned({"who": [{"normalize": ["lower"]}, {"cast": "int32"}, "keep"]})

        assert [(0, "EV524", "who", "fields.who[1]")] == refusals(apply(plan, [event()]))

    def test_drift_is_counted_and_the_event_passes(self) -> None:
        outcome = apply(planned(), [event(), event(), event()], drift={"?": np.array([0, 2]), "items[].?": np.array([], np.int64)})

        assert (3, {"?": 2}) == (outcome.veiled.num_rows, outcome.drift)


class TestCounts:
    def test_values_are_counted_by_their_place_and_so_is_otherwise(self) -> None:
        rule = [{"truncate": 3}, {"allow": {"values": ["ann"], "otherwise": "nullify"}}]
        plan = planned({"who": rule, "tags[]": {"mask": {}}}, {"tags": listed("string")})

        outcome = apply(plan, [event(who="anna", tags=["a", "b"]), event(who="bobby", tags=[]), event(who=None, tags=["c"])])

        assert {
            "fields.who[0]": 2,
            "fields.who[1]": 2,
            "fields.who[1] otherwise": 1,
            "fields.n": 3,
            "fields.tags[]": 3,
        } == outcome.counts


EVERYTHING = {
    "id": {"pseudonymize": {"class": "order"}},
    "at": [{"shift": {"within": "1h", "per": "event"}}, {"floor": "1min"}],
    "who": {"into": {"person": {"pseudonymize": {"class": "person", "prf": "aes-cmac"}}, "start": {"truncate": 1}}},
    "n": {"noise": {"laplace_scale": 2, "per": "event", "null": 0}},
    "tags[]": {"renumber": {"scope": "event"}},
    "items[].price": [
        {"parse": {"form": "{amount:number} {currency:text}", "otherwise": "nullify"}},
        {"into": {"amount": {"round": 10}, "currency": {"allow": {"values": ["EUR"], "otherwise": "other"}}}},
    ],
    "items[].kind": {"randomize": {"epsilon": 1, "per": "event", "choices": ["a", "b", "c"]}},
}
FIELDS = {"tags": listed(TEXT), "items": ["null", listed(record("Item", {"price": TEXT, "kind": "string"}))]}


def everything() -> tuple[Plan, list[dict[str, Any]]]:
    """A plan with most kinds of rules, and events some of which it refuses."""
    events = []
    for i in range(60):
        items = (
            None
            if i % 9 == 0
            else [{"price": f"{i * j}.5 EUR" if j else None, "kind": "abcd"[(i + j) % 4 if i % 7 == 0 else j]} for j in range(i % 4)]
        )
        at = "junk" if i % 11 == 10 else (datetime(2024, 5, 1) + timedelta(hours=5 * i)).isoformat()
        tags = [[None, "x", "y", "z"][(i * j) % 4] for j in range(i % 5)]
        events.append(
            event(
                id=f"order {i}", at=at, who=None if i % 6 == 0 else f"person {i % 10}", n=None if i % 8 == 0 else i, tags=tags, items=items
            )
        )
    return planned(EVERYTHING, FIELDS, event="{time: at, id: id, subject: who}"), events


class TestWhatABatchIsDoesNotShow:
    def test_an_empty_batch_gives_an_empty_batch(self) -> None:
        plan, _ = everything()

        outcome = apply(plan, [])

        assert (0, 0, []) == (outcome.veiled.num_rows, outcome.filtered, refusals(outcome))

    def test_a_batch_of_refused_events_gives_an_empty_batch(self) -> None:
        plan, events = everything()

        outcome = apply(plan, [{**one, "at": "junk"} for one in events])

        assert (0, 60) == (outcome.veiled.num_rows, len(outcome.refused_rows))

    @pytest.mark.parametrize("size", [1, 7])
    def test_rows_are_treated_as_alone(self, size: int) -> None:
        plan, events = everything()
        whole = apply(plan, events)

        parts = [apply(plan, events[start : start + size]) for start in range(0, len(events), size)]

        assert 5 < len(whole.codes) < 30
        assert whole.veiled.to_pylist() == [row for part in parts for row in part.veiled.to_pylist()]
        told = [(row + start * size, *why) for start, part in enumerate(parts) for row, *why in refusals(part)]
        assert refusals(whole) == told
        for name, number in whole.counts.items():
            assert sum(part.counts.get(name, 0) for part in parts) == number

    def test_a_slice_is_treated_as_its_rows(self) -> None:
        plan, events = everything()

        sliced = apply(plan, batch(plan, events).slice(13, 31))

        alone = apply(plan, events[13:44])
        assert alone.veiled.to_pylist() == sliced.veiled.to_pylist()
        assert refusals(alone) == refusals(sliced)

    def test_order_does_not_matter(self) -> None:
        plan, events = everything()

        forwards, backwards = apply(plan, events).veiled.to_pylist(), apply(plan, events[::-1]).veiled.to_pylist()

        assert forwards == backwards[::-1]

    def test_one_veil_treats_a_batch_twice_alike(self) -> None:
        plan, events = everything()
        veil = plan.bind(HeldKeys(ROOT))
        given = batch(plan, events)
        before = given.to_pylist()

        assert veil.apply(given).veiled.equals(veil.apply(given).veiled)
        assert before == given.to_pylist()

    def test_another_key_is_another_output(self) -> None:
        plan, events = everything()

        one, other = (apply(plan, events, root=root).veiled for root in (ROOT, bytes(32)))

        assert not set(one.column("id").to_pylist()) & set(other.column("id").to_pylist())
        assert one.column("n").to_pylist() != other.column("n").to_pylist()


class TestPlan:
    def test_survives_pickling_and_gives_the_same_output(self) -> None:
        plan, events = everything()

        again = pickle.loads(pickle.dumps(plan))

        assert plan == again
        assert apply(plan, events).veiled.equals(apply(again, events).veiled)

    def test_holds_no_key_even_after_it_was_bound(self) -> None:
        plan, events = everything()
        root = b"a root of thirty-two bytes here!"
        keys = HeldKeys(root)
        plan.bind(keys).apply(batch(plan, events))

        pickled = pickle.dumps(plan)

        secrets = [root, keys.domain("d").for_domain("order"), keys.domain("d").for_domain("release", plan.schema.name)]
        assert not [secret for secret in secrets for start in range(25) if secret[start : start + 8] in pickled]

    def test_says_what_it_writes(self) -> None:
        plan, events = everything()

        assert apply(plan, events).veiled.schema == plan.veiled_schema
        assert [*plan.output_schema.names, "$order", "$window"] == plan.veiled_schema.names

    def test_a_veil_refuses_to_be_pickled_and_shows_no_key(self) -> None:
        veil = everything()[0].bind(HeldKeys(ROOT))

        with pytest.raises(TypeError, match="never pickled"):
            pickle.dumps(veil)
        assert ROOT.hex() not in repr(vars(veil))


def test_a_small_batch_takes_less_than_five_milliseconds() -> None:
    plan = planned(
        {
            "at": {"floor": "1min"},
            "who": {"pseudonymize": {"class": "person"}},
            "n": {"noise": {"laplace_scale": 1, "per": "event"}},
            "tags[]": {"truncate": 2},
        },
        {"tags": listed("string")},
    )
    veil = plan.bind(HeldKeys(ROOT))
    given = batch(plan, [event(id=str(i), who=f"w{i}", tags=["abc"] * (i % 4)) for i in range(100)])

    def seconds() -> float:
        began = time.process_time()
        veil.apply(given)
        return time.process_time() - began

    seconds()
    assert min(seconds() for _ in range(20)) < 0.005


class TestRecordsThatAreMissing:
    ROW = record("Row", {"v": "int", "w": NUMBER})

    def test_where_the_record_is_missing_there_is_no_value_to_refuse(self) -> None:
        # An insert has no row before it: that is not a null under noise, which would be refused.
        fields = {"before": ["null", self.ROW], "after": ["null", record("After", {"v": "int", "w": NUMBER})]}
        noise = {"noise": {"laplace_scale": 1, "per": "event", "clamp_output": {"min": 100}}}
        plan = planned({"before|after.v": noise, "before|after.w": {"replace": {"with": 7}}, "n": "drop"}, fields)
        row = {"v": 1, "w": None}

        outcome = apply(plan, [event(before=None, after=row), event(id="b", before=row, after=None)])

        assert [] == outcome.codes
        assert [{"before": None, "after": {"v": 100, "w": 7}}, {"before": {"v": 100, "w": 7}, "after": None}] == rows(outcome)
        assert 1 == outcome.counts["fields.before.v"] == outcome.counts["fields.after.v"]

    def test_a_null_in_a_record_that_is_there_is_still_refused(self) -> None:
        noise = {"noise": {"laplace_scale": 1, "per": "event"}}
        plan = planned({"row.v": "keep", "row.w": noise}, {"row": ["null", self.ROW]})

        outcome = apply(plan, [event(row=None), event(row={"v": 1, "w": None}), event(row={"v": 1, "w": 2})])

        assert [(1, "EV526", "row.w", "fields.row.w")] == refusals(outcome)

    def test_in_lists_the_rows_and_elements_stay_with_their_values(self) -> None:
        row = record("Item", {"row": ["null", self.ROW]})
        noise = {"noise": {"laplace_scale": 5, "per": "event"}}
        plan = planned({"items[].row.v": noise, "items[].row.w": "drop", "n": "drop"}, {"items": listed(row)})
        there, missing = {"row": {"v": 1, "w": None}}, {"row": None}

        outcome = apply(plan, [event(items=[missing, there, missing, there]), event(items=[there] * 4)])

        (first, second) = rows(outcome)
        # The same event id and the same element: the same draw, whatever is missing before it.
        assert [None, None] == [first["items"][at]["row"] for at in (0, 2)]
        assert [first["items"][at] for at in (1, 3)] == [second["items"][at] for at in (1, 3)]

    def test_a_leaf_moved_into_such_a_record_is_a_build_error(self) -> None:
        with pytest.raises(SchemaError, match="EV216 n is moved into row, which may be missing"):
            planned({"row.v": "keep", "row.w": "drop", "n": ["keep", {"move": "row.n"}]}, {"row": ["null", self.ROW]})


class TestAStream:
    """What a veil does by the clock that a batch is marked with."""

    NOON = int(datetime(2024, 5, 6, 12, tzinfo=timezone.utc).timestamp() * 1_000_000)
    HOUR = 3_600_000_000

    def apply(self, plan: Plan, *times: str, clock: Clock, appended: Any = None, roll: str | None = None) -> Outcome:
        events = pa.array([event(id=str(row), at=at) for row, at in enumerate(times)], decoded_type(plan.schema, plan.used))
        rule = None if roll is None else WindowRule(Duration.parse(roll))
        return plan.bind(HeldKeys(ROOT), rule).apply(events, clock=clock, appended=appended)

    def test_what_is_dated_too_far_ahead_is_refused(self) -> None:
        outcome = self.apply(
            planned(), "2024-05-06T13:00:00Z", "2024-05-06T13:00:00.000001Z", "2500-01-01T00:00:00Z", clock=Clock(None, self.NOON)
        )

        assert [1, 2] == outcome.refused_rows.tolist()
        assert ["EV514"] * 2 == outcome.codes
        assert ["at"] * 2 == outcome.paths
        assert self.NOON + self.HOUR == outcome.latest

    def test_the_broker_s_time_counts_before_the_clock(self) -> None:
        appended = pa.array([self.NOON - 2 * self.HOUR, None], pa.timestamp("us", "UTC"))

        outcome = self.apply(planned(), "2024-05-06T12:00:00Z", "2024-05-06T12:00:00Z", clock=Clock(None, self.NOON), appended=appended)

        assert [0] == outcome.refused_rows.tolist()

    def test_max_ahead_is_the_policy_s(self) -> None:
        plan = planned(event="{time: at, id: id, max_ahead: 1s}")

        assert ["EV514"] == self.apply(plan, "2024-05-06T12:00:02Z", clock=Clock(None, self.NOON)).codes

    def test_without_a_clock_nothing_is_ahead(self) -> None:
        assert [] == self.apply(planned(), "2500-01-01T00:00:00Z", clock=Clock()).codes

    def test_late_is_what_comes_for_a_closed_window_of_a_release_model(self) -> None:
        rules = {"who": {"renumber": {"scope": "window"}}}
        plan = planned(rules, window="{keys: 1d, release: 1h}", more="allowed_lateness: 10min")
        closed = self.NOON + 10 * 60_000_000

        before = self.apply(plan, "2024-05-06T11:59:59Z", "2024-05-06T12:00:00Z", clock=Clock(closed - 1, None))
        after = self.apply(plan, "2024-05-06T11:59:59Z", "2024-05-06T12:00:00Z", clock=Clock(closed, None))

        assert [] == before.codes
        assert ["EV518"] == after.codes
        assert [0] == after.refused_rows.tolist()

    def test_without_a_release_model_nothing_is_late(self) -> None:
        assert [] == self.apply(planned(), "1999-01-01T00:00:00Z", clock=Clock(self.NOON, self.NOON)).codes

    def test_a_roll_is_told_beside_the_window(self) -> None:
        veiled = self.apply(planned(), "2024-05-06T12:34:56Z", "2024-05-06T23:00:00Z", clock=Clock(), roll="10min").veiled

        assert [self.NOON + 30 * 60_000_000, self.NOON + 11 * self.HOUR] == veiled.column("$roll").to_pylist()
        assert [self.NOON - 12 * self.HOUR] * 2 == veiled.column("$window").to_pylist()

    def test_the_latest_is_of_what_was_accepted(self) -> None:
        assert self.apply(planned(), "2500-01-01T00:00:00Z", clock=Clock(None, self.NOON)).latest is None
