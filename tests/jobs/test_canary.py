"""Nothing leaks sideways: values that stand nowhere else are planted in every leaf, every unknown name and every failure, and looked for.

They may be found in the output under a `keep`, and in opened dead letters; nowhere else, in no form.
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import logging
import os
import pickle
import pty
import random
import re
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eventveil.pipeline.graph import Work, build
from eventveil.pipeline.prepare import prepare
from eventveil.schemas.errors import CODES, EventveilError
from eventveil.schemas.job import load_job
from eventveil.transforms.beam.anonymize import Anonymize, RecordBatchCoder
from eventveil.transforms.context import Context
from eventveil.transforms.keys.derive import context, hkdf
from eventveil.transforms.keys.keyring import load_keys
from eventveil.transforms.registry import Operator

HERE = Path(__file__).parent
EVERYTHING = HERE / "everything"
MAIN = "from eventveil.pipeline.cli.main import main; main()"


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"eventveil_tests_{name}", EVERYTHING / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


CANARY = _load("canary")
DESK = _load("desk")
EVENTS = _load("events")

KEPT = ("kept", "lines[].place.shown", "holder.inner.shown")
STRICT_SCHEMA = {
    "type": "record",
    "name": "Strict",
    "fields": [
        {"name": "kind", "type": "string"},
        {"name": "id", "type": ["null", "string"]},
        {"name": "state", "type": "string"},
        {"name": "at", "type": ["null", "long"]},
        {"name": "amount", "type": ["null", "int"]},
        {"name": "inner", "type": ["null", {"type": "record", "name": "Inner", "fields": [{"name": "text", "type": "string"}]}]},
    ],
}
STRICT_POLICY = """
policy: strict
version: 1
for: {recipient: attackers}
schema: strict.avsc
domain: analytics
event:
  id: id
  time: {field: at, unit: s}
  type: {field: kind, is: order}
window: 1d
unknown_fields: refuse
fields:
  kind: drop
  id: drop
  at: {floor: 1d}
  state: {allow: [open, shut]}
  amount: {noise: {laplace_scale: 5, per: event}}
  inner.text: {pseudonymize: {class: text}}
