"""A real Kafka, schema registry, Flink and Pub/Sub for the tests in here: started by deploy/local/up, once a session, and ended with it.

`kafka`, `registry`, `flink` and `pubsub` are shared, and started by the first test that takes them; what may be stopped or killed
is a `broker`. EVENTVEIL_KAFKA=host:port uses a running one for `kafka`. Without Java or Maven the tests are skipped, and say so; in
continuous integration (CI=true) they fail instead.
"""

from __future__ import annotations

import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

HERE = Path(__file__).parent
LiveDesk = runpy.run_path(str(HERE / "live_desk.py"))["LiveDesk"]
LOCAL = HERE.parents[1] / "deploy" / "local"
CANNOT = 69  # of `up`: Java, Maven or a download is missing


def pytest_configure(config: pytest.Config) -> None:
    # A runner that is told to end would leave its brokers behind.
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("live")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `seed` runs once for each of EVENTVEIL_SEEDS seeds (1 unless told)."""
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", range(1, 1 + int(os.environ.get("EVENTVEIL_SEEDS", "1"))))


class Broker:
    """A Kafka of its own in a home folder, on one port for as long as it lives; it can be stopped, killed and started again."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment: Mapping[str, str] = os.environ

    @property
    def address(self) -> str:
        """host:port, also while it is down."""
        lines = (self.home / "kafka.properties").read_text().splitlines()
        return next(line.removeprefix("advertised.listeners=PLAINTEXT://") for line in lines if line.startswith("advertised."))

    @property
    def process(self) -> int:
        return int((self.home / "kafka.pid").read_text().split()[0])

    def start(self, *options: str) -> None:
        """Returns when it answers; does nothing when it runs."""
        # Should we be killed, nothing of ours goes on.
        command = [LOCAL / "up", "--home", self.home, "--while", str(os.getpid()), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=self.environment)
        if done.returncode == CANNOT and os.environ.get("CI") != "true":
            pytest.skip(f"it cannot run here: {done.stderr.strip()}")
        if done.returncode:
            pytest.fail(f"deploy/local/up failed ({done.returncode}):\n{done.stderr}", pytrace=False)

    def stop(self) -> None:
        """Ends it as an operator would: what it has in memory is written first."""
        subprocess.run([LOCAL / "down", "--home", self.home], check=True)

    def kill(self) -> None:
        """kill -9."""
        os.kill(self.process, signal.SIGKILL)
        self.stop()  # waits until it is gone

    def freeze(self) -> None:
        """It keeps its connections, and answers nothing."""
        os.kill(self.process, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.process, signal.SIGCONT)

    def remove(self) -> None:
        subprocess.run([LOCAL / "down", "--home", self.home, "--purge"], check=True)
        shutil.rmtree(self.home, ignore_errors=True)


@pytest.fixture(scope="session")
def new_broker() -> Iterator[Callable[[], Broker]]:
    """Makes brokers that are not yet started; all are ended and removed with the session, whatever happens."""
    if homes := os.environ.get("EVENTVEIL_LIVE_HOMES"):
        Path(homes).mkdir(parents=True, exist_ok=True)
    made: list[Broker] = []

    def make() -> Broker:
        made.append(Broker(Path(tempfile.mkdtemp(prefix="eventveil-kafka-", dir=homes))))
        return made[-1]

    try:
        yield make
    finally:
        for broker in made:
            broker.remove()


@pytest.fixture(scope="session")
def shared_broker(new_broker: Callable[[], Broker]) -> Broker:
    broker = new_broker()
    broker.start()
    return broker


@pytest.fixture(scope="session")
def kafka(request: pytest.FixtureRequest) -> str:
    """host:port of the broker that all tests share: nobody stops it. Its URI is f"kafka://{kafka}/{topic}"."""
    if named := os.environ.get("EVENTVEIL_KAFKA"):
        return named.removeprefix("kafka://")
    address: str = request.getfixturevalue("shared_broker").address
    return address


@pytest.fixture(scope="session")
def registry(shared_broker: Broker) -> str:
    """URL of a schema registry that speaks Confluent's REST API; subjects are shared: name them after your `topic`."""
    shared_broker.start("--with", "registry")
    return (shared_broker.home / "registry.address").read_text().strip()


@pytest.fixture(scope="module")
def module_broker(new_broker: Callable[[], Broker]) -> Iterator[Broker]:
    broker = new_broker()
    yield broker
    broker.remove()


@pytest.fixture
def broker(module_broker: Broker) -> Broker:
    """A running broker for this test to stop, kill and freeze; tests of one module share its data, so take a `new_topic`."""
    module_broker.start()
    return module_broker


