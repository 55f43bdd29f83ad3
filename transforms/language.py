"""The policy language as readers and editors see it: what every operator says of itself, and the JSON Schema of a rule."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import cleandoc
from typing import Any

from pydantic import ValidationError

from eventveil.schemas.grammar import published
from eventveil.transforms.registry import Operator, Shape, find, known

__all__ = ["FAMILIES", "Description", "built_in", "can_be_bare", "describe", "parameters", "rule_json_schema"]

# The families in the order of the reference; every built-in operator stands in one.
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "remove": ("drop", "keep", "allow", "nullify", "replace"),
    "mask": ("mask",),
    "generalize": ("floor", "round", "bin", "clamp", "truncate", "truncate_ip", "generalize"),
    "perturb": ("shift", "noise", "randomize"),
    "pseudonymize": ("renumber", "pseudonymize"),
    "shape": ("rename", "move", "into", "cast", "parse", "normalize"),
}

_SECTION = re.compile(r"(Args|Raises|Source|Example|Example \(keyed\)):(?: +(.*))?\Z")
_CODE = re.compile(r"(EV[0-9]{3}):? +")
_ENTRY = re.compile(r"([A-Za-z_]\w*(?:, [A-Za-z_]\w*)*): +(\S.*)\Z")


@dataclass(frozen=True)
class Description:
    """An operator's docstring, taken apart.

    Attributes:
        summary: the first paragraph: what it does.
        text: the paragraphs behind it: what it still discloses, whether it can be reversed or joined, nulls.
        arguments: parameter as a policy writes it -> what it says.
        raises: code -> when.
        source: the standard or paper.
        examples: lines that are run; keyed: lines whose figures depend on keys.
    """

    summary: str
    text: tuple[str, ...]
    arguments: Mapping[str, str]
    raises: Mapping[str, str]
    source: str
    examples: tuple[str, ...]
    keyed: tuple[str, ...]


def built_in() -> dict[str, type[Operator] | type[Shape]]:
    """The operators that come with eventveil, by name."""
    found = {name: find(name) for name in known()}
    return {name: cls for name, cls in found.items() if cls is not None and cls.__module__.startswith("eventveil.transforms.operators.")}


def describe(cls: type[Operator] | type[Shape]) -> Description:
    """What the docstring of an operator says, by section."""
    sections: dict[str, list[str]] = {"": []}
    at = sections[""]
    for line in cleandoc(cls.__doc__ or "").split("\n"):
        head = _SECTION.match(line)
        if head is not None:
            at = sections.setdefault(head[1], [])
            at += [f"    {head[2]}"] if head[2] else []
        else:
            at.append(line)
    summary, *text = _paragraphs(sections[""])
    return Description(
        summary=summary,
        text=tuple(text),
        arguments=_entries(sections.get("Args", [])),
        raises=_codes(" ".join(" ".join(sections.get("Raises", [])).split())),
        source=" ".join(_paragraphs(_dedented(sections.get("Source", [])))),
        examples=tuple(line for line in _dedented(sections.get("Example", [])) if line),
        keyed=tuple(line for line in _dedented(sections.get("Example (keyed)", [])) if line),
    )


def parameters(cls: type[Operator] | type[Shape]) -> dict[str, bool]:
    """The parameters as a policy writes them, and whether each is required."""
    return {info.alias or name: info.is_required() for name, info in cls.model_fields.items()}


def can_be_bare(cls: type[Operator] | type[Shape]) -> bool:
    """Whether the word alone is a rule: `mask`, but not `round`."""
    try:
        cls()
    except ValidationError:
        return False
    return True


def rule_json_schema() -> dict[str, Any]:
    """The JSON Schema of a rule: an operator or a chain of them.

    It is to stand as `rule` among the `$defs` of a document, and its own `$defs` beside it: branches of `into` are rules again.
    """
    defs: dict[str, Any] = {}
    operators = built_in()
    for name, cls in operators.items():
        defs[name] = _operator_schema(name, cls, defs)
    with_parameters = {
        "type": "object",
        "properties": {name: {"$ref": f"#/$defs/{name}"} for name in operators},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    defs["step"] = {"anyOf": [{"enum": [name for name, cls in operators.items() if can_be_bare(cls)]}, with_parameters]}
    step = {"$ref": "#/$defs/step"}
    return {"anyOf": [step, {"type": "array", "items": step, "minItems": 1}], "$defs": dict(sorted(defs.items()))}


def _operator_schema(name: str, cls: type[Operator] | type[Shape], defs: dict[str, Any]) -> dict[str, Any]:
    said = describe(cls)
    if name == "into":  # always written short
        branches = {"type": "object", "additionalProperties": {"$ref": "#/$defs/rule"}, "minProperties": 1}
        return {"description": said.summary, **branches}
    full = published(cls, name)
    for inner, schema in full.pop("$defs", {}).items():
        if defs.setdefault(inner, schema) != schema:
            raise LookupError(f"two operators have different models named {inner}")
    full = {key: value for key, value in full.items() if key not in ("$schema", "title")}
    for parameter, schema in full.get("properties", {}).items():
        schema["description"] = said.arguments.get(parameter, "").replace("``", "`")
    if cls.short is None:
        return {"description": said.summary, **full}
    short = {key: value for key, value in full["properties"][cls.short].items() if key not in ("default", "description")}
    return {"description": said.summary, "anyOf": [short, full]}


def _paragraphs(lines: list[str]) -> list[str]:
    return [" ".join(block.split()) for block in re.split(r"\n\s*\n", "\n".join(lines)) if block.strip()]


def _dedented(lines: list[str]) -> list[str]:
    return cleandoc("\n" + "\n".join(lines)).split("\n")


def _codes(text: str) -> dict[str, str]:
    """`EV520: a value is not listed.` or `EV526 for a null, EV528 for ...` -> when, for each code."""
    starts = list(_CODE.finditer(text))
    ends = [*(start.start() for start in starts[1:]), len(text)]
    return {start[1]: text[start.end() : end].rstrip(" ,;.").removesuffix(" and") for start, end in zip(starts, ends)}


def _entries(lines: list[str]) -> dict[str, str]:
    """`name, other: text` with its continuation lines -> text, for each name."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in _dedented(lines):
        head = _ENTRY.match(line)
        if head is not None:
            names = head[1].split(", ")
            found.update(dict.fromkeys(names, head[2]))
        elif line.strip():
            found.update({name: f"{found[name]} {line.strip()}" for name in names})
    return found
