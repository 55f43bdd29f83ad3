"""The exact texts of what is said when a job starts or runs: arguments, keys, inputs and outputs, limits.

Each way to fail is a function here, called in an empty folder; its message stands in ``EVnnn_what.txt``.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa
import pytest

from eventveil.pipeline.assemble import AssembleParts
from eventveil.pipeline.checkpoint.folder import CheckpointFolder
from eventveil.pipeline.checkpoint.seal import StateSeal, WindowSeals
from eventveil.pipeline.cli.dead_letters import open_folder
from eventveil.pipeline.cli.run import run_job
from eventveil.pipeline.dead_letters.open import open_letter
from eventveil.pipeline.dead_letters.store import LetterFolder, list_letters
from eventveil.pipeline.prepare import job_of_flags, policies_of, prepare
from eventveil.pipeline.report.reporter import Reporter
from eventveil.pipeline.report.server import Address
from eventveil.pipeline.runners import _job_server, slices
from eventveil.pipeline.runners._flink_rest import FlinkRest
from eventveil.pipeline.runners._job_server import job_server
from eventveil.pipeline.runners.local import run
from eventveil.pipeline.runners.slices import Drain
from eventveil.pipeline.runners.worker_pool import run_pool
from eventveil.pipeline.sinks._registry import register
from eventveil.pipeline.sinks.files import FolderSink
from eventveil.pipeline.sinks.pubsub import PubsubSink
from eventveil.pipeline.sinks.tables import DeltaSink, IcebergSink
from eventveil.pipeline.sinks.topic import TopicSink
from eventveil.pipeline.sources import kafka
from eventveil.pipeline.sources.files import Range, list_ranges, read_range
from eventveil.pipeline.sources.kafka import Cluster, KafkaStream
from eventveil.pipeline.sources.pubsub import Project, PubsubStream
from eventveil.pipeline.sources.watch import WatchedFolders
from eventveil.schemas.durations import Duration
from eventveil.schemas.errors import CODES, EventveilError
from eventveil.schemas.events.avro import parse_avro
from eventveil.schemas.job import RegistryDoc, load_job
from eventveil.schemas.streams import PubsubAddress, Settings
from eventveil.transforms.batch import ORDER, Part, refused_batch, with_part
from eventveil.transforms.beam.guard import internal_error
from eventveil.transforms.decode.parquet_rows import ColumnsDecoder
from eventveil.transforms.keys.custodian import load_private, load_public, new_custodian
from eventveil.transforms.keys.keyring import load_keys
from eventveil.transforms.keys.providers.keyring_file import new_keyring
from eventveil.transforms.seal import Sealer
from eventveil.transforms.windows import WindowRule

HERE = Path(__file__).parent
POLICY = """policy: visits
version: 1
schema: event.avsc
domain: research
event: {time: at, id: id}
window: 1d
fields: {id: drop, at: {floor: 1d}, who: drop}
"""
SCHEMA = {
    "type": "record",
    "name": "Visit",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "who", "type": "string"},
    ],
}
FLAGS = {"policy": "policy.yaml", "input": ["in.jsonl"], "output": "out", "keys": "keyring.json", "allow_loss": True}


def flags(**changed: object) -> dict[str, object]:
    return {name: value for name, value in {**FLAGS, **changed}.items() if value is not None}


def start(**changed: object) -> None:
    prepare(job_of_flags(flags(**changed)))


def read(path: str, **changed: object) -> None:
    for piece in list_ranges([path], None):
        list(read_range(Range(**{**vars(piece), **changed})))


def letters() -> None:
    sealer = Sealer(load_keys("keyring.json").letters_key(), load_public("custodian.pub"))
    nothing = pa.nulls(1, pa.int64())
    batch = refused_batch(["EV501"], [""], [""], pa.array([0]), nothing, pa.array([b"{"], pa.binary()))
    store = LetterFolder("refused")
    store.prepare()
    store.publish("00ff", sealer.seal(batch, origin="in.jsonl", policy="visits", digest="").column("letter").to_pylist())


def opened(private: str, keyring: str) -> None:
    for letter in list_letters("refused"):
        open_letter(letter, load_private(private), load_keys(keyring).letters_key())


# --- the ways to fail -----------------------------------------------------------------------------------------------------------


def ev119_loss() -> None:
    start(allow_loss=None)


def ev120_flags_missing() -> None:
    job_of_flags({})


def ev120_flags_beside_a_job() -> None:
    run_job("job.yaml", {"workers": 2, "max_refused": "5%"}, quiet=True, debug=False)


def ev120_policy_for_a_job() -> None:
    run_job("policy.yaml", {}, quiet=True, debug=False)


def ev120_output_holds_input() -> None:
    start(output=".")


def ev219_avro_name() -> None:
    Path("policy.yaml").write_text(POLICY.replace("{floor: 1d}", "[{floor: 1d}, {rename: day-of-visit}]"))
    start(format="avro")


def ev220_types() -> None:
    policies = {"one": "who", "two": "id"}
    for name, of in policies.items():
        text = POLICY.replace("id: id}", f"id: id, type: {{field: {of}, is: x}}}}").replace("policy: visits", f"policy: {name}")
        Path(f"{name}.yaml").write_text(text)
    variants = "".join(f"  - {{policy: {name}.yaml, output: {{uri: {name}}}}}\n" for name in policies)
    Path("job.yaml").write_text(f"job: visits\ninput: {{uri: in.jsonl}}\nvariants:\n{variants}")
    policies_of(load_job("job.yaml"))


def ev301_none_named() -> None:
    start(keys=None)


def ev301_missing() -> None:
    load_keys("nowhere.json")


def ev302_keyring() -> None:
    os.chmod("keyring.json", 0o644)
    load_keys("keyring.json")


def ev302_custodian() -> None:
    os.chmod("custodian.key", 0o640)
    load_private("custodian.key")


def ev303_not_json() -> None:
    Path("keyring.json").write_text("{")
    load_keys("keyring.json")


def ev303_root() -> None:
    Path("keyring.json").write_text(json.dumps({"eventveil_keyring": 1, "root": "c2VjcmV0", "domains": {}}))
    load_keys("keyring.json")


def ev303_variable() -> None:
    os.environ["EVENTVEIL_TEST_KEY"] = "c2VjcmV0"
    try:
        load_keys("env:EVENTVEIL_TEST_KEY")
    finally:
        del os.environ["EVENTVEIL_TEST_KEY"]


def ev304_keyring() -> None:
    new_keyring("keyring.json")


def ev304_custodian() -> None:
    new_custodian("custodian")


def ev305_variable() -> None:
    load_keys("env:EVENTVEIL_TEST_NO_KEY")


def ev306_private_for_public() -> None:
    load_public("custodian.key")


def ev306_public_for_private() -> None:
    load_private("custodian.pub")


def ev306_no_key() -> None:
    load_public("policy.yaml")


def ev306_missing() -> None:
    load_public("nowhere.pub")


def ev307_another_custodian() -> None:
    letters()
    new_custodian("stranger")
    opened("stranger.key", "keyring.json")


def ev307_damaged() -> None:
    letters()
    Path("refused/letters-00ff.jsonl").write_bytes(Path("refused/letters-00ff.jsonl").read_bytes()[:50])
    opened("custodian.key", "keyring.json")


def ev308_another_keyring() -> None:
    letters()
    new_keyring("other.json")
    opened("custodian.key", "other.json")


def ev401_pattern() -> None:
    start(input=["in/*.jsonl"])


def ev401_address() -> None:
    list_ranges(["s3://bucket/in.jsonl"])


def ev401_letters() -> None:
    list_letters("nowhere")


def ev402_missing() -> None:
    list(read_range(Range("nowhere.jsonl", "jsonl", None, 0, 1)))


def ev402_changed() -> None:
    piece = list_ranges(["in.jsonl"])[0]
    Path("in.jsonl").write_bytes(b'{"a": 1}\n')
    list(read_range(piece))


def ev403_gzip_cut_short() -> None:
    Path("in.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 100)[:-12])
    read("in.jsonl.gz")


def ev403_gzip_changed() -> None:
    Path("in.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n')[:-8] + b"12345678")
    read("in.jsonl.gz")


def ev403_zstd() -> None:
    Path("in.jsonl.zst").write_bytes(b"no zstd at all")
    read("in.jsonl.zst")


def ev403_avro() -> None:
    Path("in.avro").write_bytes(b"no avro at all")
    read("in.avro")


def ev403_parquet() -> None:
    Path("in.parquet").write_bytes(b"no parquet at all")
    read("in.parquet")


def ev404_file_for_a_folder() -> None:
    start(output="policy.yaml/out")


def ev404_address() -> None:
    LetterFolder("s3://bucket/refused")


def ev404_folder_removed() -> None:
    sink = FolderSink("out", "jsonl", {"policy": "visits"}, order="keep")
    sink.publish("00ff", [pa.RecordBatch.from_pydict({"a": [1]})])


def ev404_file_exists() -> None:
    Path("opened").write_text("precious")
    letters()
    open_folder("refused", "custodian.key", None, None, "opened")


def ev405_other_policy() -> None:
    start()
    Path("policy.yaml").write_text(POLICY.replace("version: 1", "version: 2"))
    start()


def ev405_other_files() -> None:
    Path("out").mkdir()
    Path("out/notes.txt").write_text("")
    start()


def ev406_name() -> None:
    start(input=["policy.yaml"])


def ev406_mixed() -> None:
    Path("in.avro").write_bytes(b"")
    start(input=["in.jsonl", "in.avro"])


def ev406_compressed_outside() -> None:
    Path("in.avro.gz").write_bytes(b"")
    start(input=["in.avro.gz"])


def ev407_columns() -> None:
    decoder = ColumnsDecoder(parse_avro(SCHEMA, "event.avsc"), frozenset({"at", "id", "who"}))
    decoder.decode(pa.RecordBatch.from_pydict({"id": [1], "at": pa.array([0], pa.timestamp("ms", "UTC"))}))


def ev408_incomplete() -> None:
    assembler = AssembleParts()
    assembler.start_bundle()
    list(assembler.process(with_part(pa.RecordBatch.from_pydict({"a": [1]}), Part("in.jsonl", 0, 1, True))))


def checkpoint(policy: str = "d1") -> CheckpointFolder:
    folder = CheckpointFolder("state", StateSeal.of(load_keys("keyring.json")))
    folder.open({"job": "visits", "stream": ["visits"], "variants": {"research": {"digest": policy, "domain": "research"}}})
    return folder


def one_slice() -> None:
    with checkpoint() as folder:
        seals = WindowSeals(load_keys("keyring.json").domain("research"), WindowRule(Duration.parse("1min")))
        writer = folder.writer({"research": seals})
        folder.write_intent({"slice": 1})
        writer.begin_slice(1).append("research", 0, pa.RecordBatch.from_pydict({"a": [1]}))
        folder.commit({"slice": 1, "carry": writer.flush_all()})


def ev405_no_checkpoint() -> None:
    os.mkdir("state")
    Path("state/notes.txt").write_text("mine")
    checkpoint()


def ev409_another_policy() -> None:
    one_slice()
    checkpoint("d2")


def ev409_another_keyring() -> None:
    one_slice()
    os.remove("keyring.json")
    new_keyring("keyring.json")
    checkpoint()


def ev410_in_use() -> None:
    with checkpoint():
        checkpoint()


def ev411_changed() -> None:
    one_slice()
    document = json.loads(Path("state/checkpoint.json").read_text())
    Path("state/checkpoint.json").write_text(json.dumps({**document, "slice": 2}))
    checkpoint()


def ev411_carry_missing() -> None:
    one_slice()
    os.remove("state/carry/research/0-1.carry")
    checkpoint()


def ev411_older_checkpoint() -> None:
    one_slice()
    os.remove("state/checkpoint.json")
    checkpoint()


def closed_port() -> str:
    """An address of this machine where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def ev412_removed() -> None:
    stream = WatchedFolders(["in.jsonl"], None, 1 << 20, None)
    os.utime("in.jsonl", (0, 0))
    after = stream.next(stream.begin(False), 1 << 20)
    assert after is not None
    os.remove("in.jsonl")
    stream.ranges(stream.begin(False), after)