"""


@dataclass
class Planted:
    """Lines to run, and what is in them."""

    canaries: Any
    lines: list[bytes]
    codes: dict[str, str]
    """By name of a refused line the code that it is to be refused with."""


def _event(canaries: Any, name: str) -> dict[str, Any]:
    """A valid event in whose every leaf something is planted; also where the schema knows nothing, and as names."""

    def plant(path: str) -> str:
        return str(canaries.text(f"{name}/{path}"))

    chance = random.Random(name)
    event = EVENTS.event(0, chance, plant, lambda path: canaries.whole(f"{name}/{path}"))

    def text(path: str, value: str) -> str:
        return str(canaries.add(f"{name}/{path}", value))

    bits = f"{chance.getrandbits(128):032x}"
    day = f"20{chance.randrange(10, 19)}-0{chance.randrange(1, 10)}-1{chance.randrange(10)}"
    digits = f"{chance.randrange(10**23, 10**24)}"
    micros = f"{chance.randrange(10**5, 10**6)}"
    # The year and the hour may leave; the digits behind them may not.
    canaries.add(f"{name}/seconds", f"17:43.{micros}")
    event.update(
        at=f"2014-09-04T1{chance.randrange(10)}:17:43.{micros}",
        ip="2001:db8:85a3:" + text("ip", ":".join(f"{chance.randrange(0x1000, 0x10000):x}" for _ in range(5))),
        phone="+" + text("phone", digits[::-1]),
        price=f"{canaries.whole(f'{name}/price')}.5 {plant('price currency')}",
        digits=str(canaries.whole(f"{name}/digits")),
        capped=canaries.whole(f"{name}/capped"),
        real=canaries.whole(f"{name}/real"),
        single=canaries.whole(f"{name}/single") // 10**7,
        money=f"{canaries.whole(f'{name}/money')}.25",
        raw=plant("raw"),
        mark=plant("mark")[:16],
        uuid=text("uuid", str(uuid.UUID(bits))),
        day=day,
        millis=f"{day}T01:17:43.{micros[:3]}Z",
        micros=f"{day}T01:17:43.{micros}Z",
        nanos=f"{day}T01:17:43.{micros}123Z",
        local=f"{day}T01:17:43.{micros}",
    )
    canaries.add_bytes(f"{name}/uuid", uuid.UUID(bits).bytes)
    for place, path in (
        (event, "top"),
        (event["lines"][0], "line"),
        (event["lines"][1]["place"], "place"),
        (event["meta"]["main"], "meta"),
    ):
        unknown = {plant(f"unknown {path} inner name"): [plant(f"unknown {path} inner"), canaries.whole(f"{name}/unknown {path}")]}
        place[plant(f"unknown {path} name")] = unknown
    return event


def _line(event: dict[str, Any]) -> bytes:
    return json.dumps(event, ensure_ascii=False).encode()


def _refused(canaries: Any) -> dict[str, tuple[str, bytes]]:
    """Name -> code and line, for each way in which an event of everything.avsc can be refused."""
    found: dict[str, tuple[str, bytes]] = {}

    def plant(
        name: str, code: str, change: Callable[[dict[str, Any]], Any] | None = None, bend: Callable[[bytes], bytes] | None = None
    ) -> None:
        event = _event(canaries, name)
        if change is not None:
            change(event)
        line = _line(event)
        found[name] = (code, bend(line) if bend is not None else line)

    def leaf(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
        return lambda event: event.update({path: value})

    def text(name: str) -> str:
        return str(canaries.text(name))

    plant("truncated", "EV501", bend=lambda line: line[:-9])
    plant("array", "EV501", bend=lambda line: b"[" + line + b"]")
    plant("two", "EV501", bend=lambda line: line + b" " + line)
    found["bare"] = ("EV501", text("bare").encode())
    found["text"] = ("EV501", f'"{text("text")}"'.encode())
    found["utf-16"] = ("EV501", f'{{"id": "{text("utf-16")}"}}'.encode("utf-16-le").replace(b"\n", b""))
    plant("wrong type", "EV502", leaf("kept", canaries.whole("wrong type/value")))
    plant("wrong type deep", "EV502", lambda event: event["lines"][1]["place"].update(street=[text("wrong type deep/value")]))
    plant("wrong type of number", "EV502", leaf("big", text("wrong type of number/value")))
    plant("missing", "EV503", lambda event: event.pop("email"))
    plant("null", "EV503", lambda event: event["lines"][0].update(ref=None))
    plant("not UTF-8", "EV504", bend=lambda line: line.replace(b'"dropped": "', b'"dropped": "\xff\xfe'))
    plant("infinite", "EV505", bend=lambda line: re.sub(rb'"real": [0-9]+', b'"real": NaN', line))
    plant("too large", "EV505", leaf("small", canaries.whole("too large/value")))
    plant("enum", "EV506", leaf("state", text("enum/value")))
    plant("uuid", "EV506", leaf("uuid", text("uuid/value")))
    plant("date", "EV506", leaf("day", text("date/value")))
    plant("time", "EV506", leaf("micros", text("time/value")))
    plant("decimal", "EV506", leaf("money", text("decimal/value")))
    plant("fixed", "EV506", leaf("mark", text("fixed/value")))
    plant("twice", "EV507", bend=lambda line: line[:-1] + f', "kept": "{text("twice/value")}"}}'.encode())
    plant(
        "twice in a map",
        "EV507",
        bend=lambda line: line.replace(b'"props": {', f'"props": {{"version": "{text("twice in a map/value")}", '.encode()),
    )
    plant("event time", "EV510", leaf("at", text("event time/value")))
    plant("skipped time", "EV511", leaf("at", "2014-03-30T01:30:00.654321"))
    plant("no subject", "EV513", leaf("who", None))
    plant("hierarchy", "EV521", leaf("country", text("hierarchy/value")))
    plant("bin", "EV522", leaf("single", -canaries.whole("bin/value")))
    plant("form", "EV523", leaf("price", text("form/value")))
    plant("lossy", "EV524", leaf("digits", text("lossy/value")))
    plant("address", "EV525", leaf("ip", text("address/value")))
    plant("choice", "EV527", leaf("vote", text("choice/value")))
    plant("overflow", "EV528", lambda event: event["meta"]["main"].update(number=2**63 - 1))
    # Half of all draws move it past the end of time; so does this one.
    plant("last second", "EV529", leaf("millis", "9999-12-30T23:59:59.999Z"))
    return found


@pytest.fixture(scope="module")
def planted() -> Planted:
    canaries = CANARY.Canaries()
    refused = _refused(canaries)
    filtered = [_line({**_event(canaries, f"filtered{number}"), "consent": consent}) for number, consent in enumerate((False, None))]
    lines = [_line(_event(canaries, f"good{number}")) for number in range(3)]
    lines += [line for one in zip(filtered, [line for _, line in refused.values()]) for line in one]
    lines += [line for _, line in refused.values()][len(filtered) :]
    return Planted(canaries, lines, {name: code for name, (code, _) in refused.items()})


@pytest.fixture(scope="module")
def may_stay(planted: Planted) -> set[str]:
    """What the policy keeps of the events that pass."""
    return {f"good{number}/{path}" for number in range(3) for path in KEPT}


def _source(desk: Any, lines: Sequence[bytes], name: str = "events") -> Path:
    """The input in a folder that is called like nothing else, because names of the input must not reach a sink."""
    path = desk.folder / name / "events.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def run_command(*arguments: str, folder: Path, terminal: bool = False, code: str = MAIN) -> tuple[int, bytes, bytes]:
    """eventveil in a process of its own, in an empty home; returns exit code, output and errors."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    environ = {**os.environ, "HOME": str(home), "TMPDIR": str(home)}
    command = [sys.executable, "-c", code, *arguments]
    if not terminal:
        done = subprocess.run(command, capture_output=True, cwd=home, env=environ, timeout=120, check=False)
        return done.returncode, done.stdout, done.stderr
    ours, theirs = pty.openpty()
    told: list[bytes] = []

    def listen() -> None:
        try:
            while data := os.read(ours, 65_536):
                told.append(data)
        except OSError:
            pass  # the other end was closed

    reader = threading.Thread(target=listen)
    reader.start()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, cwd=home, env=environ, timeout=120, check=False)
    os.close(theirs)
    reader.join(10)
    os.close(ours)
    return done.returncode, done.stdout, b"".join(told)


