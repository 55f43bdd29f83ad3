"""Anonymize inside somebody else's pipeline: on messages and on record batches, in windows, on two runners."""

from __future__ import annotations

import base64
import io
import json
import pickle
import uuid
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import fastavro
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.window import FixedWindows, TimestampedValue

from eventveil.pipeline.dead_letters.open import open_letter
from eventveil.pipeline.dead_letters.store import list_letters
from eventveil.schemas.errors import EventveilError, PolicyError
from eventveil.transforms import Anonymize
from eventveil.transforms.batch import LETTERS, ORDER
from eventveil.transforms.beam.anonymize import PublishVeiled
from eventveil.transforms.beam.guard import guarded
from eventveil.transforms.compile import load_plan
from eventveil.transforms.keys.custodian import load_private, new_custodian
from eventveil.transforms.keys.keyring import load_keys
from eventveil.transforms.keys.providers.keyring_file import new_keyring

RUNNERS = ["FnApiRunner", "BundleBasedDirectRunner"]
SCHEMA = {
    "type": "record",
    "name": "Order",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "at", "type": "string"},
        {"name": "email", "type": ["null", "string"]},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["paid", "sent"]}},
        {"name": "tags", "type": {"type": "array", "items": "string"}},
        {"name": "note", "type": ["null", "string"]},
    ],
}
POLICY = """policy: orders
version: 1
for: {recipient: tests}
schema: order.avsc
domain: DOMAIN
event: {time: at, id: ID}
window: 1d
MORE
fields:
  id: drop
  at: {floor: 1h}
  email: {pseudonymize: {class: person}}
  kind: {allow: {values: [paid]}}
  tags[]: {truncate: 2}
  note: drop
"""


def policy(folder: Path, name: str = "orders.yaml", *, domain: str = "tests", id: str = "id", more: str = "") -> Path:
    (folder / "order.avsc").write_text(json.dumps(SCHEMA))
    path = folder / name
    path.write_text(POLICY.replace("DOMAIN", domain).replace("ID", id, 1).replace("MORE", more))
    return path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with a policy, a keyring and a custodian's pair of keys."""
    policy(tmp_path)
    new_keyring(tmp_path / "keyring.json")
    new_custodian(tmp_path / "custodian")
    (tmp_path / "seen").mkdir()
    return tmp_path


def anonymize(home: Path, name: str = "orders.yaml", **more: Any) -> Anonymize:
    return Anonymize(home / name, keys=str(home / "keyring.json"), **{"custodian": home / "custodian.pub", **more})


def order(number: int, **other: Any) -> dict[str, Any]:
    event = {"id": f"order {number}", "at": f"2024-05-06T{number % 24:02}:30:00", "email": f"{number % 7}@example.org", "kind": "paid"}
    return {**event, "tags": [f"tag {number}", "x"], "note": None, **other}


def message(event: dict[str, Any]) -> bytes:
    return json.dumps(event).encode()


class Note(beam.DoFn):
    """Writes each element with its window and time to a file of its own: closures and lists do not come back from a runner."""

    def __init__(self, folder: str, name: str) -> None:
        self._path = f"{folder}/seen/{name}"

    def process(self, element: Any, window: Any = beam.DoFn.WindowParam, time: Any = beam.DoFn.TimestampParam) -> None:
        Path(f"{self._path}-{uuid.uuid4().hex}").write_bytes(pickle.dumps((element, window, time)))


def pipeline(runner: str = "FnApiRunner") -> beam.Pipeline:
    return beam.Pipeline(runner, options=PipelineOptions(flags=[]))


def note(home: Path, veiled: Any, refused: Any, name: str = "") -> None:
    veiled | f"NoteVeiled{name}" >> beam.ParDo(Note(str(home), f"veiled{name}"))
    refused | f"NoteRefused{name}" >> beam.ParDo(Note(str(home), f"refused{name}"))


def noted(home: Path, name: str) -> list[tuple[pa.RecordBatch, Any, Any]]:
    return [pickle.loads(path.read_bytes()) for path in sorted((home / "seen").glob(f"{name}-*"))]


def batches(home: Path, name: str = "veiled") -> list[pa.RecordBatch]:
    return [batch for batch, _, _ in noted(home, name)]


