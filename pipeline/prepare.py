"""A job, made ready: policies compiled, keys loaded once to see that they are there, ranges listed or a stream looked at, outputs claimed.

All that can be wrong is found here, before Beam is imported and anything is read or written.
"""

from __future__ import annotations

import glob
import importlib.util
import json
import os
import re
from collections.abc import Mapping, Sequence, Set
from contextlib import nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

from eventveil.pipeline.checkpoint.folder import SPOOL, CheckpointFolder
from eventveil.pipeline.checkpoint.seal import StateSeal
from eventveil.pipeline.dead_letters.store import LetterFolder
from eventveil.pipeline.gathering import Gathering
from eventveil.pipeline.sinks.files import FolderSink
from eventveil.pipeline.sinks.kinds import Sink
from eventveil.pipeline.sources.files import BATCH_BYTES, MAX_EVENT_BYTES, PART_BYTES, Range, list_ranges
from eventveil.schemas.durations import Duration
from eventveil.schemas.errors import EventveilError, KeyringError, PolicyError, Problem, SchemaError, StorageError
from eventveil.schemas.job import DataflowDoc, FlinkDoc, Job, PubsubAddress, RegistryDoc, StreamAddress, VariantDoc, parse_job
from eventveil.schemas.limits import StopWhen
from eventveil.schemas.streams import JAVA_KAFKA, is_stream
from eventveil.schemas.tables import TableAddress, is_table
from eventveil.transforms.compile import load_plan
from eventveil.transforms.keys.custodian import load_public
from eventveil.transforms.keys.keyring import load_keys
from eventveil.transforms.plan import Plan
from eventveil.transforms.seal import Sealing
from eventveil.transforms.windows import WindowRule

if TYPE_CHECKING:
    from eventveil.pipeline.sources.stream import EngineStream

__all__ = ["Live", "ReadyJob", "Variant", "job_of_flags", "policies_of", "prepare"]

MAX_SLICE_BYTES = 64 << 20
MAX_WINDOW_BYTES = 64 << 20
_ROLL = Duration(1, "min")
_SLICE_US = 1_000_000
_IDLE_AFTER_US = 10_000_000
_DAY_US = 86_400_000_000


class _Client(NamedTuple):
    module: str
    name: str
    extra: str
    code_in: str
    code_out: str


_CLIENTS = {
    "kafka": _Client("confluent_kafka", "Kafka", "kafka", "EV413", "EV415"),
    JAVA_KAFKA: _Client("confluent_kafka", "Kafka", "kafka", "EV413", "EV415"),
    "pubsub": _Client("google.cloud.pubsub_v1", "Pub/Sub", "gcp", "EV420", "EV421"),
    "delta": _Client("deltalake", "Delta tables", "delta", "", "EV422"),
    "iceberg": _Client("pyiceberg", "Iceberg tables", "iceberg", "", "EV422"),
    "bigquery": _Client("google.cloud.bigquery_storage", "BigQuery", "gcp", "", "EV422"),
}
_STOP_WHEN = StopWhen(Fraction(5, 100), 600_000_000)


@dataclass(frozen=True)
class Variant:
    """One recipient: a compiled policy, and where its output goes to.

    Attributes:
        gathering: the windows that its rows wait for; None: they leave at once.
    """

    name: str
    plan: Plan
    sink: Sink
    gathering: Gathering | None = None


@dataclass(frozen=True)
class Live:
    """What a job on a stream has beyond one on files. Lengths of time are in microseconds.

    Attributes:
        checkpoint: the folder that it remembers in how far it has come.
        slice_us: a slice begins so often, if something is there. idle_after_us: a silent lane is idle from then on.
        stop_when: how many events may be refused while it goes on; None: any number.
        from_latest: without a checkpoint, begin with what comes now.
        single: an engine gets messages one by one, where other sources give batches.
    """

    stream: EngineStream
    checkpoint: str | None
    slice_us: int
    idle_after_us: int
    max_slice_bytes: int
    stop_when: StopWhen | None
    from_latest: bool = False
    single: bool = False