def ev402_changed_after_it_was_read() -> None:
    stream = WatchedFolders(["in.jsonl"], None, 1 << 20, None)
    os.utime("in.jsonl", (0, 0))
    after = stream.next(stream.begin(False), 1 << 20)
    assert after is not None
    Path("in.jsonl").write_bytes(b"{}")
    stream.next(after, 1 << 20)


def ev413_no_broker() -> None:
    with pytest.MonkeyPatch.context() as patience:
        patience.setattr(kafka, "_LOOK_S", 0.1)
        patience.setattr(kafka, "_ANSWER_S", 0.3)
        KafkaStream(Cluster(closed_port()), ("orders",), "visits").begin(False)


def ev413_setting() -> None:
    KafkaStream(Cluster(closed_port(), (("fetch.min.bytes", "many"),)), ("orders",), "visits")


def ev414_no_registry() -> None:
    register(RegistryDoc(f"http://{closed_port()}", (("max.retries", "0"),)), "orders-value", SCHEMA)


def ev414_setting() -> None:
    register(RegistryDoc(f"http://{closed_port()}", (("max.retires", "0"),)), "orders-value", SCHEMA)


def ev415_no_broker() -> None:
    topic().find_topic(0.3)


def ev415_setting() -> None:
    topic(("linger.ms", "soon")).find_topic(0.3)


