"""The example in Java, compiled and run on a real Flink (1.19, standalone; Beam 2.70 for Java): its events are those of `eventveil run`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eventveil.pipeline.dead_letters.store import list_letters
from eventveil.pipeline.runners._job_server import job_server
from eventveil.transforms.keys.custodian import new_custodian
from eventveil.transforms.keys.providers.keyring_file import new_keyring

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE, SHIPPING = ROOT / "examples" / "java", ROOT / "examples" / "shipping_order"
CANARY = "kanarienvogel@example.org"


@pytest.fixture(scope="module")
def classpath(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The example, compiled, and what it needs."""
    if shutil.which("mvn") is None or shutil.which("javac") is None:
        if os.environ.get("CI") == "true":
            raise FileNotFoundError("the example in Java needs Maven and a JDK")
        pytest.skip("needs Maven and a JDK")
    folder = tmp_path_factory.mktemp("java")
    goal = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
    fetch = ["mvn", "-B", "-q", "-f", EXAMPLE / "pom.xml", goal, "-DincludeScope=runtime", f"-DoutputDirectory={folder}/jars"]
    subprocess.run(fetch, check=True, stdin=subprocess.DEVNULL)
    subprocess.run(["javac", "-cp", f"{folder}/jars/*", "-d", folder / "classes", EXAMPLE / "VeilOrders.java"], check=True)
    return f"{folder}/classes:{folder}/jars/*"


@pytest.fixture
def expansion_service(eventveil_command: list[str], flink: Any) -> Iterator[str]:
    """host:port."""
    command = [*eventveil_command, "expansion-service", "--listen", "127.0.0.1:0", "--worker-pool", flink.pool]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split(" answers at ")[1].split(": ")[0]
    finally:
        process.terminate()
        process.wait(30)


def lines_of(folder: Path, name: str) -> list[str]:
    return [line for path in sorted(folder.glob(f"{name}*")) for line in path.read_text("utf-8").splitlines()]


def test_its_events_are_those_of_a_job(
    classpath: str, expansion_service: str, flink: Any, eventveil_command: list[str], tmp_path: Path
) -> None:
    new_keyring(tmp_path / "keyring.json")
    new_custodian(tmp_path / "custodian")
    orders = (SHIPPING / "orders.jsonl").read_text("utf-8").splitlines()
    events = tmp_path / "orders.jsonl"
    events.write_text("\n".join([*orders, json.dumps({"order_id": CANARY}), f'{{"order_id": "{CANARY}"']) + "\n")
    shown = {"policy": SHIPPING / "policy.yaml", "keys": tmp_path / "keyring.json", "custodian": tmp_path / "custodian.pub"}
    said = [f"--{name}={value}" for name, value in {**shown, "input": events, "output": tmp_path / "java"}.items()]

    with job_server(flink.address, str(flink.jars), "1.19") as endpoint:
        where = ["--runner=PortableRunner", f"--jobEndpoint={endpoint}", "--defaultEnvironmentType=EMBEDDED"]
        command = ["java", "-Xmx256m", "-cp", classpath, "VeilOrders", *where, f"--expansionService={expansion_service}", *said]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert CANARY not in done.stdout + done.stderr + flink.log()

    named = [part for name, value in shown.items() for part in (f"--{name}", value)]
    rest = ["--dead-letters", tmp_path / "refused", "--format", "jsonl", "--output", tmp_path / "job"]
    command = [*eventveil_command, "run", "--input", events, *named, *rest]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert len(orders) == len(lines_of(tmp_path / "java", "events"))
    assert Counter(lines_of(tmp_path / "job", "part-")) == Counter(lines_of(tmp_path / "java", "events"))
    letters = [letter for path in (tmp_path / "java").glob("refused*") for letter in list_letters(path)]
    assert ["EV501", "EV503"] == sorted(letter.header["code"] for letter in letters)


def test_what_is_wrong_with_a_policy_is_told_when_the_pipeline_is_built(classpath: str, expansion_service: str, tmp_path: Path) -> None:
    new_custodian(tmp_path / "custodian")
    files = {"policy": tmp_path / "none.yaml", "keys": "k", "custodian": tmp_path / "custodian.pub", "input": "i", "output": "o"}
    said = [f"--{name}={value}" for name, value in files.items()]
    where = ["--runner=PortableRunner", "--jobEndpoint=127.0.0.1:9", "--defaultEnvironmentType=EMBEDDED"]
    command = ["java", "-cp", classpath, "VeilOrders", *where, f"--expansionService={expansion_service}", *said]

    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode
    assert "EV115 the document cannot be read" in done.stderr