class TestCommandLine:
    """eventveil run as people run it: all that it writes anywhere."""

    @pytest.mark.parametrize(("format", "partition"), [("jsonl", None), ("jsonl", "window"), ("parquet", "window"), ("avro", "window")])
    def test_only_what_is_kept_leaves(
        self, planted: Planted, may_stay: set[str], format: str, partition: str | None, tmp_path: Path
    ) -> None:
        canaries, desk = planted.canaries, DESK.Desk(tmp_path, EVERYTHING / "policy.yaml")
        folder = canaries.text(f"folder {format}")
        source = _source(desk, planted.lines, folder)
        summary = tmp_path / "summary.json"
        job = desk.write_job("job", [source], format=format, partition_by=partition, summary=str(summary))

        code, out, err = run_command("run", str(job), "--debug", folder=tmp_path, terminal=format == "jsonl")

        assert code == 0, err
        counts = json.loads(summary.read_text())["policies"][0]
        assert counts["out"] == 3 and counts["filtered"] == 2
        assert counts["refused"] == {name: list(planted.codes.values()).count(name) for name in set(planted.codes.values())}
        assert set(counts["drift"]) == {"?", "meta{}.?", "lines[].?", "lines[].place.?"}
        sink = CANARY.everything_in(tmp_path / "job" / "out")
        assert may_stay == canaries.found(*sink.values())
        letters = CANARY.everything_in(tmp_path / "job" / "refused")
        # The header of a letter says where the event was read; it says nothing of the event.
        assert {f"folder {format}"} == canaries.found(*letters.values())
        left = [source, job, desk.keyring, desk.custodian, desk.custodian_key]
        left += [path for path in (tmp_path / "job").rglob("*") if path.is_file()]
        rest = CANARY.everything_in(tmp_path, leave=left)
        rest.pop("/names")
        assert "summary.json" in rest
        assert set() == canaries.found(out, err, *rest.values())

    def test_dead_letters_are_listed_without_a_value_and_opened_with_all_of_them(self, planted: Planted, tmp_path: Path) -> None:
        canaries, desk = planted.canaries, DESK.Desk(tmp_path, EVERYTHING / "policy.yaml")
        job = desk.write_job("job", [_source(desk, planted.lines)])
        run_command("run", str(job), "--quiet", folder=tmp_path)
        refused, keys = str(tmp_path / "job" / "refused"), ("--keys", str(desk.keyring))

        listed = [run_command("dead-letters", "list", refused, *keys, *more, folder=tmp_path) for more in ((), ("--json",))]
        opened = run_command("dead-letters", "open", refused, "--key", str(desk.custodian_key), *keys, folder=tmp_path)

        assert [code for code, _, _ in (*listed, opened)] == [0, 0, 0]
        assert set() == canaries.found(*(stream for _, *streams in (*listed, (0, opened[2])) for stream in streams))
        assert set(planted.codes.values()) == {json.loads(line)["code"] for line in listed[1][1].splitlines()}
        found = {name.split("/")[0] for name in canaries.found(opened[1])}
        assert found == set(planted.codes)

    def test_the_other_codes(self, tmp_path: Path) -> None:
        """Codes that everything.avsc cannot provoke; with those above, all that a file can be refused with."""
        canaries = CANARY.Canaries()
        (tmp_path / "strict.avsc").write_text(json.dumps(STRICT_SCHEMA))
        (tmp_path / "strict.yaml").write_text(STRICT_POLICY)
        desk = DESK.Desk(tmp_path, tmp_path / "strict.yaml")

        def event(name: str, **changes: Any) -> bytes:
            inner = {"text": canaries.text(f"{name}/text")}
            known = {"kind": "order", "id": canaries.text(f"{name}/id"), "state": "open", "at": 1_400_000_000, "amount": 7, "inner": inner}
            return _line({**known, **changes})

        refused = {
            "EV508": event("EV508", **{canaries.text("EV508/name"): canaries.text("EV508/value")}),
            "EV509": event("EV509", kind=canaries.text("EV509/kind")),
            "EV502": event("EV502", kind=[canaries.text("EV502/kind")]),
            "EV503": event("EV503", kind=None),
            "EV512": event("EV512", id=None),
            "EV510": event("EV510", at=None),
            "EV526": event("EV526", amount=None),
            "EV520": event("EV520", state=canaries.text("EV520/state")),
            "EV515": event("EV515", state=canaries.text("EV515/state") * 100),
            "EV501": f"{{{canaries.text('EV501')}}}".encode(),
        }
        source = _source(desk, [event("good"), *refused.values(), event("good2")])
        job = desk.write_job("job", [source], max_event_bytes=1_000, summary=str(tmp_path / "summary.json"))

        code, out, err = run_command("run", str(job), folder=tmp_path)

        assert code == 0, err
        counts = json.loads((tmp_path / "summary.json").read_text())["policies"][0]
        assert counts["out"] == 2
        assert set(counts["refused"]) == set(refused)
        assert set() == canaries.found(out, err, *CANARY.everything_in(tmp_path, leave=[source]).values())
        provoked = {*refused, *(code for code, _ in _refused(CANARY.Canaries()).values())}
        # Not for files of JSON lines: Avro, and what only a stream has: events far ahead or late, messages without value or text.
        assert {code for code in CODES if code.startswith("EV5")} - provoked == {"EV514", "EV516", "EV517", "EV518", "EV519"}


