"""Hostile input: whatever bytes come, no crash, no hang, nothing lost, nothing slipped through, and no neighbour changed."""

from __future__ import annotations

import importlib.util
import io
import json
import math
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import apache_beam as beam
import fastavro
import pyarrow as pa
import pytest

from eventveil.pipeline.dead_letters.open import open_letter
from eventveil.pipeline.dead_letters.store import list_letters
from eventveil.pipeline.report.summary import PolicySummary
from eventveil.schemas.errors import EventveilError
from eventveil.transforms.beam.anonymize import Anonymize, RecordBatchCoder
from eventveil.transforms.encode.json_events import encode_json
from eventveil.transforms.keys.custodian import load_private
from eventveil.transforms.keys.keyring import load_keys

HERE = Path(__file__).parent
EVERYTHING = HERE / "everything"
ORDERS = HERE.parents[1] / "examples" / "shipping_order"
MAIN = "from eventveil.pipeline.cli.main import main; main()"
BLANK = b" \t\r\n"


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"eventveil_tests_{name}", EVERYTHING / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


DESK = _load("desk")
EVENTS = _load("events")
MUTATOR = _load("mutator")


def _orders() -> list[bytes]:
    return (ORDERS / "orders.jsonl").read_bytes().splitlines()


def _nested() -> list[bytes]:
    chance = random.Random(11)
    return [json.dumps(EVENTS.event(number, chance), ensure_ascii=False).encode() for number in range(200)]


@dataclass(frozen=True)
class Kind:
    """Some events, their policy and schema."""

    name: str
    policy: Path
    schema: Path
    seeds: list[bytes]


KINDS = (
    Kind("orders", ORDERS / "policy.yaml", ORDERS / "shipping_order.avsc", _orders()),
    Kind("nested", EVERYTHING / "policy.yaml", EVERYTHING / "everything.avsc", _nested()),
)


def run_command(job: Path, timeout: float) -> tuple[int, str]:
    """The job in a process of its own, where a crash of a library cannot hide and a hang has an end."""
    done = subprocess.run([sys.executable, "-c", MAIN, "run", str(job)], capture_output=True, text=True, timeout=timeout, check=False)
    return done.returncode, done.stderr


def _ran(desk: Any, name: str, inputs: Sequence[Path], timeout: float, **entries: Any) -> Any:
    summary = desk.folder / f"{name}.json"
    code, told = run_command(desk.write_job(name, inputs, summary=str(summary), **entries), timeout)

    assert code == 0, told
    found = json.loads(summary.read_text())["policies"][0]
    found["into"] = found.pop("in")
    return desk.ran(name, PolicySummary(**found))


