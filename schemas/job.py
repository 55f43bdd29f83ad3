"""The job: where events come from and go to, under which policies and keys. What happens to them says the policy.

Any text may hold ``${NAME}``, which the environment fills; ``$${`` stands for ``${`` itself. Secrets never stand in a job: the settings
of a client keep their references, and are filled where the client is made.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable
from collections.abc import Mapping as Environment
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from eventveil.schemas._job_forms import (
    Compression,
    DataflowForm,
    FlinkForm,
    Format,
    JobForm,
    OutputForm,
    RegistryForm,
    check_entries,
    stream_of,
    table_of,
)
from eventveil.schemas._job_reading import Reader, with_clients
from eventveil.schemas.document import Mapping, line_at, parse_document, place, read_document_text
from eventveil.schemas.durations import Duration
from eventveil.schemas.errors import PolicyError
from eventveil.schemas.grammar import empties, explain, published
from eventveil.schemas.limits import Limit, StopWhen
from eventveil.schemas.references import fill_references
from eventveil.schemas.streams import JAVA_KAFKA, PubsubAddress, RegistryDoc, Settings, StreamAddress, is_secret
from eventveil.schemas.tables import TableAddress

__all__ = [
    "DataflowDoc",
    "DeadLettersDoc",
    "FlinkDoc",
    "InputDoc",
    "Job",
    "Limit",
    "OutputDoc",
    "PubsubAddress",
    "RegistryDoc",
    "Settings",
    "StopWhen",
    "StreamAddress",
    "TableAddress",
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
        expansion_service: where Beam's source for Java is asked for, ``host:port``; None: it is downloaded.
    """

    uri: tuple[str, ...]
    format: Format | None = None
    compression: Compression | None = None
    stream: StreamAddress | PubsubAddress | None = None
    client: Settings = ()
    registry: RegistryDoc | None = None
    envelope: Literal["debezium"] | None = None
    expansion_service: str | None = None


@dataclass(frozen=True)
class OutputDoc:
    """Where a variant's events go. `format` None: that of the input; `compression` None: none.

    Attributes:
        stream: the topic that is written to; None where files are written, or a table.
        table: that is written to. evolve: whether a new version of the policy may add columns to it.
        key: the output field whose value is the key of a message; None where the record id is.
        registry: where the schema of messages is registered.
    """

    uri: str
    format: Format | None = None
    compression: Compression | None = None
    partition_by: Literal["window"] | None = None
    stream: StreamAddress | PubsubAddress | None = None
    client: Settings = ()
    registry: RegistryDoc | None = None
    key: str | None = None
    table: TableAddress | None = None
    evolve: bool = False


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
class FlinkDoc:
    """The Flink that a job runs on. None: the default of the runner.

    Attributes:
        master: host:port of its REST interface. worker_pool: where workers are started, seen from a TaskManager.
        job_server: a jar, a folder of jars, or host:port. version: of the one that is downloaded.
        restarts: how often a job may restart within ten minutes.
        options: of Beam, which go before ours.
    """

    master: str
    worker_pool: str | None = None
    job_server: str | None = None
    version: str | None = None
    checkpointing: Duration | None = None
    restarts: int | None = None
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataflowDoc:
    """The Dataflow that a job runs on.

    Attributes:
        wheel: of eventveil, which workers install. template: where a template is written, in place of a start.
        update: whether the job of this name is replaced.
        labels: ``name=value``, beside ours. options: of Beam, which go before ours.
    """

    project: str
    region: str
    temp_location: str
    wheel: str | None = None
    template: str | None = None
    labels: tuple[str, ...] = ()
    update: bool = False
    options: tuple[str, ...] = ()


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
    flink: FlinkDoc | None
    dataflow: DataflowDoc | None
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


def load_job(path: str | Path, environ: Environment[str, str] = os.environ, where: Environment[str, Any] | None = None) -> Job:
    """Read a job from a file. Raises PolicyError with everything that is wrong (EV1xx)."""
    return parse_job(read_document_text(path), str(path), environ, where)


def parse_job(text: str | bytes, file: str, environ: Environment[str, str] = os.environ, where: Environment[str, Any] | None = None) -> Job:
    """Read a job from text; its relative paths are relative to `file`. Raises PolicyError with everything that is wrong (EV1xx).

    Args:
        where: what is said beside the job about where it runs: ``runner``, and entries of ``flink`` and ``dataflow``. It goes first.
    """
    document = parse_document(text, file)
    for name, value in (where or {}).items():
        below = document.get(name)
        document[name] = Mapping({**below, **value}, below.line, below.lines) if isinstance(below, Mapping) else _said(value)
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
    _check_java_settings(job, reader)
    if reader.problems:
        raise PolicyError(reader.problems)
    return job


def _said(value: Any) -> Any:
    return Mapping({key: _said(entry) for key, entry in value.items()}) if isinstance(value, dict) else value


