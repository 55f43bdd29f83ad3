"""A job, made ready: policies compiled, keys loaded once to see that they are there, ranges listed, folders claimed.

All that can be wrong is found here, before Beam is imported and anything is read or written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from eventveil.pipeline.dead_letters.store import LetterFolder
from eventveil.pipeline.sinks.files import FolderSink
from eventveil.pipeline.sources.files import BATCH_BYTES, MAX_EVENT_BYTES, PART_BYTES, Range, list_ranges
from eventveil.schemas.errors import EventveilError, KeyringError, PolicyError, Problem, SchemaError
from eventveil.schemas.job import Job, VariantDoc, parse_job
from eventveil.transforms.compile import load_plan
from eventveil.transforms.keys.custodian import load_public
from eventveil.transforms.keys.keyring import load_keys
from eventveil.transforms.plan import Plan
from eventveil.transforms.seal import Sealing

__all__ = ["FileJob", "Variant", "job_of_flags", "policies_of", "prepare"]


@dataclass(frozen=True)
class Variant:
    """One recipient: a compiled policy and the folder its output goes to."""

    name: str
    plan: Plan
    sink: FolderSink


@dataclass(frozen=True)
class FileJob:
    """A job over files, ready to be built: everything is checked, listed and compiled."""

    name: str
    ranges: tuple[Range, ...]
    variants: tuple[Variant, ...]
    sealing: Sealing
    letters: LetterFolder | None
    keys_id: str
    batch_bytes: int
    part_bytes: int
    max_event_bytes: int


def job_of_flags(flags: Mapping[str, Any]) -> Job:
    """The job that the command line describes: it is validated as a job file of the same content would be."""
    missing = [name for name in ("policy", "input", "output") if not flags.get(name)]
    if missing:
        told = ", ".join(f"--{name}" for name in missing)
        raise PolicyError(
            Problem(
                "",
                0,
                "EV120",
                f"{told} {'is' if len(missing) == 1 else 'are'} missing",
                "name a job file, or give --policy, --input and --output",
            )
        )
    output = {"uri": flags["output"], "format": flags.get("format"), "partition_by": flags.get("partition_by")}
    output["compression"] = flags.get("compression")
    letters = {"uri": flags.get("dead_letters"), "custodian": flags.get("custodian")}
    document = {
        "job": "run",
        "input": {"uri": list(flags["input"]), "format": flags.get("input_format")},
        "variants": [{"policy": flags["policy"], "output": output}],
        "dead_letters": letters if any(letters.values()) else None,
        **{name: flags.get(name) for name in ("keys", "allow_loss", "max_refused", "workers", "summary")},
    }
    # Braces of the shell's user are not the job file's.
    return parse_job(json.dumps(_given(document)).replace("${", "$${"), "")


def _given(value: Any) -> Any:
    """A document without the entries that nobody gave."""
    if isinstance(value, dict):
        return {name: _given(one) for name, one in value.items() if one is not None}
    return [_given(one) for one in value] if isinstance(value, list) else value


def policies_of(job: Job) -> tuple[list[str], list[Plan]]:
    """Names and plans of a job's variants. Raises with the problems of all of them."""
    plans: list[Plan] = []
    problems: list[Problem] = []
    kind: type[EventveilError] = SchemaError
    for variant in job.variants:
        try:
            plans.append(load_plan(variant.policy))
        except (PolicyError, SchemaError) as error:
            problems += error.problems
            kind = PolicyError if isinstance(error, PolicyError) else kind
    if problems:
        raise kind(problems)
    names = [variant.name or plan.name for variant, plan in zip(job.variants, plans)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        fact = f"two variants are called {', '.join(twice)}"
        raise PolicyError(Problem(job.file, 0, "EV103", fact, "give each variant a name"))
    if len({plan.event_type and plan.event_type[0] for plan in plans}) > 1:
        fact, remedy = "the policies of one job name different fields for event.type", "name one field in all of them, or in none"
        raise SchemaError(Problem(job.file, job.line_of("variants"), "EV220", fact, remedy))
    return names, plans


def prepare(job: Job) -> FileJob:
    """Make a job ready to run: claims the output folders.

    Raises:
        PolicyError, SchemaError: EV119 where refused events would be lost, and all that compile finds.
        KeyringError, StorageError: keys, inputs and outputs that cannot be used.
    """
    names, plans = policies_of(job)
    letters = job.dead_letters
    if letters is None and not job.allow_loss:
        fact = "refused events would be lost: no folder for dead letters, or no custodian's key to seal them to"
        remedy = (
            "name both (--dead-letters FOLDER --custodian FILE.pub), or say --allow-loss; make a key with: eventveil keys custodian NAME"
        )
        raise PolicyError(Problem(job.file, 0, "EV119", fact, remedy))
    if job.keys is None:
        raise KeyringError.of("EV301", "no keyring is named", "name one with --keys; make one with: eventveil keys new keyring.json")
    keys = load_keys(job.keys)
    custodian = load_public(letters.custodian) if letters is not None else None
    part_bytes = job.part_bytes or PART_BYTES
    ranges = list_ranges(job.input.uri, job.input.format, part_bytes, job.input.compression)
    _check_apart(job, ranges)
    variants = [Variant(name, plan, _sink(doc, plan, ranges[0].format, keys.id)) for name, doc, plan in zip(names, job.variants, plans)]
    folder = LetterFolder(letters.uri) if letters is not None else None
    for variant in variants:
        variant.sink.prepare()
    if folder is not None:
        folder.prepare()
    return FileJob(
        name=job.name,
        ranges=tuple(ranges),
        variants=tuple(variants),
        sealing=Sealing(job.keys, custodian),
        letters=folder,
        keys_id=keys.id,
        batch_bytes=job.batch_bytes or BATCH_BYTES,
        part_bytes=part_bytes,
        max_event_bytes=job.max_event_bytes or MAX_EVENT_BYTES,
    )


def _check_apart(job: Job, ranges: Sequence[Range]) -> None:
    """What a job writes must not be what its next run reads."""
    for variant in job.variants:
        folder = os.path.join(os.path.realpath(variant.output.uri.removeprefix("file://")), "")
        if any(os.path.realpath(piece.path).startswith(folder) for piece in ranges):
            fact = f"the output folder {variant.output.uri} holds input of this job"
            raise PolicyError(Problem(job.file, 0, "EV120", fact, "choose a folder that is not read"))


def _sink(doc: VariantDoc, plan: Plan, input_format: str, keys_id: str) -> FolderSink:
    output_format = doc.output.format or input_format
    if output_format == "avro":
        # Avro names are stricter than a policy's: found before the job, not by its first part.
        from eventveil.transforms.encode.avro_events import output_avro_schema

        try:
            output_avro_schema(plan.output_schema, "event")
        except SchemaError as error:
            raise SchemaError(replace(problem, file=str(doc.policy)) for problem in error.problems) from None
    by_window = doc.output.partition_by == "window"
    window = plan.release_window
    if by_window and window is None:
        raise SchemaError(Problem("", 0, "EV104", f"{plan.name} has no window to partition by", "name event.time and window in the policy"))
    return FolderSink(
        folder=doc.output.uri,
        format=output_format,  # type: ignore[arg-type]
        provenance={
            "policy": plan.name,
            "version": str(plan.version),
            "digest": plan.digest,
            "domain": plan.domain,
            "keys": keys_id,
            "eventveil": "1",
        },
        name="event",
        partition_by_window=by_window,
        compression=None if doc.output.compression == "none" else doc.output.compression,
        order="keep" if plan.keep_order else "keyed",
        zone=window.zone if window is not None else "UTC",
        by_day=window is not None and window.duration.unit not in ("s", "min", "h"),
    )
