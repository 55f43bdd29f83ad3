"""The pool of Beam's workers, in a process of its own; the test is the engine that asks it for workers and talks to them."""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from apache_beam.portability.api import beam_fn_api_pb2 as api
from apache_beam.portability.api import beam_fn_api_pb2_grpc as api_grpc

from eventveil.pipeline.runners.worker_pool import _told, run_pool
from eventveil.schemas.errors import StorageError

CANARY = "kanarienvogel@example.org"
POOL = "import sys; from eventveil.pipeline.cli.worker_pool import start; sys.exit(start(sys.argv[1]))"


class Engine(api_grpc.BeamFnControlServicer):
    """The control service that a worker connects to."""

    def __init__(self) -> None:
        self.connected: queue.Queue[str] = queue.Queue()
        self.ask: queue.Queue[Any] = queue.Queue()
        self.said: queue.Queue[Any] = queue.Queue()
        self._server = grpc.server(ThreadPoolExecutor(8))
        api_grpc.add_BeamFnControlServicer_to_server(self, self._server)
        self.url = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def Control(self, responses: Iterator[Any], context: Any) -> Iterator[Any]:  # noqa: N802
        self.connected.put(dict(context.invocation_metadata())["worker_id"])
        threading.Thread(target=self._listen, args=(responses,), daemon=True).start()
        while (request := self.ask.get()) is not None:
            yield request

    def _listen(self, responses: Iterator[Any]) -> None:
        try:
            for response in responses:
                self.said.put(response)
        except grpc.RpcError:
            pass

    def vanish(self) -> None:
        """Ends without a word to its workers."""
        self._server.stop(0)
        self.ask.put(None)


class Pool:
    """The pool, as the command runs it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", POOL, "127.0.0.1:0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.address = line.split("answers at ")[1].split(": ")[0]
        self._channels: list[grpc.Channel] = []

    def client(self) -> Any:
        """A connection of its own, as each TaskManager has."""
        channel = grpc.insecure_channel(self.address, options=[("grpc.use_local_subchannel_pool", 1)])
        self._channels.append(channel)
        return api_grpc.BeamFnExternalWorkerPoolStub(channel)

    def workers(self) -> list[int]:
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, parent, *_ = path.read_text().rsplit(")", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if state != "Z" and int(parent) == self.process.pid:
                found.append(int(path.parent.name))
        return sorted(found)

    def disconnect(self) -> None:
        for channel in self._channels:
            channel.close()

    def close(self) -> str:
        self.disconnect()
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.communicate(timeout=20)[1]


def start(client: Any, engine: Engine, name: str = "1-1") -> None:
    answer = client.StartWorker(api.StartWorkerRequest(worker_id=name, control_endpoint={"url": engine.url}), timeout=60)
    assert answer.error == ""
    assert engine.connected.get(timeout=10) == name


def runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def soon(condition: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine()
    yield made
    made.vanish()


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool()
    yield made
    made.close()


pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes under /proc")


class TestAWorkerEnds:
    def test_when_the_engine_says_so(self, pool: Pool, engine: Engine) -> None:
        client = pool.client()
        start(client, engine)
        (worker,) = pool.workers()
        client.StopWorker(api.StopWorkerRequest(worker_id="1-1"), timeout=20)

        assert not runs(worker)

    def test_by_force_when_it_does_not_end_in_three_seconds(self, pool: Pool, engine: Engine) -> None:
        client = pool.client()
        start(client, engine)
        (worker,) = pool.workers()
        os.kill(worker, signal.SIGSTOP)
        began = time.monotonic()
        client.StopWorker(api.StopWorkerRequest(worker_id="1-1"), timeout=20)

        assert not runs(worker)
        assert 2.5 < time.monotonic() - began < 10

    def test_when_its_engine_is_gone(self, pool: Pool, engine: Engine) -> None:
        start(pool.client(), engine)
        (worker,) = pool.workers()
        engine.vanish()

        assert soon(lambda: not runs(worker))
        assert soon(lambda: not Path(f"/proc/{worker}").exists())  # reaped
        assert pool.process.poll() is None

    @pytest.mark.parametrize("how", ["cancelled", "connection lost"])
    def test_when_whoever_asked_for_it_gives_up_before_it_is_there(self, pool: Pool, how: str) -> None:
        # Takes connections, and never answers on them.
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"127.0.0.1:{silent.getsockname()[1]}"
            asked = pool.client().StartWorker.future(api.StartWorkerRequest(worker_id="1-1", control_endpoint={"url": url}))
            assert soon(lambda: len(pool.workers()) == 1)
            (worker,) = pool.workers()
            silent.settimeout(60)
            with silent.accept()[0]:
                if how == "cancelled":
                    asked.cancel()
                else:
                    pool.disconnect()

                assert soon(lambda: not runs(worker))
        assert soon(lambda: not Path(f"/proc/{worker}").exists())  # reaped
        assert pool.process.poll() is None

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
    def test_when_the_pool_ends_however_it_ends(self, pool: Pool, engine: Engine, number: signal.Signals) -> None:
        start(pool.client(), engine)
        (worker,) = pool.workers()
        pool.process.send_signal(number)

        assert pool.process.wait(10) == (-number if number == signal.SIGKILL else 0)
        assert soon(lambda: not runs(worker))


class TestAWorkerThatCannotStart:
    def test_is_told_to_whoever_asked_for_it(self, pool: Pool) -> None:
        """Beam's runner would wait for it for ever."""
        asked = pool.client().StartWorker.future(api.StartWorkerRequest(worker_id="1-1", control_endpoint={"url": "127.0.0.1:1"}))
        assert soon(lambda: len(pool.workers()) == 1)
        os.kill(*pool.workers(), signal.SIGKILL)

        assert asked.result(timeout=20).error == "the worker ended with -9 before it reached the engine"
        assert pool.workers() == []


