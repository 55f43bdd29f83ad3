"""What images are made of: nothing secret, nothing that moves by itself; and what they start does what it says."""

from __future__ import annotations

import base64
import json
import os
import re
import runpy
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from eventveil.schemas.job import load_job
from eventveil.transforms.keys.keyring import load_keys
from eventveil.transforms.keys.providers.keyring_file import new_keyring

ROOT = Path(__file__).resolve().parents[2]
DOCKER, DATAFLOW = ROOT / "deploy" / "docker", ROOT / "deploy" / "dataflow"
SECRET = "projects/the-shop/secrets/keyring/versions/3"

# As Google publishes it: https://cloud.google.com/dataflow/docs/reference/rest/v1b3/GetTemplateResponse (TemplateMetadata).
PARAMETER = {
    "type": "object",
    "required": ["name", "label", "helpText"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
        "label": {"type": "string"},
        "helpText": {"type": "string"},
        "isOptional": {"type": "boolean"},
        "regexes": {"type": "array", "items": {"type": "string", "format": "regex"}},
        "paramType": {
            "enum": [
                *("DEFAULT", "TEXT", "GCS_READ_BUCKET", "GCS_WRITE_BUCKET", "GCS_READ_FILE", "GCS_WRITE_FILE", "GCS_READ_FOLDER"),
                *("GCS_WRITE_FOLDER", "PUBSUB_TOPIC", "PUBSUB_SUBSCRIPTION", "BIGQUERY_TABLE", "JAVASCRIPT_UDF_FILE", "SERVICE_ACCOUNT"),
                *("MACHINE_TYPE", "KMS_KEY_NAME", "WORKER_REGION", "WORKER_ZONE", "BOOLEAN", "ENUM", "NUMBER", "KAFKA_TOPIC"),
                *("KAFKA_READ_TOPIC", "KAFKA_WRITE_TOPIC"),
            ]
        },
        "customMetadata": {"type": "object", "additionalProperties": {"type": "string"}},
        "groupName": {"type": "string"},
        "parentName": {"type": "string"},
        "parentTriggerValues": {"type": "array", "items": {"type": "string"}},
        "enumOptions": {"type": "array", "items": {"type": "object"}},
        "defaultValue": {"type": "string"},
        "hiddenUi": {"type": "boolean"},
    },
}
METADATA = {
    "type": "object",
    "required": ["name", "parameters"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string"},
        "description": {"type": "string"},
        "parameters": {"type": "array", "items": PARAMETER},
        "streaming": {"type": "boolean"},
        "supportsAtLeastOnce": {"type": "boolean"},
        "supportsExactlyOnce": {"type": "boolean"},
        "defaultStreamingMode": {"enum": ["UNSPECIFIED", "EXACTLY_ONCE", "AT_LEAST_ONCE"]},
        "yamlDefinition": {"type": "string"},
    },
}


def instructions(file: Path) -> list[tuple[str, str]]:
    """(Instruction, arguments) of a Dockerfile."""
    text = re.sub(r"\\\n", " ", re.sub(r"(?m)^#.*\n", "", file.read_text()))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("file", [DOCKER / "Dockerfile", DATAFLOW / "Dockerfile"], ids=["docker", "dataflow"])
class TestDockerfiles:
    def test_every_base_has_a_tag(self, file: Path) -> None:
        arguments = dict(value.split("=", 1) for name, value in instructions(file) if name == "ARG" and "=" in value)
        stages: set[str] = set()
        for value in (value for name, value in instructions(file) if name == "FROM"):
            image, last = value.split()[0], value.split()[-1]
            full = re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], image)
            # Ours is given when it is built.
            assert full in {"eventveil", *stages} or re.search(r":[A-Za-z0-9._-]*[0-9]", full), full
            assert not full.endswith(":latest")
            stages.add(last)

    def test_holds_no_secret(self, file: Path) -> None:
        for name, value in instructions(file):
            if name in ("ENV", "ARG"):
                assert not re.search(r"(?i)password|token|keyring\.json$|private", value), value
            if name in ("COPY", "ADD"):
                assert name == "COPY" and not re.search(r"\.key\b|keyring\.json|\.pem", value), value

    def test_what_it_copies_is_there(self, file: Path) -> None:
        for name, value in instructions(file):
            if name == "COPY" and "--from" not in value and file.parent == DOCKER:
                for source in [one for one in value.split()[:-1] if not one.startswith("--")]:
                    assert source.startswith("dist/") or (ROOT / source).exists(), source

    def test_does_not_run_as_root(self, file: Path) -> None:
        users = [value for name, value in instructions(file) if name == "USER"]

        assert users == (["10001"] if file.parent == DOCKER else [])  # the other one is made of it


