"""The grammar of jobs: the forms of their entries, and what each entry of an input or output is for."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Discriminator, Field, Tag, WithJsonSchema
from pydantic.config import JsonDict

from eventveil.schemas._job_reading import Reader
from eventveil.schemas.document import Hidden, Mapping, line_at, place
from eventveil.schemas.durations import Duration
from eventveil.schemas.grammar import Form, Name, Text
from eventveil.schemas.limits import Limit, StopWhen
from eventveil.schemas.streams import (
    JAVA_KAFKA,
    LATER_SCHEMES,
    SCHEME,
    STREAM_SCHEMES,
    PubsubAddress,
    StreamAddress,
    is_stream,
    parse_stream,
)
from eventveil.schemas.tables import TABLE_SCHEMES, TableAddress, is_table

__all__ = ["Compression", "Format", "InputForm", "JobForm", "OutputForm", "RegistryForm", "check_entries", "stream_of", "table_of"]

Format = Literal["jsonl", "avro", "parquet"]
Compression = Literal["none", "gzip", "zstd"]

_LARGEST_PART = 32 << 20
_LARGEST_STATE = 1 << 40
_LIVE_ONLY = ("checkpoint", "slice", "idle_after", "max_slice_bytes", "stop_when_refused")
_LOCAL_ONLY = ("watch", "slice", "max_slice_bytes", "max_refused", "part_bytes")


def _check_path(text: str) -> str:
    scheme = SCHEME.match(text)
    if scheme is None or (scheme[1] == "file" and text.startswith("file:///")):
        return text
    if scheme[1] in LATER_SCHEMES | STREAM_SCHEMES | TABLE_SCHEMES:
        raise ValueError(f"EV111 {scheme[1]}:// is not available yet: write a path")
    raise ValueError("EV103 no kind of place that we know: write a path, or file:/// and an absolute path")


def stream_of(text: object) -> StreamAddress | PubsubAddress | None:
    return parse_stream(text) if isinstance(text, str) and is_stream(text) else None


def table_of(text: object) -> TableAddress | None:
    return TableAddress.parse(text) if isinstance(text, str) and is_table(text) else None


def _check_input(text: str) -> str:
    return text if stream_of(text) is not None else _check_path(text)


def _check_inputs(texts: list[str]) -> list[str]:
    if len(texts) > 1 and any(stream_of(text) is not None for text in texts):
        raise ValueError("EV103 a stream stands among others: write it alone; several topics with commas")
    return texts


def _check_output(text: str) -> str:
    stream = stream_of(text)
    if stream is None:
        return text if table_of(text) is not None else _check_path(text)
    if isinstance(stream, PubsubAddress):
        return text
    if stream.scheme == JAVA_KAFKA:
        raise ValueError("EV103 kafka+java:// is for what is read: write kafka://")
    if len(stream.topics) > 1:
        raise ValueError("EV103 more than one topic: write one")
    if "?" in text:
        raise ValueError("EV103 only what is read has a group and a start: write the address without them")
    return text


def _check_clock(length: Duration) -> Duration:
    if length.unit not in ("s", "min", "h", "d"):
        raise ValueError("EV103 not counted in these units: write it in s, min, h or d")
    return length


def _check_listen(text: str) -> str:
    found = re.match(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9][A-Za-z0-9._-]{0,252}):([0-9]{1,5})\Z", text)
    if found is None or not 0 < int(found[2]) < 65536:
        raise ValueError("EV103 not an address to listen at: write host:port, as 127.0.0.1:9464")
    return text


def _check_registry(text: str) -> str:
    if re.match(r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?\Z", text) is None:
        raise ValueError("EV103 not the address of a registry: write http:// or https://, host, port and path alone")
    return text


def _check_address(text: str) -> str:
    found = re.match(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9][A-Za-z0-9._-]{0,252}):([0-9]{1,5})\Z", text)
    if found is None or not 0 < int(found[2]) < 65536:
        raise ValueError("EV103 not an address: write host:port, as localhost:8081")
    return text


def _check_bucket(text: str) -> str:
    if re.match(r"gs://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9](/[^/\x00-\x1f?#]+)*/?\Z", text) is None:
        raise ValueError("EV103 not a place in a bucket: write gs://bucket/folder")
    return text


def _check_label(text: str) -> str:
    if re.match(r"[a-z][a-z0-9_-]{0,62}(=[a-z0-9_-]{0,63})?\Z", text) is None:
        raise ValueError("EV103 not a label: write name=value, in lower case")
    return text


def _check_option(text: str) -> str:
    if re.match(r"--[a-z][a-z0-9_]*(=.*)?\Z", text, re.DOTALL) is None:
        raise ValueError("EV103 not an option of Beam: write --name or --name=value")
    return text


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
_Folder = Annotated[Text, AfterValidator(_check_path)]
_Input = Annotated[Text, AfterValidator(_check_input)]
_Output = Annotated[Text, AfterValidator(_check_output)]
_Clock = Annotated[
    Duration, AfterValidator(_check_clock), WithJsonSchema({"type": "string", "pattern": r"^([1-9][0-9]{0,8}(s|min|h|d)|.*\$\{.*)$"})
]
_Refused = Annotated[
    Any,
    BeforeValidator(Limit.parse),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?%$"}, _FILLED]}),
]


_Listen = Annotated[Text, AfterValidator(_check_listen)]
_Address = Annotated[Text, AfterValidator(_check_address)]
_Bucket = Annotated[Text, AfterValidator(_check_bucket)]
_Options = Annotated[list[Annotated[Text, AfterValidator(_check_option)]], Field(min_length=1)]
_Labels = Annotated[list[Annotated[Text, AfterValidator(_check_label)]], Field(min_length=1)]
_StopWhen = Annotated[
    Any,
    BeforeValidator(StopWhen.parse),
    WithJsonSchema({"type": "string", "pattern": r"^(never|[0-9]+(\.[0-9]+)?%/[1-9][0-9]*(s|min|h|d|w)|.*\$\{.*)$"}),
]
_SETTINGS: JsonDict = {"type": ["string", "number", "boolean"]}
_Client = Annotated[dict[str, Any], WithJsonSchema({"type": "object", "additionalProperties": _SETTINGS})]
_WrittenFormat = Literal["json", "jsonl", "avro", "parquet"]


class _WithSettings(Form):
    """A mapping in which settings of a client may stand beside our own entries: they have a dot in their names."""

    model_config = ConfigDict(json_schema_extra={"patternProperties": {r"\.": _SETTINGS}})


class RegistryForm(_WithSettings):
    url: Annotated[Text, AfterValidator(_check_registry)] = Field(description="where the registry is")


class InputForm(_WithSettings):
    uri: Annotated[
        Annotated[_Input, Tag("<text>")] | Annotated[list[_Input], Field(min_length=1), AfterValidator(_check_inputs), Tag("<list>")],
        Discriminator(lambda value: "<list>" if isinstance(value, list) else "<text>"),
    ] = Field(description="a path or pattern, or several; or a stream: kafka://host:port/topic")
    format: _WrittenFormat | None = Field(default=None, description="told from the name where it is not given; json for streams")
    compression: Compression | None = Field(default=None, description="told from the name where it is not given")
    envelope: Literal["debezium"] | None = Field(default=None, description="what stands around the event in JSON")
    registry: RegistryForm | None = Field(default=None, description="the schema registry that messages name their schemas of")
    client: _Client | None = Field(default=None, description="settings of the stream's client")
    expansion_service: _Address | None = Field(
        default=None, description="of kafka+java: host:port of Beam's expansion service for Java; it is downloaded where none is named"
    )


class OutputForm(_WithSettings):
    uri: _Output = Field(description="the folder to write to; a topic: kafka://host:port/topic; or a table: delta:///folder")
    format: _WrittenFormat | None = Field(default=None, description="that of the input where it is not given")
    compression: Compression | None = Field(default=None, description="of jsonl: none, gzip or zstd")
    partition_by: Literal["window"] | None = Field(default=None, description="window: a folder per window")
    key: Text | None = Field(default=None, description="the output field that is the key of a message")
    registry: RegistryForm | None = Field(default=None, description="the schema registry that the output's schema is registered in")
    client: _Client | None = Field(default=None, description="settings of the stream's or table's client")
    evolve: _Flag | None = Field(default=None, description="of tables: whether a new version of the policy may add columns")


class VariantForm(Form):
    name: Name | None = Field(default=None, description="the policy's name where it is not given")
    policy: Text = Field(description="the file of the policy, relative to the job")
    output: OutputForm = Field(description="where its events go")


class DeadLettersForm(Form):
    uri: _Folder = Field(description="the folder for refused events")
    custodian: Text = Field(description="the file of the custodian's public key")


class FlinkForm(Form):
    master: _Address = Field(description="host:port of Flink's REST interface")
    worker_pool: _Address | None = Field(default=None, description="where the workers are, seen from a TaskManager; 127.0.0.1:50000")
    job_server: Text | None = Field(default=None, description="Beam's job server: a jar, a folder of jars, or host:port of a running one")
    version: Annotated[Text, WithJsonSchema({"type": "string", "pattern": r"^[12]\.[0-9]+$"})] | None = Field(
        default=None, description="of Flink, where Beam's own job server is downloaded"
    )
    checkpointing: _Clock | None = Field(default=None, description="how often Flink makes a checkpoint; default: 10s")
    restarts: _Count | None = _count("how often a job may restart within ten minutes before it has failed", 1000)
    options: _Options | None = Field(default=None, description="further options of Beam, which go before ours")


class DataflowForm(Form):
    project: Text = Field(description="the project of Google Cloud")
    region: Text = Field(description="where the workers run")
    temp_location: _Bucket = Field(description="where Dataflow keeps what is temporary and staged: gs://bucket/folder")
    wheel: Text | None = Field(default=None, description="the wheel of eventveil that workers install, where their image has none")
    template: _Bucket | None = Field(default=None, description="write a template there, and start nothing")
    labels: _Labels | None = Field(default=None, description="labels of the job beside ours, as team=data")
    update: _Flag | None = Field(default=None, description="take the place of the job of this name that runs")
    options: _Options | None = Field(default=None, description="further options of Beam, which go before ours")


class JobForm(Form):
    job: Name = Field(description="the name of the job")
    input: InputForm = Field(description="where events come from")
    variants: list[VariantForm] = Field(min_length=1, description="one policy and one output each")
    keys: Text | None = Field(default=None, description="the file of the keyring, or env:NAME")
    dead_letters: DeadLettersForm | None = Field(default=None, description="where refused events are kept, and who may open them")
    allow_loss: _Flag = Field(default=False, description="whether refused events may be lost")
    runner: Literal["local", "flink", "dataflow"] = Field(default="local", description="what runs the job")
    flink: FlinkForm | None = Field(default=None, description="the Flink that runs the job")
    dataflow: DataflowForm | None = Field(default=None, description="the Dataflow that runs the job")
    workers: _Count = _count("how many cores it uses; on Flink, its parallelism", 64, 1)
    max_refused: _Refused = Field(default=None, description="the count or share of refused events above which the job has failed")
    max_event_bytes: _Count | None = _count("the largest event that is read", 1 << 30)
    part_bytes: _Count | None = _count("decompressed input of one output part", _LARGEST_PART)
    batch_bytes: _Count | None = _count("decompressed input of one batch", _LARGEST_PART)
    summary: Text | None = Field(default=None, description="the file that the summary is written to, as JSON")
    checkpoint: _Folder | None = Field(default=None, description="the folder in which a job on a stream keeps how far it has come")
    watch: _Flag = Field(default=False, description="whether files that appear later are read too")
    roll: _Clock | None = Field(default=None, description="event time of one file, where events wait for no window")
    slice: _Clock | None = Field(default=None, description="how often a stream is read on")
    idle_after: _Clock | None = Field(default=None, description="how long a partition may be silent before others go on without it")
    max_slice_bytes: _Count | None = _count("the most that is read of a stream at once", _LARGEST_STATE)
    max_window_bytes: _Count | None = _count("the largest window that is decided at once", _LARGEST_STATE)
    metrics: Annotated[Text, AfterValidator(_check_listen)] | None = Field(
        default=None, description="host:port at which metrics are served"
    )
    stop_when_refused: _StopWhen = Field(
        default=None, description="the share of refused events over a time above which a job on a stream stops, as 5%/10min; or never"
    )


def check_entries(form: JobForm, document: Mapping, reader: Reader) -> None:
    """What each entry of an input or output is for."""
    uri = form.input.uri
    stream = stream_of(uri if isinstance(uri, str) else uri[0])
    _check_stream_end(form.input, stream, ("input",), document, reader)
    for number, variant in enumerate(form.variants):
        at = ("variants", number, "output")
        if table_of(variant.output.uri) is not None:
            _check_table(variant.output, at, stream is not None or form.watch, document, reader)
        else:
            _check_stream_end(variant.output, stream_of(variant.output.uri), at, document, reader)
    if form.input.envelope is not None and form.input.format not in (None, "json", "jsonl"):
        line = line_at(document, ("input", "envelope"))
        reader.add(line, "EV103", f"input.envelope does not go with {form.input.format}", "remove it: envelopes are of JSON")
    _check_java(form, stream, document, reader)
    is_live = stream is not None or form.watch
    if stream is not None and form.watch:
        reader.add(line_at(document, ["watch"]), "EV103", "watch does not go with a stream", "remove it: a stream is read on anyway")
    if is_live and form.runner != "dataflow" and form.checkpoint is None and "checkpoint" not in reader.unread:
        what = "a stream is read" if stream is not None else "folders are watched"
        line = line_at(document, ["watch"] if stream is None else ["input", "uri"])
        reader.add(
            line, "EV104", f"{what}, and no checkpoint is named", "add checkpoint: the folder that remembers how far the job has come"
        )
    for name in () if is_live else _LIVE_ONLY:
        if getattr(form, name) is not None:
            fact = f"{name} is for streams, and files are read once"
            reader.add(line_at(document, [name]), "EV103", fact, "remove it, or say watch: true")
    _check_engine(form, document, reader)


def _check_engine(form: JobForm, document: Mapping, reader: Reader) -> None:
    """What runs the job, and what is for it alone."""
    for name, kind in (("flink", FlinkForm), ("dataflow", DataflowForm)):
        line = line_at(document, [name])
        if form.runner != name and getattr(form, name) is not None:
            remedy = f"say runner: {name}, or remove it"
            reader.add(line, "EV103", f"{name} does not go with runner: {form.runner}", remedy)
        elif form.runner == name and getattr(form, name) is None and name not in reader.unread:
            needed = ", ".join(entry for entry, field in kind.model_fields.items() if field.is_required())
            fact = f"the runner is {name}, and nothing says where that is"
            reader.add(line_at(document, ["runner"]), "EV104", fact, f"add {name}: with {needed}")
    if form.runner == "local":
        return
    if form.dataflow is not None and form.runner == "dataflow":
        _check_dataflow(form, document, reader)
    for name in _LOCAL_ONLY:
        if getattr(form, name):
            fact = f"{name} is for the local runner, and this job runs on {form.runner}"
            reader.add(line_at(document, [name]), "EV103", fact, "remove it, or say runner: local")


def _check_java(form: JobForm, stream: StreamAddress | PubsubAddress | None, document: Mapping, reader: Reader) -> None:
    is_java = stream is not None and stream.scheme == JAVA_KAFKA
    if form.input.expansion_service is not None and not is_java:
        line = line_at(document, ("input", "expansion_service"))
        reader.add(line, "EV103", "input.expansion_service is for kafka+java://", "remove it")
    if is_java and form.runner == "local":
        fact = "kafka+java:// is read by Java, on an engine, and this job runs on local"
        reader.add(line_at(document, ("input", "uri")), "EV103", fact, "write kafka://, or say runner: flink or dataflow")


def _check_dataflow(form: JobForm, document: Mapping, reader: Reader) -> None:
    """Dataflow's workers see no folder of ours: what they write into one of theirs is gone with them."""
    uri = form.input.uri
    if stream_of(uri if isinstance(uri, str) else uri[0]) is None:
        fact = "input.uri is a folder or file, and workers of Dataflow see none of this machine"
        reader.add(line_at(document, ("input", "uri")), "EV103", fact, "read a topic or a subscription, or say runner: local")
    for number, variant in enumerate(form.variants):
        table = table_of(variant.output.uri)
        if stream_of(variant.output.uri) is None and (table is None or table.is_local):
            at = ("variants", number, "output", "uri")
            fact = f"{place(at)} is a folder, and workers of Dataflow have none that lasts"
            reader.add(line_at(document, at), "EV103", fact, "write to a topic, or to a table in a bucket or in BigQuery")
    for name, remedy in (("dead_letters", "say allow_loss: true in its place"), ("checkpoint", "remove it: Dataflow keeps its own")):
        if getattr(form, name) is not None:
            fact = f"{name} is a folder, and workers of Dataflow have none that lasts"
            reader.add(line_at(document, [name]), "EV103", fact, remedy)