def _interleaved(good: Sequence[bytes], hostile: Sequence[bytes]) -> bytes:
    """Good lines among hostile ones, so that each good one has hostile neighbours."""
    step = max(len(hostile) // len(good), 1)
    groups = [hostile[first : first + step] for first in range(0, len(hostile), step)]
    lines = [
        line for one, group in zip_longest(good, groups, fillvalue=[]) for line in ([one] if isinstance(one, bytes) else []) + list(group)
    ]
    return b"".join(line + b"\n" for line in lines)


def _events(data: bytes) -> dict[int, bytes]:
    """What a file of lines holds, by position: a line with its end; a blank one is no event, a mark at the start no part of it."""
    found: dict[int, bytes] = {}
    at = 0
    for line in io.BytesIO(data):
        value = line[3:] if at == 0 and line.startswith(b"\xef\xbb\xbf") else line
        if value.strip(BLANK):
            found[at] = value
        at += len(line)
    return found


class _Object(dict[str, Any]):
    """A JSON object that knows which of its keys stand twice."""

    twice: frozenset[str] = frozenset()


class _Refuse(ValueError):
    """What no reader may accept."""


class _Unsure(Exception):
    """What this judge does not know enough of."""


class Judge:
    """A second, slow judge of JSON messages, which shares nothing with the first one: Python's json, and the Avro schema as written."""

    def __init__(self, schema: Path) -> None:
        self._schema = json.loads(schema.read_text())

    def accepts(self, message: bytes) -> bool | None:
        """Whether the message is an event of the schema; None where this judge cannot tell.

        Stricter than JSON: no line end within a message. What is no JSON in parts that the schema does not know (bytes that are not UTF-8,
        NaN), or is nested very deep there, may pass or not: it is not read.
        """
        message = message.strip(BLANK)
        if b"\r" in message:
            return False
        text = message.decode("utf-8", "surrogateescape")
        is_text = not _has_surrogates(text)
        try:
            parsers: dict[str, Any] = {"parse_int": self._int, "parse_float": self._float}
            event = json.loads(text, object_pairs_hook=self._object, **parsers)
        except RecursionError:
            return None
        except ValueError:
            return False
        try:
            if is_text and _has_surrogates(event):
                return False
            fits = isinstance(event, dict) and self._fits(self._schema, event)
            unsure = not is_text or re.search(r"NaN|Infinity|(\[ *|\{\"a\": *){50}", text)
            return None if fits and unsure else fits
        except (RecursionError, _Unsure):
            return None

    @staticmethod
    def _object(pairs: list[tuple[str, Any]]) -> _Object:
        found = _Object(pairs)
        if len(found) < len(pairs):
            found.twice = frozenset(name for name, number in Counter(name for name, _ in pairs).items() if number > 1)
        return found

    @staticmethod
    def _int(text: str) -> int:
        # Python refuses to read integers of some thousand digits, which no type of a schema holds.
        return int(text) if len(text) < 1_000 else 10**1_000

    @staticmethod
    def _float(text: str) -> float:
        value = float(text)
        if math.isinf(value):
            raise _Refuse
        return value

    def _fits(self, schema: Any, value: Any) -> bool:
        if isinstance(schema, list):
            (kind,) = [one for one in schema if one != "null"]
            return value is None or self._fits(kind, value)
        kind = schema["type"] if isinstance(schema, dict) else schema
        logical = schema.get("logicalType") if isinstance(schema, dict) else None
        if kind == "record":
            return (
                isinstance(value, _Object)
                and all(self._fits(field["type"], value.get(field["name"])) for field in schema["fields"])
                and not value.twice & {field["name"] for field in schema["fields"]}
            )
        if kind == "array":
            return isinstance(value, list) and all(self._fits(schema["items"], one) for one in value)
        if kind == "map":
            names = isinstance(value, _Object) and not value.twice and not _has_surrogates(list(value))
            return names and all(self._fits(schema["values"], one) for one in value.values())
        if logical == "decimal":
            if isinstance(value, bool) or not isinstance(value, (str, int, float)):
                return False
            if not re.fullmatch(r"-?[0-9]{1,16}(\.[0-9]{1,4})?", str(value)):
                raise _Unsure
            return True
        if logical not in (None, "uuid"):  # its form is not looked at
            return isinstance(value, str) and not _has_surrogates(value)
        if kind in ("int", "long"):
            bits = 31 if kind == "int" else 63
            return isinstance(value, int) and not isinstance(value, bool) and -(2**bits) <= value < 2**bits
        if kind in ("float", "double"):
            most = 3.4e38 if kind == "float" else 1.79e308
            return isinstance(value, (int, float)) and not isinstance(value, bool) and -most < value < most
        if kind == "boolean":
            return isinstance(value, bool)
        if kind == "enum":
            return value in schema["symbols"]
        if kind in ("fixed", "bytes"):
            fits = isinstance(value, str) and all(ord(one) < 256 for one in value)
            return fits and len(value) == schema["size"] if kind == "fixed" else fits
        return isinstance(value, str) and not _has_surrogates(value)


def _has_surrogates(value: Any) -> bool:
    if isinstance(value, str):
        return any("\ud800" <= one <= "\udfff" for one in value)
    if isinstance(value, dict):
        return any(_has_surrogates(one) for pair in value.items() for one in pair)
    return isinstance(value, list) and any(map(_has_surrogates, value))


# What the decoder says of a message. Not EV506: the second judge does not look at the form of times, decimals and uuids. All other
# codes are a policy's.
DECODING = {"EV501", "EV502", "EV503", "EV504", "EV505", "EV507"}


def check_all(ran: Any, alone: Any, data: bytes, good: Sequence[bytes], judge: Judge) -> list[tuple[str, bytes]]:
    """All that must hold of a run over hostile input; returns the refused ones."""
    events = _events(data)
    summary = ran.summary
    letters = ran.letters()

    assert (summary.into, summary.balanced) == (len(events), True)
    assert summary.out == sum(ran.lines().values())
    assert summary.refused == dict(Counter(letter.code for letter in letters))
    assert {letter.position: events[letter.position] for letter in letters} == {letter.position: letter.event for letter in letters}
    assert len(letters) == len({letter.position for letter in letters})
    assert not {letter.event.rstrip(b"\n") for letter in letters} & set(good)
    assert not alone.lines() - ran.lines()
    refused = {letter.position for letter in letters}
    slipped = [event for at, event in events.items() if at not in refused and judge.accepts(event) is False]
    assert slipped == []
    wronged = [(letter.code, letter.path, letter.event) for letter in letters if letter.code in DECODING and judge.accepts(letter.event)]
    assert wronged == []
    # Before any rule has seen a value.
    late = [(letter.code, letter.event) for letter in letters if letter.code > "EV507" and judge.accepts(letter.event) is False]
    assert late == []
    return [(letter.code, letter.event) for letter in letters]


class TestJson:
    """Lines of JSON, mutated."""

    @pytest.mark.parametrize("count", [1_000, pytest.param(50_000, marks=pytest.mark.slow)])
    @pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
    def test_mutated_events_are_refused_or_sound_and_change_no_neighbour(self, kind: Kind, count: int, tmp_path: Path) -> None:
        desk = DESK.Desk(tmp_path, kind.policy)
        (tmp_path / "good.jsonl").write_bytes(b"".join(line + b"\n" for line in kind.seeds))
        data = _interleaved(kind.seeds, list(MUTATOR.mutants(kind.seeds, count, count)))
        (tmp_path / "hostile.jsonl").write_bytes(data)
        alone = _ran(desk, "alone", [tmp_path / "good.jsonl"], 60)

        ran = _ran(desk, "among", [tmp_path / "hostile.jsonl"], 60 + count / 200)

        refused = check_all(ran, alone, data, kind.seeds, Judge(kind.schema))
        assert len(refused) > count / 2
        assert {"EV501", "EV502", "EV503", "EV504", "EV507"} <= {code for code, _ in refused}
        assert ran.summary.out > alone.summary.out
        assert sum(ran.summary.drift.values()) > 0

    @pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
    def test_a_verdict_does_not_depend_on_neighbours(self, kind: Kind, tmp_path: Path) -> None:
        """The same lines in another order, in other batches and files: the same refusals for the same reasons, the same output."""
        desk = DESK.Desk(tmp_path, kind.policy)
        mutants = [line for one in MUTATOR.mutants(kind.seeds, 500, 77) for line in one.split(b"\n") if line.strip(BLANK)]
        # A mark at the start of a file is no part of its first line, and would be one of the line anywhere else.
        lines = [line for line in [*kind.seeds[:60], *mutants] if not line.startswith(b"\xef\xbb\xbf")]
        shuffled = random.Random(2).sample(lines, len(lines))
        for name, some in (("one", lines), ("two", shuffled[:311]), ("three", shuffled[311:])):
            (tmp_path / f"{name}.jsonl").write_bytes(b"".join(line + b"\n" for line in some))

        one = desk.run("sorted", [tmp_path / "one.jsonl"])
        other = desk.run("shuffled", [tmp_path / "two.jsonl", tmp_path / "three.jsonl"], batch_bytes=50_000)

        def verdicts(ran: Any) -> Counter[tuple[str, str, bytes]]:
            return Counter((letter.code, letter.path, letter.event) for letter in ran.letters())

        assert verdicts(one) == verdicts(other)
        assert one.lines() == other.lines()
        assert len(verdicts(one)) > 200

    @pytest.mark.parametrize(
        ("content", "events", "codes"),
        [
            pytest.param(b"", 0, {}, id="nothing"),
            pytest.param(b"\n\n \r\n\t\n", 0, {}, id="blank"),
            pytest.param(b"\xef\xbb\xbf", 0, {}, id="mark"),
            pytest.param(b"null", 1, {"EV501": 1}, id="null"),
            pytest.param(b"null\n" * 3, 3, {"EV501": 3}, id="nulls"),
            pytest.param(b"\0" * 5_000, 1, {"EV501": 1}, id="NULs"),
            pytest.param(b"{", 1, {"EV501": 1}, id="brace"),
            pytest.param(b"{}", 1, {"EV503": 1}, id="empty object"),
            pytest.param(b'{"tenant":\n"x"}\n{"a":1}{"b":2}\n', 3, {"EV501": 3}, id="three lines, three documents"),
            pytest.param(b"[\n{}\n]\n", 3, {"EV501": 2, "EV503": 1}, id="array of events"),
            pytest.param("{}\n{}".encode("utf-16"), 2, {"EV501": 2}, id="UTF-16"),
            pytest.param(b"\x1f\x8b\x08\x00 not gzip", 1, {"EV501": 1}, id="looks like gzip"),
            pytest.param(b"PAR1" + bytes(40) + b"PAR1", 1, {"EV501": 1}, id="looks like Parquet"),
            pytest.param(bytes(range(256)) * 20, 21, {"EV501": 21}, id="all bytes"),
            pytest.param(b"{}\r\n{}\r\n", 2, {"EV503": 2}, id="other line ends"),
            pytest.param(b"{}\r{}\r", 1, {"EV501": 1}, id="old line ends"),
        ],
    )
    def test_a_file_of_nothing_else(self, content: bytes, events: int, codes: dict[str, int], tmp_path: Path) -> None:
        desk = DESK.Desk(tmp_path, ORDERS / "policy.yaml")
        (tmp_path / "in.jsonl").write_bytes(content)

        ran = desk.run("only", [tmp_path / "in.jsonl"])

        assert (events, codes, 0) == (ran.summary.into, ran.summary.refused, ran.summary.out)
        assert list(_events(content).values()) == [letter.event for letter in ran.letters()]
        assert ran.files() == {}

    def test_an_event_that_is_too_large_is_refused_and_its_neighbours_are_not(self, tmp_path: Path) -> None:
        """All that a letter holds of it is its beginning: enough to know it by, never more than the limit allows in memory."""
        desk = DESK.Desk(tmp_path, ORDERS / "policy.yaml")
        good = _orders()[:20]
        large = [good[0][:-1] + b', "x": "' + b"x" * size + b'"}' for size in (1_000, 100_000, 3_000_000)]
        large += [b" " * 5_000, b" " * 5_000 + b"{}", b"[" * 5_000, b'"' * 5_000]
        (tmp_path / "in.jsonl").write_bytes(_interleaved(good, large))

        ran = desk.run("large", [tmp_path / "in.jsonl"], max_event_bytes=1_000, batch_bytes=2_000)

        assert desk.run("good", [_written(tmp_path / "good.jsonl", good)]).lines() == ran.lines()
        assert ran.summary.balanced
        assert {"EV515"} == set(ran.summary.refused)
        for letter in ran.letters():
            assert len(letter.event) == 1_001
            assert any(one.startswith(letter.event[1:-1], 1) for one in large)

    def test_no_event_takes_long(self, tmp_path: Path) -> None:
        """A megabyte of whatever is dear to some algorithm: none may take more than a little longer than a megabyte of another kind."""
        kind = KINDS[1]
        size = 1 << 20
        event = EVENTS.event(0, random.Random(5), lambda path: path)
        line = json.dumps(event).encode()

        def beside(raw: bytes) -> bytes:
            return line[:-1] + b', "x": ' + raw + b"}"

        def with_(**changes: Any) -> bytes:
            return json.dumps({**event, **changes}, ensure_ascii=False).encode()

        dear = [
            beside(b"[" * size),
            beside(b'{"a":' * (size // 6) + b"1" + b"}" * (size // 6)),
            beside(b'"' + b"\\" * size),
            beside(b"1" * size),
            beside(b"1e-" + b"9" * size),
            beside(b"{" + b",".join(b'"k%d":1' % number for number in range(size // 12)) + b"}"),
            beside(b"[" + b"1e-5," * (size // 5) + b"1]"),
            line[:-1] + b', "id": ""' * (size // 10) + b"}",
            line[:-1] + b"," * size + b"}",
            b" " * size + line,
            with_(props={f"k{number}": "v" for number in range(size // 14)}),
            with_(props={"k" * number: "v" for number in range(int((2 * size) ** 0.5))}),
            with_(props={f"k{number}\n": "\n" for number in range(size // 16)}),
            with_(tags=[f"x{number}" for number in range(size // 10)]),
            with_(lines=[{}] * (size // 4)),
            with_(grid=[[]] * (size // 4)),
            # Combining marks in the wrong order, and a letter that comes apart into some.
            with_(phone="\u0315\u0300" * (size // 4)),
            with_(email="\u0f73" * (size // 3)),
            with_(email="\ufdfa" * (size // 3)),
            with_(price="1 " * (size // 2)),
            with_(money="1" * size),
            with_(ip=":" * size),
            with_(at="2" * size),
        ]
        desk = DESK.Desk(tmp_path, kind.policy)
        (tmp_path / "in.jsonl").write_bytes(_interleaved(kind.seeds[:40], dear))

        ran = _ran(desk, "dear", [tmp_path / "in.jsonl"], 100)

        assert (len(dear) + 40, True) == (ran.summary.into, ran.summary.balanced)


def _written(path: Path, lines: Sequence[bytes]) -> Path:
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


# Avro: an event that a good producer wrote, as bytes that a bad one could have written.
AVRO = {
    "type": "record",
    "name": "Order",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "who", "type": ["null", "string"]},
        {"name": "state", "type": {"type": "enum", "name": "State", "symbols": ["open", "shut"]}},
        {"name": "amount", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
        {"name": "ratio", "type": "double"},
        {"name": "flag", "type": "boolean"},
        {"name": "lines", "type": {"type": "array", "items": {"type": "record", "name": "Line", "fields": [{"name": "n", "type": "int"}]}}},
        {"name": "props", "type": {"type": "map", "values": "string"}},
    ],
}
AVRO_POLICY = """
policy: avro
version: 1
for: {recipient: attackers}
schema: order.avsc
domain: analytics
event: {time: at, id: id}
window: 1d
fields:
  id: {pseudonymize: {class: id}}
  at: {floor: 1h}
  who: {pseudonymize: {class: who}}
  state: keep
  amount: {round: 10}
  ratio: {noise: {laplace_scale: 1, grid: 0.5, per: event}}
  flag: keep
  lines[].n: {noise: {laplace_scale: 1, per: event}}
  props{a}: {mask: {keep_last: 1}}
"""


def _datums(count: int) -> list[bytes]:
    from datetime import datetime, timezone
    from decimal import Decimal

    chance = random.Random(9)
    schema = fastavro.parse_schema(AVRO)
    found = []
    for number in range(count):
        row = {
            "id": f"id-{number}",
            "at": datetime(2014, 9, 4, chance.randrange(24), tzinfo=timezone.utc),
            "who": chance.choice((None, "anna", "Müller")),
            "state": chance.choice(("open", "shut")),
            "amount": Decimal(chance.randrange(10**8)) / 100,
            "ratio": chance.random(),
            "flag": chance.random() < 0.5,
            "lines": [{"n": chance.randrange(100)} for _ in range(chance.randrange(4))],
            "props": {"a": "x" * chance.randrange(5), "b": "y"},
        }
        buffer = io.BytesIO()
        fastavro.schemaless_writer(buffer, schema, row)
        found.append(buffer.getvalue())
    return found


def _hostile_datums(seeds: Sequence[bytes], count: int) -> Iterator[bytes]:
    chance = random.Random(10)
    for _ in range(count):
        datum = bytearray(chance.choice(seeds))
        for _ in range(chance.choice((1, 1, 2, 5))):
            at = chance.randrange(len(datum) + 1)
            what = chance.randrange(5)
            if what == 0 and datum:
                datum[at - 1] ^= 1 << chance.randrange(8)
            elif what == 1 and datum:
                datum[at - 1] = chance.choice((0, 1, 2, 3, 127, 128, 254, 255))
            elif what == 2:
                del datum[at : at + chance.randrange(1, 9)]
            elif what == 3:
                # A number of up to 64 bits and more: lengths, counts and values that no block holds.
                datum[at:at] = bytes([*(chance.randrange(128, 256) for _ in range(chance.randrange(10))), chance.randrange(128)])
            else:
                other = chance.choice(seeds)
                datum[at:] = other[chance.randrange(len(other)) :]
        yield bytes(datum)


@pytest.fixture
def avro_policy(tmp_path: Path) -> Path:
    (tmp_path / "order.avsc").write_text(json.dumps(AVRO))
    policy = tmp_path / "avro.yaml"
    policy.write_text(AVRO_POLICY)
    return policy


class TestAvro:
    """Datums, mutated: alone, as a queue delivers them, and in a container file."""

    def test_messages_are_refused_or_sound_and_change_no_neighbour(self, avro_policy: Path, tmp_path: Path) -> None:
        desk = DESK.Desk(tmp_path, avro_policy)
        good = _datums(150)
        hostile = list(_hostile_datums(good, 3_000))
        messages = [one for pair in zip_longest(good * 20, hostile) for one in pair if one is not None]
        alone = _anonymized(good, avro_policy, desk, tmp_path / "alone")

        veiled, refused = _anonymized(messages, avro_policy, desk, tmp_path / "among")

        assert len(veiled) + len(refused) == len(messages)
        assert alone[1] == []
        assert not set(refused) & set(good)
        # Every good one came twenty times.
        assert not Counter(alone[0] * 20) - Counter(veiled)
        assert len(refused) > 1_500
        assert not Counter(refused) - Counter(hostile)

    def test_datums_of_a_container_are_refused_or_sound(self, avro_policy: Path, tmp_path: Path) -> None:
        """Where a datum ends is known from its bytes alone, so those stand here that end where they should."""
        desk = DESK.Desk(tmp_path, avro_policy)
        good = _datums(150)
        hostile = [datum for datum in _hostile_datums(good, 4_000) if _skips(datum)]
        assert len(hostile) > 500
        datums = [one for pair in zip_longest(good, hostile) for one in pair if one is not None]
        alone = _ran(desk, "alone", [_container(tmp_path / "good.avro", good)], 60, format="jsonl")

        ran = _ran(desk, "among", [_container(tmp_path / "hostile.avro", datums)], 60, format="jsonl")

        letters = ran.letters()
        assert (len(datums), True) == (ran.summary.into, ran.summary.balanced)
        assert not alone.lines() - ran.lines()
        assert not Counter(letter.event for letter in letters) - Counter(hostile)
        assert {"EV504", "EV506"} <= {letter.code for letter in letters}
        assert len(letters) > 50

    @pytest.mark.parametrize("seed", range(3))
    def test_a_container_whose_bytes_were_changed_is_read_or_told_to_be_damaged(self, seed: int, avro_policy: Path, tmp_path: Path) -> None:
        desk = DESK.Desk(tmp_path, avro_policy)
        data = bytearray(_container(tmp_path / "good.avro", _datums(150)).read_bytes())
        chance = random.Random(seed)
        for number in range(12):
            changed = bytearray(data)
            at = chance.randrange(len(changed)) if number % 2 else chance.randrange(900)
            changed[at] ^= 1 << chance.randrange(8)
            (tmp_path / f"{number}.avro").write_bytes(changed)

        told = [_code_or_balance(desk, f"run{number}", tmp_path / f"{number}.avro") for number in range(12)]

        assert set(told) <= {"EV403", "EV407", "balanced"}
        assert len(set(told)) > 1


def _code_or_balance(desk: Any, name: str, source: Path) -> str:
    try:
        ran = desk.run(name, [source], format="jsonl")
    except EventveilError as error:
        return error.problems[0].code
    return "balanced" if ran.summary.balanced else "unbalanced"


def _skips(datum: bytes) -> bool:
    """Whether a reader that trusts the lengths in a datum comes to its end exactly."""
    from eventveil.pipeline.sources._avro_datums import DatumError, datum_ends, walker_of

    try:
        return datum_ends(walker_of(json.dumps(AVRO)), datum, 1).tolist() == [len(datum)]
    except DatumError:
        return False


def _container(path: Path, datums: Sequence[bytes]) -> Path:
    """An Avro container file of datums as they are, some in each block, as fastavro would have written it."""
    buffer = io.BytesIO()
    sync = bytes(range(16))
    fastavro.writer(buffer, fastavro.parse_schema(AVRO), [], sync_marker=sync)
    for first in range(0, len(datums), 40):
        block = b"".join(datums[first : first + 40])
        fastavro.schemaless_writer(buffer, {"type": "long"}, len(datums[first : first + 40]))
        fastavro.schemaless_writer(buffer, {"type": "long"}, len(block))
        buffer.write(block + sync)
    path.write_bytes(buffer.getvalue())
    return path


def _keep(batch: pa.RecordBatch, folder: str) -> None:
    import uuid

    (Path(folder) / uuid.uuid4().hex).write_bytes(RecordBatchCoder().encode(batch))


def _anonymized(messages: Sequence[bytes], policy: Path, desk: Any, folder: Path) -> tuple[list[bytes], list[bytes]]:
    """Records and opened refused messages, of messages in somebody's pipeline."""
    for name in ("veiled", "letters"):
        (folder / name).mkdir(parents=True)
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        events = pipeline | "Events" >> beam.Create(messages).with_output_types(bytes)
        veiled, letters = events | "Veil" >> Anonymize(policy, keys=str(desk.keyring), custodian=desk.custodian, format="avro")
        veiled | "KeepVeiled" >> beam.Map(_keep, str(folder / "veiled"))
        letters | "KeepLetters" >> beam.Map(_keep, str(folder / "letters"))
    batches = {name: [RecordBatchCoder().decode(path.read_bytes()) for path in (folder / name).iterdir()] for name in ("veiled", "letters")}
    rows = [line for batch in batches["veiled"] for line in encode_json(batch).to_pylist()]
    (folder / "letters.jsonl").write_bytes(
        b"".join(letter for batch in batches["letters"] for letter in batch.column("letter").to_pylist())
    )
    private, key = load_private(desk.custodian_key), load_keys(str(desk.keyring)).letters_key()
    return rows, [open_letter(letter, private, key) for letter in list_letters(folder / "letters.jsonl")]