class Topics:
    """Makes topics with names of their own at one broker."""

    def __init__(self, address: str, test: str) -> None:
        self.address = address
        self.prefix = "".join(letter if letter.isalnum() else "-" for letter in test)[:60]
        self.made: list[str] = []

    def admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.address})

    def __call__(self, partitions: int = 4, **config: str) -> str:
        """`new_topic(2, cleanup_policy="compact")`: its name, once every partition has a leader."""
        name = f"{self.prefix}-{uuid.uuid4().hex[:8]}"
        admin = self.admin()
        settings = {key.replace("_", "."): value for key, value in config.items()}
        for made in admin.create_topics([NewTopic(name, partitions, 1, config=settings)]).values():
            made.result(30)
        self.made.append(name)
        # A client that asks too soon is told that there is no such topic.
        for _ in range(200):
            known = admin.list_topics(timeout=10).topics.get(name)
            if known and len(known.partitions) == partitions and all(one.leader >= 0 for one in known.partitions.values()):
                return name
            time.sleep(0.05)
        raise TimeoutError(name)

    def remove(self) -> None:
        if self.made:
            admin = self.admin()  # without a name it is gone before it has been answered
            for removed in admin.delete_topics(self.made, operation_timeout=10).values():
                removed.exception(30)  # a test may have deleted it itself
            self.made.clear()


@pytest.fixture
def new_topic(kafka: str, request: pytest.FixtureRequest) -> Iterator[Topics]:
    """Makes topics at the shared broker: `new_topic(partitions)` -> name. They are deleted after the test."""
    topics = Topics(kafka, request.node.name)
    yield topics
    topics.remove()


@pytest.fixture
def topic(new_topic: Topics) -> str:
    """A new topic of 4 partitions at the shared broker."""
    return new_topic()


@pytest.fixture
def new_topic_at(request: pytest.FixtureRequest) -> Callable[[Broker], Topics]:
    """`new_topic_at(broker)(partitions)` -> name, at a broker of the test's own; they go with the broker."""
    return lambda broker: Topics(broker.address, request.node.name)


@dataclass(frozen=True)
class Flink:
    """A cluster of two TaskManagers with one slot each, and the pool of its Python workers.

    Attributes:
        address: host:port of its REST API. pool: host:port of the worker pool. jars: folder of Flink's jars, and the job server's.
        home: where its logs, checkpoints and process ids lie.
    """

    address: str
    pool: str
    jars: Path
    home: Path

    def process(self, name: str) -> int:
        """Of ``flink``, ``taskmanager-1``, ``taskmanager-2`` or ``pool``."""
        return int((self.home / f"{name}.pid").read_text().split()[0])

    def log(self) -> str:
        """What all of it has written."""
        return "".join(path.read_text("utf-8", "replace") for path in sorted(self.home.glob("*.log*")))


class Server(Broker):
    """What `up` starts without Kafka, in a home of its own."""

    def __init__(self, home: Path, *options: str, **changed: str) -> None:
        super().__init__(home)
        self.options = options
        self.environment = {**os.environ, **changed}

    def start(self, *options: str) -> None:
        super().start("--without", "kafka", *self.options, *options)

    def kill_part(self, name: str) -> None:
        """kill -9; returns when it is gone: what is just dying, `up` takes for running."""
        os.kill(int((self.home / f"{name}.pid").read_text().split()[0]), signal.SIGKILL)
        script = 'source "$0/processes.sh"; cd "$1"; while running "$2" >/dev/null; do sleep 0.05; done'
        subprocess.run(["bash", "-c", script, LOCAL, self.home, name], check=True, timeout=60)

    def said(self, name: str) -> str:
        return (self.home / name).read_text().strip()


@contextmanager
def new_server(*options: str, **changed: str) -> Iterator[Server]:
    if homes := os.environ.get("EVENTVEIL_LIVE_HOMES"):
        Path(homes).mkdir(parents=True, exist_ok=True)
    server = Server(Path(tempfile.mkdtemp(prefix="eventveil-server-", dir=homes)), *options, **changed)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def flink_server(pubsub: str) -> Iterator[Server]:
    """Its workers run on the Python of the tests, import what lies in this folder, and know where Pub/Sub is."""
    path = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    with new_server("--with", "flink,java", EVENTVEIL_PYTHON=sys.executable, PYTHONPATH=path, PUBSUB_EMULATOR_HOST=pubsub) as server:
        yield server


@pytest.fixture(scope="session")
def flink(flink_server: Server) -> Flink:
    """A Flink that all tests share: cancel your jobs, and leave the cluster up. A job takes half a minute to submit."""
    said = flink_server.said
    return Flink(said("flink.address"), said("pool.address"), Path(said("flink.jars")), flink_server.home)


@pytest.fixture(scope="session")
def pubsub() -> Iterator[str]:
    """host:port of a Pub/Sub in memory, the value of PUBSUB_EMULATOR_HOST; shared: take a project or topic of your own."""
    with new_server("--with", "pubsub") as server:
        yield server.said("pubsub.address")


@pytest.fixture
def eventveil_command() -> list[str]:
    """The command line in a process of its own, of the code under test."""
    return [sys.executable, "-c", "from eventveil.pipeline.cli.main import main; main()"]


@pytest.fixture
def desk(tmp_path: Path, kafka: str) -> Iterator[Any]:
    """A `LiveDesk` at the shared broker: jobs in processes of their own, ended with the test."""
    made = LiveDesk(tmp_path, kafka)
    yield made
    made.close()
