"""The job: where events come from and go to, under which policies and keys. What happens to them says the policy.

Any text may hold ``${NAME}``, which the environment fills; ``$${`` stands for ``${`` itself. Secrets never stand in a job.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping as Environment
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, ValidationError, WithJsonSchema
from pydantic.config import JsonDict

from eventveil.schemas.document import Hidden, Mapping, Sequence, line_at, parse_document, place, read_document_text, shorten
from eventveil.schemas.errors import PolicyError, Problem
from eventveil.schemas.grammar import Form, Later, Name, Text, empties, explain, published

__all__ = [
    "DeadLettersDoc",
    "InputDoc",
    "Job",
    "Limit",
    "OutputDoc",
    "VariantDoc",
    "job_json_schema",
    "load_job",
    "parse_job",
]

Format = Literal["jsonl", "avro", "parquet"]
Compression = Literal["none", "gzip", "zstd"]

_LARGEST_PART = 32 << 20
_VARIABLE = re.compile(r"\$\$\{|\$\{(?:([A-Za-z_][A-Za-z0-9_]*)\})?")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_CREDENTIALS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/@]*:[^/@]*@")
_SECRET = re.compile(
    r"(?:^|[._-])(?:password|passwd|passphrase|pwd|secrets?|tokens?|credentials?|api[._-]?key|access[._-]?key|private[._-]?key)(?:$|[._-])"
)
_LATER_SCHEMES = frozenset({"abfs", "bigquery", "delta", "gs", "hdfs", "iceberg", "kafka", "pubsub", "s3"})


# --- what a job says ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limit:
    """How many events may be refused: a count, or a share of all (0 to 1). One of the two is None."""

    count: int | None = None
    share: Fraction | None = None

    @classmethod
    def parse(cls, value: object) -> Limit:
        """From ``5%``, ``0.5%``, a whole number, or its text. Raises ValueError (EV103) on anything else."""
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return cls(count=value)
        found = re.match(r"([0-9]{1,18})(?:(\.[0-9]{1,9})?(%))?\Z", value) if isinstance(value, str) else None
        if found is not None and found[3] is None:
            return cls(count=int(found[1]))
        share = Fraction(found[1] + (found[2] or "")) / 100 if found is not None else None
        if share is None or share > 1:
            raise ValueError("EV103 not a limit: write a count, or a share from 0% to 100% with its sign")
        return cls(share=share)

    def is_passed(self, refused: int, events: int) -> bool:
        """Whether `refused` of `events` are more than it allows."""
        return refused > self.count if self.count is not None else refused > (self.share or 0) * events

    def __str__(self) -> str:
        return str(self.count) if self.count is not None else f"{float((self.share or 0) * 100):g}%"


@dataclass(frozen=True)
class InputDoc:
    """Where events are read: paths or patterns, relative to where the job runs. `format` None: told from the name."""

    uri: tuple[str, ...]
    format: Format | None = None
    compression: Compression | None = None


@dataclass(frozen=True)
class OutputDoc:
    """Where a variant's events go. `format` None: that of the input; `compression` None: none."""

    uri: str
    format: Format | None = None
    compression: Compression | None = None
    partition_by: Literal["window"] | None = None


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
        max_event_bytes, part_bytes, batch_bytes: None for the default of the part that uses them.
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
    file: str = field(compare=False)
    document: Mapping = field(compare=False, repr=False)

    def line_of(self, *keys: str | int) -> int:
        """The line of an entry, as ``line_of("variants", 0, "policy")``; 0 if it is not there."""
        found: Any = self.document
        try:
            for key in keys:
                found = found[key]
        except (LookupError, TypeError):
            return 0
        return line_at(self.document, keys)


# --- its grammar --------------------------------------------------------------------------------------------------------------


def _check_uri(text: str) -> str:
    scheme = _SCHEME.match(text)
    if scheme is None or (scheme[1] == "file" and text.startswith("file:///")):
        return text
    if scheme[1] in _LATER_SCHEMES:
        raise ValueError(f"EV111 {scheme[1]}:// is not available yet: write a path")
    raise ValueError("EV103 no kind of place that we know: write a path, or file:/// and an absolute path")


def _later_runner(value: Any) -> Any:
    if isinstance(value, str) and value in ("flink", "dataflow"):
        raise ValueError("EV111 not available yet: write local")
    return value


def _from_environment(value: Any) -> Any:
    """What the environment fills is text; where a number or a boolean belongs it may be one."""
    if isinstance(value, Hidden):
        if re.match(r"[0-9]{1,18}\Z", value):
            return int(value)
        return {"true": True, "false": False}.get(value, value)
    return value


_FILLED: JsonDict = {"type": "string", "pattern": r"^\$\{[A-Za-z_][A-Za-z0-9_]*\}$"}


def _count(description: str, most: int, default: int | None = None) -> Any:
    """A field for a whole number from 1 to `most`."""
    form: JsonDict = {"anyOf": [{"type": "integer", "minimum": 1, "maximum": most}, _FILLED]}
    return Field(default=default, ge=1, le=most, description=description, json_schema_extra=form)