BLURT = '''
import sys
import pyarrow as pa
from eventveil.transforms.registry import Operator, operator

class Panic(BaseException):
    """As Rust code raises through its bindings: no Exception."""

@operator("blurt")
class Blurt(Operator):
    how: str

    def returns(self, given):
        return given

    def discloses(self):
        return "everything"

    def apply(self, values, context):
        text = f"cannot treat {values.to_pylist()}"
        if self.how == "chained":
            try:
                raise KeyError(text)
            except KeyError as error:
                raise ValueError(text) from error
        if self.how == "library":
            pa.array([text]).cast(pa.int64())
        if self.how == "no text":
            raise UnicodeDecodeError("utf-8", text.encode(), 0, 1, text)
        if self.how == "panic":
            raise Panic(text)
        if self.how == "exit":
            sys.exit(text)
        if self.how == "notes":
            error = RuntimeError(text)
            error.__notes__ = [text]
            raise error
        if self.how == "type":
            return pa.array([text] * len(values))
        if self.how == "length":
            return values.slice(1)
        raise RuntimeError(text)

from eventveil.pipeline.cli.main import main
main()
'''


class TestInternalErrors:
    """An operator of somebody else's that fails and quotes what it was given: the type and the place are told, and no more."""

    @pytest.mark.parametrize(
        ("how", "workers", "more"),
        [
            ("plain", 1, ()),
            ("plain", 2, ("--debug",)),
            ("chained", 1, ("--debug",)),
            ("library", 1, ("--debug",)),
            ("no text", 1, ()),
            ("panic", 1, ("--debug",)),
            ("panic", 2, ()),
            ("notes", 1, ("--debug",)),
            ("exit", 1, ()),
            ("type", 1, ()),
            ("length", 1, ("--debug",)),
        ],
        ids=str,
    )
    def test_no_value_is_shown(self, planted: Planted, how: str, workers: int, more: Sequence[str], tmp_path: Path) -> None:
        canaries = planted.canaries
        policy = tmp_path / "policy.yaml"
        text = (
            (EVERYTHING / "policy.yaml")
            .read_text()
            .replace("schema: ", f"schema: {EVERYTHING}/")
            .replace("hierarchy: ", f"hierarchy: {EVERYTHING}/")
        )
        assert text.count("  dropped: drop\n") == text.count("  big: {round: 10000000}\n") == 1
        field, rest = ("big", "  big: {round: 10000000}\n") if how == "type" else ("dropped", "  dropped: drop\n")
        policy.write_text(text.replace(rest, f"  {field}: {{blurt: {{how: {how}}}}}\n"))
        desk = DESK.Desk(tmp_path, policy)
        source = _source(desk, planted.lines)
        job = desk.write_job("job", [source], workers=workers)

        code, out, err = run_command("run", str(job), *more, folder=tmp_path, code=BLURT)

        assert (70, True) == (code, b"EV901" in err), err
        # Beam itself prints the stack of a failure in a thread of its own, ours without text.
        assert more or workers > 1 or b"Traceback" not in err
        assert set() == canaries.found(out, err, *CANARY.everything_in(tmp_path, leave=[source]).values())
        assert not list((tmp_path / "job" / "out").glob("part-*"))


