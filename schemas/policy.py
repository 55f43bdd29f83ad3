"""The policy: what happens to every field of one type of event, for whom, and why. No addresses, no secrets.

The grammar of all but the rules stands here as pydantic models. Rules are read into chains of steps; which operators exist and
what their parameters mean is not known here.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, ValidationError, WithJsonSchema, model_validator

from eventveil.schemas.document import Mapping, kind, line_at, parse_document, place, read_document_text, shorten, shown
from eventveil.schemas.durations import Duration
from eventveil.schemas.errors import PolicyError, Problem
from eventveil.schemas.events.paths import EACH, Path, parse_path
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

LATER: frozenset[str] = frozenset(
    {
        "at_most",
        "count",
        "encode",
        "encrypt",
        "fake",
        "grid",
        "label",
        "redact",
        "release",
        "share",
        "shuffle",
        "tokenize",
        "url",
        "user_agent",
    }
)
"""Operators that the language names already, and that this version does not have."""

POSITION = "$position"
"""As `event.id`: where the event came from, for events that carry no id."""

_STREAM_FIELD = re.compile(r"\$(key|headers|topic|time)(?![A-Za-z0-9_$-])")
_SHAPES = ("rename", "move")
_LAST = ("into", "release")
_DEEPEST_INTO = 8
_DAY_US = 86_400_000_000
_MOST_YEARS = 1_000
_OF_A_CLOCK = ("s", "min", "h")


# --- what a policy says -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepDoc:
    """One operator of a chain, as written.

    Attributes:
        given: None for a bare word, a mapping of parameters, or the bare value of the one required parameter.
    """

    name: str
    given: Any
    line: int


@dataclass(frozen=True)
class RuleDoc:
    """One entry of `fields`.

    Attributes:
        text: the key as written.
        paths: the places it is for: one, or the two of ``before|after.email``.
    """

    text: str
    paths: tuple[Path, ...]
    steps: tuple[StepDoc, ...]
    line: int


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
    """Which events the policy is for."""

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
                "fields": {rule.text: _canonical_chain(rule.steps) for rule in self.rules},
            },
            ensure_ascii=False,
            allow_nan=False,
            sort_keys=True,
            separators=(",", ":"),
        )


def _canonical_chain(steps: tuple[StepDoc, ...]) -> list[list[Any]]:
    return [
        [step.name, {name: _canonical_chain(_Chains("").read(rule, "", 0)) for name, rule in step.given.items()}]
        if step.name == "into"
        else [step.name, step.given]
        for step in steps
    ]


# --- its grammar, but for the rules -------------------------------------------------------------------------------------------


def _check_event_path(text: str) -> str:
    if not text.strip():
        raise ValueError("EV107")
    if _STREAM_FIELD.match(text):
        raise ValueError("EV111 fields of a stream are not available yet: write a field of the event")
    path = parse_path(text)
    if path is None or text == POSITION:
        raise ValueError("EV110 not a path: write it as a.b or a{key}")
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


class TypeForm(Form):
    field: _EventPath | None = Field(default=None, description="the path of the event's type")
    header: Later = None
    topic: Later = None
    is_: Text = Field(alias="is", description="the type that this policy is for")

    @model_validator(mode="after")
    def _check_field(self) -> TypeForm:
        if self.field is None:
            raise ValueError("EV104 the field of the type is missing: write {field: path, is: type}")
        return self


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
    tombstones: Later = None
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
    chains = _Chains(file)
    form: PolicyForm | None = None
    try:
        form = PolicyForm.model_validate(document)
    except ValidationError as error:
        chains.problems += explain(error, PolicyForm, document, file)
    header = {key: value for key, value in document.items() if key != "fields"}
    chains.problems += empties(Mapping(header, document.line, document.lines), file)
    rules = _read_rules(document, chains)
    if form is not None and form.window is not None and form.event.time is None:
        fact = "a window is named, and no event.time that falls into it"
        chains.problems.append(Problem(file, document.lines.get("window", 0), "EV104", fact, "add event.time"))
    policy = None
    if form is not None and not chains.problems:
        policy = _settled(form, rules, document, text.decode("utf-8") if isinstance(text, bytes) else text, file)
    return Reading(policy, rules, tuple(sorted(set(chains.problems))))


def parse_chain(value: Any, path_text: str, line: int, file: str) -> tuple[StepDoc, ...]:
    """Read a rule's value: an operator, one with parameters, or a list of those.

    Args:
        path_text: where it stands, for messages, as ``fields.card``; line: the line of its key.

    Raises PolicyError with everything that is wrong (EV103 EV107 EV108 EV111 EV113).
    """
    chains = _Chains(file)
    steps = chains.read(value, path_text, line)
    if chains.problems:
        raise PolicyError(chains.problems)
    return steps


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
        type=None if event.type is None or event.type.field is None else TypeDoc(event.type.field, event.type.is_),
        only_if=tuple((path, tuple(values)) for path, values in (event.only_if or {}).items()),
        max_ahead=event.max_ahead,
        window=WindowDoc() if window is None else WindowDoc(window, window) if isinstance(window, Duration) else window.settled(),
        allowed_lateness=form.allowed_lateness,
        unknown_fields=form.unknown_fields,
        order=form.order,
        rules=rules,
        file=file,
        text=text,
        document=document,
    )


def _read_rules(document: Mapping, chains: _Chains) -> tuple[RuleDoc, ...]:
    fields = document.get("fields")
    if not isinstance(fields, Mapping):
        return ()  # missing or of another kind: the grammar has said so
    if not fields:
        chains.add(document.lines.get("fields", 0), "EV107", "fields is empty", "write a rule for every leaf of the event schema")
    rules: list[RuleDoc] = []
    for text, value in fields.items():
        line = fields.lines.get(text, 0)
        paths = _rule_paths(text, line, chains)
        before = len(chains.problems)
        steps = chains.read(value, place([text], "fields"), line)
        if paths and len(chains.problems) == before:
            rules.append(RuleDoc(text, paths, steps, line))
    return tuple(rules)


def _rule_paths(text: str, line: int, chains: _Chains) -> tuple[Path, ...]:
    """The places a rule's key names; none where it is wrong."""
    if _STREAM_FIELD.match(text):
        chains.add(line, "EV111", f"fields.{shorten(text)}: fields of a stream are not available yet", "remove the rule")
        return ()
    first = re.match(r"[^.\[{]*", text)
    names = first[0].split("|") if first else [text]
    rest = text[len(first[0]) :] if first else ""
    paths = tuple(path for name in names if (path := parse_path(name + rest)) is not None)
    if len(paths) != len(names) or len(names) > 2 or len(set(names)) != len(names):
        remedy = "write paths as a.b, a[].b, a[], a{key}, before|after.a; `.*` only at the end"
        chains.add(line, "EV110", f"'{shorten(text)}' in fields is not a path", remedy)
        return ()
    return paths


