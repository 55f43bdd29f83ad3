"""A client of Flink's REST API: what a job is doing, why it restarted, and how to stop it. Nothing of it quotes an event.

Flink shows the texts of exceptions, and those of any library may quote a value. What this client hands on are classes, codes, and the
texts of our own errors, which hold none.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eventveil.schemas.errors import CODES, EventveilError, StorageError, Unreachable

__all__ = ["ENDED", "Failure", "FlinkJob", "FlinkRest"]

ENDED = frozenset({"FINISHED", "CANCELED", "FAILED"})
"""The states in which a job stays."""

_NAMESPACE = "eventveil"
_CLASS = r"[A-Za-z_][\w$]*(?:\.[A-Za-z_][\w$]*)*"
# At the beginning of a line: whatever stands further on may be part of a text.
_JAVA = re.compile(rf"^(?:Caused by: )?({_CLASS}(?:Exception|Error|Throwable))(?=[:{{\s]|$)")
_PYTHON = re.compile(rf"^({_CLASS}): text withheld(?:$| \[while)")
_OURS = re.compile(r"^eventveil\.schemas\.errors\.([A-Z]\w+): (.*)$")
_PROBLEM = re.compile(r"(?:^|: )(EV\d{3}) \S")
_OF_CLUSTER = re.compile(r"org\.apache\.flink\.runtime\.(?:io\.network|jobmanager\.scheduler|jobmaster|resourcemanager|rpc|taskexecutor)\.")
_MADE = re.compile(r"StopWithSavepointStoppingException: A savepoint has been created at: ([a-z0-9]+:[^\s,]+), but")
_STEP = re.compile(r" \[while running '[^']*'\]")


@dataclass(frozen=True)
class FlinkJob:
    """A job as Flink lists it. `state` is Flink's word: RUNNING, RESTARTING, FINISHED, ..."""

    id: str
    name: str
    state: str


@dataclass(frozen=True)
class Failure:
    """Why a job failed the last time, without a value.

    Attributes:
        classes: of the exceptions, as the causes follow each other; each once.
        problems: the texts of our own errors, each beginning with its place or its code. codes: theirs.
    """

    classes: tuple[str, ...]
    problems: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()

    @property
    def is_of_cluster(self) -> bool:
        """Whether what runs the job has failed, and not the job: a TaskManager is gone, say, or there is none for it."""
        return not self.problems and _OF_CLUSTER.match(self.classes[-1]) is not None

    def __str__(self) -> str:
        return "; ".join(self.problems or self.classes[-1:])