def rows(home: Path, name: str = "veiled") -> list[dict[str, Any]]:
    return sorted((row for batch in batches(home, name) for row in batch.to_pylist()), key=repr)


def opened(home: Path, name: str = "refused") -> list[tuple[str, str, bytes]]:
    """Code, path and the event of each letter."""
    file = home / f"{name}.jsonl"
    file.write_bytes(b"".join(letter for batch in batches(home, name) for letter in batch.column("letter").to_pylist()))
    private, key = load_private(home / "custodian.key"), load_keys(str(home / "keyring.json")).letters_key()
    return sorted((one.header["code"], one.header["path"], open_letter(one, private, key)) for one in list_letters(file))


def run(home: Path, elements: Sequence[Any], kind: type = bytes, runner: str = "FnApiRunner", **more: Any) -> None:
    with pipeline(runner) as root:
        events = root | beam.Create(list(elements)).with_output_types(kind)
        note(home, *(events | "Veil" >> anonymize(home, **more)))


BAD = [
    (message(order(1, kind="sent")), "EV520", "kind"),
    (message(order(1, at="yesterday")), "EV510", "at"),
    (b'{"id": 1}', "EV502", "id"),
    (b"null", "EV501", ""),
    (b"", "EV501", ""),
]


@pytest.mark.parametrize("runner", RUNNERS)
class TestMessages:
    def test_events_come_out_veiled_and_the_others_sealed(self, home: Path, runner: str) -> None:
        run(home, [*(message(order(i)) for i in range(300)), *(value for value, _, _ in BAD)], runner=runner)

        veiled = rows(home)
        assert 300 == len(veiled)
        assert {"at", "email", "kind", "tags"} == {name for row in veiled for name in row}
        assert Counter({f"2024-05-06 {hour:02}:00:00": 13 if hour < 12 else 12 for hour in range(24)}) == Counter(
            str(row["at"]) for row in veiled
        )
        assert 7 == len({row["email"] for row in veiled})
        refused = opened(home)
        assert sorted((code, value) for value, code, _ in BAD) == sorted((code, value) for code, _, value in refused)
        assert {("EV520", "kind"), ("EV510", "at")} <= {(code, path) for code, path, _ in refused}

    def test_windows_stay_and_a_batch_has_the_time_of_its_windows_end(self, home: Path, runner: str) -> None:
        with pipeline(runner) as root:
            numbered = (
                root
                | beam.Create(range(40))
                | beam.Map(lambda i: TimestampedValue(message(order(i, tags=[f"{i % 4}ab"])), 10 * (i % 4) + 3))
            )
            numbered.element_type = bytes
            note(home, *(numbered | beam.WindowInto(FixedWindows(10)) | anonymize(home)))

        found = noted(home, "veiled")
        assert {0, 10, 20, 30} == {int(window.start) for _, window, _ in found}
        for batch, window, time in found:
            assert {f"{int(window.start) // 10}a"} == {tag for tags in batch.column("tags").to_pylist() for tag in tags}
            assert window.max_timestamp() == time
        assert 40 == sum(batch.num_rows for batch, _, _ in found)

    def test_two_in_one_pipeline_share_no_pseudonym_across_domains(self, home: Path, runner: str) -> None:
        policy(home, "others.yaml", domain="others")
        with pipeline(runner) as root:
            events = root | beam.Create([message(order(i)) for i in range(50)])
            note(home, *(events | "VeilOne" >> anonymize(home)), name="1")
            note(home, *(events | "VeilTwo" >> anonymize(home, "others.yaml")), name="2")
            note(home, *(events | "VeilOneAgain" >> anonymize(home)), name="3")

        first, second, again = (rows(home, f"veiled{n}") for n in "123")
        assert first == again
        assert not {row["email"] for row in first} & {row["email"] for row in second}
        assert Counter(str(row["at"]) for row in first) == Counter(str(row["at"]) for row in second)