def topic(*settings: tuple[str, str]) -> TopicSink:
    return TopicSink(Cluster(closed_port(), settings), "orders", pa.schema([pa.field("a", pa.int64())]), "research", {})


def ev416_another_content() -> None:
    visits(2)
    roll()
    visits(3)
    roll()


def visits(number: int) -> None:
    lines = ({"id": str(n), "at": "2024-05-06T12:00:00Z", "who": f"person {n}"} for n in range(number))
    Path("in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def roll(**changed: object) -> None:
    run(prepare(job_of_flags(flags(roll="1h", **changed))), 1)


def ev417_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, Reporter("visits", metrics=Address(*server.getsockname())):
        pass


def ev418_no_flink() -> None:
    FlinkRest(closed_port()).jobs()


def ev418_no_job_server() -> None:
    answers = _job_server._answers
    with pytest.MonkeyPatch.context() as patience:
        patience.setattr(_job_server, "_answers", lambda address, _: answers(address, 0.3))
        with job_server("127.0.0.1:8081", closed_port()):
            pass


def ev419_no_flink() -> None:
    with web_server(200, b"<html>") as address:
        FlinkRest(address).jobs()


def ev419_no_job() -> None:
    with web_server(404, b'{"errors": ["org.apache.flink.runtime.messages.FlinkJobNotFoundException: of somebody"]}') as address:
        FlinkRest(address).state("0" * 32)


def ev419_no_jars() -> None:
    Path("jars").mkdir()
    with job_server("127.0.0.1:8081", "jars"):
        pass


def ev419_no_java() -> None:
    Path("jars").mkdir()
    Path("jars/flink.jar").write_bytes(b"")
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("JAVA_HOME", raising=False)
        environment.setenv("PATH", "")
        with job_server("127.0.0.1:8081", "jars"):
            pass


def ev419_pool_for_everybody() -> None:
    run_pool("0.0.0.0:50000")


def ev420_no_service() -> None:
    with pubsub_at(closed_port()):
        subscription().begin(False)


def ev420_missing() -> None:
    with pubsub_that_says(grpc.StatusCode.NOT_FOUND) as address, pubsub_at(address):
        subscription().begin(False)


def ev420_setting() -> None:
    subscription(("endpoint", "pubsub.example.org")).begin(False)


def subscription(*settings: tuple[str, str]) -> PubsubStream:
    return PubsubStream(PubsubAddress("the-shop", "veil"), settings, None, "keyring.json")


def ev421_no_service() -> None:
    with pubsub_at(closed_port()):
        pubsub_topic().prepare()


def ev421_missing() -> None:
    with pubsub_that_says(grpc.StatusCode.NOT_FOUND) as address, pubsub_at(address):
        pubsub_topic().prepare()


def ev421_too_large() -> None:
    with pubsub_at(closed_port()):
        pubsub_topic().writer(load_keys("keyring.json")).write(rows("a" * 10_000_000))


def pubsub_topic() -> PubsubSink:
    return PubsubSink(Project("the-shop"), "orders", OUTPUT, "research", PROVENANCE)


def ev422_removed() -> None:
    sink = table()
    sink.prepare()
    shutil.rmtree("lake")
    sink.publish("00ff", [rows("a")])


def ev422_no_store() -> None:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("EVENTVEIL_TEST_SECRET", "of-the-store")
        secret = ("AWS_SECRET_ACCESS_KEY", "${EVENTVEIL_TEST_SECRET}")
        where = (("AWS_ENDPOINT_URL", f"http://{closed_port()}"), ("AWS_ALLOW_HTTP", "true"), ("AWS_REGION", "eu"))
        table("s3://bucket/orders", (*where, ("AWS_ACCESS_KEY_ID", "us"), secret, ("max_retries", "0"))).prepare()


def ev422_no_catalogue() -> None:
    IcebergSink("s3://bucket/lake", "shop.orders", OUTPUT, PROVENANCE).prepare()


def ev423_another_policy() -> None:
    table().prepare()
    table(policy="visitors").prepare()


def ev423_newer_version() -> None:
    table().prepare()
    table(version="2", digest="d2").prepare()


def ev423_columns() -> None:
    table().prepare()
    replace(table(), schema=pa.schema([pa.field("a", pa.int64())])).prepare()


def ev423_of_others() -> None:
    from deltalake import DeltaTable

    DeltaTable.create("lake", OUTPUT)
    table().prepare()


def ev423_other_rows() -> None:
    sink = table()
    sink.prepare()
    sink.publish("00ff", [rows("a")])
    sink.publish("00ff", [rows("b")])


def ev423_another_checkpoint() -> None:
    sink = replace(table(), layout="windows")
    sink.prepare()
    sink.bind("one")
    sink.publish_window(0, 0, lambda: iter([rows("a")]), 1, 1)
    sink.bind("two")


def ev423_claimed_meanwhile() -> None:
    sink = table()
    sink.prepare()
    replace(table(version="2", digest="d2"), evolve=True).prepare()
    sink.publish("00ff", [rows("a")])


PROVENANCE = {"policy": "visits", "version": "1", "digest": "d1", "domain": "research", "keys": "k1", "eventveil": "1"}
OUTPUT = pa.schema([pa.field("a", pa.string())])


def table(place: str = "lake", settings: Settings = (), **provenance: str) -> DeltaSink:
    return DeltaSink(place, "", OUTPUT, {**PROVENANCE, **provenance}, settings)


def rows(value: str) -> pa.RecordBatch:
    """One veiled row."""
    return pa.RecordBatch.from_arrays([pa.array([value]), pa.array([b"0" * 16], pa.binary(16))], ["a", ORDER])


def ev424_no_bucket() -> None:
    with web_server(404, b"{}") as address:
        submitted(address)


def ev424_not_allowed() -> None:
    with web_server(403, b'{"error": {"message": "of somebody"}}') as address:
        submitted(address)


def submitted(storage: str) -> None:
    """A job for Dataflow whose bucket is looked for at this address."""
    from eventveil.pipeline.runners.dataflow import dataflow_options, submit

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("STORAGE_EMULATOR_HOST", f"http://{storage}")
        environment.setenv("GOOGLE_CLOUD_PROJECT", "the-shop")
        extra = ("--sdk_container_image=registry.example.org/eventveil:1", "--no_auth")
        submit(
            lambda _: None, dataflow_options("visits", "the-shop", "europe-west1", temp_location="gs://shop/temp", labels={}, extra=extra)
        )


@contextmanager
def web_server(status: int, body: bytes) -> Iterator[str]:
    """The address of a server that answers everything so."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@contextmanager
def pubsub_that_says(status: grpc.StatusCode) -> Iterator[str]:
    """The address of a Pub/Sub that answers every call so."""

    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, _: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(lambda _, context: context.abort(status, "of somebody"))

    server = grpc.server(ThreadPoolExecutor(1), [Handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0)


@contextmanager
def pubsub_at(address: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PUBSUB_EMULATOR_HOST", address)
        yield


def ev602_refused() -> None:
    Path("in.jsonl").write_text("no event\n" * 100)
    os.utime("in.jsonl", (0, 0))
    job = prepare(job_of_flags(flags(watch=True, checkpoint="state", dead_letters="refused", custodian="custodian.pub", allow_loss=None)))
    with Reporter("visits", quiet=True, log_json=True) as reporter:
        slices.run(job, 1, Drain(), reporter, until_caught_up=True)


def ev603_too_large() -> None:
    visits(200)
    Path("policy.yaml").write_text(POLICY.replace("who: drop", "who: {renumber: {scope: window}}"))
    variant = "{policy: policy.yaml, output: {uri: out}}"
    Path("job.yaml").write_text(
        f"job: visits\ninput: {{uri: in.jsonl}}\nvariants: [{variant}]\nkeys: keyring.json\nallow_loss: true\nmax_window_bytes: 1024\n"
    )
    run(prepare(load_job("job.yaml")), 1)


def ev901_internal() -> None:
    try:
        raise ValueError("a value of an event")
    except ValueError as error:
        raise internal_error(error) from None


WAYS: dict[str, Callable[[], None]] = {f"EV{name[2:]}": way for name, way in list(globals().items()) if re.match(r"ev\d{3}_", name)}
# in tests of the command line: what it takes is a whole job
ELSEWHERE = {"EV601"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job that would start: policy, schema, an input without events, and keys."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy.yaml").write_text(POLICY)
    (tmp_path / "event.avsc").write_text(json.dumps(SCHEMA))
    (tmp_path / "in.jsonl").write_bytes(b"")
    new_keyring("keyring.json")
    new_custodian("custodian")
    return tmp_path


def said(way: Callable[[], None], folder: Path) -> EventveilError:
    with pytest.raises(EventveilError) as caught:
        way()
    return caught.value


@pytest.mark.parametrize("name", WAYS)
def test_the_text_is_exactly_this(name: str, folder: Path) -> None:
    error = said(WAYS[name], folder)
    # Keys are random, and so are their names; the folder is the test's.
    text = re.sub(r"'[0-9a-f]{16}'", "'KEY'", f"{error}\n".replace(f"{folder}/", "FOLDER/"))
    text = text.replace(f"process {os.getpid()} ", "process PID ")
    text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", text)
    # Whether a refused connection or the end of our patience is seen first.
    text = re.sub(r"\(_(TIMED_OUT|ALL_BROKERS_DOWN)\)", "(_TRANSPORT)", text)

    assert (HERE / f"{name}.txt").read_text("utf-8") == text
    assert {name[:5]} == {problem.code for problem in error.problems}
    assert {"1": 2, "2": 2, "3": 3, "4": 4, "6": 1, "9": 70}[name[2]] == error.exit_code


def test_a_job_that_is_right_starts(folder: Path) -> None:
    start()


def test_every_code_of_a_run_has_a_text() -> None:
    expected = {"EV119", "EV120", "EV219", "EV220", *(code for code in CODES if code[2] in "3469")}

    assert expected - ELSEWHERE == {name[:5] for name in WAYS}


def test_no_text_is_left_without_its_way_to_fail() -> None:
    assert set(WAYS) == {path.stem for path in HERE.glob("*.txt")}