class FlinkRest:
    """Flink's REST API at an address.

    All methods raise Unreachable EV418 when nobody answers there, or Flink has no master just now, and StorageError EV419 when it
    refuses what it is asked.

    Args:
        address: ``host:port``, or a URL.
        timeout: how long an answer may take, in seconds.
    """

    def __init__(self, address: str, timeout: float = 10.0) -> None:
        self.address = address.rstrip("/") if "://" in address else f"http://{address.rstrip('/')}"
        self._timeout = timeout
        # The master is a neighbour: a proxy for the internet does not know it.
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def jobs(self) -> list[FlinkJob]:
        """All jobs that the master remembers, those that began last first."""
        found = sorted(self._get("/jobs/overview")["jobs"], key=lambda job: (-job["start-time"], job["jid"]))
        return [FlinkJob(job["jid"], job["name"], job["state"]) for job in found]

    def state(self, job_id: str) -> str:
        """Flink's word. RUNNING says nothing about whether it gets on: see `restarts`."""
        return str(self._job(job_id)["state"])

    def restarts(self, job_id: str) -> int:
        """How often the job began anew after a failure, since it was submitted.

        Told by the attempts of its steps: Flink's metrics stand still for minutes when a TaskManager is gone.
        """
        attempts = [0]
        for vertex in self._job(job_id)["vertices"]:
            said = self._get(f"/jobs/{_quoted(job_id)}/vertices/{_quoted(str(vertex['id']))}")
            attempts += [int(subtask["attempt"]) for subtask in said["subtasks"]]
        return max(attempts)

    def failure(self, job_id: str) -> Failure | None:
        """Why it failed the last time; None when it never did."""
        return next(iter(self.failures(job_id)), None)

    def failures(self, job_id: str) -> list[Failure]:
        """Why it failed each time, the last one first; Flink remembers some 16."""
        said = self._get(f"/jobs/{_quoted(job_id)}/exceptions")
        texts = [entry.get("stacktrace") for entry in said.get("exceptionHistory", {}).get("entries", ())] or [said.get("root-exception")]
        return [_without_values(text) for text in texts if text]

    def last_checkpoint(self, job_id: str) -> str | None:
        """The path of the last checkpoint or savepoint that was completed; None before the first, and for a job that makes none."""
        try:
            latest = self._get(f"/jobs/{_quoted(job_id)}/checkpoints").get("latest", {})
        except Unreachable:
            raise
        except StorageError:
            self.state(job_id)  # is the job known at all?
            return None
        found = [one for one in (latest.get("completed"), latest.get("savepoint")) if one and not one.get("discarded")]
        return str(max(found, key=lambda one: int(one["id"]))["external_path"]) if found else None

    def metrics(self, job_id: str) -> Counter[str]:
        """Our Beam counters by their names, summed over steps and subtasks.

        They count since the last (re)start, and lag by some seconds. While the job runs Flink has replaced space . : , in a name by _.
        """
        job = self._job(job_id)
        if job["state"] in ENDED:
            return self._counted_at_the_end(job_id)
        counts: Counter[str] = Counter()
        for vertex in job["vertices"]:
            path = f"/jobs/{_quoted(job_id)}/vertices/{_quoted(vertex['id'])}/metrics"
            names = [one["id"] for one in self._get(path) if f".{_NAMESPACE}_" in one["id"]]
            for one in self._values(path, names):
                # 0.[2]{Read__Veil}.eventveil_policy|accepted; what is no whole number is a distribution or a gauge of Beam's.
                if re.fullmatch(r"\d+", str(one.get("value", ""))):
                    counts[one["id"].partition(f".{_NAMESPACE}_")[2]] += int(one["value"])
        return counts

    def _counted_at_the_end(self, job_id: str) -> Counter[str]:
        counts: Counter[str] = Counter()
        for held in self._get(f"/jobs/{_quoted(job_id)}/accumulators")["user-task-accumulators"]:
            if held["name"] == "__metricscontainers":
                for one in json.loads(held["value"])["metrics"].get("attempted", ()):
                    if one["urn"] == "beam:metric:user:sum_int64:v1" and one["labels"].get("NAMESPACE") == _NAMESPACE:
                        counts[one["labels"]["NAME"]] += _varint(base64.b64decode(one["payload"]))
        return counts

    def watermark(self, job_id: str) -> int | None:
        """The lowest event time that any step still waits for, in milliseconds since 1970; None while a step knows none, or all is read."""
        lowest: list[int] = []
        for vertex in self._job(job_id)["vertices"]:
            path = f"/jobs/{_quoted(job_id)}/vertices/{_quoted(vertex['id'])}/metrics"
            names = [one["id"] for one in self._get(path) if re.fullmatch(r"\d+\..+\.currentOutputWatermark", one["id"])]
            lowest += [int(one["value"]) for one in self._values(path, names) if re.fullmatch(r"-?\d+", str(one.get("value", "")))]
        least = min(lowest, default=_NEVER)
        return least if -_NEVER < least < _NEVER else None

    def stop_with_savepoint(self, job_id: str, folder: str | None = None, drain: bool = False, seconds: float = 600.0) -> str:
        """Stop at a savepoint, and wait until the job has ended.

        Args:
            folder: where it is written; every TaskManager must see it. None: where Flink's configuration says.
            drain: let windows that are open fire before it. Such a job cannot be gone on with: what fired early is not right.
            seconds: how long it may take.

        Returns:
            The path of the savepoint, as Flink writes it.

        Raises:
            Unreachable: EV418 also when it is not done in time; Flink goes on with it.
            StorageError: EV419 also when it cannot be made. The job goes on.
        """
        deadline = time.monotonic() + seconds
        asked = {"drain": drain, **({"targetDirectory": folder} if folder is not None else {})}
        trigger = self._ask("POST", f"/jobs/{_quoted(job_id)}/stop", asked)["request-id"]
        while (done := self._get(f"/jobs/{_quoted(job_id)}/savepoints/{_quoted(trigger)}"))["status"]["id"] != "COMPLETED":
            self._wait(deadline, job_id, "the savepoint is not complete")
        operation = done.get("operation") or {}
        if not operation.get("location"):
            text = str(operation.get("failure-cause", {}).get("stack-trace", ""))
            why = _without_values(text)
            if made := _MADE.search(text):
                # Only then something failed: Flink would begin anew, from an earlier checkpoint.
                self.cancel(job_id, max(1.0, deadline - time.monotonic()))
                return made[1]
            raise StorageError.of("EV419", f"the savepoint cannot be made ({why})", "see Flink's log; the job goes on", file=self.address)
        self._until_ended(job_id, deadline)
        return str(operation["location"])

    def cancel(self, job_id: str, seconds: float = 60.0) -> None:
        """Cancel a job, and wait until it has ended. One that has ended already is fine."""
        try:
            self._ask("PATCH", f"/jobs/{_quoted(job_id)}?mode=cancel")
        except StorageError:
            if self.state(job_id) not in ENDED:
                raise
        self._until_ended(job_id, time.monotonic() + seconds)

    def _until_ended(self, job_id: str, deadline: float) -> None:
        while self.state(job_id) not in ENDED:
            self._wait(deadline, job_id, "the job has not ended")

    def _wait(self, deadline: float, job_id: str, what: str) -> None:
        if time.monotonic() >= deadline:
            raise Unreachable.of("EV418", f"{what} in time; Flink goes on with it", f"look at the job {job_id}", file=self.address)
        time.sleep(0.2)

    def _job(self, job_id: str) -> Any:
        return self._get(f"/jobs/{_quoted(job_id)}")

    def _values(self, path: str, names: Sequence[str]) -> list[Mapping[str, Any]]:
        """The metrics with these names; asked for in several requests, because a URL has an end."""
        found: list[Mapping[str, Any]] = []
        for begin in range(0, len(names), 20):
            found += self._get(f"{path}?get={urllib.parse.quote(','.join(names[begin : begin + 20]), safe=',')}")
        return found

    def _get(self, path: str) -> Any:
        return self._ask("GET", path)

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"}, method=method)  # noqa: S310 - http by the constructor, or what its caller wrote
        try:
            with self._open(request, timeout=self._timeout) as answer:
                return json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error.code, _body(error)) from None
        except ValueError:
            raise StorageError.of("EV419", "who answers is no Flink", "name its REST API, as host:8081", file=self.address) from None
        except (OSError, http.client.HTTPException) as error:
            # A URLError holds what happened.
            reason = getattr(error, "reason", error)
            kind = type(reason if isinstance(reason, BaseException) else error).__name__
            raise Unreachable.of(
                "EV418", f"Flink does not answer ({kind})", "check the address, and that it runs", file=self.address
            ) from None

    def _refusal(self, status: int, body: str) -> EventveilError:
        if status in (502, 503, 504):
            return Unreachable.of("EV418", f"Flink has no master just now (status {status})", "see whether it starts", file=self.address)
        classes = _without_values(body).classes
        what = "knows no such job" if any("FlinkJobNotFound" in one for one in classes) else "refuses what it is asked"
        fact = f"Flink {what} (status {status}{''.join(f', {one}' for one in classes[-1:])})"
        return StorageError.of("EV419", fact, "see its log", file=self.address)


