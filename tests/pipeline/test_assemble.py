"""Windows by GroupByKey, under scripted watermarks: one pane when a window closes, nothing lost, nothing in clear."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.testing.test_stream import TestStream as ScriptedStream
from apache_beam.transforms.window import TimestampedValue

from eventveil.pipeline._frames import Address, Frames, SealedFrames
from eventveil.pipeline.assemble import AssembleWindows, PublishShards, WindowShard, split_shards
from eventveil.pipeline.gathering import Gathering
from eventveil.schemas.durations import Duration
from eventveil.schemas.errors import EventveilError
from eventveil.schemas.events.avro import parse_avro
from eventveil.schemas.policy import parse_policy
from eventveil.transforms.batch import Part, with_part
from eventveil.transforms.beam.coder import RecordBatchCoder
from eventveil.transforms.compile import compile_policy
from eventveil.transforms.decode.decoded import decoded_type
from eventveil.transforms.keys.derive import Keys
from eventveil.transforms.keys.keyring import load_keys
from eventveil.transforms.keys.providers.keyring_file import new_keyring
from eventveil.transforms.plan import Plan
from eventveil.transforms.windows import WindowRule

S = 1_000_000
ZERO = datetime(2024, 5, 6, tzinfo=timezone.utc)
BASE = int(ZERO.timestamp())
PERSON = {"renumber": {"scope": "window", "class": "person"}}


def planned(name: str, leaf: str, rule: Any, *, window: str = "5s", zone: str = "UTC") -> Plan:
    head: dict[str, Any] = {"policy": name, "version": 1, "for": {"recipient": "tests"}, "schema": "e.avsc", "domain": "d"}
    head |= {"event": {"time": "at", "id": "id"}, "window": {"release": window, "keys": window, "zone": zone}}
    fields = [{"name": "id", "type": "string"}, {"name": "at", "type": "string"}, {"name": leaf, "type": ["null", "string"]}]
    policy = {**head, "fields": {"id": "drop", "at": {"floor": "1s"}, leaf: [rule, {"rename": "who"}]}}
    schema = parse_avro({"type": "record", "name": name.title(), "fields": fields}, "e.avsc")
    return compile_policy(parse_policy(json.dumps(policy), "p.yaml"), schema)


PLANS = {"carts": planned("carts", "who", PERSON), "orders": planned("orders", "buyer", PERSON)}
KEPT = {"plain": planned("plain", "who", "keep")}
RULE = WindowRule(Duration(5, "s"))
RELEASED = Gathering(RULE, 2 * S, released=True)
ROLLED = Gathering(RULE, 2 * S, released=False)

# A variant's batch, or how far the watermark goes: in seconds from the beginning.
Script = Sequence[tuple[str, Sequence[tuple[float, str | None]]] | float]


class Keep:
    """Publishes a shard into a file of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)

    def __call__(self, shard: WindowShard, batches: list[pa.RecordBatch], seals: SealedFrames) -> bool:
        if Path(self._folder, f"stands-{shard.start_us}").exists():
            return False
        Path(self._folder, f"published-{uuid.uuid4().hex}").write_bytes(pickle.dumps((shard, batches)))
        return True


class Note(beam.DoFn):
    def __init__(self, folder: Path, name: str) -> None:
        self._path = f"{folder}/{name}"

    def process(self, element: Any) -> None:
        Path(f"{self._path}-{uuid.uuid4().hex}").write_bytes(pickle.dumps(element))


