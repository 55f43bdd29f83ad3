"""deploy/local: up, down, and what the rest of these tests stands on."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import ConfigResource
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
LOCAL = ROOT / "deploy" / "local"
EXAMPLE = ROOT / "examples" / "shipping_order"


def run(name: str, *arguments: object, **changed: str) -> subprocess.CompletedProcess[str]:
    command = [LOCAL / name, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env={**os.environ, **changed})


def write(address: str, topic: str, *values: bytes) -> None:
    producer = Producer({"bootstrap.servers": address, "acks": "all"})
    for value in values:
        producer.produce(topic, value, partition=0)
    assert producer.flush(30) == 0


def read(address: str, topic: str, partition: int = 0) -> list[bytes]:
    consumer = Consumer({"bootstrap.servers": address, "group.id": "reader", "auto.offset.reset": "error"})
    try:
        low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=30)
        consumer.assign([TopicPartition(topic, partition, low)])
        found: list[bytes] = []
        deadline = time.monotonic() + 30
        while len(found) < high - low and time.monotonic() < deadline:
            found += [message.value() for message in consumer.consume(1_000, 1.0) if message.error() is None]
        return found
    finally:
        consumer.close()


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder for PATH with all that up calls, but Java and Maven."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "cat", "cksum", "cmp", "cp", "dirname", "flock", "grep", "mkdir", "mktemp", "mv", "ps", "rm", "sed", "setsid"):
        if found := shutil.which(name):
            (tools / name).symlink_to(found)
    for name in ("sleep", "tail", "touch", "tr"):
        (tools / name).symlink_to(str(shutil.which(name)))
    return tools


class TestUpAndDown:
    def test_up_twice_says_that_it_runs(self, broker: Any) -> None:
        again = run("up", "--home", broker.home)

        assert (again.returncode, again.stdout) == (0, f"kafka://{broker.address}\n")
        assert again.stderr == "kafka runs already\n"
        assert (broker.home / "kafka.address").read_text() == again.stdout

    def test_nobody_else_can_read_what_is_in_the_topics(self, broker: Any) -> None:
        for path in (broker.home / "kafka-data", broker.home / "kafka.log"):
            assert path.stat().st_mode & 0o077 == 0

    def test_nobody_else_can_connect(self, broker: Any) -> None:
        port = int(broker.address.rpartition(":")[2])
        listening = set()
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            if Path(table).exists():
                rows = [line.split() for line in Path(table).read_text().splitlines()[1:]]
                listening |= {row[1] for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port}

        loopback = {f"0100007F:{port:04X}", f"0000000000000000FFFF00000100007F:{port:04X}"}
        assert listening
        assert listening <= loopback

    def test_what_was_acknowledged_survives_kill_9_on_the_same_port(self, broker: Any, new_topic_at: Callable[..., Any]) -> None:
        topic = new_topic_at(broker)(1)
        before, values = broker.address, [b"%d" % number for number in range(1_000)]
        write(before, topic, *values)

        broker.kill()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(before.rpartition(":")[2])))
        broker.start()

        assert broker.address == before
        assert read(before, topic) == values

    def test_down_ends_one_that_is_stopped_and_frees_its_port(self, broker: Any) -> None:
        process = broker.process
        broker.freeze()
        began = time.monotonic()

        assert run("down", "--home", broker.home).returncode == 0
        assert not is_running(process)
        assert time.monotonic() - began < 19  # then it would have been killed
        assert not (broker.home / "kafka.address").exists()
        assert run("down", "--home", broker.home).returncode == 0

    def test_down_never_ends_a_stranger(self, tmp_path: Path) -> None:
        with subprocess.Popen(["sleep", "60"]) as stranger:
            try:
                # Its id was Kafka's once: the process that had it then started at another time.
                (tmp_path / "kafka.pid").write_text(f"{stranger.pid} 12345\n")
                done = run("down", "--home", tmp_path)

                assert done.returncode == 0
                assert stranger.poll() is None
                assert not (tmp_path / "kafka.pid").exists()
            finally:
                stranger.kill()

    def test_purge_removes_what_up_has_made_and_nothing_else(self, new_broker: Callable[[], Any]) -> None:
        broker = new_broker()
        broker.start()
        (broker.home / "notes.txt").write_text("mine")

        assert run("down", "--home", broker.home, "--purge").returncode == 0
        assert [path.name for path in broker.home.iterdir()] == ["notes.txt"]


class TestWhatIsMissingIsSaid:
    def test_java(self, tmp_path: Path, tools: Path) -> None:
        done = run("up", "--home", tmp_path / "home", PATH=str(tools), EVENTVEIL_CACHE=str(tmp_path / "cache"))

        assert done.returncode == 69
        assert "java is not installed" in done.stderr
        assert "compose.yaml" in done.stderr

    def test_an_old_java(self, tmp_path: Path, tools: Path) -> None:
        (tools / "java").write_text("#!/usr/bin/env bash\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
        (tools / "java").chmod(0o755)
        done = run("up", "--home", tmp_path / "home", PATH=str(tools), EVENTVEIL_CACHE=str(tmp_path / "cache"))

        assert done.returncode == 69
        assert "java 11 is too old: 17 or newer is needed" in done.stderr

    def test_maven(self, tmp_path: Path, tools: Path) -> None:
        if shutil.which("java") is None:
            pytest.skip("no Java")
        (tools / "java").symlink_to(str(shutil.which("java")))
        done = run("up", "--home", tmp_path / "home", PATH=str(tools), EVENTVEIL_CACHE=str(tmp_path / "cache"))

        assert done.returncode == 69
        assert "mvn is not installed" in done.stderr

    def test_a_download_that_was_cut_short_leaves_nothing_that_looks_whole(self, tmp_path: Path, tools: Path) -> None:
        if shutil.which("java") is None:
            pytest.skip("no Java")
        (tools / "java").symlink_to(str(shutil.which("java")))
        # It writes one file of many, and is killed.
        (tools / "mvn").write_text(
            "#!/usr/bin/env bash\n"
            'for argument; do [[ $argument != -DoutputDirectory=* ]] || echo x >"${argument#*=}/kafka.jar"; done\n'
            "kill -9 $$\n"
        )
        (tools / "mvn").chmod(0o755)
        cache = tmp_path / "cache"
        done = run("up", "--home", tmp_path / "home", PATH=str(tools), EVENTVEIL_CACHE=str(cache))

        assert done.returncode == 69
        assert "could not fetch kafka" in done.stderr
        assert list(cache.iterdir()) == []

    @pytest.mark.parametrize(
        "arguments", [("--port", "0"), ("--port", "70000"), ("--port", "x"), ("--with", "zookeeper"), ("--home",), ("--prot", "1")]
    )
    def test_wrong_arguments(self, arguments: tuple[str, ...]) -> None:
        done = run("up", *arguments)

        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("up: ")

    def test_a_port_that_is_taken(self, tmp_path: Path, kafka: str) -> None:
        port = kafka.rpartition(":")[2]
        done = run("up", "--home", tmp_path / "home", "--port", port)

        assert done.returncode == 1
        assert f"port {port} is taken" in done.stderr

    def test_the_end_of_the_log_when_it_does_not_start(self, broker: Any) -> None:
        broker.stop()
        meta = broker.home / "kafka-data" / "meta.properties"
        whole = meta.read_text()
        meta.write_text(re.sub(r"(?m)^node\.id=.*$", "node.id=7", whole))
        try:
            done = run("up", "--home", broker.home)
        finally:
            meta.write_text(whole)

        assert done.returncode == 1
        assert "the end of" in done.stderr
        assert "Stored node id 7 doesn't match" in done.stderr
        assert done.stderr.endswith("up: kafka ended\n")
        assert not (broker.home / "kafka.pid").exists()

    @pytest.mark.parametrize("name", ["up", "down"])
    def test_help(self, name: str) -> None:
        done = run(name, "--help")

        assert (done.returncode, done.stderr) == (0, "")
        assert "--home DIR" in done.stdout


@pytest.mark.slow
class TestInterrupted:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_up_ends_what_it_has_begun(self, new_broker: Callable[[], Any], number: signal.Signals) -> None:
        broker = new_broker()
        with subprocess.Popen([LOCAL / "up", "--home", broker.home], stderr=subprocess.DEVNULL) as up:
            deadline = time.monotonic() + 60
            while not (broker.home / "kafka.pid").exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            process = broker.process
            up.send_signal(number)

            assert up.wait(30) == 128 + number
        assert not is_running(process)
        assert not (broker.home / "kafka.pid").exists()

    def test_the_next_up_waits_for_what_a_killed_one_has_begun(self, new_broker: Callable[[], Any]) -> None:
        broker = new_broker()
        with subprocess.Popen([LOCAL / "up", "--home", broker.home], stderr=subprocess.DEVNULL) as up:
            deadline = time.monotonic() + 60
            while not (broker.home / "kafka.pid").exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            up.kill()
        process = broker.process

        assert run("up", "--home", broker.home).stdout == f"kafka://{broker.address}\n"
        assert broker.process == process


@pytest.mark.slow
class TestTheFixtures:
    """In a session of pytest of their own."""

    @pytest.fixture
    def session(self, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
        live = tmp_path / "tests" / "live"
        live.mkdir(parents=True)
        (tmp_path / "deploy").symlink_to(ROOT / "deploy")
        for part in Path(__file__).parent.glob("[!t]*.py"):  # conftest.py, and what it is made of
            shutil.copy(part, live)
        (live / "test_it.py").write_text(
            "import time\nfrom pathlib import Path\n\n"
            "def test_it(kafka, shared_broker):\n"
            f"    Path({str(tmp_path / 'process')!r}).write_text(str(shared_broker.process))\n    time.sleep(60)\n"
        )
        (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\nmarkers = live\n")

        def start(**changed: str) -> subprocess.Popen[str]:
            kept = {name: value for name, value in os.environ.items() if name not in ("CI", "EVENTVEIL_KAFKA")}
            return subprocess.Popen(
                [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "tests/live"],
                cwd=tmp_path,
                text=True,
                stdout=subprocess.PIPE,
                env={**kept, "EVENTVEIL_LIVE_HOMES": str(tmp_path / "homes"), **changed},
            )

        return start

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_their_broker_ends_with_the_session(
        self, session: Callable[..., subprocess.Popen[str]], tmp_path: Path, number: signal.Signals
    ) -> None:
        with session() as running:
            deadline = time.monotonic() + 60
            while not (tmp_path / "process").exists() and time.monotonic() < deadline:
                time.sleep(0.1)
            time.sleep(0.2)
            running.send_signal(number)
            running.communicate(timeout=60)
        process = int((tmp_path / "process").read_text())
        deadline = time.monotonic() + 20
        while number == signal.SIGKILL and is_running(process) and time.monotonic() < deadline:
            time.sleep(0.1)

        assert not is_running(process)
        assert number == signal.SIGKILL or list((tmp_path / "homes").iterdir()) == []

    @pytest.mark.parametrize(("ci", "code", "said"), [("false", 0, "SKIPPED [1]"), ("true", 1, "java is not installed")])
    def test_without_java_they_skip_and_fail_in_continuous_integration(
        self, session: Callable[..., subprocess.Popen[str]], tools: Path, ci: str, code: int, said: str
    ) -> None:
        with session(PATH=str(tools), CI=ci) as running:
            shown, _ = running.communicate(timeout=60)

        assert running.returncode == code
        assert said in shown
        assert "java is not installed" in shown


class TestWhatTheTestsStandOn:
    def test_a_topic_has_its_partitions_and_settings(self, kafka: str, topic: str, new_topic: Any) -> None:
        two = new_topic(2, retention_ms="1000")
        topics = new_topic.admin().list_topics(timeout=10).topics

        assert (len(topics[topic].partitions), len(topics[two].partitions)) == (4, 2)
        write(kafka, topic, b"1", b"2")
        assert read(kafka, topic) == [b"1", b"2"]
        new_topic.remove()
        assert {topic, two} & set(new_topic.admin().list_topics(timeout=10).topics) == set()

    def test_old_events_are_kept(self, new_topic: Any) -> None:
        topic = ConfigResource(ConfigResource.Type.TOPIC, new_topic(1))
        admin = new_topic.admin()  # without a name it is gone before it has been answered
        settings = admin.describe_configs([topic])[topic].result(30)

        assert settings["retention.ms"].value == "-1"

    def test_the_registry_is_one_for_the_client_that_we_use(self, registry: str, topic: str) -> None:
        text = (EXAMPLE / "shipping_order.avsc").read_text("utf-8")
        order = json.loads((EXAMPLE / "orders.jsonl").read_text("utf-8").splitlines()[0])
        client, other = SchemaRegistryClient({"url": registry}), SchemaRegistryClient({"url": registry})
        context = SerializationContext(topic, MessageField.VALUE)

        number = client.register_schema(f"{topic}-value", Schema(text, "AVRO"))
        message = AvroSerializer(client, text, conf={"auto.register.schemas": False})(order, context)

        assert json.loads(str(other.get_schema(number).schema_str)) == json.loads(text)
        assert message is not None
        assert message[:5] == b"\0" + number.to_bytes(4, "big")
        assert AvroDeserializer(other)(message, context) == order

    def test_orders_are_produced_with_the_times_of_now(self, kafka: str, new_topic: Any) -> None:
        topic = new_topic(1)
        command = [sys.executable, EXAMPLE / "produce.py", f"kafka://{kafka}/{topic}", "--rate", "200", "--count", "100", "--late", "1"]
        begun = time.time()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        events = [json.loads(value) for value in read(kafka, topic)]

        assert (done.returncode, done.stderr) == (0, f"100 orders written to {topic}\n")
        assert len({event["id"] for event in events}) == 100
        assert 0.4 < time.time() - begun < 30


class TestTheComposeFile:
    @pytest.fixture
    def compose(self) -> dict[str, Any]:
        document: dict[str, Any] = YAML(typ="safe").load((LOCAL / "compose.yaml").read_text("utf-8"))
        return document

    def test_it_runs_the_versions_that_up_runs(self, compose: dict[str, Any]) -> None:
        images = {service["image"] for service in compose["services"].values()}
        versions = {
            name: re.findall(r"<version>(.+)</version>", (LOCAL / name / "pom.xml").read_text())[1] for name in ("kafka", "registry")
        }

        assert images == {f"apache/kafka:{versions['kafka']}", f"apicurio/apicurio-registry-mem:{versions['registry']}"}

    def test_nobody_else_can_connect(self, compose: dict[str, Any]) -> None:
        ports = [port for service in compose["services"].values() for port in service["ports"]]

        assert ports
        assert all(port.startswith("127.0.0.1:") for port in ports)

    def test_docker_understands_it(self) -> None:
        if shutil.which("docker") is None or subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode:
            pytest.skip("no docker compose")
        command = ["docker", "compose", "-f", LOCAL / "compose.yaml", "config", "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)

        assert done.returncode == 0, done.stderr
