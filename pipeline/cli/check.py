"""eventveil check: is a policy complete and sound, and what does it still disclose?"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from eventveil.schemas.document import load_document
from eventveil.schemas.errors import PolicyError, Problem, did_you_mean
from eventveil.schemas.job import load_job
from eventveil.transforms.compile import load_plan
from eventveil.transforms.plan import Plan

__all__ = ["check_document"]

_KEYS_SAID = (
    "keys are derived: who holds the keyring can make any window's pseudonyms again, test guesses against them, and take "
    "the noise off; deleting events does not delete that"
)


def check_document(document: str, output_schema: str | None, *, as_json: bool, strict: bool) -> int:
    """Check a policy or a job; returns the exit code. Raises PolicyError and SchemaError with all that is wrong."""
    is_job = "job" in load_document(document)
    names, plans = _plans(document) if is_job else ([Path(document).name], [load_plan(document)])
    if output_schema is not None:
        return _print_schema(plans, output_schema)
    matches = _matches(names, plans)
    if as_json:
        found = [_told(plan) for plan in plans]
        print(json.dumps({"policies": found, "matching": matches}, indent=2, ensure_ascii=False))
    else:
        console = Console(highlight=False)
        for plan in plans:
            _show(console, plan)
        for line in matches:
            console.print(f"[yellow]two recipients[/]  {line}")
    warned = any(plan.warnings for plan in plans) or bool(matches)
    return 1 if strict and warned else 0


def _plans(document: str) -> tuple[list[str], list[Plan]]:
    from eventveil.pipeline.prepare import policies_of

    job = load_job(document)
    return policies_of(job)


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
        raise PolicyError(Problem("", 0, "EV120", f"unknown schema language '{kind}'", did_you_mean(kind, ["avro", "json"])))
    print(json.dumps(found, indent=2, ensure_ascii=False))
    return 0


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
        "warnings": [*plan.warnings, *_said_of_keys(plan)],
    }


def _dropped(plan: Plan) -> list[str]:
    kept = {one.source for one in plan.fields}
    return [path for path, _ in plan.schema.leaves() if path not in kept]


def _said_of_keys(plan: Plan) -> list[str]:
    keyed = any("pseudonym" in one.discloses or {"noise", "shift", "randomize"} & set(one.operators) for one in plan.fields)
    said = [_KEYS_SAID] if keyed else []
    if plan.keep_order:
        said.append("order: keep lets the order of the output be matched with the input's, and with other outputs")
    return said


def _show(console: Console, plan: Plan) -> None:
    console.print(f"[bold]{plan.name}[/] version {plan.version}, digest {plan.digest[:12]}: complete", soft_wrap=True)
    # Wide enough for a log file when there is no terminal to fit.
    console.width = console.width if sys.stdout.isatty() else 140
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("output", "from", "treated by", "what it still discloses"):
        table.add_column(title, overflow="fold")
    for one in plan.fields:
        table.add_row(one.name, one.source, ", ".join(one.operators), one.discloses)
    console.print(table)
    console.print(f"dropped: {', '.join(_dropped(plan)) or 'nothing'}", soft_wrap=True)
    for warning in [*plan.warnings, *_said_of_keys(plan)]:
        console.print(f"[yellow]note[/]  {warning}", soft_wrap=True)
    console.print()


def _matches(names: Sequence[str], plans: Sequence[Plan]) -> list[str]:
    """By which values two outputs of one read can be matched, record by record."""
    found = []
    for i, left in enumerate(plans):
        for j in range(i + 1, len(plans)):
            right = plans[j]
            if left.domain == right.domain:
                found.append(f"{names[i]} and {names[j]} share the domain {left.domain}: their pseudonyms and their order are the same")
            shared = []
            for one in left.fields:
                for other in right.fields:
                    if one.source == other.source and "pseudonymize" not in {*one.operators, *other.operators}:
                        shared.append(one.source)
            lists = {one.name.split("[]")[0] for one in left.fields if "[]" in one.name}
            if shared:
                told = ", ".join(dict.fromkeys(shared))
                shape = "; so can the length of their lists" if lists else ""
                found.append(f"{names[i]} and {names[j]} can be matched by what both keep of: {told}{shape}")
    return found
