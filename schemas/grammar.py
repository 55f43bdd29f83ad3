"""What the grammars of the documents share: their base model, their kinds of text, their errors and their published form.

A grammar is a set of pydantic models. From it come both the judgement of a document (`explain` turns pydantic's errors into
problems with a place) and the JSON Schema that editors read (`published`).
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from typing import Annotated, Any, get_args
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.json_schema import SkipJsonSchema

from eventveil.schemas.document import Hidden, kind, line_at, place, shorten, shown
from eventveil.schemas.errors import CODES, Problem, did_you_mean, remedy_for

__all__ = ["Form", "Later", "Name", "Text", "Zone", "empties", "explain", "explain_one", "form_of", "published"]


class Form(BaseModel):
    """Base of every mapping of a document: nothing unknown, nothing converted."""

    # Built when first used: a check of a policy never builds the grammar of jobs, nor a part by itself.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


def _check_name(text: str) -> str:
    if not re.match(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z", text):
        raise ValueError("EV103 not a name: write up to 64 letters, digits, dots, hyphens and underscores")
    return text


def _check_text(text: str) -> str:
    if not text.strip():
        raise ValueError("EV107")
    return text


def _check_zone(text: str) -> str:
    try:
        # the first three stand in some machines' folders of zones, and mean something else on each
        if text in ("localtime", "posixrules", "Factory") or text.startswith(("posix/", "right/")):
            raise ValueError
        ZoneInfo(text)
    except (LookupError, OSError, ValueError):
        raise ValueError("EV112 not a time zone: write a name of the IANA time zone database, as Europe/London") from None
    return text


def _refuse_later(value: Any) -> Any:
    raise ValueError("EV111")


Name = Annotated[
    str,
    AfterValidator(_check_text),
    AfterValidator(_check_name),
    Field(json_schema_extra={"pattern": r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"}),
]
Text = Annotated[str, AfterValidator(_check_text), Field(json_schema_extra={"pattern": r"\S"})]
Zone = Annotated[str, AfterValidator(_check_text), AfterValidator(_check_zone)]
_LATER = BeforeValidator(_refuse_later)
Later = Annotated[SkipJsonSchema[Any], _LATER]
"""An entry that the grammar names already, and that this version does not have."""


def form_of(value: Any) -> str:
    """The tag of the form in which an entry is written, for entries that have several."""
    return "<mapping>" if isinstance(value, dict) else "<list>" if isinstance(value, list) else "<text>"


def empties(document: Any, file: str, *, at: str = "", line: int = 0) -> list[Problem]:
    """A problem for every entry that is null, or nothing at all: the same in YAML. `at` and `line`: as in `explain`."""
    return [_empty(place(steps, at), file, line_at(document, steps, line)) for steps in _nulls(document, ())]


def _nulls(value: Any, at: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    if value is None:
        yield at
    elif isinstance(value, (dict, list)):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _nulls(entry, (*at, key))


def explain(
    error: ValidationError,
    model: type[BaseModel],
    document: Any,
    file: str,
    *,
    at: str = "",
    line: int = 0,
    skip: Container[str] = (),
) -> list[Problem]:
    """What pydantic found wrong, as problems.

    Args:
        model: what `document` was validated against; it knows the entries that exist.
        document: the mapping that was validated; positions are taken from it where it has them.
        at: the path text of `document` itself, empty for the whole document.
        line: where `document` stands, for what has no line of its own.
        skip: path texts of entries about which everything has been said.
    """
    known = dict(_entries(model, ()))
    wanted: dict[tuple[str, int, str, bool], list[str]] = {}
    problems: list[Problem] = []
    for found in error.errors(include_url=False):
        steps = _steps(document, found["loc"], found["type"])
        subject, where = place(steps, at), line_at(document, steps, line)
        if subject in skip:
            continue
        expected = _TYPES.get(found["type"])
        if found["type"] == "extra_forbidden":
            entries = known.get(tuple(step for step in steps[:-1] if isinstance(step, str)), {})
            problems.append(_unknown(str(steps[-1]), place(steps[:-1], at), entries, file, where))
        elif found["type"] == "missing":
            about = known.get(tuple(step for step in steps[:-1] if isinstance(step, str)), {}).get(str(steps[-1]), "")
            problems.append(Problem(file, where, "EV104", f"{subject} is missing", f"add it: {about}" if about else "add it"))
        elif found["input"] is None or (found["type"] in ("too_short", "string_too_short") and not found["input"]):
            problems.append(_empty(subject, file, where))
        elif expected == "text" and isinstance(found["input"], (bool, int, float)):
            fact = f"{subject} must be text, and {shown(found['input'])} is {kind(found['input'])}"
            problems.append(Problem(file, where, "EV108", fact, "put it in quotes"))
        elif expected is not None:
            # the branches of a union complain one by one: join them
            quoted = isinstance(found["input"], str) and re.match(_UNQUOTED.get(expected, r"(?!)"), found["input"]) is not None
            wanted.setdefault((subject, where, shown(found["input"]), quoted), []).append(expected)
        else:
            problems.append(_problem(found, subject, file, where))
    for (subject, where, given, quoted), types in wanted.items():
        fact = f"{subject} must be {' or '.join(dict.fromkeys(types))}, not {given}"
        remedy = "write it without quotes" if quoted else "write true or false" if types == ["true or false"] else "correct the value"
        problems.append(Problem(file, where, "EV103", fact, remedy))
    return problems


def explain_one(found: Any, subject: str, file: str, line: int) -> Problem:
    """What pydantic found wrong with one value (an entry of `ValidationError.errors`), as a problem of `subject`."""
    expected = _TYPES.get(found["type"])
    if expected is None:
        return _problem(found, subject, file, line)
    return Problem(file, line, "EV103", f"{subject} must be {expected}, not {shown(found['input'])}", "correct the value")


_TYPES = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "decimal_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
# texts that would be right without their quotes
_UNQUOTED = {"a whole number": r"[-+]?[0-9]+\Z", "a number": r"[-+]?[0-9.]+\Z", "true or false": r"(true|false)\Z"}
_BOUNDS = {
    "greater_than_equal": ("ge", "must be at least"),
    "greater_than": ("gt", "must be more than"),
    "less_than_equal": ("le", "must be at most"),
    "less_than": ("lt", "must be less than"),
    "multiple_of": ("multiple_of", "must be a multiple of"),
}
_SIZES = {
    "too_short": ("min_length", "must have at least", "entries"),
    "too_long": ("max_length", "must have at most", "entries"),
    "string_too_short": ("min_length", "must have at least", "characters"),
    "string_too_long": ("max_length", "must have at most", "characters"),
}


def _problem(found: Any, subject: str, file: str, line: int) -> Problem:
    name, given, context = found["type"], found["input"], found.get("ctx", {})
    if name in _BOUNDS:
        key, words = _BOUNDS[name]
        return Problem(file, line, "EV103", f"{subject} {words} {context[key]}, not {shown(given)}", "correct the value")
    if name in _SIZES:
        key, words, what = _SIZES[name]
        return Problem(file, line, "EV103", f"{subject} {words} {context[key]} {what}", "correct the value")
    if name in ("literal_error", "enum"):
        choices = re.findall(r"'([^']*)'", context["expected"])
        remedy = (
            did_you_mean(given, choices) if isinstance(given, str) and not isinstance(given, Hidden) else f"known: {', '.join(choices)}"
        )
        return Problem(file, line, "EV103", f"{subject} cannot be {shown(given)}", remedy)
    if name == "value_error":
        return _own(str(context["error"]), subject, given, file, line)
    return Problem(file, line, "EV103", f"{subject} is not as expected ({name.replace('_', ' ')})", "see the documentation of this entry")


def _own(message: str, subject: str, given: Any, file: str, line: int) -> Problem:
    """From the text of our own validators, `CODE fact: write remedy`; all but the fact may be left out."""
    coded = re.match(r"(EV[0-9]{3})(?:\s+|\Z)(.*)", message, re.DOTALL)
    code, rest = (coded[1], coded[2]) if coded and coded[1] in CODES else ("EV103", message)
    fact, _, remedy = rest.partition(": write ")
    if code == "EV107" and not fact:
        return _empty(subject, file, line)
    if code == "EV111" and not fact:
        return Problem(file, line, code, f"{subject} is not available yet", "remove it: this version does not have it")
    named = f"{subject} {shown(given)}" if isinstance(given, (str, int, float)) and not isinstance(given, Hidden) else subject
    return Problem(file, line, code, f"{named}: {fact}", f"write {remedy}" if remedy else remedy_for(code))


def _empty(subject: str, file: str, line: int) -> Problem:
    return Problem(file, line, "EV107", f"{subject} is empty", "say what is meant, or remove the entry")


def _unknown(name: str, within: str, entries: dict[str, str], file: str, line: int) -> Problem:
    fact = f"unknown entry '{shorten(name)}'" + (f" in {within}" if within else "")
    return Problem(file, line, "EV102", fact, did_you_mean(name, entries) if entries else "remove it")


def _steps(document: Any, loc: tuple[int | str, ...], kind_of_error: str) -> list[str | int]:
    """The path of an error within the document: of pydantic's location only what stands in the document, and what is missing there."""
    steps: list[str | int] = []
    for number, step in enumerate(loc):
        try:
            document = document[step]
        except (LookupError, TypeError):
            if kind_of_error == "missing" and number == len(loc) - 1:
                steps.append(step)
            continue
        steps.append(step)
    return steps