class OfVariant(beam.DoFn):
    def __init__(self, variant: str) -> None:
        self._variant = variant.encode()

    def process(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        if batch.schema.metadata[b"variant"] == self._variant:
            yield batch


def noted(folder: Path, name: str) -> list[Any]:
    return [pickle.loads(path.read_bytes()) for path in sorted(folder.glob(f"{name}-*"))]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    new_keyring(tmp_path / "keyring.json")
    return tmp_path


def veiled(plan: Plan, keys: Keys, events: Sequence[tuple[float, str | None]], roll: WindowRule | None = None) -> pa.RecordBatch:
    leaf = "buyer" if plan.name == "orders" else "who"
    rows = [{"id": f"{at} {value}", "at": (ZERO + timedelta(seconds=at)).isoformat(), leaf: value} for at, value in events]
    outcome = plan.bind(keys, roll).apply(pa.array(rows, decoded_type(plan.schema, plan.used)))
    assert outcome.codes == []
    return with_part(outcome.veiled, Part("secret-origin", 0))


def scripted(home: Path, plans: Mapping[str, Plan], script: Script, roll: WindowRule | None, honest: bool) -> ScriptedStream:
    """`honest`: no batch is older than what was reported before, as our sources see to."""
    keys = load_keys(str(home / "keyring.json"))
    reported = float("-inf")
    stream = ScriptedStream(coder=RecordBatchCoder())
    stream.output_tags = {None}
    for step in script:
        if isinstance(step, tuple):
            batch = veiled(plans[step[0]], keys, step[1], roll)
            batch = batch.replace_schema_metadata({**batch.schema.metadata, b"variant": step[0].encode()})
            least = min(at for at, _ in step[1])
            stream = stream.add_elements([TimestampedValue(batch, BASE + (max(reported, least) if honest else least))])
        else:
            reported = step
            stream = stream.advance_watermark_to(BASE + step)
    return stream.advance_watermark_to_infinity()


def graph(root: beam.Pipeline, home: Path, plans: Mapping[str, Plan], gathering: Gathering, source: Any, **more: Any) -> None:
    batches = root | source
    batches.element_type = pa.RecordBatch
    veiled = {name: batches | f"Of/{name}" >> beam.ParDo(OfVariant(name)).with_output_types(pa.RecordBatch) for name in plans}
    withheld = veiled | "Assemble" >> AssembleWindows(plans, gathering, str(home / "keyring.json"), Keep(home), **more)
    withheld | "NoteWithheld" >> beam.ParDo(Note(home, "withheld"))


def run(home: Path, plans: Mapping[str, Plan], gathering: Gathering, script: Script, honest: bool | None = None, **more: Any) -> Any:
    options = PipelineOptions(["--runner=BundleBasedDirectRunner"])
    options.view_as(StandardOptions).streaming = True
    honest = not gathering.released if honest is None else honest
    source = scripted(home, plans, script, None if gathering.released else gathering.rule, honest)
    with beam.Pipeline(options=options) as root:
        graph(root, home, plans, gathering, source, **more)
    return root.result


Seen = dict[tuple[str, int, int], list[tuple[int, Any]]]


def published(home: Path) -> Seen:
    """(variant, start of the window in seconds, pane) -> (second, value) of each row; of all shards."""
    found: Seen = {}
    for shard, batches in noted(home, "published"):
        assert batches
        for batch in batches:
            batch.validate(full=True)
            assert batch.num_rows
            assert not batch.schema.metadata
            key = (shard.variant, shard.start_us // S - BASE, shard.pane)
            for row in batch.to_pylist():
                at = datetime.fromisoformat(str(row["at"])).replace(tzinfo=timezone.utc)
                found.setdefault(key, []).append((int(at.timestamp()) - BASE, row["who"]))
    return {key: sorted(rows, key=repr) for key, rows in sorted(found.items())}


def withheld(home: Path, plans: Mapping[str, Plan], gathering: Gathering) -> list[tuple[str, str, int, int]]:
    """Code, variant, window and number of rows, of each."""
    sealed = Frames("d", gathering, str(home / "keyring.json")).open()
    found = [(code.decode(), sealed.unseal(frame)) for code, frame in noted(home, "withheld")]
    return sorted((code, one.address.variant, one.address.start_us // S - BASE, one.batch.num_rows) for code, one in found)


def counted(result: Any) -> Counter[str]:
    counters = result.metrics().query()["counters"]
    return Counter({one.key.metric.name: one.committed for one in counters if one.committed})


class TestARollOfFiles:
    def test_is_published_when_it_closes_and_not_before(self, home: Path) -> None:
        """Out of order by three seconds, with a lateness of two: the window is open up to its end and two more."""
        script: Script = [("plain", [(0, "a"), (1, "b"), (7, "c")]), 6, ("plain", [(3, "d")]), 7, ("plain", [(8, "e")])]
        run(home, KEPT, ROLLED, script)

        expected = {("plain", 0, 0): [(0, "a"), (1, "b"), (3, "d")], ("plain", 5, 0): [(7, "c"), (8, "e")]}
        assert expected == published(home)
        assert [] == noted(home, "withheld")

    def test_what_comes_later_is_a_further_pane_and_never_lost(self, home: Path) -> None:
        script: Script = [("plain", [(0, "a")]), 9, ("plain", [(4, "b")]), ("plain", [(6, "c")]), 14, ("plain", [(2, "d")])]
        run(home, KEPT, ROLLED, script)

        assert {
            ("plain", 0, 0): [(0, "a")],
            ("plain", 0, 3): [(4, "b")],
            ("plain", 0, 8): [(2, "d")],
            ("plain", 5, 0): [(6, "c")],
        } == published(home)
        assert [] == noted(home, "withheld")

    def test_what_comes_within_a_second_makes_one_pane(self, home: Path) -> None:
        late: Script = [("plain", [(4, "b")]), 9.3, ("plain", [(1, "c")]), 9.9, ("plain", [(3, "d")]), 10, ("plain", [(2, "e")])]
        run(home, KEPT, ROLLED, [("plain", [(0, "a")]), 9, *late])

        assert {
            ("plain", 0, 0): [(0, "a")],
            ("plain", 0, 3): [(1, "c"), (3, "d"), (4, "b")],
            ("plain", 0, 4): [(2, "e")],
        } == published(home)

    def test_rows_of_any_age_are_published(self, home: Path) -> None:
        days = 90 * 86_400
        run(home, KEPT, ROLLED, [("plain", [(days, "a")]), days + 9, ("plain", [(2, "old")]), days + 20])

        assert [[(2, "old")], [(days, "a")]] == [rows for _, rows in sorted(published(home).items())]
        assert [] == noted(home, "withheld")

    def test_a_row_that_beam_finds_late_is_withheld(self, home: Path) -> None:
        """A source that breaks its word."""
        run(home, KEPT, ROLLED, [("plain", [(0, "a")]), 9, ("plain", [(4, "b")])], honest=False)

        assert {("plain", 0, 0): [(0, "a")]} == published(home)
        assert [("EV416", "plain", 0, 1)] == withheld(home, KEPT, ROLLED)

    def test_or_published_where_it_is_known_what_was(self, home: Path) -> None:
        run(home, KEPT, ROLLED, [("plain", [(0, "a")]), 9, ("plain", [(4, "b")])], honest=False, late=True)

        assert {("plain", 0, 0): [(0, "a"), (4, "b")]} == published(home)
        assert [] == noted(home, "withheld")

    @pytest.mark.parametrize(("watermark", "pane"), [(6, 0), (6.999, 0), (7, 1), (7.001, 1)])
    def test_closes_at_its_end_plus_lateness_exactly(self, home: Path, watermark: float, pane: int) -> None:
        run(home, KEPT, ROLLED, [("plain", [(0, "a")]), watermark, ("plain", [(4, "b")])])

        assert ("plain", 0, pane) == next(key for key, rows in published(home).items() if (4, "b") in rows)

    def test_windows_without_rows_are_not_published(self, home: Path) -> None:
        run(home, KEPT, ROLLED, [("plain", [(1, "a")]), 30, ("plain", [(41, "b")]), 60])

        assert [("plain", 0, 0), ("plain", 40, 0)] == list(published(home))

    def test_a_window_closes_while_another_is_open(self, home: Path) -> None:
        """The rows of both came in one batch: the second window still takes more, and the first has gone."""
        run(home, KEPT, ROLLED, [("plain", [(4, "a"), (5, "b")]), 8, ("plain", [(6, "c"), (3, "late")])])

        assert {("plain", 0, 0): [(4, "a")], ("plain", 0, 2): [(3, "late")], ("plain", 5, 0): [(5, "b"), (6, "c")]} == published(home)

    def test_calendar_windows_have_the_length_of_their_day(self, home: Path) -> None:
        """In London the day on which the clocks go forward has 23 hours."""
        zone = "Europe/London"
        plans = {"plain": planned("plain", "who", "keep", window="1d", zone=zone)}
        gathering = Gathering(WindowRule(Duration(1, "d"), zone), 0, released=False)
        day = (datetime(2024, 3, 31) - ZERO.replace(tzinfo=None)).total_seconds()
        end = day + 23 * 3600
        run(home, plans, gathering, [("plain", [(day, "a")]), end - 1, ("plain", [(end - 2, "b")]), end, ("plain", [(end, "c")])])

        assert {("plain", day, 0): [(end - 2, "b"), (day, "a")], ("plain", end, 0): [(end, "c")]} == published(home)

    def test_two_shards_hold_all_rows_by_their_keyed_order(self, home: Path) -> None:
        rows = [(n % 5, f"p{n}") for n in range(40)]
        run(home, KEPT, ROLLED, [("plain", rows[:15]), ("plain", rows[15:])], shards=2)

        sizes = {}
        for shard, batches in noted(home, "published"):
            orders = [one for batch in batches for one in batch.column("$order").to_pylist()]
            assert all((order[0] >= 128) == (shard.number == 1) for order in orders)
            sizes[shard.number] = len(orders)
        assert {0, 1} == set(sizes)
        assert {("plain", 0, 0): sorted(rows)} == {key: sorted(seen) for key, seen in published(home).items()}


class TestAReleasedWindow:
    def test_is_numbered_over_all_variants_when_it_closes(self, home: Path) -> None:
        script: Script = [
            ("carts", [(0, "ann"), (1, "bob"), (6, "ann")]),
            ("orders", [(2, "bob"), (3, "cy"), (4, None)]),
            6,
            ("carts", [(4, "cy")]),
            7,
            ("orders", [(9, "ann")]),
        ]
        run(home, PLANS, RELEASED, script)
        seen = published(home)

        numbers = dict(zip(("ann", "bob", "cy"), (number for _, number in seen["carts", 0, 0])))
        assert [1, 2, 3] == sorted(numbers.values())
        assert [(2, numbers["bob"]), (3, numbers["cy"]), (4, None)] == seen["orders", 0, 0]
        assert ([(6, 1)], [(9, 1)]) == (seen["carts", 5, 0], seen["orders", 5, 0])
        assert 4 == len(seen)

    def test_where_another_content_stands_all_of_it_is_withheld(self, home: Path) -> None:
        (home / f"stands-{int(BASE) * S}").touch()
        run(home, PLANS, RELEASED, [("carts", [(0, "ann"), (1, "bob"), (6, "ann")]), ("orders", [(2, "bob")])])

        assert {("carts", 5, 0)} == set(published(home))
        assert [("EV416", "carts", 0, 2), ("EV416", "orders", 0, 1)] == sorted(withheld(home, PLANS, RELEASED))

    @pytest.mark.parametrize("shards", [1, 3])
    def test_comes_out_the_same_however_it_came_in(self, home: Path, shards: int) -> None:
        rows = [(variant, (n % 10, f"p{n * n % 23}")) for n in range(60) for variant in PLANS]
        seeded = random.Random(4)
        found = []
        for folder in ("first", "second", "third"):
            (home / folder).mkdir()
            shutil.copy(home / "keyring.json", home / folder)
            seeded.shuffle(rows)
            script: list[Any] = []
            for start in range(0, len(rows), size := seeded.choice([7, 20, 50])):
                for variant in PLANS:
                    some = [row for of, row in rows[start : start + size] if of == variant]
                    script += [(variant, some)] if some else []
            run(home / folder, PLANS, RELEASED, script, shards=shards)
            found.append(published(home / folder))

        assert found[0] == found[1] == found[2]
        assert 4 == len(found[0])

    def test_what_comes_when_it_was_decided_on_is_withheld_and_sealed(self, home: Path) -> None:
        script: Script = [("carts", [(0, "ann")]), ("orders", [(1, "ann")]), 9, ("carts", [(4, "bob"), (2, "ann"), (6, "ann")])]
        run(home, PLANS, RELEASED, script)

        assert {("carts", 0, 0): [(0, 1)], ("carts", 5, 0): [(6, 1)], ("orders", 0, 0): [(1, 1)]} == published(home)
        assert [("EV416", "carts", 0, 2)] == withheld(home, PLANS, RELEASED)

    def test_late_rows_alone_are_withheld_too(self, home: Path) -> None:
        """Of a variant that had none in time, for a window of which another variant's rows have left."""
        run(home, PLANS, RELEASED, [("carts", [(0, "ann")]), 9, ("orders", [(1, "ann")]), 20, ("orders", [(11, "ann")])])

        assert [("EV416", "orders", 0, 1), ("EV416", "orders", 10, 1)] == withheld(home, PLANS, RELEASED)
        assert {("carts", 0, 0): [(0, 1)]} == published(home)

    def test_too_large_to_be_decided_on_it_is_withheld_as_a_whole(self, home: Path) -> None:
        large = [(n % 5, f"p{n}") for n in range(9)]
        script: Script = [("carts", large), ("orders", [(3, "p1")]), ("carts", [(7, "ann")])]
        run(home, PLANS, RELEASED, script, shards=2, most_bytes=8 * 16)

        assert {("carts", 5, 0): [(7, 1)]} == published(home)
        codes = withheld(home, PLANS, RELEASED)
        assert {("EV603", "carts", 0), ("EV603", "orders", 0)} == {one[:3] for one in codes}
        assert 10 == sum(rows for *_, rows in codes)

    def test_without_values_to_number_it_is_published(self, home: Path) -> None:
        run(home, PLANS, RELEASED, [("orders", [(1, None), (2, None)])])

        assert {("orders", 0, 0): [(1, None), (2, None)]} == published(home)

    @pytest.mark.parametrize("most", [1 << 20, 16], ids=["published", "withheld"])
    def test_on_a_bounded_runner_where_every_row_is_counted(self, home: Path, most: int) -> None:
        """The runner of scripted streams loses counts: of a step's bundles it adds up one."""
        keys = load_keys(str(home / "keyring.json"))
        batches = []
        for variant, rows in (("carts", [(0, "ann"), (6, "bob")]), ("orders", [(1, "ann"), (2, "cy")]), ("carts", [(4, None)])):
            batch = veiled(PLANS[variant], keys, rows)
            batches.append(batch.replace_schema_metadata({b"variant": variant.encode()}))
        with beam.Pipeline("FnApiRunner", options=PipelineOptions(flags=[])) as root:
            graph(root, home, PLANS, RELEASED, beam.Create(batches).with_output_types(pa.RecordBatch), most_bytes=most)
        seen, counts = published(home), counted(root.result)

        if most == 16:
            assert {("carts", 5, 0): [(6, 1)]} == seen
            expected = {"carts|published": 1, "carts|windows|published": 1, "carts|withheld": 2, "orders|withheld": 2}
        else:
            assert {("carts", 0, 0), ("carts", 5, 0), ("orders", 0, 0)} == set(seen)
            assert [1, 2] == sorted(number for _, number in seen["orders", 0, 0])
            assert seen["carts", 0, 0][0][1] == seen["orders", 0, 0][0][1]
            expected = {"carts|published": 3, "carts|windows|published": 2, "orders|published": 2, "orders|windows|published": 1}
        assert expected == counts


def test_a_window_that_ends_empty_publishes_nothing(home: Path) -> None:
    """Beam ends every window with a pane, be it empty, when nothing can come any more: no scripted stream shows it, and Flink does."""
    frames = Frames("analytics", ROLLED, str(home / "keyring.json"))
    step = PublishShards(frames, KEPT, False, False, Keep(home))
    step.setup()

    assert [] == list(step._put_together(b"any", [], False, None))
    assert {} == published(home)


class TestWhatAnEngineSees:
    def proto(self, home: Path, plans: Mapping[str, Plan], gathering: Gathering) -> Any:
        root = beam.Pipeline(options=PipelineOptions(flags=[]))
        graph(root, home, plans, gathering, beam.Create([]).with_output_types(pa.RecordBatch))
        return root.to_runner_api()

    @pytest.mark.parametrize(
        ("plans", "gathering", "groups"), [(PLANS, RELEASED, ["GroupShards", "MeetToDecide"]), (KEPT, ROLLED, ["GroupShards"])]
    )
    def test_groups_bytes_by_bytes(self, home: Path, plans: Mapping[str, Plan], gathering: Gathering, groups: list[str]) -> None:
        proto = self.proto(home, plans, gathering)
        parts = proto.components

        def urns(coder: str) -> tuple[Any, ...]:
            held = parts.coders[coder]
            return (held.spec.urn, *map(urns, held.component_coder_ids))

        seen = []
        for transform in parts.transforms.values():
            if transform.spec.urn != "beam:transform:group_by_key:v1":
                continue
            seen.append(transform.unique_name.rsplit("/", 1)[-1])
            (given,), (taken,) = transform.inputs.values(), transform.outputs.values()
            assert ("beam:coder:kv:v1", ("beam:coder:bytes:v1",), ("beam:coder:bytes:v1",)) == urns(parts.pcollections[given].coder_id)
            listed = ("beam:coder:iterable:v1", ("beam:coder:bytes:v1",))
            assert ("beam:coder:kv:v1", ("beam:coder:bytes:v1",), listed) == urns(parts.pcollections[taken].coder_id)
            strategy = parts.windowing_strategies[parts.pcollections[given].windowing_strategy_id]
            assert "beam:window_fn:fixed_windows:v1" == strategy.window_fn.urn
            assert beam_runner_api_pb2.AccumulationMode.DISCARDING == strategy.accumulation_mode
            assert timedelta(days=7) == timedelta(milliseconds=strategy.allowed_lateness)
        assert groups == sorted(seen)

    def test_every_step_is_named(self, home: Path) -> None:
        names = [one.unique_name for one in self.proto(home, PLANS, RELEASED).components.transforms.values()]

        assert [] == [name for name in names if name.startswith("Assemble") and ".py" in name]
        assert {"Assemble/GatherRows/carts", "Assemble/DecideWindows", "Assemble/PublishShards"} <= set(names)

    def test_holds_no_key(self, home: Path) -> None:
        root = load_keys(str(home / "keyring.json"))._root
        wire = self.proto(home, PLANS, RELEASED).SerializeToString()

        assert all(root[start : start + 8] not in wire for start in range(len(root) - 8))

    def test_group_keys_and_frames_show_no_value_and_change_with_every_part(self, home: Path) -> None:
        sealed = Frames("d", RELEASED, str(home / "keyring.json")).open()
        batch = veiled(KEPT["plain"], load_keys(str(home / "keyring.json")), [(0, "somebody-to-be-found")])
        one = Address("plain", BASE * S, 0)
        others = [Address("other", BASE * S, 0), Address("plain", (BASE + 5) * S, 0), Address("plain", BASE * S, 1)]
        frame = sealed.seal("rows", one, batch)

        windows = {sealed.window_key(BASE * S), sealed.window_key((BASE + 5) * S)}
        assert 6 == len({*windows, *(sealed.shard_key(address) for address in (one, *others))})
        assert b"somebody" not in frame
        assert batch.equals(sealed.unseal(frame).batch)
        for at in range(len(frame)):
            with pytest.raises(EventveilError, match="EV901"):
                sealed.unseal(frame[:at] + bytes([frame[at] ^ 1]) + frame[at + 1 :])


class TestShards:
    @pytest.mark.parametrize("shards", [1, 2, 3, 16])
    def test_are_cut_by_the_order_of_rows(self, home: Path, shards: int) -> None:
        batch = veiled(KEPT["plain"], load_keys(str(home / "keyring.json")), [(n % 5, str(n)) for n in range(100)])
        pieces = dict(split_shards(batch.slice(10, 80), shards))

        highest = {shard: max(piece.column("$order").to_pylist()) for shard, piece in pieces.items()}
        assert sorted(highest.values()) == list(highest.values())
        assert sorted(batch.slice(10, 80).column("$order").to_pylist()) == sorted(
            order for piece in pieces.values() for order in piece.column("$order").to_pylist()
        )

    def test_of_two_domains_are_refused(self, home: Path) -> None:
        for more in ({"shards": 0}, {"shards": 65_537}):
            with pytest.raises(EventveilError, match="EV901"):
                AssembleWindows(PLANS, RELEASED, "k", Keep(home), **more)
