"""A source must find the same event times as the veil: here both are asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from eventveil.transforms.batch import Clock
from eventveil.transforms.compile import load_plan
from eventveil.transforms.decode.json_events import JsonDecoder
from eventveil.transforms.event_times import accepted_times, least_latest
from eventveil.transforms.keys.keyring import load_keys
from eventveil.transforms.keys.providers.keyring_file import new_keyring
from eventveil.transforms.plan import Plan

SECOND = 1_000_000
NOW = 1_700_000_000 * SECOND
NULLABLE = ["null", "string"]
FIELDS = [
    {"name": "time", "type": NULLABLE},
    {"name": "sent", "type": NULLABLE},
    {"name": "other", "type": ["null", "long"]},
    {"name": "kind", "type": "string"},
    {"name": "agreed", "type": ["null", "boolean"]},
]


@pytest.fixture
def plan(tmp_path: Path) -> Any:
    def make(event: str) -> Plan:
        (tmp_path / "event.avsc").write_text(json.dumps({"type": "record", "name": "Event", "fields": FIELDS}))
        text = f"policy: p\nversion: 1\nschema: event.avsc\ndomain: d\nwindow: 1d\nevent: {event}\n"
        fields = "fields:\n  time: drop\n  sent: drop\n  other: drop\n  agreed: drop\n  kind: {keep: {because: test}}\n"
        (tmp_path / "policy.yaml").write_text(text + fields)
        return load_plan(tmp_path / "policy.yaml")

    return make


@pytest.fixture
def keys(tmp_path: Path) -> Any:
    new_keyring(tmp_path / "keys.json")
    return load_keys(str(tmp_path / "keys.json"))


EVENTS = [
    {"time": "2023-11-14T22:13:20Z", "kind": "a", "agreed": True},
    {"time": "2023-11-14T23:13:20Z", "kind": "a", "agreed": True},
    {"time": "2023-11-14T23:13:21Z", "kind": "a", "agreed": True},
    {"time": "2023-11-14T22:14:20Z", "kind": "b", "agreed": True},
    {"time": "2023-11-14T22:15:20Z", "kind": "a", "agreed": False},
    {"time": "2023-11-14T22:16:20Z", "kind": "a"},
    {"time": None, "kind": "a", "agreed": True},
    {"time": "no time", "kind": "a", "agreed": True},
    {"time": "2999-01-01T00:00:00Z", "kind": "b", "agreed": False},
]


@pytest.mark.parametrize("count", range(1, len(EVENTS) + 1))
@pytest.mark.parametrize(
    "event",
    [
        pytest.param("{time: time}", id="time"),
        pytest.param("{time: time, max_ahead: 1d}", id="ahead"),
        pytest.param("{time: time, only_if: {agreed: [true]}}", id="consent"),
        pytest.param("{time: time, type: {field: kind, is: a}}", id="type"),
    ],
)
def test_the_highest_is_the_veils(event: str, count: int, plan: Any, keys: Any) -> None:
    made = plan(event)
    lines = pa.array([json.dumps(one).encode() for one in EVENTS[:count]], pa.binary())
    events = JsonDecoder(made.schema, made.used).decode(lines).events

    found = accepted_times(made, events, NOW)

    expected = made.bind(keys).apply(events, clock=Clock(None, NOW)).latest
    assert expected == (int(found.max()) if len(found) else None)


def test_the_broker_says_when_an_event_came(plan: Any) -> None:
    made = plan("{time: {field: other, unit: s}}")
    events = pa.array([{"other": 10_000}, {"other": 10_000}], pa.struct([("other", pa.int64())]))
    appended = pa.array([6_399 * SECOND, None], pa.timestamp("us", "UTC"))

    assert [10_000 * SECOND] == accepted_times(made, events, 10_000 * SECOND, appended).tolist()


def test_the_first_field_that_is_there_decides(plan: Any) -> None:
    made = plan("{time: [time, sent]}")
    told = [(None, "1970-01-01T00:00:01Z"), ("1970-01-01T00:00:02Z", "1970-01-01T00:00:09Z"), ("no time", "1970-01-01T00:00:09Z")]
    events = pa.array([{"time": time, "sent": sent} for time, sent in told], pa.struct([("time", pa.string()), ("sent", pa.string())]))

    assert [SECOND, 2 * SECOND] == accepted_times(made, events, NOW).tolist()


def test_of_several_policies_the_least_counts(plan: Any) -> None:
    first, second = plan("{time: time}"), plan("{time: {field: other, unit: s}}")
    kind = pa.struct([("time", pa.string()), ("other", pa.int64())])
    events = pa.array([{"time": "1970-01-01T00:00:09Z", "other": 4}, {"time": "1970-01-01T00:00:07Z", "other": 5}], kind)

    assert (4 * SECOND, 5 * SECOND) == least_latest([first, second], events, NOW)
    assert least_latest([first], events.slice(0, 0), NOW) is None
