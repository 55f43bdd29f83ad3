"""The job graph where an engine keeps time and state (Flink, Dataflow): the same steps as in graph.py, but for both of their ends.

Events are decoded inside the source, which tells how far event time has come. Rows that wait for their window wait in the engine's state,
sealed, and meet by GroupByKey. What a window must not publish is kept, sealed, in a folder beside the dead letters.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import apache_beam as beam
import pyarrow as pa

from eventveil.pipeline._frames import Address, SealedFrames
from eventveil.pipeline.assemble import AssembleWindows, WindowShard
from eventveil.pipeline.checkpoint.folder import ENGINE
from eventveil.pipeline.gathering import Gathering
from eventveil.pipeline.graph import (
    Work,
    keep_letters,
    policies_of,
    read_ranges,
    reading_of,
    sharing_a_schema,
    veil_decoded,
    veil_ranges,
    write_at_once,
)
from eventveil.pipeline.ledger import WindowLedger
from eventveil.pipeline.prepare import Live, ReadyJob, Variant
from eventveil.pipeline.sinks.atomic import create_file, make_folder
from eventveil.pipeline.sinks.kinds import MessageSink, Sink, publish_messages
from eventveil.pipeline.sinks.publish import Batches
from eventveil.pipeline.sources.decode_inside import Decoding, decoded_tag
from eventveil.pipeline.twins import without_twins
from eventveil.schemas.errors import StorageError, remedy_for
from eventveil.transforms.beam.anonymize import count
from eventveil.transforms.beam.guard import Step, guarded
from eventveil.transforms.beam.split import SplitByType
from eventveil.transforms.keys.keyring import load_keys

if TYPE_CHECKING:
    from eventveil.pipeline.sources.stream import State

__all__ = ["build_on_engine"]


def build_on_engine(root: beam.Pipeline, job: ReadyJob, state: State | None = None, series: str = "") -> None:
    """Add the whole job to a pipeline. Every transform is labelled, so that a job can be recognised and updated in place.

    Args:
        state: where a stream begins, as its `begin` tells; a job that goes on from a savepoint knows better.
        series: of the checkpoint; tells its dead letters from those of an earlier one.
    """
    if job.live is None:
        veiled = _bounded(root, job, series)
    else:
        veiled = _live(root, job, job.live, state or {}, series)
    together: dict[tuple[str, Gathering], list[Variant]] = {}
    for variant in job.variants:
        if variant.gathering is None:
            write_at_once(veiled[variant.name], variant, job)
        else:
            together.setdefault((variant.plan.domain, variant.gathering), []).append(variant)
    folder = None if job.live is None or job.live.checkpoint is None else os.path.join(job.live.checkpoint, ENGINE)
    for (_, gathering), variants in together.items():
        label = f"AssembleWindows/{variants[0].name}"
        # A window of a release model has one pane, and the manifest that stands says all.
        ledger = None if folder is None or gathering.released else os.path.join(folder, "published")
        assembled = AssembleWindows(
            {variant.name: variant.plan for variant in variants},
            gathering,
            job.sealing.keys,
            PublishWindow({variant.name: variant.sink for variant in variants}, job.sealing.keys, job.once_only, ledger),
            most_bytes=job.max_window_bytes,
            late=ledger is not None,
        )
        withheld = {variant.name: veiled[variant.name] for variant in variants} | label >> assembled
        keep = KeepWithheld(None if folder is None else os.path.join(folder, "withheld"))
        withheld | f"KeepWithheld/{variants[0].name}" >> beam.ParDo(keep).with_output_types(type(None))


def _bounded(root: beam.Pipeline, job: ReadyJob, series: str) -> dict[str, beam.PCollection]:
    work = Work(job.ranges, series=series)
    return veil_ranges(read_ranges(root, job, work), job, work)


def _live(root: beam.Pipeline, job: ReadyJob, live: Live, state: State, series: str) -> dict[str, beam.PCollection]:
    """A stream, decoded inside its source, -> the veiled batches of each variant."""
    decodings, split = decodings_of(job)
    decoded, letters = live.stream.on_engine(job.runner, job.wants, job.batch_bytes, live.idle_after_us).read(
        root, state, decodings, split, job.sealing
    )
    keep_letters(letters, job, series, "decoding")
    veiled: dict[str, beam.PCollection] = {}
    for decoding in decodings:
        variants = [job.variant(name) for name, _ in decoding.policies]
        veiled.update(veil_decoded(decoded[decoded_tag(decoding)], variants, job, series))
    return veiled


def decodings_of(job: ReadyJob) -> tuple[list[Decoding], SplitByType | None]:
    """What a source decodes, once for all variants of one schema and type; and what tells the types apart, where there are several."""
    types = sorted({variant.plan.event_type for variant in job.variants if variant.plan.event_type is not None})
    split = None
    if types:
        names, policies = [name for _, name in types], policies_of(job.variants)
        split = SplitByType(types[0][0], names, policies, job.sealing, job.max_event_bytes, True, job.envelope, job.registry)
    decodings: list[Decoding] = []
    for kind in [name for _, name in types] or [""]:
        for variants in sharing_a_schema(job.variants, kind):
            plans = tuple(variant.plan for variant in variants)
            decodings.append(Decoding(len(decodings), kind, reading_of(job, variants), plans, tuple(policies_of(variants))))
    return decodings, split


class PublishWindow:
    """A shard of a window -> its variant's sink. May be pickled.

    Args:
        once_only: whether rows that came twice, the same in every byte and of one event, are published once.
        ledger: the folder in which it is noted what was published of rolls; None: by the numbers of panes alone.
    """

    def __init__(self, sinks: Mapping[str, Sink], keys: str, once_only: bool, ledger: str | None) -> None:
        self._sinks = dict(sinks)
        self._keys = keys
        self._once_only = once_only
        self._folder = ledger
        self._ledger: WindowLedger | None = None

    def __call__(self, shard: WindowShard, batches: list[pa.RecordBatch], seals: SealedFrames) -> bool:
        sink = self._sinks[shard.variant]
        rows, size = sum(batch.num_rows for batch in batches), sum(batch.nbytes for batch in batches)
        kept: Batches = lambda: iter(batches)  # noqa: E731 - it has a type to show
        if self._once_only:
            kept, left = without_twins(kept)
            count(f"{shard.variant}|repeated", rows - left)
            rows = left
        if isinstance(sink, MessageSink):
            publish_messages(sink, load_keys(self._keys), kept, rows, size)
            return True
        if self._folder is None:
            return not sink.publish_window(shard.start_us, shard.pane, kept, rows, size).conflict

        def put(pane: int, batch: pa.RecordBatch) -> bool:
            found = sink.publish_window(shard.start_us, pane, lambda: iter([batch]), batch.num_rows, batch.nbytes)
            return not found.conflict

        # Made where it is used: the seals that it holds are not for a pickle.
        self._ledger = self._ledger or WindowLedger(self._folder, seals)
        address = Address(shard.variant, shard.start_us, shard.number)
        repeated = self._ledger.publish(address, shard.pane, list(kept()), put)
        if repeated:
            count(f"{shard.variant}|repeated", repeated)
        return repeated is not None


class KeepWithheld(Step):
    """Sealed rows that no sink may have -> a folder, each under the digest of what it is; without a folder the job stops."""

    def __init__(self, folder: str | None) -> None:
        self._folder = folder

    @guarded
    def process(self, withheld: tuple[bytes, bytes]) -> Iterator[Any]:
        code, frame = withheld[0].decode(), withheld[1]
        if self._folder is None:
            raise StorageError.of(code, "a window cannot be published, and nothing of it may be lost", remedy_for(code))
        make_folder(self._folder)
        create_file(os.path.join(self._folder, f"{code}-{hashlib.sha256(frame).hexdigest()[:32]}"), [frame])
        yield from ()
