"""The one door, as the loop uses it: in a process of its own, with a pipe or a terminal as its standard error."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

# Says one pulse for every line that it reads, and prints the address for metrics.
LOOP = """
import sys, json, logging, time
from eventveil.pipeline.report.pulse import PolicyCounts, Pulse
from eventveil.pipeline.report.reporter import Reporter
from eventveil.pipeline.report.server import Address
from eventveil.schemas.errors import StorageError

settings = json.loads(sys.argv[1])
if "metrics" in settings:
    settings["metrics"] = Address.parse(settings["metrics"])
with Reporter("live", **settings) as reporter:
    print(reporter.metrics_address, flush=True)
    for line in sys.stdin:
        said = json.loads(line)
        if "fail" in said:
            told = reporter.failed(StorageError.of(said["fail"], "is cut short", "restore it", file="state"))
            print(told, flush=True)
        elif "library" in said:
            logging.getLogger("some.library").error("cannot parse %s", said["library"])
        else:
            refused = {"EV502": said.pop("refused", 0)}
            policies = (PolicyCounts("orders", said.get("read", 0), refused=refused),)
            reporter.update(Pulse("live", policies=policies, now=time.time_ns() // 1000, **said))
            print("said", flush=True)
"""


class Loop:
    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self.process = process
        self.address = address

    def say(self, **pulse: Any) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(pulse), file=self.process.stdin, flush=True)
        return "" if "library" in pulse else self.process.stdout.readline().strip()

    def ask(self, path: str) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(f"http://{self.address}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def end(self) -> str:
        """Standard error, where it is a pipe."""
        errors = self.process.communicate(timeout=20)[1]
        assert 0 == self.process.returncode
        return errors or ""


@contextmanager
def running(stderr: int = subprocess.PIPE, **settings: Any) -> Iterator[Loop]:
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1"}
    command = [sys.executable, "-c", LOOP, json.dumps(settings)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=stderr, text=True, env=environment)
    try:
        assert process.stdout is not None
        yield Loop(process, process.stdout.readline().strip())
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None and not stream.closed:
                stream.close()


def read_terminal(handle: int, until: bytes | None = None) -> str:
    """What is shown up to a text, or to the end."""
    text = b""
    try:
        while (until is None or until not in text) and (got := os.read(handle, 4096)):
            text += got
    except OSError:
        pass
    return text.decode()


class TestWithoutATerminal:
    def test_every_line_is_json_and_no_value_is_in_it(self) -> None:
        with running() as loop:
            loop.say(state="starting", read=100, refused=5)
            loop.say(state="running", slice=1, read=200, refused=7)
            loop.say(library="abdullin@example.org")
            loop.say(state="waiting", reason="EV413", slice=1, read=200, refused=7)
            loop.say(state="draining", slice=1, read=200, refused=7)
            loop.say(state="stopped", slice=1, read=200, refused=7)
            text = loop.end()

        lines = [json.loads(line) for line in text.splitlines()]
        assert ["started", "refused", "library", "waiting", "stopping", "stopped"] == [line["event"] for line in lines]
        assert ({"EV502": 2}, "some.library") == (lines[1]["codes"], lines[2]["logger"])
        assert "abdullin" not in text

    def test_a_failure_is_told_there_and_nowhere_else(self) -> None:
        with running() as loop:
            loop.say(state="starting")
            assert "True" == loop.say(fail="EV411")
            text = loop.end()

        failed = json.loads(text.splitlines()[-1])
        assert ("failed", "EV411", "is cut short", "restore it", "state") == tuple(
            failed[name] for name in ("event", "code", "fact", "remedy", "file")
        )

    def test_quiet_means_errors_alone(self) -> None:
        with running(quiet=True) as loop:
            loop.say(state="starting")
            loop.say(state="running", slice=1, refused=7)
            loop.say(fail="EV411")
            loop.say(state="stopped")

            assert ["failed"] == [json.loads(line)["event"] for line in loop.end().splitlines()]


class TestOnATerminal:
    def test_shows_a_status_and_warnings_above_it_and_leaves_the_line_clear(self) -> None:
        ours, theirs = pty.openpty()
        with running(stderr=theirs) as loop:
            os.close(theirs)
            loop.say(state="waiting", reason="EV413")
            loop.say(state="starting", lag=10, read=1_000_000)
            loop.say(state="running", lag=5, slice=1, read=1_000_000, refused=7)
            text = read_terminal(ours, b"lag 5")
            told = loop.say(fail="EV411")
            loop.end()
        text += read_terminal(ours)
        os.close(ours)

        assert "False" == told
        assert "running  lag 5  0/s  windows 0  refused 7  behind ?" in text
        assert ' warning refused job=live policy=orders events=7 codes={"EV502": 7}\r\n' in text
        assert "started" not in text
        assert text.endswith("\r\033[K")

    def test_json_can_be_asked_for(self) -> None:
        ours, theirs = pty.openpty()
        with running(stderr=theirs, log_json=True) as loop:
            os.close(theirs)
            loop.say(state="starting")
            time.sleep(0.7)
            loop.end()
        lines = read_terminal(ours).splitlines()
        os.close(ours)

        assert ["started"] == [json.loads(line)["event"] for line in lines]


class TestMetrics:
    def test_follow_the_pulse_from_before_the_first_slice_to_the_end(self) -> None:
        with running(metrics="0") as loop:
            status, answer = loop.ask("/readyz")
            assert (503, "starting", False) == (status, json.loads(answer)["state"], json.loads(answer)["ok"])
            assert 200 == loop.ask("/healthz")[0]

            loop.say(state="starting", slice=2, read=40, refused=1)
            assert 503 == loop.ask("/readyz")[0]
            loop.say(state="running", slice=3, read=50, refused=7, lag=12)
            status, text = loop.ask("/metrics")
            assert 'eventveil_refused_total{job="live",policy="orders",code="EV502"} 7\n' in text
            assert 'eventveil_lag_events{job="live"} 12\n' in text
            assert 'eventveil_state{job="live",state="running"} 1\n' in text
            assert 200 == loop.ask("/readyz")[0]

            loop.say(state="waiting", slice=3, reason="EV413")
            status, answer = loop.ask("/healthz")
            found = json.loads(answer)
            assert (200, "EV413", 3, None) == (status, found["reason"], found["slice"], found["lag"])
            assert {"ok", "job", "state", "reason", "silent_s", "waiting_s", "slice", "lag"} == set(found)

            loop.say(fail="EV411")
            assert [503, 503] == [loop.ask(path)[0] for path in ("/healthz", "/readyz")]
            assert "metrics are open" not in loop.end()
            with pytest.raises(urllib.error.URLError):
                loop.ask("/metrics")

    def test_an_address_open_to_others_is_warned_of(self) -> None:
        with running(metrics="0.0.0.0:0") as loop:
            loop.say(state="starting")
            first, *_ = loop.end().splitlines()

        assert ("metrics are open", "warning", loop.address) == tuple(json.loads(first)[name] for name in ("event", "level", "address"))

    def test_nobody_listens_where_nobody_asked_for_it(self) -> None:
        with running() as loop:
            assert "None" == loop.address
            loop.end()