def test_nothing_of_a_checkout_gets_into_the_build_but_what_is_named() -> None:
    lines = [line for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines() if line and not line.startswith("#")]

    assert "*" == lines[0]
    assert all(line.startswith("!") and not line.endswith("/") for line in lines[1:])


class _Google(BaseHTTPRequestHandler):
    """The metadata server and Secret Manager in one."""

    secret = b""
    status = 200
    fails = 0

    def do_GET(self) -> None:
        kind = type(self)
        if kind.fails:
            kind.fails -= 1
            self._answer(503, {})
        elif self.path.startswith("/computeMetadata/") and self.headers["Metadata-Flavor"] == "Google":
            self._answer(200, {"access_token": "the-token", "expires_in": 3600})
        elif self.path == f"/v1/{SECRET}:access" and self.headers["Authorization"] == "Bearer the-token":
            self._answer(kind.status, {"payload": {"data": base64.b64encode(kind.secret).decode()}})
        else:
            self._answer(404, {})

    def log_message(self, *_: object) -> None:
        """Silent."""

    def _answer(self, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def google(tmp_path: Path) -> Iterator[tuple[type[_Google], dict[str, str]]]:
    new_keyring(tmp_path / "made.json")
    kind = type("Google", (_Google,), {"secret": (tmp_path / "made.json").read_bytes()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"127.0.0.1:{server.server_port}"
    path = f"{DOCKER}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"GCE_METADATA_HOST": address, "EVENTVEIL_SECRET_MANAGER": f"http://{address}", "EVENTVEIL_RETRY_S": "0.01", "PATH": path}
    yield kind, {**os.environ, **environment}
    server.shutdown()
    server.server_close()


def run(*command: Any, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(one) for one in command], env=env, capture_output=True, text=True, check=False, timeout=60)


class TestFetchKeyring:
    def test_it_lies_where_its_owner_alone_may_read_it(self, google: Any, tmp_path: Path) -> None:
        done = run(DOCKER / "fetch-keyring", SECRET, tmp_path / "run" / "keyring.json", env=google[1])

        assert (0, "", "") == (done.returncode, done.stdout, done.stderr)
        assert 0o600 == stat.S_IMODE((tmp_path / "run" / "keyring.json").stat().st_mode)
        assert load_keys(str(tmp_path / "made.json")).id == load_keys(str(tmp_path / "run" / "keyring.json")).id

    def test_it_waits_for_who_is_away(self, google: Any, tmp_path: Path) -> None:
        google[0].fails = 3

        assert 0 == run(DOCKER / "fetch-keyring", SECRET, tmp_path / "keyring.json", env=google[1]).returncode

    @pytest.mark.parametrize("status", [403, 404, 503])
    def test_else_it_says_so_and_leaves_nothing(self, google: Any, tmp_path: Path, status: int) -> None:
        google[0].status = status
        done = run(DOCKER / "fetch-keyring", SECRET, tmp_path / "run" / "keyring.json", env=google[1])

        assert 4 == done.returncode and f"status {status}" in done.stderr
        assert "the-token" not in done.stderr and "Traceback" not in done.stderr
        assert not (tmp_path / "run" / "keyring.json").exists()

    @pytest.mark.parametrize("name", ["keyring", "projects/p/secrets/s", "projects/p/secrets/../versions/1", ""])
    def test_what_is_no_name_of_a_secret(self, google: Any, tmp_path: Path, name: str) -> None:
        assert 4 == run(DOCKER / "fetch-keyring", name, tmp_path / "keyring.json", env=google[1]).returncode

    def test_a_worker_starts_with_it(self, google: Any, tmp_path: Path) -> None:
        boot = tmp_path / "boot"
        boot.write_text('#!/bin/sh\necho "$@"; stat -c %a "$EVENTVEIL_KEYRING_FILE"\n')
        boot.chmod(0o755)
        named = {"EVENTVEIL_KEYRING": SECRET, "EVENTVEIL_KEYRING_FILE": str(tmp_path / "keyring.json"), "EVENTVEIL_BOOT": str(boot)}
        done = run(DOCKER / "worker", "--id=1", "--x=a b", env={**google[1], **named})

        assert "--id=1 --x=a b\n600\n" == done.stdout, done.stderr

    def test_and_not_without_it(self, google: Any, tmp_path: Path) -> None:
        google[0].status = 403
        named = {"EVENTVEIL_KEYRING": SECRET, "EVENTVEIL_KEYRING_FILE": str(tmp_path / "k"), "EVENTVEIL_BOOT": "/bin/echo"}
        done = run(DOCKER / "worker", "--id=1", env={**google[1], **named})

        assert (4, "") == (done.returncode, done.stdout)


class TestTheFlexTemplate:
    def test_metadata_is_what_the_schema_says(self) -> None:
        document = json.loads((DATAFLOW / "metadata.json").read_text())
        jsonschema.validate(document, METADATA)

        assert all(re.compile(one) for parameter in document["parameters"] for one in parameter.get("regexes", ()))

    @pytest.mark.parametrize("spoil", [{"paramType": "STRING"}, {"optional": True}, {"name": "a-b"}], ids=str)
    def test_a_mistake_would_be_noticed(self, spoil: dict[str, Any]) -> None:
        document = json.loads((DATAFLOW / "metadata.json").read_text())
        document["parameters"][0].update(spoil)

        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(document, METADATA)

    def test_the_launcher_s_flags_are_those_of_a_job(self, tmp_path: Path) -> None:
        flags = [
            *("--job_name=orders-1", "--project=the-shop", "--region=europe-west1", "--runner=DataflowRunner"),
            *("--temp_location=gs://bucket/temp", "--staging_location=gs://bucket/staging", f"--job={tmp_path}/job.yaml"),
            *("--template_location=gs://bucket/staging/template_launches/1/job_object", "--sdk_container_image=registry/eventveil:1"),
        ]
        job, dataflow = runpy.run_path(str(DATAFLOW / "launch.py"))["read_flags"](flags)
        (tmp_path / "job.yaml").write_text(
            "job: orders\ninput: {uri: 'pubsub://the-shop/orders', format: jsonl}\nallow_loss: true\nkeys: keyring.json\n"
            "variants: [{policy: p.yaml, output: {uri: 'pubsub://the-shop/veiled'}}]\n"
        )
        found = load_job(job, where={"runner": "dataflow", "dataflow": dataflow}).dataflow

        assert found is not None
        assert ("the-shop", "europe-west1", "gs://bucket/temp") == (found.project, found.region, found.temp_location)
        assert "gs://bucket/staging/template_launches/1/job_object" == found.template
        assert ("--staging_location=gs://bucket/staging", "--sdk_container_image=registry/eventveil:1") == found.options

    def test_no_keys_get_into_the_image(self, tmp_path: Path) -> None:
        (tmp_path / "job").mkdir()
        (tmp_path / "job" / "keyring.json").write_text("{}")
        for tool in ("docker", "gcloud", "make"):
            (tmp_path / tool).write_text(f"#!/bin/sh\ntouch {tmp_path}/called\n")
            (tmp_path / tool).chmod(0o755)
        done = run(
            *(DATAFLOW / "up", "p", "r", "b", "repo", SECRET, tmp_path / "job", "n"),
            env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        )

        assert 3 == done.returncode and "keys lie in" in done.stderr
        assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("name", ["dataflow", "docker", "flink", "kubernetes"])
def test_a_readme_says_first_what_has_not_been_run(name: str) -> None:
    title, _, first, *_ = (ROOT / "deploy" / name / "README.md").read_text().splitlines()

    assert title.startswith("# ")
    assert re.match(r"\*\*Not (run|built)", first), first


@pytest.mark.parametrize("folder", ["deploy", *(f"deploy/{name}" for name in ("dataflow", "docker", "flink", "kubernetes"))])
def test_links_lead_somewhere(folder: str) -> None:
    file = ROOT / folder / "README.md"
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", file.read_text()):
        assert link.startswith("http") or (file.parent / link).exists(), link