class TestBatches:
    def columns(self, count: int, **other: Any) -> pa.RecordBatch:
        return pa.RecordBatch.from_pylist([order(i, **other) for i in range(count)])

    @pytest.mark.parametrize("runner", RUNNERS)
    def test_columns_of_the_schema(self, home: Path, runner: str) -> None:
        bad = self.columns(1, kind="sent", id="one")

        run(home, [self.columns(30, note="hello"), bad, bad.slice(0, 0)], pa.RecordBatch, runner)

        assert 30 == len(rows(home))
        ((code, path, value),) = opened(home)
        assert ("EV520", "kind", bad.to_pylist()[0]) == (code, path, json.loads(value))

    def test_columns_and_messages_give_the_same_events(self, home: Path) -> None:
        events = [order(i) for i in range(30)]
        raw = pa.RecordBatch.from_pydict({"value": [message(event) for event in events]})

        with pipeline() as root:
            for name, elements, messages in (("1", [raw], "value"), ("2", [self.columns(30)], None)):
                given = root | f"Create{name}" >> beam.Create(elements)
                note(home, *(given | f"Veil{name}" >> anonymize(home, messages=messages)), name=name)
            texts = root | "Create3" >> beam.Create([message(event) for event in events])
            note(home, *(texts | "Veil3" >> anonymize(home)), name="3")

        assert rows(home, "veiled1") == rows(home, "veiled2") == rows(home, "veiled3")
        assert 30 == len(rows(home, "veiled1"))

    def test_a_value_column_beside_what_a_source_knows(self, home: Path) -> None:
        raw = pa.RecordBatch.from_pydict(
            {
                "value": pa.array([message(order(1)), b"junk"], pa.large_binary()),
                "position": [70, 71],
                "key": [b"canary", b"canary"],
                "timestamp": [1, 2],
            }
        )

        run(home, [raw], pa.RecordBatch, messages="value")

        assert [["at", "email", "kind", "tags"]] == [batch.schema.names for batch in batches(home)]
        assert [("EV501", "", b"junk")] == opened(home)

    def test_columns_that_are_called_like_those_of_a_source(self, home: Path) -> None:
        names = {"value": "double", "timestamp": "long", "key": "string", "position": "long", "row": "long", "event": "string"}
        fields = [{"name": name, "type": kind} for name, kind in names.items()]
        (home / "order.avsc").write_text(json.dumps({"type": "record", "name": "Event", "fields": fields}))
        rules = "".join(f"  {name}: keep\n" for name in names)
        head = "policy: names\nversion: 1\nfor: {recipient: tests}\nschema: order.avsc\ndomain: d\n"
        (home / "orders.yaml").write_text(f"{head}event: {{id: key}}\nfields:\n{rules}")
        event = {"value": 1.5, "timestamp": 7, "key": "k", "position": 3, "row": 4, "event": "e"}
        columns = pa.RecordBatch.from_pylist([event, {**event, "value": float("nan")}])

        run(home, [columns], pa.RecordBatch)

        assert [event] == rows(home)
        assert [("EV505", "value")] == [(code, path) for code, path, _ in opened(home)]

    def test_no_cell_can_pass_for_the_event(self, home: Path) -> None:
        fields = [{"name": name, "type": "bytes"} for name in ("event", "value", "position", "drift")]
        (home / "order.avsc").write_text(json.dumps({"type": "record", "name": "Event", "fields": fields}))
        head = "policy: names\nversion: 1\nfor: {recipient: tests}\nschema: order.avsc\ndomain: d\n"
        rules = "  event: keep\n  value: drop\n  position: drop\n  drift: drop\n"
        (home / "orders.yaml").write_text(f"{head}event: {{id: event}}\nfields:\n{rules}")
        forged = b'{"event": "forged", "value": "", "position": "", "drift": ""}'
        columns = pa.RecordBatch.from_pydict({"event": [b"login"], "value": [forged], "position": [b"1"], "drift": [b""]})
        marked = columns.replace_schema_metadata({b"eventveil.kind": b"messages", b"eventveil.part": b'{"origin": "", "start": 0}'})

        run(home, [columns, marked], pa.RecordBatch)

        assert [{"event": b"login"}] * 2 == [row for batch in batches(home) for row in batch.to_pylist()]

    def test_batches_keep_their_windows_and_times(self, home: Path) -> None:
        with pipeline() as root:
            timed = root | beam.Create([3, 14, 25]) | beam.Map(lambda t: TimestampedValue(pa.RecordBatch.from_pylist([order(t)]), t))
            timed.element_type = pa.RecordBatch
            note(home, *(timed | beam.WindowInto(FixedWindows(10)) | anonymize(home)))

        assert [(0, 3), (10, 14), (20, 25)] == sorted((int(window.start), int(time)) for _, window, time in noted(home, "veiled"))

    def test_avro_datums(self, home: Path) -> None:
        parsed = fastavro.parse_schema(SCHEMA)

        def datum(event: dict[str, Any]) -> bytes:
            file = io.BytesIO()
            fastavro.schemaless_writer(file, parsed, event)
            return file.getvalue()

        refused = datum(order(50, kind="sent"))
        run(home, [*(datum(order(i)) for i in range(20)), refused, b"\x02"], format="avro")

        assert 20 == len(rows(home))
        assert [("EV516", "", b"\x02"), ("EV520", "kind", refused)] == opened(home)


