"""The client of Flink's REST API, where Flink does not answer as it should; on a real Flink it is tests/live/test_flink_cluster.py."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from eventveil.pipeline.runners._flink_rest import FlinkRest
from eventveil.schemas.errors import StorageError, Unreachable

CANARY = "kanarienvogel@example.org"
JOB = "a" * 32
TRACE = f"""java.lang.RuntimeException: Error received from SDK harness for instruction 4: Traceback (most recent call last):
  File "apache_beam/runners/common.py", line 1512, in process
    raise ValueError("{CANARY}")
ValueError: {CANARY} [while running 'Veil']
java.lang.NotMineException: {CANARY}
\tat org.apache.beam.Some.method(Some.java:1)
Caused by: org.apache.flink.util.SerializedThrowable: {CANARY}
eventveil.schemas.errors.StorageError: out: EV404 the disk is full [while running 'Write']
  {CANARY}
eventveil.schemas.errors.StorageError: {CANARY}
builtins.KeyError: {CANARY}
EV404 {CANARY}
"""


@pytest.fixture
def serve() -> Iterator[Callable[[Any], FlinkRest]]:
    """`serve(answer)`: a client of a server that answers by `answer(method, path, body)` -> (status, bytes), or None to hang up."""
    servers: list[ThreadingHTTPServer] = []

    def begin(answer: Any) -> FlinkRest:
        class Handler(BaseHTTPRequestHandler):
            def reply(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                said = answer(self.command, self.path, body)
                if said is None:
                    self.close_connection = True
                    return
                self.send_response(said[0])
                self.end_headers()
                self.wfile.write(said[1])

            do_GET = do_POST = do_PATCH = reply  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.05,), daemon=True).start()
        return FlinkRest(f"127.0.0.1:{servers[-1].server_port}", timeout=1.0)

    yield begin
    for server in servers:
        server.shutdown()
        server.server_close()


def always(status: int, said: Any) -> Callable[..., tuple[int, bytes]]:
    return lambda *_: (status, said if isinstance(said, bytes) else json.dumps(said).encode())


class TestWhoDoesNotAnswer:
    def test_nobody(self) -> None:
        with pytest.raises(Unreachable, match=r"http://127.0.0.1:1: EV418 Flink does not answer \(ConnectionRefusedError\)"):
            FlinkRest("127.0.0.1:1").jobs()

    def test_somebody_who_hangs_up(self, serve: Any) -> None:
        with pytest.raises(Unreachable, match="EV418"):
            serve(lambda *_: None).jobs()

    def test_somebody_who_takes_too_long(self, serve: Any) -> None:
        silent = threading.Event()
        try:
            with pytest.raises(Unreachable, match=r"EV418 Flink does not answer \(TimeoutError\)"):
                serve(lambda *_: silent.wait(5) and None).jobs()
        finally:
            silent.set()

    def test_a_cluster_without_a_master(self, serve: Any) -> None:
        with pytest.raises(Unreachable, match="EV418 Flink has no master just now"):
            serve(always(503, {"errors": ["Service temporarily unavailable due to an ongoing leader election."]})).jobs()

    def test_a_server_of_something_else(self, serve: Any) -> None:
        with pytest.raises(StorageError, match="EV419 who answers is no Flink") as caught:
            serve(always(200, b"<html>" + CANARY.encode())).jobs()
        assert CANARY not in str(caught.value)

    def test_a_proxy_for_the_internet_is_not_asked(self, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")

        assert serve(always(200, {"jobs": []})).jobs() == []


class TestWhatIsRefused:
    def test_it_is_told_by_its_class(self, serve: Any) -> None:
        refusal = {
            "errors": ["Internal server error.", f"<Exception on server side:\norg.apache.flink.util.FlinkException: {CANARY}\n\tat x"]
        }
        with pytest.raises(
            StorageError, match=r"EV419 Flink refuses what it is asked \(status 400, org.apache.flink.util.FlinkException\)"
        ) as caught:
            serve(always(400, refusal)).jobs()
        assert not isinstance(caught.value, Unreachable)
        assert CANARY not in str(caught.value)

    def test_a_savepoint_that_fails(self, serve: Any) -> None:
        def answer(method: str, path: str, body: bytes) -> tuple[int, bytes]:
            if method == "POST":
                assert (path, json.loads(body)) == (f"/jobs/{JOB}/stop", {"drain": True, "targetDirectory": "file:///sp"})
                return 202, b'{"request-id": "7"}'
            assert path == f"/jobs/{JOB}/savepoints/7"
            cause = {
                "class": "x",
                "stack-trace": f"java.util.concurrent.CompletionException: {CANARY}\nCaused by: java.io.IOException: {CANARY}",
            }
            return 200, json.dumps({"status": {"id": "COMPLETED"}, "operation": {"failure-cause": cause}}).encode()

        with pytest.raises(StorageError, match=r"EV419 the savepoint cannot be made \(java.io.IOException\)") as caught:
            serve(answer).stop_with_savepoint(JOB, "file:///sp", drain=True)
        assert CANARY not in str(caught.value)

    def test_a_savepoint_that_was_made_before_the_job_failed_to_stop(self, serve: Any) -> None:
        kind = "org.apache.flink.runtime.scheduler.stopwithsavepoint.StopWithSavepointStoppingException"
        text = f"{kind}: A savepoint has been created at: file:/sp/savepoint-1, but the corresponding job {JOB} failed during stopping."
        cancelled: list[str] = []

        def answer(method: str, path: str, _: bytes) -> tuple[int, bytes]:
            if method == "POST":
                return 202, b'{"request-id": "7"}'
            if method == "PATCH":
                cancelled.append(path)
                return 202, b"{}"
            if path.endswith("/savepoints/7"):
                return 200, json.dumps({"status": {"id": "COMPLETED"}, "operation": {"failure-cause": {"stack-trace": text}}}).encode()
            return 200, json.dumps({"state": "CANCELED" if cancelled else "RUNNING"}).encode()

        assert "file:/sp/savepoint-1" == serve(answer).stop_with_savepoint(JOB)
        assert [f"/jobs/{JOB}?mode=cancel"] == cancelled

    def test_a_savepoint_that_takes_too_long(self, serve: Any) -> None:
        def answer(method: str, *_: Any) -> tuple[int, bytes]:
            return 200, json.dumps({"request-id": "7"} if method == "POST" else {"status": {"id": "IN_PROGRESS"}}).encode()

        with pytest.raises(Unreachable, match="EV418 the savepoint is not complete in time"):
            serve(answer).stop_with_savepoint(JOB, seconds=0.1)

    def test_a_job_id_cannot_leave_its_place_in_the_path(self, serve: Any) -> None:
        seen: list[str] = []

        def answer(_: str, path: str, __: bytes) -> tuple[int, bytes]:
            seen.append(path)
            return 200, b'{"state": "RUNNING"}'

        serve(answer).state("../config?x=")
        assert seen == ["/jobs/..%2Fconfig%3Fx%3D"]


class TestAFailure:
    def test_only_classes_and_our_own_texts_are_handed_on(self, serve: Any) -> None:
        failure = serve(always(200, {"exceptionHistory": {"entries": [{"stacktrace": TRACE}]}})).failure(JOB)

        assert CANARY not in repr(failure)
        assert failure.codes == ("EV404",)
        assert failure.problems == ("out: EV404 the disk is full",)
        assert failure.classes == (
            "java.lang.RuntimeException",
            "ValueError",
            "java.lang.NotMineException",
            "org.apache.flink.util.SerializedThrowable",
            "eventveil.schemas.errors.StorageError",
            "builtins.KeyError",
        )
        assert str(failure) == "out: EV404 the disk is full"

    @pytest.mark.parametrize(
        ("trace", "expected"),
        [
            ("java.lang.Exception: x\nCaused by: org.apache.flink.runtime.rpc.exceptions.RecipientUnreachableException: y", True),
            ("org.apache.flink.runtime.io.network.netty.exception.RemoteTransportException: x", True),
            ("org.apache.flink.runtime.jobmaster.JobMasterException: x\nCaused by: java.io.IOException: y", False),
            (
                "org.apache.flink.runtime.jobmaster.JobMasterException: x\neventveil.schemas.errors.StorageError: EV404 the disk is full",
                False,
            ),
            ("java.lang.RuntimeException: org.apache.flink.runtime.rpc.exceptions.RecipientUnreachableException", False),
        ],
    )
    def test_of_the_cluster_or_of_the_job(self, serve: Any, trace: str, expected: bool) -> None:
        failure = serve(always(200, {"exceptionHistory": {"entries": [{"stacktrace": trace}]}})).failure(JOB)

        assert expected == failure.is_of_cluster

    def test_a_job_that_never_failed(self, serve: Any) -> None:
        assert serve(always(200, {"exceptionHistory": {"entries": []}})).failure(JOB) is None


class TestCounters:
    def test_subtasks_are_summed_and_others_left_out(self, serve: Any) -> None:
        values = {"0.[2]{A__B}.eventveil_orders|in": "3", "1.[2]{A__B}.eventveil_orders|in": "4", "0.[2]{A__B}.others_orders|in": "9"}
        values |= {"0.[2]{A__B}.eventveil_size": "{min=1, max=2}"}

        def answer(_: str, path: str, __: bytes) -> tuple[int, bytes]:
            if path.endswith("/metrics"):
                return 200, json.dumps([{"id": name} for name in values]).encode()
            if "/metrics?get=" in path:
                assert "others" not in path
                return 200, json.dumps([{"id": name, "value": value} for name, value in values.items() if "eventveil" in name]).encode()
            return 200, json.dumps({"state": "RUNNING", "vertices": [{"id": "v"}]}).encode()

        assert serve(answer).metrics(JOB) == {"orders|in": 7}

    def test_of_a_job_that_has_ended_they_are_in_its_accumulators(self, serve: Any) -> None:
        labels = {"NAMESPACE": "eventveil", "NAME": "orders.v1|in", "PTRANSFORM": "A"}
        sums = [
            {"urn": "beam:metric:user:sum_int64:v1", "payload": base64.b64encode(payload).decode(), "labels": {**labels, **changed}}
            for payload, changed in ((b"\xac\x02", {}), (b"\x01", {"PTRANSFORM": "B"}), (b"\x05", {"NAMESPACE": "others"}))
        ]
        held = [{"name": "__metricscontainers", "value": json.dumps({"metrics": {"attempted": sums}})}]

        def answer(_: str, path: str, __: bytes) -> tuple[int, bytes]:
            return 200, json.dumps({"user-task-accumulators": held} if path.endswith("accumulators") else {"state": "FINISHED"}).encode()

        assert serve(answer).metrics(JOB) == {"orders.v1|in": 301}
