"""Flink as deploy/local/up starts it, our pool of Beam's workers, our job server and our client of Flink's REST API: together, for real."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from eventveil.pipeline.runners._flink_rest import ENDED, FlinkRest
from eventveil.pipeline.runners._job_server import job_server
from eventveil.schemas.errors import StorageError, Unreachable

HERE = Path(__file__).parent
pytestmark = pytest.mark.slow


def until(condition: Callable[[], Any], seconds: float = 90) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.25)
    raise TimeoutError


def loopback_only(process: int) -> bool:
    """Whether all that the process listens on is on this machine alone, and it listens at all."""
    sockets = set()
    for link in Path(f"/proc/{process}/fd").iterdir():
        try:
            sockets.add(os.readlink(link).removeprefix("socket:[").removesuffix("]"))
        except FileNotFoundError:
            continue
    found = []
    for table in ("tcp", "tcp6"):
        rows = [line.split() for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]]
        found += [row[1].rpartition(":")[0] for row in rows if row[3] == "0A" and row[9] in sockets]
    known = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    return bool(found) and set(found) <= known


@pytest.fixture(scope="module")
def child() -> Iterator[Any]:
    """flink_child, under the name by which the workers import it."""
    sys.path.insert(0, str(HERE))
    try:
        import flink_child

        yield flink_child
    finally:
        sys.path.remove(str(HERE))


@pytest.fixture(scope="module")
def endpoint(flink: Any) -> Iterator[str]:
    with job_server(flink.address, str(flink.jars)) as address:
        yield address


@pytest.fixture
def rest(flink: Any) -> Iterator[FlinkRest]:
    found = FlinkRest(flink.address)
    yield found
    for job in found.jobs():
        if job.state not in ENDED:
            found.cancel(job.id)


@pytest.fixture
def submit(flink: Any, rest: FlinkRest, endpoint: str) -> Callable[..., str]:
    """`submit(name, build, *flags)`: the job's id, once Flink has it."""

    def go(name: str, build: Callable[[Any], Any], *flags: str) -> str:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions

        logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
        known = {job.id for job in rest.jobs()}
        flags = (
            f"--job_endpoint={endpoint}",
            f"--job_name={name}",
            "--environment_type=EXTERNAL",
            f"--environment_config={flink.pool}",
            "--parallelism=2",
            "--sdk_worker_parallelism=1",
            "--max_bundle_size=1",
            "--max_bundle_time_mills=50",
            *flags,
        )
        pipeline = beam.Pipeline(runner="PortableRunner", options=PipelineOptions(list(flags)))
        build(pipeline)
        pipeline.run()
        return str(until(lambda: next((job.id for job in rest.jobs() if job.id not in known), None), 150))

    return go