CANARY = "CANARY-7f3a"


class Quotes(beam.DoFn):
    """Fails as a library would, with the value in its message."""

    @guarded
    def process(self, element: str) -> Iterator[str]:
        raise ValueError(f"cannot parse {element}")


class TestNothingLeaksSideways:
    def test_buffers_hold_what_is_shown_and_nothing_else(self, home: Path) -> None:
        hidden = {"id": CANARY, "email": f"{CANARY}@example.org", "note": CANARY, "tags": [f"ab{CANARY}"], CANARY: CANARY}
        events = [order(i, **hidden, kind=["paid", "sent"][i % 2]) for i in range(40)]

        run(home, [message({**event, "id": f"{CANARY} {i}"}) for i, event in enumerate(events)])

        assert 20 == len(rows(home))
        assert 20 == len(opened(home))
        for batch in [*batches(home), *batches(home, "refused")]:
            buffers = b"".join(buffer.to_pybytes() for column in batch.columns for buffer in column.buffers() if buffer is not None)
            assert CANARY.encode() not in buffers
            assert CANARY not in str(batch.schema.metadata)
            # Nothing is a slice of something larger.
            assert all(column.offset == 0 for column in batch.columns)
            assert not batch.schema.metadata

    def test_columns_with_dictionaries_and_masked_nulls(self, home: Path) -> None:
        given = pa.RecordBatch.from_pylist([order(0), order(1, email=None), order(2, kind="sent")])
        kinds = pa.DictionaryArray.from_arrays(pa.array([0, 0, 1]), pa.array(["paid", "sent", CANARY]))
        email = pa.Array.from_buffers(
            pa.string(),
            3,
            [
                pa.py_buffer(b"\x05"),
                pa.array([0, 1, 1 + len(CANARY), 2 + len(CANARY)], pa.int32()).buffers()[1],
                pa.py_buffer(b"a" + CANARY.encode() + b"b"),
            ],
        )
        given = given.set_column(given.schema.get_field_index("kind"), "kind", kinds)
        given = given.set_column(given.schema.get_field_index("email"), "email", email)

        run(home, [given], pa.RecordBatch)

        (veiled,) = batches(home)
        assert [False, True] == sorted(veiled.column("email").is_valid().to_pylist())
        assert CANARY.encode() not in b"".join(buffer.to_pybytes() for column in veiled.columns for buffer in column.buffers() if buffer)

    def test_what_operators_hand_on_is_compacted(self, home: Path) -> None:
        # An operator may hand on a slice, a dictionary or a null that hides bytes; what leaves is rebuilt.
        texts = pa.array([CANARY, "shown", CANARY]).slice(1, 1)
        kinds = pa.DictionaryArray.from_arrays(pa.array([0]), pa.array(["paid", CANARY]))
        hidden = pa.Array.from_buffers(
            pa.string(), 1, [pa.py_buffer(b"\0"), pa.array([0, len(CANARY)], pa.int32()).buffers()[1], pa.py_buffer(CANARY.encode())]
        )
        columns = {"text": texts, "kind": kinds, "null": hidden, ORDER: pa.array([b"0" * 16], pa.binary(16))}
        with pipeline() as root:
            given = root | beam.Create([pa.RecordBatch.from_pydict(columns)])
            _ = given | beam.ParDo(PublishVeiled(keep_order=True)).with_output_types(pa.RecordBatch) | beam.ParDo(Note(str(home), "veiled"))

        assert [{"text": "shown", "kind": "paid", "null": None}] == rows(home)
        (batch,) = batches(home)
        assert CANARY.encode() not in b"".join(buffer.to_pybytes() for column in batch.columns for buffer in column.buffers() if buffer)

    def test_what_a_library_says_of_an_event_stays_inside(self, home: Path, caplog: pytest.LogCaptureFixture) -> None:
        with pytest.raises(Exception, match="EV901 ValueError") as caught, pipeline() as root:
            _ = root | beam.Create([CANARY]) | beam.ParDo(Quotes())

        assert CANARY not in str(caught.value) + caplog.text

    def test_no_key_in_what_is_pickled(self, home: Path) -> None:
        pickled = pickle.dumps(anonymize(home))

        root = json.loads((home / "keyring.json").read_text())["root"].encode()
        secrets = [root, base64.b64decode(root), base64.b64decode(root).hex().encode()]
        assert not [secret for secret in secrets for start in range(len(secret) - 7) if secret[start : start + 8] in pickled]

    def test_a_defect_is_told_without_its_text(self, home: Path, caplog: pytest.LogCaptureFixture) -> None:
        # A column of another type than the schema's is an error of the pipeline, not of an event.
        given = pa.RecordBatch.from_pylist([order(0)]).set_column(0, "id", pa.array([[CANARY]]))

        with pytest.raises(Exception, match="EV407") as caught:
            run(home, [given], pa.RecordBatch)

        assert CANARY not in str(caught.value) + caplog.text

    def test_order_within_a_batch_is_keyed(self, home: Path) -> None:
        policy(home, "others.yaml", domain="others")
        policy(home, "kept.yaml", more="order: keep")
        given = pa.RecordBatch.from_pylist([order(i, tags=[f"{i:02}."]) for i in range(50)])
        with pipeline() as root:
            events = root | beam.Create([given])
            for name in ("orders", "others", "kept"):
                note(home, *(events | f"Veil/{name}" >> anonymize(home, f"{name}.yaml")), name=name)

        orders, others, kept = (
            [int(tags[0]) for batch in batches(home, f"veiled{name}") for tags in batch.column("tags").to_pylist()]
            for name in ("orders", "others", "kept")
        )
        assert list(range(50)) == sorted(orders) == sorted(others) == kept
        assert 3 == len({tuple(orders), tuple(others), tuple(kept)})

    def test_order_of_equal_ids_does_not_tell_which_came_first(self, home: Path) -> None:
        events = [order(1, tags=[f"{i:02}."]) for i in range(30)]

        with pipeline() as root:
            for name, given in {"1": events, "2": events[::-1]}.items():
                batch = root | f"Create{name}" >> beam.Create([pa.RecordBatch.from_pylist(given)])
                note(home, *(batch | f"Veil{name}" >> anonymize(home)), name=name)

        (forwards,), (backwards,) = batches(home, "veiled1"), batches(home, "veiled2")
        assert forwards.equals(backwards)