class TestTwoTaskManagers:
    def test_each_calls_its_first_worker_the_same(self, pool: Pool, engine: Engine) -> None:
        one, other, second = pool.client(), pool.client(), Engine()
        start(one, engine)
        (first,) = pool.workers()
        start(other, second)
        assert len(pool.workers()) == 2

        other.StopWorker(api.StopWorkerRequest(worker_id="1-1"), timeout=20)
        assert pool.workers() == [first]
        second.vanish()


class TestWhatAWorkerSays:
    def test_an_error_is_told_by_its_class_to_the_engine_and_not_at_all_to_the_log(self, pool: Pool, engine: Engine) -> None:
        start(pool.client(), engine)
        # Its place holds the canary, and what Beam raises over it quotes it.
        descriptor = api.ProcessBundleDescriptor(id="1")
        descriptor.transforms[CANARY].spec.urn = CANARY
        engine.ask.put(api.InstructionRequest(instruction_id="r", register={"process_bundle_descriptor": [descriptor]}))
        engine.ask.put(api.InstructionRequest(instruction_id="b", process_bundle={"process_bundle_descriptor_id": "1"}))
        said = {response.instruction_id: response for response in (engine.said.get(timeout=60), engine.said.get(timeout=60))}
        log = pool.close()

        assert said["b"].error.endswith("text withheld")
        assert "sdk_worker.py:" in said["b"].error
        assert CANARY not in str(said)
        assert "process_bundle" not in log and "Traceback" not in log and CANARY not in log

    def test_our_own_errors_keep_their_text_and_others_the_step_that_they_happened_in(self) -> None:
        def raised() -> BaseException:
            try:
                try:
                    raise KeyError(CANARY)
                except KeyError as first:
                    ours = StorageError("out: EV404 the disk is full [while running 'Write']")
                    ours.__cause__ = first
                    raise ValueError(f"{CANARY} [while running 'Veil/Apply']") from ours
            except ValueError as error:
                return error

        told = "".join(_told(raised()))

        assert CANARY not in told
        assert [line for line in told.splitlines() if not line.startswith("  ")] == [
            "builtins.ValueError: text withheld [while running 'Veil/Apply']",
            "eventveil.schemas.errors.StorageError: out: EV404 the disk is full [while running 'Write']",
            "builtins.KeyError: text withheld",
        ]


class TestWhereItListens:
    def test_on_loopback_and_on_no_port_of_another(self, pool: Pool) -> None:
        port = int(pool.address.rpartition(":")[2])
        rows = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]

        found = {row[1] for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port}

        assert found
        assert found <= {f"0100007F:{port:04X}", f"0000000000000000FFFF00000100007F:{port:04X}"}
        with pytest.raises(StorageError, match="EV419 the worker pool cannot listen on"):
            run_pool(pool.address)

    @pytest.mark.parametrize("address", ["0.0.0.0:50000", "[::]:50000", ":50000"])
    def test_never_everywhere_unless_told_twice(self, address: str) -> None:
        with pytest.raises(StorageError, match=r"EV419 .* stands for every interface"):
            run_pool(address)

    @pytest.mark.parametrize("address", ["50000", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000", "no.such.host.invalid:1"])
    def test_what_is_no_address(self, address: str) -> None:
        with pytest.raises(StorageError, match="EV419"):
            run_pool(address)

    def test_elsewhere_it_says_what_that_means(self) -> None:
        warned: list[str] = []
        told: list[str] = []
        ended = threading.Event()
        ended.set()
        run_pool("0.0.0.0:0", insecure=True, tell=told.append, warn=warned.append, ended=ended)

        assert [text.split(":")[0] for text in told] == ["0.0.0.0"]
        assert "can run code on this machine" in warned[0]
        with socket.socket() as free:
            free.bind(("0.0.0.0", int(told[0].rpartition(":")[2])))