_Count = Annotated[int, BeforeValidator(_from_environment), WithJsonSchema({})]
_Flag = Annotated[bool, BeforeValidator(_from_environment), WithJsonSchema({"anyOf": [{"type": "boolean"}, _FILLED]})]
_Uri = Annotated[Text, AfterValidator(_check_uri)]
_Refused = Annotated[
    Any,
    BeforeValidator(Limit.parse),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?%$"}, _FILLED]}),
]


class InputForm(Form):
    uri: Annotated[
        Annotated[_Uri, Tag("<text>")] | Annotated[list[_Uri], Field(min_length=1), Tag("<list>")],
        Discriminator(lambda value: "<list>" if isinstance(value, list) else "<text>"),
    ] = Field(description="a path or pattern, or several")
    format: Format | None = Field(default=None, description="told from the name where it is not given")
    compression: Compression | None = Field(default=None, description="told from the name where it is not given")


class OutputForm(Form):
    uri: _Uri = Field(description="the folder to write to")
    format: Format | None = Field(default=None, description="that of the input where it is not given")
    compression: Compression | None = Field(default=None, description="of jsonl: none, gzip or zstd")
    partition_by: Literal["window"] | None = Field(default=None, description="window: a folder per window")


class VariantForm(Form):
    name: Name | None = Field(default=None, description="the policy's name where it is not given")
    policy: Text = Field(description="the file of the policy, relative to the job")
    output: OutputForm = Field(description="where its events go")


class DeadLettersForm(Form):
    uri: _Uri = Field(description="the folder for refused events")
    custodian: Text = Field(description="the file of the custodian's public key")


class JobForm(Form):
    job: Name = Field(description="the name of the job")
    input: InputForm = Field(description="where events come from")
    variants: list[VariantForm] = Field(min_length=1, description="one policy and one output each")
    keys: Text | None = Field(default=None, description="the file of the keyring, or env:NAME")
    dead_letters: DeadLettersForm | None = Field(default=None, description="where refused events are kept, and who may open them")
    allow_loss: _Flag = Field(default=False, description="whether refused events may be lost")
    runner: Annotated[Literal["local"], BeforeValidator(_later_runner)] = Field(default="local", description="what runs the job")
    workers: _Count = _count("how many cores it uses", 64, 1)
    max_refused: _Refused = Field(default=None, description="the count or share of refused events above which the job has failed")
    max_event_bytes: _Count | None = _count("the largest event that is read", 1 << 30)
    part_bytes: _Count | None = _count("decompressed input of one output part", _LARGEST_PART)
    batch_bytes: _Count | None = _count("decompressed input of one batch", _LARGEST_PART)
    summary: Text | None = Field(default=None, description="the file that the summary is written to, as JSON")
    checkpoint: Later = None
    max_slice_bytes: Later = None
    roll: Later = None
    watch: Later = None


def job_json_schema() -> dict[str, Any]:
    """The JSON Schema of the job language."""
    return published(JobForm, "eventveil job")


# --- reading ------------------------------------------------------------------------------------------------------------------


def load_job(path: str | Path, environ: Environment[str, str] = os.environ) -> Job:
    """Read a job from a file. Raises PolicyError with everything that is wrong (EV1xx)."""
    return parse_job(read_document_text(path), str(path), environ)


def parse_job(text: str | bytes, file: str, environ: Environment[str, str] = os.environ) -> Job:
    """Read a job from text; its relative paths are relative to `file`. Raises PolicyError with everything that is wrong (EV1xx)."""
    document = parse_document(text, file)
    reader = _Reader(file, environ)
    reader.problems += empties(document, file)
    reader.find_secrets(document, ())
    filled = reader.fill(document, (), 0)
    form: JobForm | None = None
    try:
        form = JobForm.model_validate(_without_client_settings(filled))
    except ValidationError as error:
        reader.problems += explain(error, JobForm, filled, file, skip=reader.unread)
    if form is None or reader.problems:
        raise PolicyError(reader.problems)
    job = _settled(form, document, file)
    _check_apart(job, reader)
    if reader.problems:
        raise PolicyError(reader.problems)
    return job