class TestStorageErrors:
    """Input that cannot be read is told by its place, never by what it holds; names of unknown columns are values too."""

    @staticmethod
    def _fails(source: Path, lines: str, folder: Path, canaries: Any) -> None:
        desk = DESK.Desk(folder, EVERYTHING / "policy.yaml")
        job = desk.write_job("job", [source])

        code, out, err = run_command("run", str(job), "--debug", folder=folder)

        assert (4, True) == (code, lines.encode() in err), err
        assert set() == canaries.found(out, err, *CANARY.everything_in(folder, leave=[source]).values())

    def test_damaged_gzip(self, planted: Planted, tmp_path: Path) -> None:
        source = tmp_path / "events.jsonl.gz"
        source.write_bytes(gzip.compress(b"\n".join(planted.lines), 0)[:-20])

        self._fails(source, "EV403", tmp_path, planted.canaries)

    def test_damaged_zstandard(self, planted: Planted, tmp_path: Path) -> None:
        source = tmp_path / "events.jsonl.zst"
        source.write_bytes(pa.compress(b"\n".join(planted.lines) * 30, codec="zstd", asbytes=True)[:-20])

        self._fails(source, "EV403", tmp_path, planted.canaries)

    @pytest.mark.parametrize(
        "damage", [lambda data: data[:-30], lambda data: data[:-40] + bytes(40), lambda data: data.replace(b'"type"', b'"tope"')]
    )
    def test_damaged_avro(self, damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
        canaries = CANARY.Canaries()
        name = f"n{canaries.text('name')}"
        schema = {"type": "record", "name": name, "fields": [{"name": name, "type": "string", "default": canaries.text("default")}]}
        buffer = io.BytesIO()
        fastavro.writer(buffer, fastavro.parse_schema(schema), [{name: canaries.text("value")}] * 9)
        source = tmp_path / "events.avro"
        source.write_bytes(damage(buffer.getvalue()))

        self._fails(source, "EV403", tmp_path, canaries)

    @pytest.mark.parametrize("kind", ["string", "enum", "array"])
    def test_avro_of_another_schema(self, kind: str, tmp_path: Path) -> None:
        canaries = CANARY.Canaries()
        name = f"n{canaries.text('name')}"
        symbol = f"s{canaries.text('symbol')}"
        types = {
            "enum": {"type": "enum", "name": f"s{canaries.text('enum')}", "symbols": [symbol]},
            "array": {"type": "array", "items": "string"},
        }
        values = {"enum": symbol, "array": [canaries.text("item")], "string": canaries.text("value")}
        fields = [{"name": name, "type": "string"}, {"name": "id", "type": "string"}, {"name": "big", "type": types.get(kind, kind)}]
        schema = {"type": "record", "name": name, "fields": fields, "doc": canaries.text("doc")}
        source = tmp_path / "events.avro"
        with source.open("wb") as file:
            fastavro.writer(
                file, fastavro.parse_schema(schema), [{name: canaries.text("unknown"), "id": canaries.text("id"), "big": values[kind]}]
            )

        self._fails(source, "EV407", tmp_path, canaries)

    def test_parquet_of_another_schema(self, tmp_path: Path) -> None:
        canaries = CANARY.Canaries()
        inner = {f"n{canaries.text('inner')}": canaries.text("value")}
        row = {"id": canaries.text("id"), "big": inner, "props": [inner], canaries.text("name"): 1, "small": canaries.text("small")}
        source = tmp_path / "events.parquet"
        pq.write_table(pa.Table.from_pylist([row]).replace_schema_metadata({canaries.text("key"): canaries.text("metadata")}), source)

        self._fails(source, "EV407", tmp_path, canaries)

    def test_damaged_parquet(self, tmp_path: Path) -> None:
        canaries = CANARY.Canaries()
        source = tmp_path / "events.parquet"
        table = pa.Table.from_pylist([{canaries.text("name"): canaries.text("value")}] * 100)
        pq.write_table(table, source, compression="none", use_dictionary=False, write_page_checksum=True)
        data = bytearray(source.read_bytes())
        data[200:204] = b"\0\0\0\0"
        source.write_bytes(data)

        self._fails(source, "EV403", tmp_path, canaries)


class _Log(logging.Handler):
    """Keeps all that is logged, as text and as what it was made of."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told += [self.format(record), repr(record.args), repr(record.__dict__)]


def _with_log(run: Callable[[], Any]) -> tuple[Any, list[str]]:
    """What a call returns or raises, and all that is logged meanwhile, Beam's own loggers set to DEBUG."""
    log, root, beams = _Log(), logging.getLogger(), logging.getLogger("apache_beam")
    before = (root.level, beams.level)
    root.addHandler(log)
    root.setLevel(logging.DEBUG)
    beams.setLevel(logging.DEBUG)
    try:
        result: Any = run()
    except Exception as error:
        result = error
    finally:
        root.removeHandler(log)
        root.setLevel(before[0])
        beams.setLevel(before[1])
    return result, log.told


def _shown(error: BaseException | None) -> Iterator[str]:
    """All texts of an exception and of those behind it, whether a traceback would show them or not."""
    while error is not None:
        yield f"{error!r} {error} {error.args!r} {getattr(error, '__notes__', '')}"
        error = error.__cause__ or error.__context__


class Quoting(Operator):
    """Fails, and quotes its values."""

    def returns(self, given: pa.DataType) -> pa.DataType | None:
        return given

    def discloses(self) -> str:
        return "everything"

    def apply(self, values: pa.Array, context: Context) -> pa.Array:
        raise ZeroDivisionError(f"cannot treat {values.to_pylist()}")


class TestBeam:
    """What Beam holds of a job: logs, metrics, exceptions, and the graph that it sends to workers."""

    def test_no_value_in_logs_and_metrics(self, planted: Planted, tmp_path: Path) -> None:
        desk = DESK.Desk(tmp_path, EVERYTHING / "policy.yaml")
        job = prepare(load_job(desk.write_job("job", [_source(desk, planted.lines)], batch_bytes=20_000)))

        def run() -> Any:
            pipeline = beam.Pipeline(runner="FnApiRunner")
            build(pipeline, job, Work(job.ranges))
            result = pipeline.run()
            result.wait_until_finish()
            return result

        result, told = _with_log(run)

        metrics = result.metrics().query()
        names = {counter.key.metric.name for counter in metrics["counters"]}
        assert {"everything|in", "everything|refused|EV501", "everything|drift|lines[].?"} <= names
        assert len(told) > 100
        infos = [repr(one) for one in result.monitoring_infos()] if hasattr(result, "monitoring_infos") else []
        assert set() == planted.canaries.found(repr(metrics), repr(list(metrics["counters"])), *infos)
        assert set() == planted.canaries.found(*told)

    def test_no_value_in_exceptions(self, planted: Planted, tmp_path: Path) -> None:
        """In nothing that hangs on an error, not even where a traceback would not show it."""
        from eventveil.pipeline.runners.local import run

        desk = DESK.Desk(tmp_path, EVERYTHING / "policy.yaml")
        job = prepare(load_job(desk.write_job("job", [_source(desk, planted.lines)])))
        # As an operator of somebody else's would stand in the plan.
        (variant,) = job.variants
        instructions = list(variant.plan.instructions)
        at = next(i for i, one in enumerate(instructions) if getattr(one, "path", "") == "email")
        instructions[at] = replace(instructions[at], steps=(replace(instructions[at].steps[0], operator=Quoting()),))
        job = replace(job, variants=(replace(variant, plan=replace(variant.plan, instructions=tuple(instructions))),))

        error, told = _with_log(lambda: run(job))

        assert isinstance(error, EventveilError) and error.problems[0].code == "EV901" and "ZeroDivisionError" in str(error)
        assert set() == planted.canaries.found(*_shown(error), pickle.dumps(error))
        assert set() == planted.canaries.found(*told)

    @pytest.mark.parametrize("pickled", ["pickle", "Beam", "graph"])
    def test_no_value_and_no_key_in_what_is_sent_to_workers(self, planted: Planted, pickled: str, tmp_path: Path) -> None:
        desk = DESK.Desk(tmp_path, EVERYTHING / "policy.yaml")
        job = prepare(load_job(desk.write_job("job", [_source(desk, planted.lines)], partition_by="window")))
        keys = _all_keys(job)
        pipeline = beam.Pipeline(runner="FnApiRunner")
        build(pipeline, job, Work(job.ranges))
        fns = _fns(pipeline)
        assert {"ListRanges", "ReadEvents", "DecodeEvents", "ApplyPolicy", "WriteParts", "WriteLetters"} <= {
            type(fn).__name__ for fn in fns
        }
        if pickled == "graph":
            sent = [pipeline.to_runner_api().SerializeToString()]
        else:
            sent = [pickle.dumps(fn) if pickled == "pickle" else beam.internal.pickler.dumps(fn) for fn in fns]

        assert set() == planted.canaries.found(*sent)
        assert set() == keys.found(*sent)
        # The search looks into what Beam packs: the policy is there.
        seen = CANARY.Canaries()
        seen.add("rule", "fields.lines[].place.street")
        assert {"rule"} == seen.found(*sent)

    def test_what_holds_keys_cannot_be_pickled(self, planted: Planted, tmp_path: Path) -> None:
        """A DoFn that a worker has set up holds keys: a runner that pickles it then must fail, not send them."""
        desk = DESK.Desk(tmp_path, EVERYTHING / "policy.yaml")
        job = prepare(load_job(desk.write_job("job", [_source(desk, planted.lines)])))
        keys = _all_keys(job)
        pipeline = beam.Pipeline(runner="FnApiRunner")
        build(pipeline, job, Work(job.ranges))
        for fn in _fns(pipeline):
            fn.setup()
            fn.start_bundle()
            try:
                sent = pickle.dumps(fn)
            except TypeError:
                continue

            assert (type(fn).__name__, set()) == (type(fn).__name__, keys.found(sent))


def _fns(pipeline: beam.Pipeline) -> list[Any]:
    """All DoFns of ours in a pipeline."""
    found: list[Any] = []

    class Visitor(beam.pipeline.PipelineVisitor):
        def visit_transform(self, node: Any) -> None:
            fn = getattr(node.transform, "fn", None)
            if type(fn).__module__.startswith("eventveil."):
                found.append(fn)

    pipeline.visit(Visitor())
    return found


def _all_keys(job: Any) -> Any:
    """The root of a keyring and the keys that a run would derive from it, to be looked for."""
    keys = load_keys(job.sealing.keys)
    (variant,) = job.variants
    plan = variant.plan
    found = CANARY.Canaries()
    found.add_bytes("root", DESK.ROOT)
    domain = hkdf(DESK.ROOT, context("domain", plan.domain))
    found.add_bytes("domain", domain)
    found.add_bytes("domain-wide", hkdf(domain, context("domain-wide", plan.domain)))
    start = int(plan.key_window.bounds(plan.key_window.index(_micros("2014-09-04T12:00:00")))[0][0])
    size, zone = str(plan.key_window.duration), plan.key_window.zone
    found.add_bytes("window", hkdf(domain, context("window", plan.domain, start, size, zone)))
    requests = {step.key for instruction in plan.instructions for step in getattr(instruction, "steps", ()) if step.key is not None}
    assert len(requests) > 10
    for request in requests:
        of = keys.domain(plan.domain)
        if request.scope == "domain":
            found.add_bytes(f"sub-key {request}", of.for_domain(request.purpose, *request.info))
        else:
            found.add_bytes(f"sub-key {request}", of.for_window(start, size, zone, request.purpose, *request.info))
    found.add_bytes("release", keys.domain(plan.domain).for_domain("release", plan.schema.name))
    for purpose in ("order", "part"):
        found.add_bytes(purpose, keys.domain(plan.domain).for_domain(purpose))
    for stage in ("decoding", plan.name):
        found.add_bytes(f"part of {stage}", keys.domain(f"dead letters of {stage}").for_domain("part"))
    found.add_bytes("letters", keys.letters_key())
    return found


def _micros(text: str) -> Any:
    import numpy as np

    return np.array([text], "datetime64[us]").astype(np.int64)


def _keep(batch: pa.RecordBatch, folder: str) -> None:
    """Everything that the batch holds on to, and what Arrow would send of it."""
    import uuid as ids

    held = b"\n".join(data for column in batch.columns for data in CANARY.buffers_of(column))
    (Path(folder) / ids.uuid4().hex).write_bytes(held + b"\n" + repr(batch.schema).encode() + RecordBatchCoder().encode(batch))


class TestRecordBatches:
    """Arrow hides values: slices keep what they were cut from, nulls what is behind them, dictionaries what no row shows."""

    def _found(
        self, planted: Planted, batches: Sequence[Any], policy: Path, folder: Path, messages: str | None = None
    ) -> tuple[set[str], set[str]]:
        kind = bytes if isinstance(batches[0], bytes) else pa.RecordBatch
        desk = DESK.Desk(folder, policy)
        for name in ("veiled", "letters"):
            (folder / name).mkdir()
        with beam.Pipeline(runner="FnApiRunner") as pipeline:
            events = pipeline | "Events" >> beam.Create(batches).with_output_types(kind)
            veiled, letters = events | "Veil" >> Anonymize(policy, keys=str(desk.keyring), custodian=desk.custodian, messages=messages)
            veiled | "KeepVeiled" >> beam.Map(_keep, str(folder / "veiled"))
            letters | "KeepLetters" >> beam.Map(_keep, str(folder / "letters"))
        veiled_files, letter_files = (CANARY.everything_in(folder / name).values() for name in ("veiled", "letters"))
        return planted.canaries.found(*veiled_files), planted.canaries.found(*letter_files)

    def test_of_messages(self, planted: Planted, may_stay: set[str], tmp_path: Path) -> None:
        veiled, letters = self._found(planted, planted.lines, EVERYTHING / "policy.yaml", tmp_path)

        assert (may_stay, set()) == (veiled, letters)

    def test_of_slices_of_messages(self, planted: Planted, tmp_path: Path) -> None:
        values = pa.RecordBatch.from_arrays([pa.array(planted.lines, pa.binary())], ["value"])

        veiled, letters = self._found(planted, [values.slice(1, 4)], EVERYTHING / "policy.yaml", tmp_path, messages="value")

        assert ({f"good{number}/{path}" for number in (1, 2) for path in KEPT}, set()) == (veiled, letters)

    @pytest.mark.parametrize("order", ["keyed", "keep"])
    def test_of_columns_with_dictionaries_and_hidden_nulls(self, order: str, tmp_path: Path) -> None:
        canaries = CANARY.Canaries()
        schema = {
            "type": "record",
            "name": "Row",
            "fields": [
                {"name": "shown", "type": ["null", "string"]},
                {"name": "listed", "type": {"type": "array", "items": ["null", "string"]}},
                {"name": "masked", "type": ["null", "string"]},
                {"name": "number", "type": ["null", "long"]},
                {"name": "place", "type": ["null", {"type": "record", "name": "Place", "fields": [{"name": "text", "type": "string"}]}]},
            ],
        }
        (tmp_path / "row.avsc").write_text(json.dumps(schema))
        policy = tmp_path / "row.yaml"
        rules = "shown: keep, 'listed[]': keep, masked: {mask: {keep_last: 2}}, number: keep, place.text: keep"
        head = f"policy: row, version: 1, for: {{recipient: x}}, schema: row.avsc, domain: d, order: {order}"
        policy.write_text(f"{{{head}, fields: {{{rules}}}}}")

        def hidden(name: str) -> pa.Array:
            """Two texts that are null, one that is not; the bytes of all three are there."""
            whole = pa.array([canaries.text(f"{name} 1"), canaries.text(f"{name} 2"), canaries.text(f"{name} shown")])
            return pa.Array.from_buffers(pa.string(), 3, [pa.py_buffer(b"\x04"), *whole.buffers()[1:]])

        numbers = pa.array([canaries.whole(f"number {one}") for one in (1, 2, "shown")])
        place = pa.StructArray.from_arrays([pa.array([canaries.text(f"place {one}") for one in (1, 2, "shown")])], ["text"])
        dictionary = pa.array([canaries.text(f"dictionary {one}") for one in (1, 2, "shown")])
        batch = pa.RecordBatch.from_pydict(
            {
                "shown": pa.DictionaryArray.from_arrays(pa.array([None, None, 2], pa.int32()), dictionary),
                "listed": pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), hidden("listed")),
                "masked": hidden("masked"),
                "number": pa.Array.from_buffers(pa.int64(), 3, [pa.py_buffer(b"\x04"), numbers.buffers()[1]]),
                "place": pa.StructArray.from_buffers(place.type, 3, [pa.py_buffer(b"\x04")], children=[place.field(0)]),
            }
        )
        planted = Planted(canaries, [], {})

        veiled, _ = self._found(planted, [batch], policy, tmp_path)

        assert {f"{name} shown" for name in ("dictionary", "listed", "number", "place")} == veiled
