"""The policy: what happens to every field of one type of event, for whom, and why. No addresses, no secrets.

The grammar of all but the rules stands here as pydantic models. Rules are read into chains of steps; which operators exist and
what their parameters mean is not known here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, ValidationError, WithJsonSchema, model_validator

from eventveil.schemas._rules import LATER, STREAM_PATHS, Chains, RuleDoc, StepDoc, canonical_chain, parse_chain, read_rules
from eventveil.schemas.document import Mapping, kind, line_at, parse_document, read_document_text, shown
from eventveil.schemas.durations import Duration
from eventveil.schemas.errors import PolicyError, Problem
from eventveil.schemas.events.paths import EACH, is_of_stream, is_stream_leaf, parse_path
from eventveil.schemas.grammar import Form, Later, Name, Text, Zone, empties, explain, form_of, published

__all__ = [
    "LATER",
    "Policy",
    "Reading",
    "RecipientDoc",
    "RuleDoc",
    "Scalar",
    "StepDoc",
    "SubjectDoc",
    "TimeDoc",
    "TypeDoc",
    "WindowDoc",
    "load_policy",
    "parse_chain",
    "parse_policy",
    "policy_json_schema",
    "read_policy",
]

Scalar: TypeAlias = bool | int | float | str

POSITION = "$position"
"""As `event.id`: where the event came from, for events that carry no id."""

_DAY_US = 86_400_000_000
_MOST_YEARS = 1_000
_OF_A_CLOCK = ("s", "min", "h")


# --- what a policy says -------------------------------------------------------------------------------------------------------


class RecipientDoc(Form):
    """Who receives the output, for what, on which ground, for how long, and who answers for it."""

    recipient: Text | None = Field(default=None, description="who receives the output")
    purpose: Text | None = Field(default=None, description="what it is used for")
    basis: Text | None = Field(default=None, description="the legal basis")
    retention: Duration | None = Field(default=None, description="how long the recipient keeps it, as 2y")
    owner: Text | None = Field(default=None, description="who answers questions about this policy")


@dataclass(frozen=True)
class TimeDoc:
    """Where the event time stands: the first of the paths that has a value.

    Attributes:
        unit: of epoch numbers; None where the field is text or a timestamp.
        zone: the zone of local times.
    """

    field: tuple[str, ...]
    unit: Literal["s", "ms", "us", "ns"] | None = None
    zone: str = "UTC"


@dataclass(frozen=True)
class SubjectDoc:
    """Whose privacy it is.

    Attributes:
        first_of: whether the first path with a value is the subject; otherwise all of them together are.
        missing: what happens to events without one; None where the policy does not say.
    """

    paths: tuple[str, ...]
    first_of: bool = False
    missing: Literal["refuse", "unprotected"] | None = None


@dataclass(frozen=True)
class TypeDoc:
    """Which events the policy is for: those of which `field` is `is_`. It may be a header, as ``$headers.name``, or ``$topic``."""

    field: str
    is_: str


@dataclass(frozen=True)
class WindowDoc:
    """How long a key lives and how long events are gathered; both None where the policy names no window."""

    keys: Duration | None = None
    release: Duration | None = None
    zone: str = "UTC"
    life: Literal["derived"] = "derived"


@dataclass(frozen=True)
class Policy:
    """A policy that is right in itself. Whether it fits its event schema is judged when it is compiled.

    Attributes:
        schema_file: the event schema, as written; relative to the policy's file.
        id: paths whose values name the event together; ``("$position",)`` for where it came from; empty where not named.
        only_if: path -> values; all must hold.
        document: the policy as written, with its positions.
    """

    name: str
    version: int
    for_: RecipientDoc
    schema_file: str
    domain: str
    time: TimeDoc | None
    id: tuple[str, ...]
    subject: SubjectDoc | None
    type: TypeDoc | None
    only_if: tuple[tuple[str, tuple[Scalar, ...]], ...]
    max_ahead: Duration
    window: WindowDoc
    allowed_lateness: Duration | None
    unknown_fields: Literal["drop", "refuse"]
    order: Literal["keyed", "keep"]
    tombstones: Literal["drop"]
    rules: tuple[RuleDoc, ...]
    file: str = field(compare=False)
    text: str = field(compare=False, repr=False)
    document: Mapping = field(compare=False, repr=False)

    def line_of(self, *keys: str | int) -> int:
        """The line of an entry, as ``line_of("event", "time")``; 0 if it is not there."""
        found: Any = self.document
        try:
            for key in keys:
                found = found[key]
        except (LookupError, TypeError):
            return 0
        return line_at(self.document, keys)

    def canonical(self) -> str:
        """What the policy says as canonical JSON: without comments, order of keys, formatting, and short forms."""
        return json.dumps(
            {
                "policy": self.name,
                "version": self.version,
                "for": {name: str(value) for name, value in self.for_ if value is not None},
                "schema": self.schema_file,
                "domain": self.domain,
                "event": {
                    "time": self.time and [self.time.field, self.time.unit, self.time.zone],
                    "id": self.id,
                    "subject": self.subject and [self.subject.paths, self.subject.first_of, self.subject.missing],
                    "type": self.type and [self.type.field, self.type.is_],
                    "only_if": {path: sorted(values, key=lambda value: (type(value).__name__, value)) for path, values in self.only_if},
                    "max_ahead": str(self.max_ahead),
                },
                "window": {
                    "keys": self.window.keys and str(self.window.keys),
                    "release": self.window.release and str(self.window.release),
                    "zone": self.window.zone,
                    "life": self.window.life,
                },
                "allowed_lateness": self.allowed_lateness and str(self.allowed_lateness),
                "unknown_fields": self.unknown_fields,
                "order": self.order,
                "fields": {rule.text: canonical_chain(rule.steps) for rule in self.rules},
            },
            ensure_ascii=False,
            allow_nan=False,
            sort_keys=True,
            separators=(",", ":"),
        )


# --- its grammar, but for the rules -------------------------------------------------------------------------------------------


def _check_event_path(text: str) -> str:
    if not text.strip():
        raise ValueError("EV107")
    path = parse_path(text)
    if path is None or text == POSITION:
        raise ValueError("EV110 not a path: write it as a.b or a{key}")
    if is_of_stream(path) and not is_stream_leaf(path):
        raise ValueError(f"EV110 not a path: {STREAM_PATHS}")
    if path.star or EACH in path.steps:
        raise ValueError("EV110 this path may name many values: write the path of one value per event")
    return text


def _check_id_path(text: str) -> str:
    return text if text == POSITION else _check_event_path(text)


def _check_distinct(values: list[Any]) -> list[Any]:
    for number, value in enumerate(values):
        if any(type(value) is type(other) and value == other for other in values[:number]):
            raise ValueError(f"EV103 {shown(value)} stands twice: write it once")
    return values


def _check_scalar(value: Any) -> Any:
    if value is None:
        raise ValueError("EV103 null never matches: write the values that do")
    if form_of(value) != "<text>":
        raise ValueError(f"EV103 {kind(value)} is no value to compare with: write text, a number, true or false")
    return value


def _check_any(entries: dict[str, Any]) -> dict[str, Any]:
    if not entries:
        raise ValueError("EV107")
    return entries


def _later_tombstones(value: Any) -> Any:
    if value == "pass_key":
        raise ValueError("EV111 not available yet: write drop, or leave it out")
    return value


def _later_life(value: Any) -> Any:
    if isinstance(value, str) and value in ("ratchet", "kms"):
        raise ValueError("EV111 not available yet: write derived, or leave it out")
    return value


_EventPath = Annotated[str, AfterValidator(_check_event_path)]
_EventPaths = Annotated[list[_EventPath], Field(min_length=1), AfterValidator(_check_distinct)]
_Scalar = Annotated[Any, BeforeValidator(_check_scalar), WithJsonSchema({"type": ["string", "number", "boolean"]})]
_PathOrPaths = Annotated[
    Annotated[_EventPath, Tag("<text>")] | Annotated[_EventPaths, Tag("<list>")],
    Discriminator(lambda value: "<list>" if isinstance(value, list) else "<text>"),
]


_OnlyIf = Annotated[
    dict[_EventPath, Annotated[list[_Scalar], Field(min_length=1), AfterValidator(_check_distinct)]],
    AfterValidator(_check_any),
]


class TimeForm(Form):
    field: _PathOrPaths = Field(description="the path of the event time, or several: the first that has a value")
    unit: Literal["s", "ms", "us", "ns"] | None = Field(default=None, description="the unit of epoch numbers")
    zone: Zone = Field(default="UTC", description="the time zone of local times")

    def settled(self) -> TimeDoc:
        return TimeDoc(_tuple(self.field), self.unit, self.zone)


class SubjectForm(Form):
    paths: _PathOrPaths | None = Field(default=None, description="paths whose values are the subject together")
    first_of: _EventPaths | None = Field(default=None, description="paths of which the first with a value is the subject")
    missing: Literal["refuse", "unprotected"] | None = Field(default=None, description="what happens to an event without a subject")

    @model_validator(mode="after")
    def _check_one(self) -> SubjectForm:
        if self.paths is None and self.first_of is None:
            raise ValueError("EV104 no path is named: write paths or first_of")
        if self.paths is not None and self.first_of is not None:
            raise ValueError("EV103 both paths and first_of stand here: write one of them")
        return self

    def settled(self) -> SubjectDoc:
        if self.first_of is not None:
            return SubjectDoc(tuple(self.first_of), True, self.missing)
        return SubjectDoc(_tuple(self.paths), False, self.missing)


def _check_header(text: str) -> str:
    path = parse_path(f"$headers.{text}")
    if path is None or path.steps != ("$headers", text):
        raise ValueError("EV103 no name of a header: write it without brackets and stars")
    return text


class TypeForm(Form):
    field: _EventPath | None = Field(default=None, description="the path of the event's type")
    header: Annotated[Text, AfterValidator(_check_header)] | None = Field(
        default=None, description="the header that names the event's type"
    )
    topic: Literal[True] | None = Field(default=None, description="true: the topic is the event's type")
    is_: Text = Field(alias="is", description="the type that this policy is for")

    @model_validator(mode="after")
    def _check_one(self) -> TypeForm:
        named = [name for name in ("field", "header", "topic") if getattr(self, name) is not None]
        if not named:
            raise ValueError("EV104 the field of the type is missing: write {field: path, is: type}, header: name, or topic: true")
        if len(named) > 1:
            raise ValueError(f"EV103 both {named[0]} and {named[1]} name the type: write one of them")
        return self

    def settled(self) -> TypeDoc:
        return TypeDoc("$topic" if self.topic else f"$headers.{self.header}" if self.field is None else self.field, self.is_)


class EventForm(Form):
    time: (
        Annotated[
            Annotated[_EventPath, Tag("<text>")] | Annotated[_EventPaths, Tag("<list>")] | Annotated[TimeForm, Tag("<mapping>")],
            Discriminator(form_of),
        ]
        | None
    ) = Field(default=None, description="the event time: decides the window")
    id: (
        Annotated[
            Annotated[str, AfterValidator(_check_id_path), Tag("<text>")] | Annotated[_EventPaths, Tag("<list>")],
            Discriminator(lambda value: "<list>" if isinstance(value, list) else "<text>"),
        ]
        | None
    ) = Field(default=None, description="unique per event: makes noise the same on every replay; $position where events have none")
    subject: (
        Annotated[
            Annotated[_EventPath, Tag("<text>")] | Annotated[_EventPaths, Tag("<list>")] | Annotated[SubjectForm, Tag("<mapping>")],
            Discriminator(form_of),
        ]
        | None
    ) = Field(default=None, description="whose privacy it is")
    type: TypeForm | None = Field(default=None, description="which events this policy is for")
    only_if: _OnlyIf | None = Field(
        default=None, description="values that must all hold: others are counted and leave no trace", json_schema_extra={"minProperties": 1}
    )
    max_ahead: Duration = Field(
        default=Duration(1, "h"), description="how far ahead of its arrival an event may be dated", json_schema_extra={"default": "1h"}
    )


def _check_window_length(length: Duration) -> Duration:
    # Longer ones reach beyond the instants that can be counted.
    if (length.months or 0) > 12 * _MOST_YEARS or (length.fixed_us or 0) > _MOST_YEARS * 366 * _DAY_US:
        raise ValueError(f"EV103 a window is not so long: write {_MOST_YEARS}y or less")
    return length


_WindowLength = Annotated[Duration, AfterValidator(_check_window_length)]


class WindowForm(Form):
    keys: _WindowLength | None = Field(default=None, description="how long a key lives: pseudonyms join within it")
    release: _WindowLength | None = Field(default=None, description="how long events are gathered; it divides `keys`")
    zone: Zone = Field(default="UTC", description="the time zone of days, weeks, months and years")
    life: Annotated[Literal["derived"], BeforeValidator(_later_life)] = Field(default="derived", description="how keys live and die")

    @model_validator(mode="after")
    def _check_boundaries(self) -> WindowForm:
        if self.keys is None and self.release is None:
            raise ValueError("EV104 no length is named: write keys, release, or both")
        if self.keys is None or self.release is None:
            return self
        if not _ends_with(self.keys, self.release):
            raise ValueError(
                f"EV103 a key of {self.keys} does not end where a window of {self.release} ends: "
                "write a release that divides keys; weeks begin on Monday, and months are made of days"
            )
        # By the clock's hours one is counted from an instant, by the calendar the other from midnights; offsets and summer time part them.
        if self.zone != "UTC" and (self.keys.unit in _OF_A_CLOCK) != (self.release.unit in _OF_A_CLOCK):
            raise ValueError(
                f"EV103 in {self.zone} a key of {self.keys} does not always end where a window of {self.release} ends: "
                "write both in whole days or longer, or zone: UTC"
            )
        return self

    def settled(self) -> WindowDoc:
        return WindowDoc(self.keys or self.release, self.release or self.keys, self.zone, self.life)


def _ends_with(keys: Duration, release: Duration) -> bool:
    """Whether every boundary of `keys` is one of `release`."""
    day = _DAY_US
    if keys.months is not None:
        if release.months is not None:
            return keys.months % release.months == 0
        # a month begins on any day, so only what fits into each day ends with it
        return day % (release.fixed_us or 0) == 0
    if keys.fixed_us is None or release.fixed_us is None:
        return False
    # weeks are counted from Monday 1970-01-05, all else from 1970-01-01
    apart = 4 * day * ((keys.unit == "w") - (release.unit == "w"))
    return keys.fixed_us % release.fixed_us == 0 and apart % release.fixed_us == 0


_RULES: dict[str, Any] = {"type": "object", "minProperties": 1, "additionalProperties": {"$ref": "#/$defs/rule"}}


class PolicyForm(Form):
    policy: Name = Field(description="the name of the policy")
    version: int = Field(ge=1, description="counts the changes of the policy")
    for_: RecipientDoc = Field(default_factory=RecipientDoc, alias="for", description="recipient, purpose and what the register asks for")
    schema_: Text = Field(alias="schema", description="the file of the event schema, relative to the policy")
    domain: Name = Field(description="the recipients within which equal identifiers may be recognised")
    event: EventForm = Field(default_factory=EventForm, description="what an event says about itself")
    window: (
        Annotated[
            Annotated[_WindowLength, Tag("<text>")] | Annotated[WindowForm, Tag("<mapping>")],
            Discriminator(lambda value: "<mapping>" if isinstance(value, dict) else "<text>"),
        ]
        | None
    ) = Field(default=None, description="how long a key lives and events are gathered: 1d is short for {keys: 1d, release: 1d}")
    allowed_lateness: Duration | None = Field(default=None, description="how long after its end a window stays open")
    unknown_fields: Literal["drop", "refuse"] = Field(
        "drop", description="what happens to an event with a field that the schema does not know"
    )
    order: Literal["keyed", "keep"] = Field(default="keyed", description="the order of rows that are written together")
    release: Later = None
    tombstones: Annotated[Literal["drop"], BeforeValidator(_later_tombstones)] = Field(
        "drop", description="what happens to a message without a value: drop counts it, and it leaves no trace"
    )
    fields: dict[str, Any] = Field(description="a rule for every leaf of the event schema")


def policy_json_schema(rule_schema: dict[str, Any] | None = None) -> dict[str, Any]:
    """The JSON Schema of the policy language.

    Args:
        rule_schema: the JSON Schema of a rule's value, which the operators make up. Its own ``$defs`` are taken over. Without it
            any value passes as a rule.
    """
    schema = published(PolicyForm, "eventveil policy")
    rule = dict(rule_schema or {})
    inner = rule.pop("$defs", {})
    schema["$defs"] = {**schema.get("$defs", {}), **inner, "rule": rule}
    schema["properties"]["fields"] = {"description": schema["properties"]["fields"]["description"], **_RULES}
    return schema


# --- reading ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """What could be read of a policy, and everything that is wrong with it.

    Attributes:
        policy: None where there is any problem.
        rules: the rules that could be read, so that compile can go on and add what it finds.
    """

    policy: Policy | None
    rules: tuple[RuleDoc, ...]
    problems: tuple[Problem, ...]


def load_policy(path: str | FilePath) -> Policy:
    """Read a policy from a file. Raises PolicyError with everything that is wrong (EV1xx)."""
    return parse_policy(read_document_text(path), str(path))


def parse_policy(text: str | bytes, file: str) -> Policy:
    """Read a policy from text; `file` is its name in messages. Raises PolicyError with everything that is wrong (EV1xx)."""
    reading = read_policy(text, file)
    if reading.policy is None:
        raise PolicyError(reading.problems)
    return reading.policy


def read_policy(text: str | bytes, file: str) -> Reading:
    """As `parse_policy`, but hands the problems over. Raises PolicyError only where the document has no syntax to go by."""
    document = parse_document(text, file)
    chains = Chains(file)
    form: PolicyForm | None = None
    try:
        form = PolicyForm.model_validate(document)
    except ValidationError as error:
        chains.problems += explain(error, PolicyForm, document, file)
    header = {key: value for key, value in document.items() if key != "fields"}
    chains.problems += empties(Mapping(header, document.line, document.lines), file)
    rules = read_rules(document, chains)
    if form is not None and form.window is not None and form.event.time is None:
        fact = "a window is named, and no event.time that falls into it"
        chains.problems.append(Problem(file, document.lines.get("window", 0), "EV104", fact, "add event.time"))
    policy = None
    if form is not None and not chains.problems:
        policy = _settled(form, rules, document, text.decode("utf-8") if isinstance(text, bytes) else text, file)
    return Reading(policy, rules, tuple(sorted(set(chains.problems))))


def _tuple(paths: Any) -> tuple[str, ...]:
    return (paths,) if isinstance(paths, str) else tuple(paths)


def _settled(form: PolicyForm, rules: tuple[RuleDoc, ...], document: Mapping, text: str, file: str) -> Policy:
    event, window = form.event, form.window
    time, subject = event.time, event.subject
    return Policy(
        name=form.policy,
        version=form.version,
        for_=form.for_,
        schema_file=form.schema_,
        domain=form.domain,
        time=None if time is None else time.settled() if isinstance(time, TimeForm) else TimeDoc(_tuple(time)),
        id=() if event.id is None else _tuple(event.id),
        subject=None if subject is None else subject.settled() if isinstance(subject, SubjectForm) else SubjectDoc(_tuple(subject)),
        type=None if event.type is None else event.type.settled(),
        only_if=tuple((path, tuple(values)) for path, values in (event.only_if or {}).items()),
        max_ahead=event.max_ahead,
        window=WindowDoc() if window is None else WindowDoc(window, window) if isinstance(window, Duration) else window.settled(),
        allowed_lateness=form.allowed_lateness,
        unknown_fields=form.unknown_fields,
        order=form.order,
        tombstones=form.tombstones,
        rules=rules,
        file=file,
        text=text,
        document=document,
    )
