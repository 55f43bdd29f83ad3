"""Replays change nothing: output is a function of policy, keys and event, whatever the batches, files, parts, workers and retries."""

from __future__ import annotations

import gzip
import importlib.util
import json
import pickle
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest

from eventveil.pipeline.dead_letters.store import LetterFolder
from eventveil.pipeline.dead_letters.write import WriteLetters
from eventveil.pipeline.prepare import prepare
from eventveil.pipeline.sinks.write import WriteParts
from eventveil.pipeline.sources.files import read_range
from eventveil.schemas.errors import StorageError
from eventveil.schemas.job import load_job
from eventveil.transforms.batch import ORDER, WINDOW, part_of
from eventveil.transforms.beam.anonymize import REFUSED_TAG, Anonymize, ApplyPolicy, DecodeEvents, RecordBatchCoder
from eventveil.transforms.compile import load_plan
from eventveil.transforms.decode.json_events import JsonDecoder
from eventveil.transforms.decode.reading import Reading
from eventveil.transforms.encode.json_events import encode_json
from eventveil.transforms.keys.keyring import load_keys

HERE = Path(__file__).parent
EVERYTHING = HERE / "everything" / "policy.yaml"
ORDERS = HERE.parents[1] / "examples" / "shipping_order"


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"eventveil_tests_{name}", HERE / "everything" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up, and Beam pickles functions by their module.
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


DESK = _load("desk")
EVENTS = _load("events")

# One in some is refused: by decoding, by its time, by a rule.
BAD = (b'{"id": 7}', b"not JSON", b'{"at": "yesterday"}')


def _lines(count: int, seed: int = 1) -> list[bytes]:
    chance = random.Random(seed)
    lines = [json.dumps(EVENTS.event(number, chance), ensure_ascii=False).encode() for number in range(count)]
    for at in range(0, count, 97):
        lines.insert(at, BAD[at % len(BAD)])
    for at in range(5, count, 131):
        lines[at] = lines[at].replace(b'"ip":', b'"ip": "300.1.1.1", "was":', 1)
    return lines


LINES = _lines(1_300)
# Where each batch or file holds some events only: a batch costs some 20 ms under this policy, however few rows it has.
FEW = LINES[:120]


