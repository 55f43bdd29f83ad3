"""Where time, id, subject and consent of an event stand, and whether the schema lets them be read there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from eventveil.schemas.errors import did_you_mean
from eventveil.schemas.events.paths import EACH, parse_path
from eventveil.schemas.events.tree import Leaf
from eventveil.schemas.policy import Policy
from eventveil.transforms._places import Place, Steps, names_of
from eventveil.transforms.plan import POSITION, EventAccess

__all__ = ["EventFields", "event_steps"]


class EventFields:
    """Resolves what stands under `event` against the schema."""

    def __init__(self, policy: Policy, schema: str, places: Mapping[Steps, Place], fail: Callable[..., None]) -> None:
        self.policy = policy
        self.schema = schema
        self.places = places
        self.leaves = [place for place in places.values() if isinstance(place.node, Leaf)]
        self.fail = fail

    def access(self) -> EventAccess:
        policy = self.policy
        times = [self._event_leaf(text, "time") for text in (policy.time.field if policy.time else ())]
        unit = policy.time.unit if policy.time else None
        zone = policy.time.zone if policy.time else "UTC"
        for place in times:
            if place is not None:
                self._check_time(place, unit)
        self._check_unit([place for place in times if place is not None], unit)
        positioned = policy.id == (POSITION,)
        ids = [] if positioned else [self._event_leaf(text, "id") for text in policy.id]
        subject = policy.subject
        subjects = [self._event_leaf(text, "subject") for text in (subject.paths if subject else ())]
        only_if = []
        for text, values in policy.only_if:
            place = self._event_leaf(text, "only_if")
            if place is not None:
                self._check_values(place, values)
                only_if.append((names_of(place.steps), values))
        if policy.type is not None:
            self._check_type(self._event_leaf(policy.type.field, "type"))
        return EventAccess(
            times=tuple(names_of(place.steps) for place in times if place is not None),
            time_unit=unit,
            zone=zone,
            ids=((POSITION,),) if positioned else tuple(names_of(place.steps) for place in ids if place is not None),
            subjects=tuple(names_of(place.steps) for place in subjects if place is not None),
            first_of=bool(subject and subject.first_of),
            missing_subject=subject.missing if subject else None,
            only_if=tuple(only_if),
        )

    def _event_leaf(self, text: str, entry: str) -> Place | None:
        path = parse_path(text)
        line = self.policy.line_of("event", entry)
        place = self.places.get(path.steps) if path is not None else None
        if place is None or not isinstance(place.node, Leaf):
            names = [str(leaf) for leaf in self.leaves if EACH not in leaf.steps]
            self.fail("EV204", f"event.{entry}: {text} is no field of {self.schema}", did_you_mean(text, names), line)
            return None
        if EACH in place.steps:
            self.fail("EV204", f"event.{entry}: {text} stands in a list", "name a field that an event has once", line)
            return None
        return place

    def _check_time(self, place: Place, unit: str | None) -> None:
        assert isinstance(place.node, Leaf)
        given = place.node.type
        line = self.policy.line_of("event", "time")
        if _is_number(given):
            if unit is None:
                self.fail("EV210", f"event.time: {place} is a number without a unit", "write {field: .., unit: s|ms|us|ns}", line)
        elif not (pa.types.is_string(given) or pa.types.is_timestamp(given) or pa.types.is_date(given)):
            self.fail("EV210", f"event.time: {place} is {given}, not a time", line=line)

    def _check_unit(self, places: Sequence[Place], unit: str | None) -> None:
        """A unit is for numbers: of several fields one may be such, and the others not."""
        if unit is None or not places or any(isinstance(place.node, Leaf) and _is_number(place.node.type) for place in places):
            return
        types = ", ".join(f"{place} is {place.node.type}" for place in places if isinstance(place.node, Leaf))
        self.fail("EV217", f"event.time: unit {unit} is for numbers, and {types}", "remove unit", self.policy.line_of("event", "time"))

    def _check_type(self, place: Place | None) -> None:
        if place is None:
            return
        assert isinstance(place.node, Leaf)
        line = self.policy.line_of("event", "type")
        if not pa.types.is_string(place.node.type):
            self.fail("EV103", f"event.type: {place} is {place.node.type}, not text", "name a text field", line)
        elif names_of(place.steps) != place.steps:
            self.fail("EV111", f"event.type: {place} stands in a map", "name a field of a record", line)

    def _check_values(self, place: Place, values: Sequence[object]) -> None:
        assert isinstance(place.node, Leaf)
        given = place.node.type
        if not all(_fits(value, given) for value in values):
            fact = f"event.only_if: {place} is {given}, and a value listed is not"
            self.fail(
                "EV103",
                fact,
                "compare text with text, true with a boolean, a number with an integer",
                self.policy.line_of("event", "only_if"),
            )
            return
        symbols = place.node.symbols
        strange = [value for value in values if symbols and value not in symbols]
        if strange:
            fact = f"event.only_if: '{strange[0]}' is no symbol of {place}"
            self.fail("EV103", fact, did_you_mean(str(strange[0]), symbols), self.policy.line_of("event", "only_if"))


def _is_number(given: pa.DataType) -> bool:
    return bool(pa.types.is_integer(given) or pa.types.is_floating(given))


def _fits(value: Any, given: pa.DataType) -> bool:
    """Whether a leaf of this type can have the value: text is compared with text, and true is no number."""
    kind = bool if pa.types.is_boolean(given) else int if pa.types.is_integer(given) else str if pa.types.is_string(given) else None
    if type(value) is not kind:
        return False
    try:
        pa.scalar(value, given)
    except (pa.ArrowInvalid, OverflowError):
        return False
    return True


def event_steps(policy: Policy) -> list[Steps]:
    """Paths under `event`: they too may name entries of maps."""
    texts = [*(policy.time.field if policy.time else ()), *policy.id, *(policy.subject.paths if policy.subject else ())]
    texts += [path for path, _ in policy.only_if] + ([policy.type.field] if policy.type else [])
    return [path.steps for path in map(parse_path, texts) if path is not None]
