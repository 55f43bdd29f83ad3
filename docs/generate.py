"""Write the references that are made from the code; with `--check` only say which are stale.

operators.md, errors.md              for readers
policy.schema.json, job.schema.json  for editors
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from eventveil.schemas.errors import CODES
from eventveil.schemas.job import job_json_schema
from eventveil.schemas.policy import policy_json_schema
from eventveil.transforms.language import FAMILIES, built_in, can_be_bare, describe, parameters, rule_json_schema
from eventveil.transforms.registry import Operator

_NUMBER = re.compile(r"\^(\[\+-\]|-)\?\[0-9\]\+")  # a number in quotes: exact where YAML would make a double of it

FOLDER = Path(__file__).parent
MADE = "<!-- made by docs/generate.py: edit the docstrings instead -->"

FAMILY_TEXTS = {
    "remove": "What leaves as it is, or not at all. Every leaf of the event schema needs a rule; `keep` is a rule too.",
    "mask": "Parts of a text, hidden.",
    "generalize": "Coarser values: they say less, and stay true.",
    "perturb": "Values changed by keyed draws: the same event gives the same result again, so a replay averages nothing out.",
    "pseudonymize": "Stand-ins for identifiers. The result is pseudonymous, never anonymous.",
    "shape": "Names, places and types. They hide no value: alone they cover no leaf.",
}
ERROR_TEXTS = {
    "1": ("The policy or job document", "It is wrong in itself. Exit code 2."),
    "2": ("Policy and event schema", "They disagree, or the schema cannot be used. Exit code 2."),
    "3": ("Keys", "Exit code 3."),
    "4": ("Input and output", "Exit code 4."),
    "5": (
        "One event refused",
        "The event becomes a sealed dead letter with this code, the first in the order of the rules; the job goes on.",
    ),
    "6": ("Limits", "Exit code 1."),
    "9": ("Ours", "Exit code 70."),
}


def operators() -> str:
    """docs/operators.md"""
    classes = built_in()
    lines = [MADE, "", "# Operators", ""]
    lines += [
        "A rule is one operator, or a list of them applied from left to right. An operator is a word (`mask`), a word with its parameters",
        "(`mask: {keep_last: 4}`), or, where one parameter is marked *short*, a word with that value (`floor: 1min`). Unless a section",
        "says otherwise, null and a field that is missing stay null.",
        "",
    ]
    for family, names in FAMILIES.items():
        lines += [f"- {family}: {', '.join(f'[{name}](#{name})' for name in names if name in classes)}"]
    for family, names in FAMILIES.items():
        lines += ["", f"## To {family}", "", FAMILY_TEXTS[family]]
        for name in names:
            if name in classes:
                lines += _operator(name, classes[name])
    return "\n".join(lines) + "\n"


def _operator(name: str, cls: Any) -> Iterator[str]:
    said = describe(cls)
    yield from ["", f"### {name}", "", _plain(said.summary)]
    for paragraph in said.text:
        yield from ["", _plain(paragraph)]
    if said.arguments:
        required = parameters(cls)
        schemas = cls.model_json_schema(by_alias=True)
        yield from ["", "| parameter | is | default | meaning |", "|---|---|---|---|"]
        for parameter, meaning in said.arguments.items():
            schema = schemas["properties"][parameter]
            word = f"`{parameter}`" + (", *short*" if parameter == cls.short else "")
            default = "required" if required[parameter] else _default(schema)
            yield f"| {word} | {_kind(schema, schemas.get('$defs', {}))} | {default} | {_plain(meaning)} |".replace("\\|", "|")
    if can_be_bare(cls) and said.arguments:
        yield from ["", f"The word alone, `{name}`, takes all defaults."]
    if issubclass(cls, Operator) and cls.purpose is not None:
        keyed = "Keyed: needs a keyring, and `window` with `event.time` where the key lives for a window."
        yield from ["", f"{keyed} The sub-key is for {cls.purpose} alone."]
    if said.raises:
        yield ""
        yield from (f"- [{code}](errors.md#{code.lower()}) {_plain(when)}" for code, when in said.raises.items())
    if said.source:
        yield from ["", f"Source: {_plain(said.source)}"]
    if said.examples or said.keyed:
        yield from ["", "```text", *said.examples, *(f"{line}    # keyed: for example" for line in said.keyed), "```"]


def _plain(text: str) -> str:
    return text.replace("``", "`").replace("|", "\\|")


def _default(schema: dict[str, Any]) -> str:
    value = schema.get("default")
    return "" if value is None else f"`{value}`" if isinstance(value, str) and value else f"`{json.dumps(value)}`"


def _kind(schema: dict[str, Any], defs: dict[str, Any]) -> str:
    """What a parameter takes, in words."""
    if "$ref" in schema:
        fields = defs[schema["$ref"].rpartition("/")[2]].get("properties", {})
        return "`{" + ", ".join(fields) + "}`"
    if "anyOf" in schema:
        kinds = dict.fromkeys(_kind(one, defs) for one in schema["anyOf"] if one != {"type": "null"})
        return _or([kind for kind in kinds if kind != "a whole number" or "a number" not in kinds])
    if "enum" in schema or "const" in schema:
        return _or([f"`{json.dumps(value) if isinstance(value, bool) else value}`" for value in schema.get("enum", [schema.get("const")])])
    if schema.get("type") == "array":
        return f"a list, each {_kind(schema.get('items', {}), defs)}"
    if schema.get("type") == "string":
        pattern = schema.get("pattern", "")
        return "a duration" if "(s|min|h" in pattern else "a number" if _NUMBER.match(pattern) else "text"
    names = {"integer": "a whole number", "number": "a number", "boolean": "a boolean", "object": "a mapping"}
    low, high = schema.get("minimum"), schema.get("maximum")
    between = f", {low} to {high}" if None not in (low, high) else f", at least {low}" if low is not None else ""
    return names.get(schema.get("type", ""), "a value") + between


def _or(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def errors() -> str:
    """docs/errors.md"""
    lines = [MADE, "", "# Error codes", ""]
    lines += [
        "A message says code, place, fact and remedy, and never a value of an event. What is wrong with a policy is said all at once.",
        "A code keeps its meaning and is never used again for another.",
    ]
    for hundred, (title, text) in ERROR_TEXTS.items():
        lines += ["", f"## {title}", "", text]
        for code, (meaning, remedy) in CODES.items():
            if code[2] == hundred:
                lines += ["", f"### {code}", "", f"{meaning[0].upper()}{meaning[1:]}.", "", remedy]
    return "\n".join(lines) + "\n"


def policy_schema() -> str:
    """docs/policy.schema.json"""
    return _json(policy_json_schema(rule_json_schema()))


def job_schema() -> str:
    """docs/job.schema.json"""
    return _json(job_json_schema())


def _json(schema: dict[str, Any]) -> str:
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


REFERENCES: dict[str, Callable[[], str]] = {
    "operators.md": operators,
    "errors.md": errors,
    "policy.schema.json": policy_schema,
    "job.schema.json": job_schema,
}


def stale(folder: Path) -> list[str]:
    """The references whose file is missing or holds something else than the code says."""
    return [name for name, make in REFERENCES.items() if not (folder / name).is_file() or (folder / name).read_text("utf-8") != make()]


def main(arguments: list[str], folder: Path = FOLDER) -> int:
    if arguments not in ([], ["--check"]):
        print("usage: generate.py [--check]", file=sys.stderr)
        return 2
    found = stale(folder)
    if arguments == ["--check"]:
        for name in found:
            print(f"docs/{name} is stale: run `make docs`", file=sys.stderr)
        return 1 if found else 0
    for name in found:
        (folder / name).write_text(REFERENCES[name](), "utf-8")
        print(f"docs/{name} written")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