_NEVER = 9 * 10**15  # ms; the ends of time of Beam and of Flink lie behind it


def _quoted(name: str) -> str:
    return urllib.parse.quote(name, safe="")


def _varint(data: bytes) -> int:
    return sum((byte & 0x7F) << 7 * place for place, byte in enumerate(data))


def _body(error: urllib.error.HTTPError) -> str:
    try:
        return "\n".join(map(str, json.loads(error.read()).get("errors", ())))
    except (ValueError, AttributeError, OSError, http.client.HTTPException):
        return ""


def _without_values(text: str) -> Failure:
    """Classes and our own texts out of a stack trace of Java's, in which texts of Python's stand."""
    classes: dict[str, None] = {}
    problems: dict[str, None] = {}
    codes: dict[str, None] = {}
    ours = False
    for line in text.splitlines():
        if found := _OURS.match(line):
            classes[f"eventveil.schemas.errors.{found[1]}"] = None
            told = _STEP.sub("", found[2])
            code = _PROBLEM.search(told)
            ours = code is not None and code[1] in CODES
            if code and ours:
                problems[told] = None
                codes[code[1]] = None
        elif found := _PYTHON.match(line) or _JAVA.match(line):
            classes[found[1]] = None
    return Failure(tuple(classes) or ("unknown",), tuple(problems), tuple(codes))