def numbers(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


class TestTheCluster:
    def test_it_has_two_task_managers_and_nobody_else_can_connect(self, flink: Any) -> None:
        for name in ("flink", "taskmanager-1", "taskmanager-2", "pool"):
            assert loopback_only(flink.process(name)), name

    def test_what_a_job_left_is_readable_by_us_alone(self, flink: Any) -> None:
        assert flink.home.stat().st_mode & 0o077 == 0
        assert (flink.home / "flink" / "checkpoints").stat().st_mode & 0o077 == 0

    def test_up_again_changes_nothing(self, flink: Any, flink_server: Any) -> None:
        before = flink.process("flink"), flink.process("taskmanager-2"), flink.process("pool")
        flink_server.start()

        assert before == (flink.process("flink"), flink.process("taskmanager-2"), flink.process("pool"))
        assert flink.address == flink_server.said("flink.address")

    def test_up_starts_a_task_manager_once_more_that_ends_before_it_has_registered(self, flink: Any, flink_server: Any) -> None:
        """For some seconds the master counts the first one, that was killed."""
        flink_server.kill_part("taskmanager-1")
        first = flink.process("taskmanager-1")
        with ThreadPoolExecutor() as threads:
            up = threads.submit(flink_server.start)
            until(lambda: flink.process("taskmanager-1") != first)
            second = flink.process("taskmanager-1")
            flink_server.kill_part("taskmanager-1")
            up.result(90)

        assert flink.process("taskmanager-1") not in (first, second)
        assert "Successful registration at resource manager" in (flink.home / "taskmanager-1.log").read_text()


class TestAJob:
    def test_a_bounded_one_runs_to_its_end_on_both_task_managers(
        self, rest: FlinkRest, submit: Callable[..., str], child: Any, tmp_path: Path
    ) -> None:
        import apache_beam as beam

        out = tmp_path / "numbers"

        def build(pipeline: Any) -> None:
            numbered = pipeline | "Begin" >> beam.Impulse() | "Number" >> beam.FlatMap(lambda _: range(40)).with_output_types(int)
            numbered | "Spread" >> beam.Reshuffle() | "Note" >> beam.ParDo(child.Note(str(out)))

        job = submit("bounded", build)
        until(lambda: rest.state(job) in ENDED)

        assert rest.state(job) == "FINISHED"
        assert sorted(numbers(out)) == list(range(40))
        assert rest.metrics(job) == {"orders|in": 40}
        assert (rest.restarts(job), rest.failure(job), rest.last_checkpoint(job)) == (0, None, None)

    @pytest.mark.thorough
    def test_a_stream_is_stopped_with_a_savepoint_and_goes_on_from_it(
        self, flink: Any, rest: FlinkRest, submit: Callable[..., str], child: Any, tmp_path: Path
    ) -> None:
        import apache_beam as beam

        out = tmp_path / "numbers"
        flags = ("--streaming", "--checkpointing_interval=500", "--externalized_checkpoints_enabled")

        def build(pipeline: Any) -> None:
            pipeline | "Begin" >> beam.Impulse() | "Tick" >> beam.ParDo(child.Tick()) | "Note" >> beam.ParDo(child.Note(str(out)))

        job = submit("stream", build, *flags)
        until(lambda: len(numbers(out)) > 25 and rest.last_checkpoint(job))
        counted = until(lambda: rest.metrics(job).get("orders|in", 0) >= 20 and rest.metrics(job))
        watermark = until(lambda: rest.watermark(job))

        assert rest.state(job) == "RUNNING"
        assert counted.keys() == {"orders|in"}
        assert child.BEGIN_S * 1_000 < watermark < (child.BEGIN_S + 1_000) * 1_000

        savepoint = rest.stop_with_savepoint(job)
        stopped_at = len(numbers(out))
        assert rest.state(job) == "FINISHED"
        assert Path(savepoint.removeprefix("file:")).parent == flink.home / "flink" / "savepoints"
        until(lambda: not workers(flink))

        again = submit("stream", build, *flags, f"--savepoint_path={savepoint}")
        until(lambda: len(numbers(out)) > stopped_at + 15)
        assert numbers(out) == list(range(len(numbers(out))))
        rest.cancel(again)
        assert rest.state(again) == "CANCELED"

    @pytest.mark.parametrize("ours", [False, pytest.param(True, marks=pytest.mark.thorough)], ids=["a library's error", "an error of ours"])
    def test_one_that_fails_restarts_and_says_why_without_a_value(
        self, flink: Any, rest: FlinkRest, submit: Callable[..., str], child: Any, tmp_path: Path, ours: bool
    ) -> None:
        import apache_beam as beam

        def build(pipeline: Any) -> None:
            ticks = pipeline | "Begin" >> beam.Impulse() | "Tick" >> beam.ParDo(child.Tick())
            ticks | "Fail" >> beam.ParDo(child.Fail(ours)).with_output_types(int)

        retries = ("--number_of_execution_retries=3", "--execution_retry_delay=500")
        job = submit("failing", build, "--streaming", "--checkpointing_interval=500", *retries)
        until(lambda: rest.restarts(job) >= 2)
        until(lambda: rest.state(job) in ENDED)
        failure = rest.failure(job)

        assert rest.state(job) == "FAILED"
        assert failure is not None
        if ours:
            assert failure.codes == ("EV404",)
            assert str(failure) == "out: EV404 the disk is full"
            assert "eventveil.schemas.errors.StorageError" in failure.classes
        else:
            assert (failure.codes, failure.problems) == ((), ())
            assert str(failure) == "builtins.ValueError"
        assert child.CANARY not in flink.log()

    @pytest.mark.thorough
    def test_a_killed_task_manager_takes_its_worker_along_and_comes_back(
        self, flink: Any, flink_server: Any, rest: FlinkRest, submit: Callable[..., str], child: Any, tmp_path: Path
    ) -> None:
        import apache_beam as beam

        out = tmp_path / "numbers"

        def build(pipeline: Any) -> None:
            pipeline | "Begin" >> beam.Impulse() | "Tick" >> beam.ParDo(child.Tick()) | "Note" >> beam.ParDo(child.Note(str(out)))

        job = submit("killed", build, "--streaming", "--checkpointing_interval=500", "--number_of_execution_retries=9")
        until(lambda: len(numbers(out)) > 15 and len(workers(flink)) == 2)
        before = set(workers(flink))
        flink_server.kill_part("taskmanager-1")
        until(lambda: len(before & set(workers(flink))) < 2, 20)
        flink_server.start()
        until(lambda: rest.restarts(job) >= 1)  # its death is noticed after some seconds
        reached = max(numbers(out))
        until(lambda: max(numbers(out)) > reached + 25)

        assert set(numbers(out)) == set(range(max(numbers(out)) + 1))
        rest.cancel(job)
        until(lambda: not workers(flink))


def workers(flink: Any) -> list[int]:
    """Processes that the pool has started and that run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, *_ = path.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z" and int(parent) == flink.process("pool"):
            found.append(int(path.parent.name))
    return found


def runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def server_at(address: str) -> int:
    """The process of the job server that was told this port."""
    port = f"--job-port\0{address.rpartition(':')[2]}\0".encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if port in command and command.split(b"\0")[0].endswith(b"java"):
            return int(path.parent.name)
    raise LookupError(address)


class TestTheJobServer:
    def test_it_ends_with_its_block(self, flink: Any) -> None:
        with job_server(flink.address, str(flink.jars)) as address:
            server = server_at(address)
            assert runs(server)
            with job_server(flink.address, address) as same:
                assert same == address
            assert runs(server)
        until(lambda: not runs(server), 10)

    def test_it_ends_when_we_are_killed(self, flink: Any) -> None:
        text = "import sys; from eventveil.pipeline.runners._job_server import job_server\n"
        text += "with job_server(sys.argv[1], sys.argv[2]) as address: print(address, flush=True); sys.stdin.read()"
        command = [sys.executable, "-c", text, flink.address, str(flink.jars)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as ours:
            assert ours.stdout is not None
            server = server_at(ours.stdout.readline().strip())
            ours.kill()
        until(lambda: not runs(server), 15)

    @pytest.mark.xfail(reason="Beam's servers bind every interface, and no option changes that", strict=True)
    def test_nobody_else_can_connect(self, flink: Any) -> None:
        with job_server(flink.address, str(flink.jars)) as address:
            assert loopback_only(server_at(address))

    def test_without_java(self, flink: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("JAVA_HOME", raising=False)
        with pytest.raises(StorageError, match="EV419 there is no java on the PATH"), job_server(flink.address, str(flink.jars)):
            pass

    @pytest.mark.parametrize(
        ("named", "kind", "said"),
        [
            ("127.0.0.1:1", Unreachable, "EV418 the job server does not answer"),
            ("nowhere/flink.jar", StorageError, "EV419 nowhere/flink.jar is no jar, no folder"),
            (str(HERE), StorageError, "holds no jars"),
        ],
        ids=["nobody there", "no such file", "a folder of something else"],
    )
    def test_what_was_named_wrong(self, named: str, kind: type[StorageError], said: str) -> None:
        with pytest.raises(kind, match=said), job_server("127.0.0.1:1", named):
            pass

    def test_the_end_of_its_log_when_it_does_not_start(self, tmp_path: Path) -> None:
        (tmp_path / "empty.jar").write_bytes(b"")
        with pytest.raises(StorageError, match="EV419 Beam's job server ended") as caught, job_server("127.0.0.1:1", str(tmp_path)):
            pass
        assert "FlinkJobServerDriver" in str(caught.value)


class TestPubsub:
    def test_what_is_published_can_be_pulled(self, pubsub: str, monkeypatch: pytest.MonkeyPatch) -> None:
        client = pytest.importorskip("google.cloud.pubsub_v1")
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", pubsub)
        publisher, subscriber = client.PublisherClient(), client.SubscriberClient()
        topic, subscription = "projects/test-up/topics/orders", "projects/test-up/subscriptions/veil"
        publisher.create_topic(name=topic)
        with subscriber:
            subscriber.create_subscription(name=subscription, topic=topic)
            publisher.publish(topic, b"order").result(30)
            pulled = subscriber.pull(subscription=subscription, max_messages=1, timeout=30)

        assert [one.message.data for one in pulled.received_messages] == [b"order"]