def _check_table(end: OutputForm, at: tuple[str | int, ...], is_live: bool, document: Mapping, reader: Reader) -> None:
    for name, remedy in (("format", "the table has its own"), ("compression", "the table has its own"), ("key", "rows have none")):
        if getattr(end, name) is not None:
            reader.add(line_at(document, (*at, name)), "EV103", f"{place([*at, name])} is not for tables", f"remove it: {remedy}")
    if end.evolve and is_live:
        fact = f"{place([*at, 'evolve'])} is for files: a stream that goes on under a new policy begins a new table"
        reader.add(line_at(document, (*at, "evolve")), "EV103", fact, "remove it, and name another table")
    if end.registry is not None:
        reader.add(line_at(document, (*at, "registry")), "EV103", f"{place([*at, 'registry'])} is for streams", "remove it")


def _check_stream_end(
    end: InputForm | OutputForm, stream: StreamAddress | PubsubAddress | None, at: tuple[str | int, ...], document: Mapping, reader: Reader
) -> None:
    def refuse(name: str, fact: str, remedy: str) -> None:
        reader.add(line_at(document, (*at, name)), "EV103", f"{place([*at, name])} {fact}", remedy)

    if getattr(end, "evolve", None) is not None:
        refuse("evolve", "is for tables", "remove it")
    if stream is None:
        for name in ("client", "registry", "key"):
            if getattr(end, name, None) is not None:
                refuse(name, "is for streams", "remove it")
        if end.format == "json":
            refuse("format", "cannot be 'json'", "write jsonl: one object on each line")
        return
    if end.format == "parquet":
        refuse("format", "cannot be 'parquet'", "write json or avro: a message is one event")
    if end.compression is not None:
        remedy = "write compression.type, a setting of the client" if isinstance(stream, StreamAddress) else "remove it"
        refuse("compression", "is for files", remedy)
    if end.registry is not None and not isinstance(stream, StreamAddress):
        refuse("registry", "is for Kafka", "remove it")
    elif end.registry is not None and end.format not in (None, "avro"):
        refuse("registry", f"does not go with {end.format}", "write format: avro, or remove it")
    if isinstance(end, OutputForm) and end.partition_by is not None:
        refuse("partition_by", "is for folders", "remove it: messages name their window in a header")