class TestWhatIsRefusedAtOnce:
    def test_a_loss_that_nobody_has_allowed(self, home: Path) -> None:
        with pytest.raises(PolicyError, match="EV119"):
            anonymize(home, custodian=None)

    def test_a_loss_that_is_allowed_is_counted(self, home: Path) -> None:
        with pipeline() as root:
            events = root | beam.Create([message(order(1)), b"junk", message(order(2, kind="sent"))])
            note(home, *(events | anonymize(home, custodian=None, allow_loss=True)))
        counters = root.result.metrics().query(beam.metrics.MetricsFilter().with_namespace("eventveil"))["counters"]
        found = {counter.key.metric.name: counter.committed for counter in counters}

        assert 1 == len(rows(home))
        assert [None, None] == [letter for batch in batches(home, "refused") for letter in batch.column("letter").to_pylist()]
        assert {"orders|in": 3, "orders|out": 1, "orders|refused|EV501": 1, "orders|refused|EV520": 1}.items() <= found.items()

    def test_a_policy_that_is_wrong(self, home: Path) -> None:
        (home / "orders.yaml").write_text((home / "orders.yaml").read_text().replace("note: drop", "nope: drop"))

        with pytest.raises(EventveilError, match="EV203"):
            anonymize(home)

    def test_positions_that_a_replay_would_not_find_again(self, home: Path) -> None:
        policy(home, id="$position")

        with pytest.raises(PolicyError, match="EV211"):
            anonymize(home)

    def test_numbers_that_are_only_there_when_a_window_closes(self, home: Path) -> None:
        text = (home / "orders.yaml").read_text()
        (home / "orders.yaml").write_text(text.replace("{pseudonymize: {class: person}}", "{renumber: {scope: window}}"))

        with pytest.raises(PolicyError, match=r"(?s)EV111 orders numbers values when their window closes.*scope: event"):
            anonymize(home)

    @pytest.mark.parametrize("kind", [str, Any, dict], ids=["text", "unknown", "objects"])
    def test_elements_that_are_no_messages(self, home: Path, kind: Any) -> None:
        root = pipeline()
        events = root | beam.Create([b"x"])
        events.element_type = kind

        with pytest.raises(PolicyError, match=r"(?s)EV120 .*with_output_types"):
            _ = events | anonymize(home)

    def test_a_keyring_that_is_missing_is_told_when_the_worker_starts(self, home: Path) -> None:
        (home / "keyring.json").unlink()

        with pytest.raises(Exception, match="EV301"):
            run(home, [message(order(1))])