@dataclass(frozen=True)
class ReadyJob:
    """A job that is ready to be built: everything is checked, listed and compiled.

    Attributes:
        ranges: of bounded input. live: of a stream; one of the two is empty.
        wants: what is read of a message beside its value.
        max_window_bytes: of the columns that a release model decides on in one window; in memory they take some four times that.
        once_only: whether the source may give an event twice, so that windows leave out what came again.
        runner, flink, dataflow: where the job runs.
    """

    name: str
    ranges: tuple[Range, ...]
    variants: tuple[Variant, ...]
    sealing: Sealing
    letters: LetterFolder | None
    keys_id: str
    batch_bytes: int
    part_bytes: int
    max_event_bytes: int
    live: Live | None = None
    format: str = "json"
    envelope: str | None = None
    registry: RegistryDoc | None = None
    wants: frozenset[str] = frozenset()
    max_window_bytes: int = MAX_WINDOW_BYTES
    once_only: bool = False
    runner: str = "local"
    flink: FlinkDoc | None = None
    dataflow: DataflowDoc | None = None

    def variant(self, name: str) -> Variant:
        return next(variant for variant in self.variants if variant.name == name)

    @property
    def gathers(self) -> bool:
        """Whether rows of some variant wait for their window."""
        return any(variant.gathering is not None for variant in self.variants)


def job_of_flags(flags: Mapping[str, Any], where: Mapping[str, Any] | None = None) -> Job:
    """The job that the command line describes: it is validated as a job file of the same content would be. `where`: as for `parse_job`."""
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
    output = {"uri": flags["output"], **{name: flags.get(name) for name in ("format", "partition_by", "compression", "key")}}
    source = {"uri": list(flags["input"]), "format": flags.get("input_format")}
    letters = {"uri": flags.get("dead_letters"), "custodian": flags.get("custodian")}
    document = {
        "job": "run",
        "input": source,
        "variants": [{"policy": flags["policy"], "output": output}],
        "dead_letters": letters if any(letters.values()) else None,
        **{name: flags.get(name) for name in ("keys", "allow_loss", "max_refused", "workers", "summary")},
        **{name: flags.get(name) for name in ("checkpoint", "roll", "watch", "stop_when_refused", "metrics")},
    }
    # Braces of the shell's user are not the job file's; but for settings, where a secret can be named in no other way.
    document = _literal(document)
    client = _client(flags.get("client") or ())
    for place, uri in ((document["input"], flags["input"][0]), (document["variants"][0]["output"], flags["output"])):
        if is_stream(uri) or is_table(uri):
            place["client"] = client or None
        if is_stream(uri) and uri.startswith("kafka"):
            place["registry"] = {"url": flags["registry"]} if flags.get("registry") else None
    return parse_job(json.dumps(_given(document)), "", where=where)