def _settled(form: JobForm, settings: dict[tuple[str | int, ...], Settings], document: Mapping, file: str) -> Job:
    # An engine's workers run somewhere else.
    home = Path(file).parent if form.runner == "local" else Path(file).parent.absolute()

    def path(text: str) -> Path:
        return home / text.removeprefix("file://")

    def pattern(text: str) -> str:
        # the job's own folder is no pattern, even where its name looks like one
        text = text.removeprefix("file://")
        return text if home == Path() or Path(text).is_absolute() else str(Path(glob.escape(str(home))) / text)

    def registry(given: RegistryForm | None, *at: str | int) -> RegistryDoc | None:
        return None if given is None else RegistryDoc(given.url, settings.get((*at, "registry"), ()))

    def output(given: OutputForm, *at: str | int) -> OutputDoc:
        stream, table = stream_of(given.uri), table_of(given.uri)
        return OutputDoc(
            uri=str(path(given.uri) if stream is None and table is None else stream or table),
            format=_format(given.format, given.registry),
            compression=given.compression,
            partition_by=given.partition_by,
            stream=stream,
            client=settings.get(at, ()),
            registry=registry(given.registry, *at),
            key=given.key,
            table=table,
            evolve=bool(given.evolve),
        )

    given, letters = form.input, form.dead_letters
    uris = [given.uri] if isinstance(given.uri, str) else given.uri
    stream = stream_of(uris[0])
    if isinstance(stream, StreamAddress) and stream.group is None:
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
            expansion_service=given.expansion_service,
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
        flink=None if form.flink is None else _flink(form.flink, path),
        dataflow=None if form.dataflow is None else _dataflow(form.dataflow, path),
        file=file,
        document=document,
    )


def _flink(form: FlinkForm, path: Callable[[str], Path]) -> FlinkDoc:
    server = form.job_server
    if server is not None and re.search(r":[0-9]{1,5}\Z", server) is None:
        server = str(path(server))
    return FlinkDoc(
        master=form.master,
        worker_pool=form.worker_pool,
        job_server=server,
        version=form.version,
        checkpointing=form.checkpointing,
        restarts=form.restarts,
        options=tuple(form.options or ()),
    )


def _dataflow(form: DataflowForm, path: Callable[[str], Path]) -> DataflowDoc:
    return DataflowDoc(
        project=form.project,
        region=form.region,
        temp_location=form.temp_location,
        wheel=None if form.wheel is None else str(path(form.wheel)),
        template=form.template,
        labels=tuple(form.labels or ()),
        update=bool(form.update),
        options=tuple(form.options or ()),
    )


def _format(written: str | None, registry: RegistryForm | None) -> Any:
    return "jsonl" if written == "json" else "avro" if written is None and registry is not None else written


def _check_java_settings(job: Job, reader: Reader) -> None:
    """Java's client gets its settings with the job's graph, which the engine keeps, and shows to whoever may look at the job."""
    if job.input.stream is None or job.input.stream.scheme != JAVA_KAFKA:
        return
    for name, value in job.input.client:
        if is_secret(name) or "${" in value:
            fact = f"input.{name} would stand in the job's graph, which the engine keeps and shows"
            remedy = "read by kafka://, whose workers fill it in; or name files that the workers have"
            reader.add(job.line_of("input", name) or job.line_of("input", "client", name), "EV118", fact, remedy)


def _check_apart(job: Job, reader: Reader) -> None:
    """Variants, dead letters and the checkpoint must not mix: distinct names, no folder in or at another one, no topic twice."""
    names: dict[str, int] = {}
    folders: list[tuple[Path, str]] = []
    topics: dict[tuple[str, str], str] = {}
    if job.input.stream is not None and not isinstance(job.input.stream, PubsubAddress):
        # A subscription is no topic: what it is of, only the service knows.
        topics.update(dict.fromkeys(_places(job.input.stream), "input.uri"))

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
        stream, table, entry = variant.output.stream, variant.output.table, f"variants[{number}].output.uri"
        if stream is None and table is None:
            claim(variant.output.uri, "variants", number, "output", "uri")
            continue
        if table is not None and table.kind == "delta" and table.is_local:
            claim(table.place, "variants", number, "output", "uri")
            continue
        places = _places(stream) if stream is not None else [(variant.output.uri, "")]
        taken = [topics[found] for found in places if found in topics]
        if taken:
            line, what = job.line_of("variants", number, "output", "uri"), "topic" if stream is not None else "table"
            reader.add(line, "EV103", f"{entry} and {taken[0]} are one {what}", f"give each output a {what} of its own")
        topics.update(dict.fromkeys(places, entry))


def _places(stream: StreamAddress | PubsubAddress) -> list[tuple[str, str]]:
    """Server and topic, for each of both."""
    if isinstance(stream, PubsubAddress):
        return [(stream.project, stream.name)]
    return [(server, topic) for topic in stream.topics for server in stream.servers.split(",")]
