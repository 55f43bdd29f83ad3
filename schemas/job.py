"""The job: where events come from and go to, under which policies and keys. What happens to them says the policy.

Any text may hold ``${NAME}``, which the environment fills; ``$${`` stands for ``${`` itself. Secrets never stand in a job: the settings
of a client keep their references, and are filled where the client is made.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping as Environment
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from eventveil.schemas._job_forms import Compression, Format, JobForm, OutputForm, RegistryForm, check_entries, stream_of
from eventveil.schemas._job_reading import Reader, with_clients
from eventveil.schemas.document import Mapping, line_at, parse_document, place, read_document_text
from eventveil.schemas.durations import Duration
from eventveil.schemas.errors import PolicyError
from eventveil.schemas.grammar import empties, explain, published
from eventveil.schemas.limits import Limit, StopWhen
from eventveil.schemas.references import fill_references
from eventveil.schemas.streams import RegistryDoc, Settings, StreamAddress

__all__ = [
    "DeadLettersDoc",
    "InputDoc",
    "Job",
    "Limit",
    "OutputDoc",
    "RegistryDoc",
    "Settings",
    "StopWhen",
    "StreamAddress",
    "VariantDoc",
    "fill_references",
    "job_json_schema",
    "load_job",
    "parse_job",
]

# --- what a job says ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InputDoc:
    """Where events are read: paths or patterns, relative to where the job runs, or a stream.

    Attributes:
        format: None: told from the name of a file; of a stream never None.
        stream: None where files are read; otherwise `uri` is its address alone.
        client: settings of the stream's client.
        registry: messages are in its wire format; None where they are plain.
        envelope: what stands around the event.
    """

    uri: tuple[str, ...]
    format: Format | None = None
    compression: Compression | None = None
    stream: StreamAddress | None = None
    client: Settings = ()
    registry: RegistryDoc | None = None
    envelope: Literal["debezium"] | None = None


@dataclass(frozen=True)
class OutputDoc:
    """Where a variant's events go. `format` None: that of the input; `compression` None: none.

    Attributes:
        stream: the topic that is written to; None where files are written.
        key: the output field whose value is the key of a message; None where the record id is.
        registry: where the schema of messages is registered.
    """

    uri: str
    format: Format | None = None
    compression: Compression | None = None
    partition_by: Literal["window"] | None = None
    stream: StreamAddress | None = None
    client: Settings = ()
    registry: RegistryDoc | None = None
    key: str | None = None


@dataclass(frozen=True)
class VariantDoc:
    """One policy applied to what is read. `name` None: the policy's own."""

    name: str | None
    policy: Path
    output: OutputDoc


@dataclass(frozen=True)
class DeadLettersDoc:
    """Where refused events are kept, sealed to the custodian's public key."""

    uri: str
    custodian: Path


@dataclass(frozen=True)
class Job:
    """A job that is right in itself, with the environment filled in and paths relative to where the job runs.

    Attributes:
        keys: a keyring's path, or ``env:NAME``; None where the job does not say.
        max_event_bytes, part_bytes, batch_bytes, max_slice_bytes, max_window_bytes, roll, slice, idle_after, stop_when_refused:
            None for the default of the part that uses them.
        checkpoint: the folder that a job on a stream remembers in how far it has come.
        watch: whether folders are read as a stream: files that appear later too.
        metrics: ``host:port`` to serve metrics at; None for not at all.
        document: the job as written, with its positions.
    """

    name: str
    input: InputDoc
    variants: tuple[VariantDoc, ...]
    keys: str | None
    dead_letters: DeadLettersDoc | None
    allow_loss: bool
    runner: str
    workers: int
    max_refused: Limit | None
    max_event_bytes: int | None
    part_bytes: int | None
    batch_bytes: int | None
    summary: Path | None
    checkpoint: str | None
    roll: Duration | None
    slice: Duration | None
    idle_after: Duration | None
    max_slice_bytes: int | None
    max_window_bytes: int | None
    watch: bool
    metrics: str | None
    stop_when_refused: StopWhen | None
    file: str = field(compare=False)
    document: Mapping = field(compare=False, repr=False)

    @property
    def is_live(self) -> bool:
        """Whether there is no end to what is read."""
        return self.watch or self.input.stream is not None

    def line_of(self, *keys: str | int) -> int:
        """The line of an entry, as ``line_of("variants", 0, "policy")``; 0 if it is not there."""
        found: Any = self.document
        try:
            for key in keys:
                found = found[key]
        except (LookupError, TypeError):
            return 0
        return line_at(self.document, keys)


# --- reading ------------------------------------------------------------------------------------------------------------------


def job_json_schema() -> dict[str, Any]:
    """The JSON Schema of the job language."""
    return published(JobForm, "eventveil job")


def load_job(path: str | Path, environ: Environment[str, str] = os.environ) -> Job:
    """Read a job from a file. Raises PolicyError with everything that is wrong (EV1xx)."""
    return parse_job(read_document_text(path), str(path), environ)


