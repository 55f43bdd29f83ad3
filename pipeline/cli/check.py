"""eventveil check: is a policy complete and sound, and what does it still disclose?"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eventveil.pipeline.cli.screen import columns, printable, screen
from eventveil.schemas.document import load_document, read_document_text
from eventveil.schemas.errors import EventveilError, PolicyError, Problem, did_you_mean
from eventveil.transforms.compile import load_plan
from eventveil.transforms.plan import Plan

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["check_document"]

_KEYED = {"noise", "pseudonymize", "randomize", "shift"}
_KEYS_SAID = (
    "keys are derived: who holds the keyring can make any window's pseudonyms again, test guesses against them, and take "
    "the noise off; deleting events does not delete that"
)
_ORDER_SAID = "order: keep lets the order of the output be matched with the input's, and with other outputs"


def check_document(document: str, output_schema: str | None, *, as_json: bool, strict: bool) -> int:
    """Check a policy or a job; returns the exit code. Raises PolicyError and SchemaError with all that is wrong."""
    try:
        names, plans = _plans(document)
        if output_schema is not None:
            return _print_schema(plans, output_schema)
    except EventveilError as error:
        if not as_json:
            raise
        _print_json([asdict(problem) for problem in error.problems], [], [])
        return error.exit_code
    matches = _matches(names, plans)
    if as_json:
        _print_json([], [_told(plan) for plan in plans], matches)
    else:
        _show(screen(), plans, matches)
    warned = sum(len(plan.warnings) for plan in plans) + len(matches)
    if strict and warned:
        print(f"{warned} warning{'s' if warned > 1 else ''}, and --strict was given", file=sys.stderr)
    return 1 if strict and warned else 0


def _plans(document: str) -> tuple[list[str], list[Plan]]:
    # The word is looked for first: a policy is not parsed twice.
    if b"job" in read_document_text(document) and "job" in load_document(document):
        from eventveil.pipeline.prepare import policies_of
        from eventveil.schemas.job import load_job

        return policies_of(load_job(document))
    return [Path(document).name], [load_plan(document)]


def _print_schema(plans: Sequence[Plan], kind: str) -> int:
    if len(plans) != 1:
        raise PolicyError(Problem("", 0, "EV120", "--output-schema takes one policy", "name the policy, not the job"))
    plan = plans[0]
    if kind == "avro":
        from eventveil.transforms.encode.avro_events import output_avro_schema

        found = output_avro_schema(plan.output_schema, plan.name.replace("-", "_"))
    elif kind == "json":
        from eventveil.transforms.encode.json_events import output_json_schema

        found = output_json_schema(plan.output_schema, plan.name)
    else:
        raise PolicyError(Problem("", 0, "EV120", f"--output-schema knows no '{kind}'", did_you_mean(kind, ["avro", "json"])))
    print(json.dumps(found, indent=2))
    return 0


def _print_json(problems: Sequence[Any], policies: Sequence[Any], matching: Sequence[str]) -> None:
    # ASCII: a name may hold what a terminal would obey.
    print(json.dumps({"problems": problems, "policies": policies, "matching": matching}, indent=2))


def _told(plan: Plan) -> dict[str, Any]:
    return {
        "policy": plan.name,
        "version": plan.version,
        "digest": plan.digest,
        "domain": plan.domain,
        "output": [
            {"name": one.name, "type": one.type, "from": one.source, "operators": list(one.operators), "discloses": one.discloses}
            for one in plan.fields
        ],
        "dropped": _dropped(plan),
        "warnings": list(plan.warnings),
        "notes": _notes(plan),
    }


def _dropped(plan: Plan) -> list[str]:
    kept = {one.source for one in plan.fields}
    return [path for path, _ in plan.schema.leaves() if not any(one == path or one.startswith(f"{path}{{") for one in kept)]


def _notes(plan: Plan) -> list[str]:
    """What holds for every policy of this kind: said, but no reason for --strict to fail."""
    keyed = bool(plan.numbered) or any(_KEYED & set(one.operators) for one in plan.fields)
    return [*([_KEYS_SAID] if keyed else []), *([_ORDER_SAID] if plan.keep_order else [])]


def _show(console: Console, plans: Sequence[Plan], matches: Sequence[str]) -> None:
    from rich.text import Text

    def say(word: str, style: str, text: str) -> None:
        console.print(Text.assemble((word, style), "  " if style == "yellow" else "", printable(text)), soft_wrap=True)

    for plan in plans:
        say(plan.name, "bold", f" version {plan.version}, digest {plan.digest[:12]}: complete")
        table = columns("output", "from", "treated by", "what it still discloses")
        for one in plan.fields:
            table.add_row(*(Text(printable(cell)) for cell in (one.name, one.source, ", ".join(one.operators), one.discloses)))
        console.print(table)
        say("dropped: ", "", ", ".join(_dropped(plan)) or "nothing")
        for warning in plan.warnings:
            say("warning", "yellow", warning)
        for note in _notes(plan):
            say("note", "yellow", note)
        console.print()
    for match in matches:
        say("two recipients", "yellow", match)


def _matches(names: Sequence[str], plans: Sequence[Plan]) -> list[str]:
    """By which values two outputs of one read can be matched, record by record."""
    found = []
    for i, left in enumerate(plans):
        for j in range(i + 1, len(plans)):
            right = plans[j]
            if left.domain == right.domain:
                found.append(f"{names[i]} and {names[j]} share the domain {left.domain}: their pseudonyms and their order are the same")
            shared = [
                one.source
                for one in left.fields
                for other in right.fields
                if one.source == other.source and "pseudonymize" not in {*one.operators, *other.operators}
            ]
            if shared:
                told = ", ".join(dict.fromkeys(shared))
                shape = "; so can the length of their lists" if any("[]" in one.name for one in left.fields) else ""
                found.append(f"{names[i]} and {names[j]} can be matched by what both keep of: {told}{shape}")
    return found