class _Chains:
    """Reads the values of rules and gathers what is wrong with them."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []

    def add(self, line: int, code: str, fact: str, remedy: str) -> None:
        self.problems.append(Problem(self.file, line, code, fact, remedy))

    def read(self, value: Any, at: str, line: int, depth: int = 0) -> tuple[StepDoc, ...]:
        if not isinstance(value, list):
            step = self._step(value, at, line, depth)
            return () if step is None else (step,)
        if not value:
            self.add(line, "EV107", f"{at} is empty", "write an operator; to remove the field write `drop`")
        steps = []
        for number, item in enumerate(value):
            here = place([number], at)
            step_line = line_at(value, [number], line)
            if isinstance(item, list):
                self.add(step_line, "EV103", f"{here} is a list in a list", "write one list of operators")
            elif (step := self._step(item, here, step_line, depth)) is not None:
                steps.append(step)
        self._check_order(steps, at)
        return tuple(steps)

    def _step(self, value: Any, at: str, line: int, depth: int) -> StepDoc | None:
        if value is None or value == "" or value == {}:
            self.add(line, "EV107", f"{at} is empty", "write an operator; to remove the field write `drop`")
            return None
        name, given = value, None
        if isinstance(value, dict):
            if len(value) > 1:
                words = ", ".join(f"{{{shorten(word, 20)}: ...}}" for word in list(value)[:3])
                self.add(line, "EV103", f"{at} holds {len(value)} operators in one mapping", f"write a list, in the order meant: [{words}]")
                return None
            name, given = next(iter(value.items()))
            line = line_at(value, [name], line)
        if not isinstance(name, str):
            remedy = "write an operator; for a fixed value write {replace: {with: ...}}"
            self.add(line, "EV108", f"{at} must be an operator, not {shown(name)}", remedy)
            return None
        if name in LATER:
            self.add(line, "EV111", f"operator '{name}' in {at} is not available yet", "use another operator, or drop the field")
            return None
        if isinstance(value, dict):
            self._check_given(name, value, at, line, depth)
        return StepDoc(name, given, line)

    def _check_given(self, name: str, written: dict[str, Any], at: str, line: int, depth: int) -> None:
        given = written[name]
        self.problems += empties(written, self.file, at=at, line=line)
        if name == "renumber" and isinstance(given, dict) and given.get("scope") == "window":
            here = line_at(given, ["scope"], line)
            self.add(here, "EV111", f"{place([name], at)}.scope: window is not available yet", "write event")
        if name == "into" and given is not None:
            self._check_branches(given, place([name], at), line, depth)

    def _check_branches(self, given: Any, at: str, line: int, depth: int) -> None:
        if not isinstance(given, dict):
            self.add(line, "EV103", f"{at} must be a mapping, not {shown(given)}", "write {name: rule} for every field to be written")
        elif not given:
            self.add(line, "EV107", f"{at} is empty", "write {name: rule} for every field to be written")
        elif depth == _DEEPEST_INTO:
            self.add(line, "EV103", f"{at} stands more than {_DEEPEST_INTO} deep", "write it flatter")
        else:
            for name, rule in given.items():
                if rule is not None:  # found empty already
                    self.read(rule, place([name], at), line_at(given, [name], line), depth + 1)

    def _check_order(self, steps: list[StepDoc], at: str) -> None:
        shaped: StepDoc | None = None
        for number, step in enumerate(steps):
            if step.name == "drop" and len(steps) > 1:
                self.add(step.line, "EV113", f"drop stands in a chain in {at}", "drop stands alone: remove it, or all the others")
            if step.name in _LAST and number + 1 < len(steps):
                follower = shorten(steps[number + 1].name)
                self.add(
                    steps[number + 1].line, "EV113", f"'{follower}' follows {step.name} in {at}", f"{step.name} ends a chain: put it last"
                )
            if any(step.name == other.name for other in steps[:number]) and step.name in _SHAPES:
                self.add(step.line, "EV113", f"'{step.name}' stands twice in {at}", "write it once")
            if step.name in _SHAPES:
                shaped = step
            elif shaped is not None and step.name != "drop":
                remedy = f"rename and move follow the operators on values: put {shaped.name} last"
                self.add(step.line, "EV113", f"'{shorten(step.name)}' follows {shaped.name} in {at}", remedy)