def parse_job(text: str | bytes, file: str, environ: Environment[str, str] = os.environ) -> Job:
    """Read a job from text; its relative paths are relative to `file`. Raises PolicyError with everything that is wrong (EV1xx)."""
    document = parse_document(text, file)
    reader = Reader(file, environ)
    reader.problems += empties(document, file)
    reader.find_secrets(document, ())
    filled = reader.fill(document, (), 0)
    settings = {at: reader.take_settings(entry, at) for at, entry in with_clients(filled)}
    form: JobForm | None = None
    try:
        form = JobForm.model_validate(filled)
    except ValidationError as error:
        reader.problems += explain(error, JobForm, filled, file, skip=reader.unread)
    if form is not None:
        check_entries(form, document, reader)
    if form is None or reader.problems:
        raise PolicyError(reader.problems)
    job = _settled(form, settings, document, file)
    _check_apart(job, reader)
    if reader.problems:
        raise PolicyError(reader.problems)
    return job


def _settled(form: JobForm, settings: dict[tuple[str | int, ...], Settings], document: Mapping, file: str) -> Job:
    home = Path(file).parent

    def path(text: str) -> Path:
        return home / text.removeprefix("file://")

    def pattern(text: str) -> str:
        # the job's own folder is no pattern, even where its name looks like one
        text = text.removeprefix("file://")
        return text if home == Path() or Path(text).is_absolute() else str(Path(glob.escape(str(home))) / text)

    def registry(given: RegistryForm | None, *at: str | int) -> RegistryDoc | None:
        return None if given is None else RegistryDoc(given.url, settings.get((*at, "registry"), ()))

    def output(given: OutputForm, *at: str | int) -> OutputDoc:
        stream = stream_of(given.uri)
        return OutputDoc(
            uri=str(path(given.uri) if stream is None else stream),
            format=_format(given.format, given.registry),
            compression=given.compression,
            partition_by=given.partition_by,
            stream=stream,
            client=settings.get(at, ()),
            registry=registry(given.registry, *at),
            key=given.key,
        )

    given, letters = form.input, form.dead_letters
    uris = [given.uri] if isinstance(given.uri, str) else given.uri
    stream = stream_of(uris[0])
    if stream is not None and stream.group is None:
        stream = replace(stream, group=f"eventveil-{form.job}")
    return Job(
        name=form.job,
        input=InputDoc(
            uri=(str(stream),) if stream is not None else tuple(map(pattern, uris)),
            format=_format(given.format, given.registry) or (None if stream is None else "jsonl"),
            compression=given.compression,
            stream=stream,
            client=settings.get(("input",), ()),
            registry=registry(given.registry, "input"),
            envelope=given.envelope,
        ),
        variants=tuple(
            VariantDoc(variant.name, path(variant.policy), output(variant.output, "variants", number, "output"))
            for number, variant in enumerate(form.variants)
        ),
        keys=None if form.keys is None else form.keys if form.keys.startswith("env:") else str(path(form.keys)),
        dead_letters=None if letters is None else DeadLettersDoc(str(path(letters.uri)), path(letters.custodian)),
        allow_loss=form.allow_loss,
        runner=form.runner,
        workers=form.workers,
        max_refused=form.max_refused,
        max_event_bytes=form.max_event_bytes,
        part_bytes=form.part_bytes,
        batch_bytes=form.batch_bytes,
        summary=None if form.summary is None else path(form.summary),
        checkpoint=None if form.checkpoint is None else str(path(form.checkpoint)),
        roll=form.roll,
        slice=form.slice,
        idle_after=form.idle_after,
        max_slice_bytes=form.max_slice_bytes,
        max_window_bytes=form.max_window_bytes,
        watch=form.watch,
        metrics=form.metrics,
        stop_when_refused=form.stop_when_refused,
        file=file,
        document=document,
    )


def _format(written: str | None, registry: RegistryForm | None) -> Any:
    return "jsonl" if written == "json" else "avro" if written is None and registry is not None else written


def _check_apart(job: Job, reader: Reader) -> None:
    """Variants, dead letters and the checkpoint must not mix: distinct names, no folder in or at another one, no topic twice."""
    names: dict[str, int] = {}
    folders: list[tuple[Path, str]] = []
    topics: dict[tuple[str, str], str] = {}
    source = job.input.stream
    for topic in source.topics if source is not None else ():
        topics.update({(server, topic): "input.uri" for server in source.servers.split(",")} if source is not None else {})

    def claim(uri: str, *at: str | int) -> None:
        folder, entry = Path(os.path.normpath(uri)), place(at)
        for other, of in folders:
            if folder == other or folder in other.parents or other in folder.parents:
                fact = f"{entry} and {of} are one folder, or one is in the other"
                reader.add(job.line_of(*at), "EV103", fact, "give each output a folder of its own")
        folders.append((folder, entry))

    if job.dead_letters is not None:
        claim(job.dead_letters.uri, "dead_letters", "uri")
    if job.checkpoint is not None:
        claim(job.checkpoint, "checkpoint")
    for number, variant in enumerate(job.variants):
        if variant.name is not None:
            if variant.name in names:
                fact = f"variants[{number}].name is that of variants[{names[variant.name]}]"
                reader.add(job.line_of("variants", number, "name"), "EV103", fact, "give each variant a name of its own")
            names.setdefault(variant.name, number)
        stream, entry = variant.output.stream, f"variants[{number}].output.uri"
        if stream is None:
            claim(variant.output.uri, "variants", number, "output", "uri")
            continue
        places = [(server, stream.topics[0]) for server in stream.servers.split(",")]
        taken = [topics[found] for found in places if found in topics]
        if taken:
            line = job.line_of("variants", number, "output", "uri")
            reader.add(line, "EV103", f"{entry} and {taken[0]} are one topic", "give each output a topic of its own")
        topics.update(dict.fromkeys(places, entry))