def _literal(value: Any) -> Any:
    """A document in which no text names a variable."""
    if isinstance(value, dict):
        return {name: _literal(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_literal(one) for one in value]
    return value.replace("${", "$${") if isinstance(value, str) else value


def _client(settings: Sequence[str]) -> dict[str, str]:
    """Settings of a client, given as NAME=VALUE."""
    found = dict(setting.partition("=")[::2] for setting in settings)
    if any("=" not in setting for setting in settings) or len(found) < len(settings):
        raise PolicyError(
            Problem("", 0, "EV120", "--client is no setting, or gives one twice", "write --client NAME=VALUE, each name once")
        )
    return found


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


def prepare(job: Job) -> ReadyJob:
    """Make a job ready to run: claims the outputs.

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
    _check_windows(job, plans)
    _check_types(job, plans)
    _check_java(job, plans)
    _check_client(job)
    gatherings = [_gathering(job, name, doc, plan) for name, doc, plan in zip(names, job.variants, plans)]
    ranges = [] if job.is_live else list_ranges(job.input.uri, job.input.format, part_bytes, job.input.compression)
    _check_apart(job, [piece.path for piece in ranges] if not job.watch else _roots(job.input.uri))
    live = _live(job) if job.is_live else None
    input_format = (job.input.format or "jsonl") if job.is_live else ranges[0].format
    variants = [
        Variant(name, plan, _sink(job, doc, plan, input_format, keys.id, gathering), gathering)
        for name, doc, plan, gathering in zip(names, job.variants, plans, gatherings)
    ]
    folder = LetterFolder(letters.uri) if letters is not None else None
    _check_topics(job, variants)
    held = nullcontext() if live is None or live.checkpoint is None else CheckpointFolder(live.checkpoint, StateSeal.of(keys)).held()
    with held:
        # What is removed as left behind must not be what another process of this job is writing.
        for variant in variants:
            variant.sink.prepare()
        if folder is not None:
            folder.prepare()
    used = {leaf for plan in plans for leaf in plan.stream}
    return ReadyJob(
        name=job.name,
        ranges=tuple(ranges),
        variants=tuple(variants),
        sealing=Sealing(job.keys, custodian),
        letters=folder,
        keys_id=keys.id,
        batch_bytes=job.batch_bytes or BATCH_BYTES,
        part_bytes=part_bytes,
        max_event_bytes=job.max_event_bytes or MAX_EVENT_BYTES,
        live=live,
        format="avro" if job.is_live and input_format == "avro" else "json",
        envelope=job.input.envelope,
        registry=job.input.registry,
        wants=_wants(job, plans, used),
        max_window_bytes=job.max_window_bytes or MAX_WINDOW_BYTES,
        once_only=isinstance(job.input.stream, PubsubAddress),
        runner=job.runner,
        flink=job.flink,
        dataflow=job.dataflow,
    )


def _live(job: Job) -> Live:
    stop = job.stop_when_refused or _STOP_WHEN
    return Live(
        stream=_stream(job),
        checkpoint=job.checkpoint,
        slice_us=_micros(job.slice, _SLICE_US),
        idle_after_us=_micros(job.idle_after, _IDLE_AFTER_US),
        max_slice_bytes=job.max_slice_bytes or MAX_SLICE_BYTES,
        stop_when=None if stop.is_never else stop,
        from_latest=isinstance(job.input.stream, StreamAddress) and job.input.stream.start == "latest",
        single=isinstance(job.input.stream, StreamAddress) and job.input.stream.scheme == JAVA_KAFKA,
    )


def _micros(length: Duration | None, default: int) -> int:
    return default if length is None or length.fixed_us is None else length.fixed_us


def _stream(job: Job) -> EngineStream:
    address = job.input.stream
    if isinstance(address, PubsubAddress):
        from eventveil.pipeline.sources.pubsub import PubsubStream

        spool = None if job.checkpoint is None else os.path.join(job.checkpoint, SPOOL)
        return PubsubStream(address, job.input.client, spool, str(job.keys))
    if address is None:
        from eventveil.pipeline.sources.watch import WatchedFolders

        return WatchedFolders(job.input.uri, job.input.format, job.part_bytes or PART_BYTES, job.input.compression)
    if address.scheme == JAVA_KAFKA:
        from eventveil.pipeline.sources.kafka_java import JavaTopics

        return JavaTopics(address, job.input.client, job.input.expansion_service)
    from eventveil.pipeline.sources.kafka import Cluster, KafkaStream

    cluster = Cluster(address.servers, job.input.client)
    return KafkaStream(cluster, address.topics, address.group or f"eventveil-{job.name}", job.workers)


def _wants(job: Job, plans: Sequence[Plan], used: Set[str]) -> frozenset[str]:
    """What is read of a message beside its value and place."""
    found = {name for name in ("key", "headers", "topic", "time") if any(leaf.partition(".")[0] == f"${name}" for leaf in used)}
    if job.input.stream is not None and any(plan.event.times for plan in plans):
        found.add("appended")
    return frozenset(found)


def _gathering(job: Job, name: str, doc: VariantDoc, plan: Plan) -> Gathering | None:
    """What a variant's rows wait for: the release window of a release model, the roll of its files, or nothing."""
    if plan.numbered:
        assert plan.release_window is not None, "compile asks for a window where a release model needs one"
        return Gathering(plan.release_window, plan.lateness_us, released=True)
    if doc.output.stream is not None or (job.roll is None and not job.is_live):
        return None
    roll = job.roll or _ROLL
    line = job.line_of("roll")
    if not plan.event.times:
        fact, remedy = f"{name} has no event time, and files of a stream are rolled by it", "name event.time in the policy; it may be $time"
        raise SchemaError(Problem(job.file, line, "EV104", fact, remedy))
    zone = plan.release_window.zone if plan.release_window is not None else "UTC"
    rule = WindowRule(roll, zone)
    release = None if plan.release_window is None else plan.release_window.duration
    if release is not None and not _divides(roll, release, zone):
        fact = f"roll: {roll} does not divide {name}'s release window of {release}"
        raise SchemaError(Problem(job.file, line, "EV103", fact, "files of two windows must not mix: choose a divisor"))
    return Gathering(rule, 0, released=False)


def _divides(roll: Duration, release: Duration, zone: str) -> bool:
    """Whether every window is made of whole rolls."""
    if roll == release:
        return True
    small = roll.fixed_us
    if small is None:
        return False
    if release.unit in ("s", "min", "h"):
        return release.fixed_us is not None and release.fixed_us % small == 0
    # Longer windows begin at local midnight; zones differ from UTC by multiples of a quarter of an hour today.
    return _DAY_US % small == 0 if zone == "UTC" else 900_000_000 % small == 0


def _check_types(job: Job, plans: Sequence[Plan]) -> None:
    """A message of plain Avro can only be read once its type is known."""
    typed = next((plan for plan in plans if plan.event_type is not None and not plan.event_type[0].startswith("$")), None)
    if job.input.stream is not None and job.input.format == "avro" and job.input.registry is None and typed is not None:
        fact = f"{typed.name} tells events by a field, and messages of plain Avro cannot be read before their type is known"
        raise SchemaError(
            Problem(job.file, job.line_of("input"), "EV220", fact, "tell types by header or topic, or name a schema registry")
        )


def _check_java(job: Job, plans: Sequence[Plan]) -> None:
    """Java's source tells the time of reading alone: what comes long after its window, Beam would drop."""
    numbered = [plan.name for plan in plans if plan.numbered]
    if numbered and job.input.stream is not None and job.input.stream.scheme == JAVA_KAFKA:
        fact = f"{numbered[0]} numbers values when their window closes, and kafka+java:// does not know how far event time has come"
        raise SchemaError(Problem(job.file, job.line_of("input", "uri"), "EV103", fact, "read by kafka://"))


def _check_client(job: Job) -> None:
    """Clients are extras: who reads and writes files has none. They are missed before anything is claimed."""
    ends = [job.input.stream, *(doc.output.stream or doc.output.table for doc in job.variants)]
    needed: dict[str, str] = {}
    for number, end in enumerate(ends):
        kind = end.kind if isinstance(end, TableAddress) else "" if end is None else end.scheme
        if kind and not _is_installed(_CLIENTS[kind].module):
            needed.setdefault(_CLIENTS[kind].code_in if number == 0 else _CLIENTS[kind].code_out, kind)
    if needed:
        raise StorageError(
            Problem(
                job.file,
                0,
                code,
                f"the client for {_CLIENTS[kind].name} is not installed",
                f"pip install 'eventveil[{_CLIENTS[kind].extra}]'",
            )
            for code, kind in needed.items()
        )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _check_windows(job: Job, plans: Sequence[Plan]) -> None:
    """Values that are numbered together must wait for the same windows."""
    if any(plan.numbered for plan in plans):
        from eventveil.transforms.release.renumber import shared_windows

        problems = [replace(one, file=job.file, line=job.line_of("variants")) for one in shared_windows(plans)]
        if problems:
            raise SchemaError(problems)


def _roots(patterns: Sequence[str]) -> list[str]:
    """The folders that patterns look into at any depth: what is written there would be read."""
    roots = [pattern.partition("**")[0] for pattern in patterns if "**" in pattern or os.path.isdir(pattern)]
    return [os.path.dirname(root) if glob.has_magic(root) else root for root in roots]


def _check_apart(job: Job, paths: Sequence[str]) -> None:
    """What a job writes must not be what its next run reads."""
    ends = [one.output for one in job.variants if one.output.stream is None]
    outputs = [(f"the output folder {end.uri}", end.uri if end.table is None else end.table.place) for end in ends]
    outputs = [(what, uri) for what, uri in outputs if not re.match(r"(?!file:)[a-z0-9]+://", uri)]
    if job.dead_letters is not None:
        outputs.append((f"the dead letters' folder {job.dead_letters.uri}", job.dead_letters.uri))
    if job.checkpoint is not None:
        outputs.append((f"the checkpoint {job.checkpoint}", job.checkpoint))
    inside = tuple(os.path.join(os.path.realpath(path), "") for path in paths) if job.watch else ()
    for what, uri in outputs:
        folder = os.path.join(os.path.realpath(uri.removeprefix("file://")), "")
        if any(os.path.realpath(path).startswith(folder) for path in paths) or folder.startswith(inside):
            raise PolicyError(Problem(job.file, 0, "EV120", f"{what} holds input of this job", "choose a folder that is not read"))


def _check_topics(job: Job, variants: Sequence[Variant]) -> None:
    """The same for topics. One broker may have many names, and a subscription has another name than its topic: the service is asked."""
    address = job.input.stream
    found: list[str] = []
    # What Java reads is compared by its address, when the job is read.
    if (
        isinstance(address, StreamAddress)
        and address.scheme != JAVA_KAFKA
        and any(isinstance(doc.output.stream, StreamAddress) for doc in job.variants)
    ):
        from eventveil.pipeline.sinks.topic import TopicSink
        from eventveil.pipeline.sources.kafka import Cluster

        cluster = Cluster(address.servers, job.input.client)
        topics = [variant.sink for variant in variants if isinstance(variant.sink, TopicSink)]
        found = [sink.topic for sink in topics if any(sink.same_as(cluster, topic) for topic in address.topics)]
    elif isinstance(address, PubsubAddress) and any(isinstance(doc.output.stream, PubsubAddress) for doc in job.variants):
        from eventveil.pipeline.sinks.pubsub import PubsubSink
        from eventveil.pipeline.sources.pubsub import topic_of

        read = topic_of(address, job.input.client)
        found = [variant.sink.topic for variant in variants if isinstance(variant.sink, PubsubSink) and variant.sink.path == read]
    if found:
        fact = f"the output topic {found[0]} is input of this job"
        raise PolicyError(Problem(job.file, 0, "EV120", fact, "choose a topic that is not read"))


def _sink(job: Job, doc: VariantDoc, plan: Plan, input_format: str, keys_id: str, gathering: Gathering | None) -> Sink:
    output_format = doc.output.format or input_format
    provenance = {
        "policy": plan.name,
        "version": str(plan.version),
        "digest": plan.digest,
        "domain": plan.domain,
        "keys": keys_id,
        "eventveil": "1",
    }
    if isinstance(doc.output.stream, PubsubAddress):
        from eventveil.pipeline.sinks.pubsub import pubsub_sink

        return pubsub_sink(doc.output, plan, output_format, provenance)
    if doc.output.stream is not None:
        from eventveil.pipeline.sinks.topic import topic_sink

        return topic_sink(doc.output, plan, output_format, provenance)
    if doc.output.table is not None:
        from eventveil.pipeline.sinks.tables import table_sink

        return table_sink(doc.output, plan, provenance, is_gathered=gathering is not None)
    output_format = "jsonl" if output_format == "json" else output_format
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
        provenance=provenance,
        name="event",
        partition_by_window=by_window,
        layout="parts" if gathering is None else "windows",
        compression=None if doc.output.compression == "none" else doc.output.compression,
        order="keep" if plan.keep_order else "keyed",
        zone=window.zone if window is not None else "UTC",
        by_day=window is not None and window.duration.unit not in ("s", "min", "h"),
    )