class _Reader:
    """Fills the environment in, looks for secrets, and gathers what is wrong."""

    def __init__(self, file: str, environ: Environment[str, str]) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self.unread: set[str] = set()
        """Entries that could not be filled: what else is wrong with them cannot be known."""
        self._environ = environ

    def add(self, line: int, code: str, fact: str, remedy: str) -> None:
        self.problems.append(Problem(self.file, line, code, fact, remedy))

    def fill(self, value: Any, at: tuple[str | int, ...], line: int) -> Any:
        if isinstance(value, Mapping):
            entries = {key: self.fill(entry, (*at, key), value.lines.get(key, line)) for key, entry in value.items()}
            return Mapping(entries, value.line, value.lines)
        if isinstance(value, Sequence):
            items = [self.fill(item, (*at, number), value.lines[number]) for number, item in enumerate(value)]
            return Sequence(items, value.line, value.lines)
        return self._fill_text(value, at, line) if isinstance(value, str) else value

    def _fill_text(self, text: str, at: tuple[str | int, ...], line: int) -> str:
        hidden = _CREDENTIALS.match(text) is not None

        def replace(found: re.Match[str]) -> str:
            nonlocal hidden
            if found[0] == "$${":
                return "${"
            if found[1] is None:
                remedy = "write ${NAME}, or $${ for the characters themselves"
                self.add(line, "EV103", f"{place(at)} has ${{ without the name of a variable", remedy)
                self.unread.add(place(at))
                return ""
            hidden = True
            if found[1] not in self._environ:
                self.add(line, "EV117", f"{place(at)}: the environment variable {shorten(found[1])} is not set", "set it, or write a value")
                self.unread.add(place(at))
                return ""
            return self._environ[found[1]]

        filled = _VARIABLE.sub(replace, text)
        return Hidden(filled) if hidden else filled

    def find_secrets(self, value: Any, at: tuple[str | int, ...], line: int = 0, named: bool = False) -> None:
        if isinstance(value, Mapping):
            for key, entry in value.items():
                self.find_secrets(entry, (*at, key), value.lines.get(key, line), named or _is_secret(key))
        elif isinstance(value, Sequence):
            for number, item in enumerate(value):
                self.find_secrets(item, (*at, number), value.lines[number], named)
        elif value is not None and not isinstance(value, bool):
            if named and not (isinstance(value, str) and re.match(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}\Z", value)):
                self.add(line, "EV118", f"{place(at)} is a secret", "put it in an environment variable and write ${NAME}")
            elif isinstance(value, str) and (found := _CREDENTIALS.match(value)) and "${" not in found[0]:
                self.add(line, "EV118", f"{place(at)} holds a password", "put it in an environment variable and write ${NAME}")


def _is_secret(key: str) -> bool:
    """Whether a key names a secret: ``sasl.password``, ``apiKey``, ``auth_token``."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower()
    return _SECRET.search(spaced) is not None


def _without_client_settings(document: Mapping) -> Mapping:
    """The document without what only a client of a stream would read: that streams are not available is said by their address."""

    def plain(entry: Any, form: type[Form]) -> Any:
        if not isinstance(entry, Mapping):
            return entry
        uris = entry.get("uri")
        schemes = [_SCHEME.match(uri) for uri in (uris if isinstance(uris, list) else [uris]) if isinstance(uri, str)]
        if not any(scheme is not None and scheme[1] in _LATER_SCHEMES for scheme in schemes):
            return entry
        return Mapping({key: value for key, value in entry.items() if key in form.model_fields}, entry.line, entry.lines)

    kept = Mapping(document, document.line, document.lines)
    if "input" in kept:
        kept["input"] = plain(kept["input"], InputForm)
    if isinstance(kept.get("variants"), list):
        kept["variants"] = [
            Mapping({**variant, "output": plain(variant["output"], OutputForm)}, variant.line, variant.lines)
            if isinstance(variant, Mapping) and "output" in variant
            else variant
            for variant in kept["variants"]
        ]
    return kept


def _settled(form: JobForm, document: Mapping, file: str) -> Job:
    home = Path(file).parent

    def path(text: str) -> Path:
        return home / text.removeprefix("file://")

    def pattern(text: str) -> str:
        # the job's own folder is no pattern, even where its name looks like one
        text = text.removeprefix("file://")
        return text if home == Path() or Path(text).is_absolute() else str(Path(glob.escape(str(home))) / text)

    uris = form.input.uri
    letters = form.dead_letters
    return Job(
        name=form.job,
        input=InputDoc(tuple(map(pattern, [uris] if isinstance(uris, str) else uris)), form.input.format, form.input.compression),
        variants=tuple(
            VariantDoc(
                variant.name,
                path(variant.policy),
                OutputDoc(str(path(variant.output.uri)), variant.output.format, variant.output.compression, variant.output.partition_by),
            )
            for variant in form.variants
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
        file=file,
        document=document,
    )


def _check_apart(job: Job, reader: _Reader) -> None:
    """Variants and dead letters must not mix: distinct names, and no folder in or at another one."""
    names: dict[str, int] = {}
    folders: list[tuple[Path, str]] = []
    if job.dead_letters is not None:
        folders.append((Path(os.path.normpath(job.dead_letters.uri)), "dead_letters.uri"))
    for number, variant in enumerate(job.variants):
        if variant.name is not None:
            if variant.name in names:
                fact = f"variants[{number}].name is that of variants[{names[variant.name]}]"
                reader.add(job.line_of("variants", number, "name"), "EV103", fact, "give each variant a name of its own")
            names.setdefault(variant.name, number)
        folder, entry = Path(os.path.normpath(variant.output.uri)), f"variants[{number}].output.uri"
        for other, of in folders:
            if folder == other or folder in other.parents or other in folder.parents:
                line = job.line_of("variants", number, "output", "uri")
                fact = f"{entry} and {of} are one folder, or one is in the other"
                reader.add(line, "EV103", fact, "give each output a folder of its own")
        folders.append((folder, entry))