def test_events_of_another_type_are_refused_before_consent_is_asked(home: Path) -> None:
    head = (home / "orders.yaml").read_text()
    (home / "orders.yaml").write_text(
        head.replace("{time: at, id: id}", "{time: at, id: id, type: {field: kind, is: paid}, only_if: {note: [yes-please]}}")
    )
    other = message(order(3, kind="sent"))

    run(home, [message(order(1, note="yes-please")), message(order(2)), other])

    assert 1 == len(rows(home))
    assert [("EV509", "kind", other)] == opened(home)


class TestTypes:
    @pytest.fixture(autouse=True)
    def strictly(self) -> Iterator[None]:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # Of Beam itself and of what it imports, on first use.
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=ResourceWarning)
            yield

    def test_beam_warns_of_nothing_and_knows_the_types(self, home: Path, caplog: pytest.LogCaptureFixture) -> None:
        options = PipelineOptions(["--type_check_additional=all", "--runtime_type_check"])
        with beam.Pipeline("FnApiRunner", options=options) as root:
            events = root | beam.Create([message(order(1)), b"junk"])
            veiled, refused = events | anonymize(home)
            note(home, veiled, refused)

        assert (pa.RecordBatch, pa.RecordBatch) == (veiled.element_type, refused.element_type)
        assert not [
            record for record in caplog.records if record.name.startswith("eventveil") or "type hint" in record.getMessage().lower()
        ]
        assert 1 == len(rows(home))

    def test_batches_go_through_our_coder_everywhere(self, home: Path) -> None:
        root = pipeline()
        _ = root | beam.Create([message(order(1))]) | "Veil" >> anonymize(home)
        components = root.to_runner_api().components
        coders = {}
        for transform in components.transforms.values():
            if transform.unique_name.startswith("Veil/") and not transform.unique_name.startswith("Veil/GatherMessages"):
                for output in transform.outputs.values():
                    coder = components.coders[components.pcollections[output].coder_id]
                    coders[transform.unique_name, output] = coder.spec.payload

        assert len(coders) >= 6
        assert all(b"RecordBatchCoder" in payload for payload in coders.values()), coders

    def test_letters_have_one_column(self, home: Path) -> None:
        run(home, [b"junk"])

        (letters,) = batches(home, "refused")
        assert LETTERS == letters.schema
        assert [] == batches(home)


def test_a_compiled_plan_is_taken_too(home: Path) -> None:
    run(home, [])
    plan = load_plan(home / "orders.yaml")

    transform = Anonymize(plan, keys=str(home / "keyring.json"), allow_loss=True)

    assert plan is transform.plan