def _entries(model: type[BaseModel], at: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, str]]]:
    """Every mapping of a grammar: its path without list items -> the names of its entries and what they are for."""
    entries: dict[str, str] = {}
    for name, field in model.model_fields.items():
        if _LATER in field.metadata:
            continue
        written = field.alias or name
        entries[written] = (field.description or "").partition(":")[0]
        for part in _parts(field.annotation):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from _entries(part, (*at, written))
    yield at, entries


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in get_args(annotation):
        yield from _parts(part)


def published(model: type[BaseModel], title: str) -> dict[str, Any]:
    """The JSON Schema of a grammar, as editors want it: without null, which no entry takes, and without made-up titles."""
    schema: dict[str, Any] = _tidy(model.model_json_schema(by_alias=True))
    schema.pop("description", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **schema}


def _tidy(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_tidy(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    tidy = {
        key: {name: _tidy(entry) for name, entry in value.items()} if key in ("properties", "$defs") else _tidy(value)
        for key, value in schema.items()
        if not (key == "title" and isinstance(value, str)) and not (key == "default" and (value is None or isinstance(value, dict)))
    }
    branches = tidy.get("anyOf")
    if isinstance(branches, list) and {"type": "null"} in branches:
        branches = [branch for branch in branches if branch != {"type": "null"}]
        tidy.pop("anyOf")
        tidy = {**branches[0], **tidy} if len(branches) == 1 else {**tidy, "anyOf": branches}
    return tidy
