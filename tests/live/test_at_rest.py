"""Whatever a live job leaves on a disk, says or serves: no value of an event, no key, and no secret of a client is in it.

Everything is looked for in every form it could have taken (tests/jobs/everything/canary.py): while windows are open and rows wait,
in files that live for a moment, in files without a name, and in the end.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import runpy
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from confluent_kafka import Producer

from eventveil.pipeline.graph import Work, build
from eventveil.pipeline.prepare import prepare
from eventveil.schemas.job import load_job
from eventveil.transforms.keys.derive import context, hkdf
from eventveil.transforms.keys.keyring import load_keys
from eventveil.transforms.windows import WindowRule

HERE = Path(__file__).parent
CHILD = HERE / "killed_at.py"
_jobs = runpy.run_path(str(HERE.parent / "jobs" / "test_canary.py"))
CANARY, EVERYTHING, KEPT = _jobs["CANARY"], _jobs["EVERYTHING"], _jobs["KEPT"]
planted_event, planted_refusals = _jobs["_event"], _jobs["_refused"]
_live = runpy.run_path(str(HERE / "live_desk.py"))
eventually, files_of = _live["eventually"], _live["files_of"]

PARTITIONS = 2
# Messages of 2014 would be gone in five minutes.
FOR_EVER = {"retention_ms": "-1"}
DAY = 1_409_788_800_000_000  # 2014-09-04
GOOD = 4


class Snoop(threading.Thread):
    """Reads whatever appears below some folders, again when it has changed, also what a process holds open without a name."""

    def __init__(self, process: int, *folders: Path) -> None:
        super().__init__(daemon=True)
        self._process = process
        self._folders = folders
        self._seen: dict[str, tuple[int, int, int]] = {}
        self._over = threading.Event()
        self.found: dict[str, bytes] = {}

    def run(self) -> None:
        while not self._over.is_set():
            self.look()
            time.sleep(0.02)

    def look(self) -> None:
        for folder in self._folders:
            for place, _, names in os.walk(folder):
                for name in names:
                    self._read(os.path.join(place, name))
        try:
            held = os.listdir(f"/proc/{self._process}/fd")
        except OSError:
            return
        for number in held:
            path = f"/proc/{self._process}/fd/{number}"
            try:
                is_nameless = os.readlink(path).endswith("(deleted)")
            except OSError:
                continue
            if is_nameless:
                self._read(path)

    def _read(self, path: str) -> None:
        try:
            now = os.stat(path)
            key = (now.st_ino, now.st_size, now.st_mtime_ns)
            if not stat.S_ISREG(now.st_mode) or self._seen.get(path) == key:
                return
            self._seen[path] = key
            self.found[f"{path} {len(self.found)}"] = Path(path).read_bytes()
        except OSError:
            pass  # gone by now

    def end(self) -> dict[str, bytes]:
        """All that was there at some time, by name; and the names."""
        self._over.set()
        self.join(30)
        self.look()
        return {**self.found, "/names": "\n".join(self.found).encode()}


def all_keys(keyring: Path, variants: Any) -> Any:
    """The root of a keyring and all that a job derives from it, to be looked for."""
    found = CANARY.Canaries()
    root = base64.b64decode(json.loads(keyring.read_text())["root"])
    found.add_bytes("root", root)
    keys = load_keys(str(keyring))
    found.add_bytes("letters", keys.letters_key())
    found.add_bytes("checkpoint", keys.domain("checkpoint").for_domain("state"))
    for variant in variants:
        plan = variant.plan
        domain = hkdf(root, context("domain", plan.domain))
        found.add_bytes(f"{plan.domain}", domain)
        found.add_bytes(f"{plan.domain} wide", hkdf(domain, context("domain-wide", plan.domain)))
        of = keys.domain(plan.domain)
        requests = {step.key for one in plan.instructions for step in getattr(one, "steps", ()) if step.key is not None}
        windows = {plan.key_window} | ({variant.gathering.rule} if variant.gathering is not None else set())
        for rule in windows:
            assert isinstance(rule, WindowRule)
            size, zone = str(rule.duration), rule.zone
            # Those of the events, in either zone.
            for start in (DAY - 3_600_000_000, DAY, DAY + 86_400_000_000 - 3_600_000_000):
                found.add_bytes("window", hkdf(domain, context("window", plan.domain, start, size, zone)))
                found.add_bytes("state of a window", of.for_window(start, size, zone, "state"))
                found.add_bytes("record of a window", of.for_window(start, size, zone, "record"))
                for request in requests:
                    if request.scope != "domain":
                        found.add_bytes(f"{request}", of.for_window(start, size, zone, request.purpose, *request.info))
        for request in requests:
            if request.scope == "domain":
                found.add_bytes(f"{request}", of.for_domain(request.purpose, *request.info))
        for purpose in ("order", "part", "record"):
            found.add_bytes(f"{purpose} {plan.domain}", of.for_domain(purpose))
        found.add_bytes("release", of.for_domain("release", plan.schema.name))
    return found


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"127.0.0.1:{listening.getsockname()[1]}"


def served(address: str) -> Iterator[bytes]:
    for path in ("metrics", "healthz", "readyz", "nothing"):
        try:
            with urllib.request.urlopen(f"http://{address}/{path}", timeout=10) as answer:
                yield answer.read() + str(answer.headers).encode()
        except urllib.error.HTTPError as error:
            yield error.read() + str(error.headers).encode()
        except OSError:
            return  # it has just begun


def write(kafka: str, topic: str, messages: list[tuple[bytes, bytes, list[tuple[str, bytes]], int]]) -> None:
    producer = Producer({"bootstrap.servers": kafka})
    for value, key, headers, partition in messages:
        producer.produce(topic, value, key, partition, headers=headers)
    assert 0 == producer.flush(60)


def policies(folder: Path) -> dict[str, Path]:
    """The policy with every operator; one of it that numbers within a window; and one that asks for key and header."""
    text = (EVERYTHING / "policy.yaml").read_text()
    text = text.replace("schema: ", f"schema: {EVERYTHING}/").replace("hierarchy: ", f"hierarchy: {EVERYTHING}/")
    mail = "  email: [{normalize: [trim, lower]}, {pseudonymize: {class: person, prefix: p-}}]\n"
    assert 1 == text.count(mail) and 1 == text.count("policy: everything\n") and 1 == text.count("domain: analytics\n")
    numbered = text.replace(mail, "  email: {renumber: {scope: window, class: mail}}\n").replace("domain: analytics", "domain: numbers")
    numbered = numbered.replace("window: {", "allowed_lateness: 1h\nwindow: {").replace("policy: everything", "policy: numbered")
    keyed = text.replace("policy: everything", "policy: keyed") + (
        "  $key: [{pseudonymize: {class: key}}, {rename: from_key}]\n"
        "  $headers.trace: [{mask: {keep_last: 2, length: same}}, {rename: from_trace}]\n"
    )
    found = {}
    for name, content in (("rolled", text), ("numbered", numbered), ("keyed", keyed)):
        found[name] = folder / f"{name}.yaml"
        found[name].write_text(content)
    return found


def test_nothing_of_an_event_and_no_key(desk: Any, kafka: str, new_topic: Callable[..., str]) -> None:
    canaries = CANARY.Canaries()
    source, target, address = new_topic(PARTITIONS), new_topic(1, **FOR_EVER), free_address()
    home = desk.folder / "home"
    home.mkdir()
    names = policies(desk.folder)
    outputs = {
        "rolled": {"uri": str(desk.folder / "out-rolled"), "format": "parquet", "partition_by": "window"},
        "numbered": {"uri": str(desk.folder / "out-numbered"), "format": "jsonl"},
        "keyed": {"uri": f"kafka://{kafka}/{target}", "format": "json"},
    }
    path = desk.write_job(
        "job",
        f"kafka://{kafka}/{source}",
        [{"name": name, "policy": str(names[name]), "output": output} for name, output in outputs.items()],
        roll="15min",
        slice="1s",
        idle_after="1d",
        metrics=address,
        summary=str(desk.folder / "job" / "summary.json"),
    )
    keys = all_keys(desk.keyring, prepare(load_job(path)).variants)

    def message(name: str, value: bytes, number: int) -> tuple[bytes, bytes, list[tuple[str, bytes]], int]:
        headers = [
            ("trace", canaries.text(f"{name}/trace").encode()),
            ("other", canaries.text(f"{name}/other").encode()),
            (canaries.text(f"{name}/header"), b"x"),
        ]
        return value, canaries.text(f"{name}/key").encode(), headers, number % PARTITIONS

    def good(name: str, number: int) -> tuple[bytes, bytes, list[tuple[str, bytes]], int]:
        return message(name, json.dumps(planted_event(canaries, name)).encode(), number)

    refused = {name: line for name, (_, line) in planted_refusals(canaries).items()}
    # Refused under half of all keys.
    del refused["last second"]
    first = [good(f"good{number}", number) for number in range(GOOD)]
    first += [message(name, line, number) for number, (name, line) in enumerate(refused.items())]
    ahead = json.dumps({**planted_event(canaries, "ahead"), "at": "2500-01-01T00:00:00"}).encode()
    first += [message("ahead", ahead, 0), (b"{}", b"\xff" + canaries.text("strange/key").encode(), [], 0)]
    write(kafka, source, first)

    # Rows are put aside however few there are, and what is aside is seen before it is taken back.
    happens = {
        "constants": {
            "pipeline.checkpoint.carry:_FRAME_BYTES": 1,
            "pipeline.sinks._shards:_HELD_BYTES": 64,
            "pipeline.sinks._shards:_SHARD_ROWS": 2,
        },
        "pause": {"place": "pipeline.sinks._scratch:Scratch.add", "call": 1, "when": "after", "seconds": 2},
    }
    command = [sys.executable, str(CHILD), json.dumps(happens)]
    run = desk.start(path, "--debug", command=command, HOME=str(home), TMPDIR=str(home))
    snoop = Snoop(run.process.pid, home, *(desk.folder / name for name in ("job", "out-rolled", "out-numbered")))
    snoop.start()

    def is_read() -> bool:
        assert run.process.poll() is None, run.log.read_text("utf-8")[-2000:]
        return any(b"eventveil_refused_total{" in answer for answer in served(address))

    eventually(is_read, 90)
    # Windows are open, and rows wait.
    carry = list((desk.folder / "job" / "state" / "carry").rglob("*.carry"))
    assert {"rolled", "numbered"} == {one.parent.name for one in carry} and all(one.stat().st_size > 500 for one in carry)
    answers = list(served(address))
    for number in range(PARTITIONS):
        last = {**planted_event(canaries, f"end{number}"), "at": "2014-09-20T12:00:00"}
        write(kafka, source, [message(f"end{number}", json.dumps(last).encode(), number)])
    eventually(lambda: files_of(desk.folder / "out-rolled") and files_of(desk.folder / "out-numbered"), 90)
    answers += served(address)
    assert 0 == run.drain(), run.log.read_text("utf-8")[-2000:]
    found = snoop.end()
    log = run.log.read_bytes()

    # What was to be seen, was.
    assert b"eventveil_refused_total" in answers[0] and any(b'"library"' in one for one in log.splitlines())
    assert any("(deleted)" in name or "/fd/" in name for name in found), "nothing was put aside"
    assert any("intent" in name for name in found) and any("carry" in name for name in found)
    # Rows that are published lie in the recipient's folder before they have their name.
    outputs_of = {
        name: content for name, content in found.items() if Path(name).name.startswith(("part-", ".eventveil-")) and "/out-" in name
    }
    kept = {f"good{number}/{leaf}" for number in range(GOOD) for leaf in KEPT}
    closing_kept = {f"end{number}/{leaf}" for number in range(PARTITIONS) for leaf in KEPT}
    assert kept == canaries.found(*outputs_of.values())
    sent = [part for one in desk.messages(target) for part in (one.value(), one.key(), repr(one.headers()))]
    assert kept | closing_kept == canaries.found(*sent)
    rest = {name: content for name, content in found.items() if name not in outputs_of}
    assert {} == told(canaries, rest)
    assert set() == canaries.found(log, *answers)
    assert {} == told(keys, found)
    assert set() == keys.found(log, *answers, *sent)
    # All that was refused lies there, sealed.
    opened = [event for _, event in desk.letters("job")]
    assert set(refused) | {"ahead"} <= {name.split("/")[0] for name in canaries.found(*opened)}


def told(canaries: Any, files: Mapping[str, bytes]) -> dict[str, set[str]]:
    """What is found, by the file in which it is."""
    if not canaries.found(*files.values()):
        return {}
    return {name: found for name, content in files.items() if (found := canaries.found(content))}


# -- secrets of clients ---------------------------------------------------------------------------------------------------------


class Secrets:
    """A job whose clients have secrets: some from the environment, some from a file."""

    def __init__(self, desk: Any, kafka: str, source: str, target: str) -> None:
        self.desk = desk
        self.canaries = CANARY.Canaries()
        self.home = desk.folder / "home"
        self.home.mkdir()
        self.environment = {
            name: self.canaries.text(name) for name in ("TEST_PASSWORD", "TEST_KEY_PASSWORD", "TEST_USER_INFO", "TEST_CONFIG")
        }
        (desk.folder / "password.txt").write_text(self.canaries.text("file") + "\n")
        self.policy = policies(desk.folder)["rolled"]
        self.kafka, self.source, self.target = kafka, source, target

    def job(self, name: str, settings: dict[str, str], **entries: Any) -> Path:
        output = {"uri": f"kafka://{self.kafka}/{self.target}", "format": "json", "client": entries.pop("sink", settings)}
        files = {"uri": str(self.desk.folder / f"out-{name}"), "format": "jsonl"}
        found: Path = self.desk.write_job(
            name,
            f"kafka://{self.kafka}/{self.source}",
            [{"name": "a", "policy": str(self.policy), "output": output}, {"name": "b", "policy": str(self.policy), "output": files}],
            input={"client": settings, **entries.pop("source", {})},
            slice="1s",
            **entries,
        )
        return found

    def start(self, job: Path, *flags: str) -> Any:
        return self.desk.start(job, "--debug", *flags, HOME=str(self.home), TMPDIR=str(self.home), **self.environment)

    def found(self, *runs: Any) -> dict[str, set[str]]:
        """Where a secret is found, of all that jobs have left."""
        left = {path: path.read_bytes() for path in self.desk.folder.rglob("*") if path.is_file() and path.name != "password.txt"}
        assert all(left[run.log] for run in runs)
        return told(self.canaries, {str(path): content for path, content in left.items()})


@pytest.fixture
def secrets(desk: Any, kafka: str, new_topic: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> Secrets:
    made = Secrets(desk, kafka, new_topic(1), new_topic(1, **FOR_EVER))
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    event = json.dumps(planted_event(CANARY.Canaries(), "good")).encode()
    write(kafka, made.source, [(event, b"k", [], 0)])
    return made


IN_VAIN = {"sasl.username": "somebody", "sasl.password": "${TEST_PASSWORD}", "ssl.key.password": "${file:password.txt}"}
SASL = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", "sasl.username": "x"}
FAILING: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "refused by the broker": ({**SASL, "sasl.password": "${TEST_PASSWORD}"}, {}),
    "from a file": ({**SASL, "security.protocol": "SASL_SSL", "sasl.password": "${file:password.txt}"}, {}),
    "no such mechanism": ({**SASL, "sasl.mechanism": "${TEST_PASSWORD}", "sasl.password": "${TEST_CONFIG}"}, {}),
    "no key": ({"security.protocol": "SSL", "ssl.key.pem": "${file:password.txt}"}, {}),
    "no number": ({"socket.timeout.ms": "${TEST_PASSWORD}"}, {}),
    "no certificate": (
        {"security.protocol": "SSL", "ssl.keystore.location": "/nowhere", "ssl.keystore.password": "${TEST_KEY_PASSWORD}"},
        {},
    ),
    "no token": (
        {
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "OAUTHBEARER",
            "enable.sasl.oauthbearer.unsecure.jwt": "true",
            "sasl.oauthbearer.config": "${TEST_CONFIG}",
        },
        {},
    ),
    "of the sink": ({}, {**SASL, "sasl.password": "${file:password.txt}"}),
}
"""Settings of the source, and of the sink where it has others."""


class TestSecretsOfClients:
    def test_of_a_connection_that_works(self, secrets: Secrets) -> None:
        job = secrets.job("works", IN_VAIN, roll="1s")
        run = secrets.start(job)
        eventually(lambda: run.process.poll() is not None or secrets.desk.messages(secrets.target), 60)

        assert 0 == run.drain(), run.log.read_text("utf-8")[-2000:]
        assert 1 == len(secrets.desk.messages(secrets.target))
        assert list((secrets.desk.folder / "works" / "state").rglob("*.carry"))
        assert {} == secrets.found(run)

    def test_of_connections_that_fail(self, secrets: Secrets) -> None:
        """Each says so, and ends; or says so, and waits until it is told to end. All at once: most of it is waiting."""
        runs = {}
        for number, (how, (settings, sink)) in enumerate(FAILING.items()):
            runs[how] = secrets.start(secrets.job(f"fails{number}", settings, sink=sink or settings))
        for how, run in runs.items():
            eventually(lambda run=run: run.process.poll() is not None or any(one.get("event") == "waiting" for one in run.logs()), 150)
            code = run.process.poll() if run.process.poll() is not None else run.drain(90)

            assert code in (0, 2, 4), (how, code, run.log.read_text("utf-8")[-2000:])
        assert {} == secrets.found(*runs.values())

    def test_of_registries_that_do_not_answer(self, secrets: Secrets) -> None:
        write(secrets.kafka, secrets.source, [(b"\0\0\0\0\1a", b"k", [], 0)])
        runs = []
        for number, url in enumerate(("http://127.0.0.1:9", f"http://{secrets.kafka}")):
            registry = {"url": url, "basic.auth.user.info": "${TEST_USER_INFO}"}
            runs.append(secrets.start(secrets.job(f"registry{number}", IN_VAIN, source={"registry": registry})))
        for run in runs:
            eventually(lambda run=run: run.process.poll() is not None or any("EV414" in str(one) for one in run.logs()), 90)
            if run.process.poll() is None:
                run.kill()  # it would wait for half a minute
            assert "EV414" in run.log.read_text("utf-8")

        assert {} == secrets.found(*runs)

    def test_in_what_is_sent_to_workers(self, secrets: Secrets) -> None:
        registry = {"url": "http://127.0.0.1:9", "basic.auth.user.info": "${TEST_USER_INFO}"}
        job = prepare(load_job(secrets.job("graph", IN_VAIN, source={"registry": registry})))
        assert job.live is not None
        stream = job.live.stream
        before = stream.begin(False)
        after = stream.next(before, 1 << 20)
        assert after is not None
        ranges = stream.ranges(before, after)
        pipeline = beam.Pipeline(runner="FnApiRunner")
        # What writes into the carry of a slice has nothing of a client.
        sent_alone = tuple(one for one in job.variants if one.name == "a")
        build(pipeline, type(job)(**{**vars(job), "variants": sent_alone}), Work(ranges))
        graph = pipeline.to_runner_api().SerializeToString()
        stream.close()

        assert {} == told(secrets.canaries, {"graph": graph, "ranges": pickle.dumps(ranges), "job": repr(job).encode()})
        seen = CANARY.Canaries()
        seen.add("setting", "${TEST_PASSWORD}")
        seen.add("registry", "${TEST_USER_INFO}")
        assert {"setting", "registry"} == seen.found(graph), "the search does not look into the graph"

    def test_on_the_command_line(self, secrets: Secrets) -> None:
        """Where a secret may not stand, it is not repeated."""
        word = secrets.canaries.text("command line")
        flags = ["--policy", str(secrets.policy), "--input", f"kafka://{secrets.kafka}/{secrets.source}", "--output", "out"]
        command = [sys.executable, "-c", "from eventveil.pipeline.cli.main import main; main()", "run", *flags]
        done = subprocess.run(
            [*command, "--client", f"sasl.password={word}", "--checkpoint", "state", "--keys", str(secrets.desk.keyring), "--allow-loss"],
            capture_output=True,
            cwd=secrets.home,
            timeout=120,
            check=False,
        )

        assert 2 == done.returncode
        assert set() == secrets.canaries.found(done.stdout, done.stderr)