def _written(path: Path, lines: Sequence[bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return DESK.Desk(tmp_path_factory.mktemp("determinism"), EVERYTHING)


@pytest.fixture(scope="module")
def once(desk: Any) -> Any:
    """All lines in one file, one part, default batches: what all other ways must equal."""
    ran = desk.run("once", [_written(desk.folder / "in" / "once.jsonl", LINES)])
    summary = ran.summary
    assert summary.balanced and summary.out > 700 and summary.filtered > 300 and len(summary.refused) >= 3
    assert sum(ran.lines().values()) == summary.out
    assert len(ran.lines()) > 0.99 * summary.out
    return ran


@pytest.fixture(scope="module")
def few_once(desk: Any) -> Any:
    return desk.run("few", [_written(desk.folder / "in" / "few.jsonl", FEW)])


def _verdicts(ran: Any) -> Counter[tuple[str, str, bytes]]:
    return Counter((letter.code, letter.path, letter.event.rstrip(b"\n")) for letter in ran.letters())


def _same(ran: Any, once: Any) -> None:
    """The same records, the same refusals with the same reasons, the same counts."""
    assert once.lines() == ran.lines()
    assert _verdicts(once) == _verdicts(ran)
    assert once.summary == ran.summary


class TestBatches:
    """The plan without Beam: decode and apply, in batches of any size."""

    @staticmethod
    def _veiled(plan: Any, keys: Any, messages: Sequence[bytes], rows: int) -> tuple[Counter[bytes], Counter[tuple[str, str]]]:
        decoder, veil = JsonDecoder(plan.schema, plan.used), plan.bind(keys)
        records: Counter[bytes] = Counter()
        refused: Counter[tuple[str, str]] = Counter()
        for first in range(0, len(messages), rows):
            decoded = decoder.decode(pa.array(messages[first : first + rows], pa.binary()))
            outcome = veil.apply(decoded.events, drift=decoded.drift)
            refused.update(zip(decoded.refused_codes, decoded.refused_paths))
            refused.update(zip(outcome.codes, outcome.paths))
            records.update(encode_json(outcome.veiled.drop_columns([ORDER, WINDOW])).to_pylist())
        return records, refused

    @pytest.mark.parametrize("rows", [1, 7, 1_000, 65_536])
    def test_the_size_of_a_batch_changes_no_record(self, once: Any, few_once: Any, desk: Any, rows: int) -> None:
        keys = load_keys(str(desk.keyring))
        lines, once = (FEW, few_once) if rows < 100 else (LINES, once)

        records, refused = self._veiled(load_plan(EVERYTHING), keys, lines, rows)

        assert once.lines() == Counter({line.rstrip(b"\n"): number for line, number in records.items()})
        assert Counter((letter.code, letter.path) for letter in once.letters()) == refused

    def test_shuffled_events_give_the_same_records(self, desk: Any) -> None:
        plan, keys = load_plan(EVERYTHING), load_keys(str(desk.keyring))
        shuffled = random.Random(3).sample(LINES, len(LINES))

        assert self._veiled(plan, keys, LINES, 1_000) == self._veiled(plan, keys, shuffled, 70)

    def test_a_veil_that_has_seen_other_events_gives_the_same_records(self, desk: Any) -> None:
        """Windows and keys are cached; what is in the cache must not show."""
        plan, keys = load_plan(EVERYTHING), load_keys(str(desk.keyring))
        used = plan.bind(keys)
        decoder = JsonDecoder(plan.schema, plan.used)

        def apply(veil: Any, lines: Sequence[bytes]) -> pa.RecordBatch:
            return veil.apply(decoder.decode(pa.array(lines, pa.binary())).events).veiled

        apply(used, LINES[600:])

        assert apply(plan.bind(keys), LINES[:600]).equals(apply(used, LINES[:600]))

    def test_other_keys_give_other_records(self, once: Any) -> None:
        """Or all that stands above would hold for output that depends on nothing."""
        from eventveil.transforms.keys.keyring import throw_away_keys

        records, _ = self._veiled(load_plan(EVERYTHING), throw_away_keys(), LINES, 1_000)

        assert not once.lines() & records


class TestFiles:
    """The whole job: the same lines, cut and packed in other ways."""

    @pytest.mark.parametrize(
        ("batch_bytes", "part_bytes"),
        [
            pytest.param(700, None, id="batches of an event"),
            pytest.param(9_000, 40_000, id="batches and parts"),
            pytest.param(None, 9_973, id="parts of some events"),
        ],
    )
    def test_batches_and_parts_may_be_of_any_size(self, desk: Any, few_once: Any, batch_bytes: int | None, part_bytes: int | None) -> None:
        sizes = {name: size for name, size in (("batch_bytes", batch_bytes), ("part_bytes", part_bytes)) if size}

        ran = desk.run(f"sizes-{batch_bytes}-{part_bytes}", [desk.folder / "in" / "few.jsonl"], **sizes)

        _same(ran, few_once)
        assert (len(ran.files()) > 1) == (part_bytes is not None)

    @pytest.mark.parametrize("kind", ["plain", "gzip", "zstd"])
    def test_events_may_lie_in_any_file_in_any_order(self, desk: Any, once: Any, kind: str) -> None:
        shuffled = random.Random(kind).sample(LINES, len(LINES))
        cuts = [0, 1, 40, 41, 700, len(shuffled)]
        content = [b"".join(line + b"\n" for line in shuffled[first:last]) for first, last in pairwise(cuts)]
        folder = desk.folder / "in" / kind
        folder.mkdir()
        for number, data in enumerate(content):
            if kind == "gzip":
                (folder / f"{number}.jsonl.gz").write_bytes(gzip.compress(data))
            elif kind == "zstd":
                (folder / f"{number}.jsonl.zst").write_bytes(pa.compress(data, codec="zstd", asbytes=True))
            else:
                (folder / f"{number}.jsonl").write_bytes(data)

        _same(desk.run(f"files-{kind}", [folder], part_bytes=400_000), once)

    @pytest.mark.parametrize("format", ["jsonl", "parquet", "avro"])
    def test_two_workers_write_the_same_files_byte_for_byte(self, desk: Any, format: str) -> None:
        folder = desk.folder / "in" / "two"
        for number in range(4):
            _written(folder / f"{number}.jsonl", LINES[number * 30 : number * 30 + 30])

        one = desk.run(f"one-{format}", [folder], format=format, part_bytes=30_000, partition_by="window")
        two = desk.run(f"two-{format}", [folder], format=format, part_bytes=30_000, partition_by="window", workers=2)

        assert len(one.files()) > 8
        assert one.files() == two.files()
        assert one.summary == two.summary
        assert one.letters() == two.letters()

    @pytest.mark.parametrize("format", ["jsonl", "parquet", "avro"])
    def test_a_second_run_into_the_same_folder_changes_no_byte(self, desk: Any, format: str) -> None:
        source = _written(desk.folder / "in" / "again.jsonl", FEW)
        first = desk.run(f"again-{format}", [source], format=format, part_bytes=50_000).files()

        second = desk.run(f"again-{format}", [source], format=format, part_bytes=50_000).files()

        assert first == second
        assert len(first) > 3


class TestOrderWithinAPart:
    """Rows of a file are sorted by a keyed order: the order in which they were read cannot be told from it."""

    @pytest.mark.parametrize("format", ["jsonl", "parquet", "avro"])
    @pytest.mark.parametrize("batch_bytes", [4 << 20, 30_000])
    def test_the_same_events_in_another_order_give_the_same_file(self, desk: Any, format: str, batch_bytes: int) -> None:
        source = desk.folder / "in" / f"order-{format}-{batch_bytes}.jsonl"
        one = desk.run(f"order-{format}-{batch_bytes}", [_written(source, FEW)], format=format, batch_bytes=batch_bytes)
        first = one.files()
        _written(source, random.Random(8).sample(FEW, len(FEW)))

        two = desk.run(f"order-{format}-{batch_bytes}", [source], format=format, batch_bytes=batch_bytes)

        assert len(first) == 1
        assert first == two.files()

    def test_events_without_id_and_doubled_ones_are_sorted_too(self, tmp_path: Path) -> None:
        policy = tmp_path / "policy.yaml"
        text = (ORDERS / "trusted.yaml").read_text()
        policy.write_text(
            text.replace("  id: id\n", "").replace("schema: shipping_order.avsc", f"schema: {ORDERS / 'shipping_order.avsc'}")
        )
        desk = DESK.Desk(tmp_path, policy)
        lines = (ORDERS / "orders.jsonl").read_bytes().splitlines() * 2
        source = tmp_path / "in.jsonl"
        first = desk.run("ids", [_written(source, lines)]).files()

        second = desk.run("ids", [_written(source, random.Random(4).sample(lines, len(lines)))]).files()

        assert first == second
        (content,) = first.values()
        assert len(content.splitlines()) == len(lines)

    def test_equal_ids_are_told_apart_by_their_rows(self, desk: Any) -> None:
        events = [json.loads(line) for line in LINES if line.startswith(b'{"id": "')][:120]
        lines = [json.dumps({**event, "id": "one and the same"}).encode() for event in events]
        source = desk.folder / "in" / "ties.jsonl"
        first = desk.run("ties", [_written(source, lines)]).files()

        second = desk.run("ties", [_written(source, lines[::-1])]).files()

        assert first == second


class TestRetries:
    """Bundles that fail half way and are done again, on the same worker or on another one."""

    @staticmethod
    def _bundle(job: Any, stop_after: int | None = None) -> None:
        """What one worker does with the ranges of a job, through the DoFns as they were pickled; it may die after some batches."""
        (variant,) = job.variants
        reading = Reading(variant.plan.schema, variant.plan.used, "json", job.max_event_bytes)
        policies = [(variant.name, variant.plan.digest)]
        assert isinstance(job.letters, LetterFolder)
        made = (
            DecodeEvents(reading, policies, job.sealing),
            ApplyPolicy(variant.plan, variant.name, job.sealing),
            WriteParts(variant.sink, variant.plan.domain, job.sealing.keys),
            WriteLetters(job.letters, "decoding", job.sealing.keys),
            WriteLetters(job.letters, variant.name, job.sealing.keys),
        )
        decode, apply, write, *letters = pickle.loads(pickle.dumps(made))
        for fn in (decode, apply, write, *letters):
            fn.setup()
            fn.start_bundle()

        def split(outputs: Iterator[Any], refused: Any) -> pa.RecordBatch:
            main = []
            for output in outputs:
                if isinstance(output, beam.pvalue.TaggedOutput):
                    assert output.tag == REFUSED_TAG
                    list(refused.process(output.value))
                else:
                    main.append(output)
            (batch,) = main
            return batch

        done = 0
        for piece in job.ranges:
            for raw in read_range(piece, job.batch_bytes, job.part_bytes, job.max_event_bytes):
                if done == stop_after:
                    return
                done += 1
                list(write.process(split(apply.process(split(decode.process(raw), letters[0])), letters[1])))
        for fn in (decode, apply, write, *letters):
            fn.finish_bundle()

    def test_bundles_that_were_begun_and_abandoned_leave_no_trace(self, desk: Any, once: Any) -> None:
        source = desk.folder / "in" / "once.jsonl"
        whole = desk.run("whole", [source], batch_bytes=60_000, part_bytes=400_000)
        job = prepare(load_job(desk.write_job("tried", [source], batch_bytes=60_000, part_bytes=400_000)))
        for batches in (1, 4, 9):
            self._bundle(job, stop_after=batches)
        self._bundle(job)
        ran = desk.ran("tried", whole.summary)

        _same(ran, once)
        assert whole.files() == ran.files()
        assert whole.letters() == ran.letters()

    def test_what_an_abandoned_bundle_has_published_is_final(self, desk: Any) -> None:
        """A part is there as a whole or not at all, and as it will be in the end."""
        source = desk.folder / "in" / "once.jsonl"
        job = prepare(load_job(desk.write_job("half", [source], batch_bytes=60_000, part_bytes=400_000)))
        self._bundle(job, stop_after=9)
        half = desk.ran("half", None).files()
        self._bundle(job)
        full = desk.ran("half", None).files()

        assert 0 < len(half) < len(full)
        assert half == {name: full[name] for name in half}

    def test_a_bundle_that_misses_a_batch_publishes_nothing(self, desk: Any) -> None:
        source = desk.folder / "in" / "once.jsonl"
        job = prepare(load_job(desk.write_job("missing", [source], batch_bytes=60_000, part_bytes=400_000)))
        (variant,) = job.variants
        sealing = job.sealing
        plan = variant.plan
        decode = DecodeEvents(Reading(plan.schema, plan.used), [(plan.name, plan.digest)], sealing)
        apply = ApplyPolicy(plan, plan.name, sealing)
        write = WriteParts(variant.sink, plan.domain, sealing.keys)
        for fn in (decode, apply, write):
            fn.setup()
            fn.start_bundle()
        raws = [raw for piece in job.ranges[:1] for raw in read_range(piece, job.batch_bytes, job.part_bytes)]
        veiled = [list(apply.process(list(decode.process(raw))[1]))[1] for raw in raws]
        assert [part_of(batch).number for batch in veiled] == list(range(len(veiled)))

        list(write.process(veiled[0]))
        with pytest.raises(StorageError, match="EV408"):
            list(write.process(veiled[2]))

        assert desk.ran("missing", None).files() == {}

    def test_a_runner_that_tries_again_gets_the_same_records(self, once: Any, desk: Any, tmp_path: Path) -> None:
        """BundleBasedDirectRunner does a bundle that has failed again; each of its steps fails once here."""
        _attempted(LINES, desk, tmp_path)

        found = Counter(line for path in (tmp_path / "veiled").iterdir() for line in _records(path))
        assert len(list((tmp_path / "failed").iterdir())) == 2
        assert once.lines() == found


class _FailsOnce(beam.DoFn):
    """Raises on the first batch that it sees, after it has passed it on; a file says that it has done so."""

    def __init__(self, mark: str) -> None:
        self._mark = mark

    def process(self, element: Any) -> Iterator[Any]:
        yield element
        path = Path(self._mark)
        if not path.exists():
            path.touch()
            raise RuntimeError("as a worker fails")


def _keep(batch: pa.RecordBatch, folder: str) -> None:
    import uuid

    (Path(folder) / uuid.uuid4().hex).write_bytes(RecordBatchCoder().encode(batch))


def _records(path: Path) -> list[bytes]:
    return [line.rstrip(b"\n") for line in encode_json(RecordBatchCoder().decode(path.read_bytes())).to_pylist()]


def _attempted(lines: Sequence[bytes], desk: Any, folder: Path, runner: str = "BundleBasedDirectRunner") -> None:
    for name in ("veiled", "failed"):
        (folder / name).mkdir()
    with beam.Pipeline(runner=runner) as pipeline:
        messages = pipeline | "Messages" >> beam.Create(lines).with_output_types(bytes)
        messages |= "FailBefore" >> beam.ParDo(_FailsOnce(str(folder / "failed" / "before"))).with_output_types(bytes)
        veiled, _ = messages | "Veil" >> Anonymize(EVERYTHING, keys=str(desk.keyring), custodian=desk.custodian)
        veiled |= "FailAfter" >> beam.ParDo(_FailsOnce(str(folder / "failed" / "after"))).with_output_types(pa.RecordBatch)
        veiled | "Keep" >> beam.Map(_keep, str(folder / "veiled"))


class TestInSomeonesPipeline:
    """Anonymize over record batches of any size, of messages or of columns."""

    @staticmethod
    def _through_beam(batches: Sequence[pa.RecordBatch], policy: Path, desk: Any, folder: Path, **more: str) -> Counter[bytes]:
        folder.mkdir()
        with beam.Pipeline(runner="FnApiRunner") as pipeline:
            raw = pipeline | "Batches" >> beam.Create(batches).with_output_types(pa.RecordBatch)
            veiled, _ = raw | "Veil" >> Anonymize(policy, keys=str(desk.keyring), custodian=desk.custodian, **more)
            veiled | "Keep" >> beam.Map(_keep, str(folder))
        return Counter(line for path in folder.iterdir() for line in _records(path))

    @pytest.mark.parametrize("rows", [70, 1_000, 65_536])
    def test_batches_of_messages(self, once: Any, desk: Any, tmp_path: Path, rows: int) -> None:
        values = pa.RecordBatch.from_arrays([pa.array(LINES, pa.binary())], ["value"])
        batches = [values.slice(first, rows) for first in range(0, len(LINES), rows)]

        assert once.lines() == self._through_beam(batches, EVERYTHING, desk, tmp_path / "out", messages="value")

    @pytest.mark.parametrize("rows", [1, 7, 1_000])
    def test_batches_of_columns_give_what_messages_give(self, tmp_path: Path, rows: int) -> None:
        desk = DESK.Desk(tmp_path, ORDERS / "policy.yaml")
        lines = (ORDERS / "orders.jsonl").read_bytes().splitlines()
        expected = desk.run("orders", [ORDERS / "orders.jsonl"]).lines()
        product = pa.struct({"id": pa.string(), "name": pa.string(), "quantity": pa.int32(), "price": pa.string()})
        found = pa.RecordBatch.from_pylist([json.loads(line) for line in lines])
        table = found.set_column(found.schema.get_field_index("products"), "products", found.column("products").cast(pa.list_(product)))
        batches = [table.slice(first, rows) for first in range(0, len(lines), rows)]

        assert expected == self._through_beam(batches, ORDERS / "policy.yaml", desk, tmp_path / "out")
