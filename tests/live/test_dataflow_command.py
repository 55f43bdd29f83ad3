"""`eventveil run --runner dataflow`, against loopback fakes of Dataflow and its bucket, and the emulator of Pub/Sub; never on Dataflow."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
RUNNERS = HERE.parents[1] / "tests" / "pipeline" / "runners"
FakeDataflow = runpy.run_path(str(RUNNERS / "fake_dataflow.py"))["FakeDataflow"]
GCS = runpy.run_path(str(RUNNERS / "fake_gcs.py"))
_DESK = runpy.run_path(str(HERE / "pubsub_desk.py"))
BUCKET = "staging-of-the-shop"
COMMAND = [sys.executable, "-c", "from eventveil.pipeline.cli.main import main; main()"]


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Any]:
    with GCS["FakeGcs"](tmp_path, BUCKET) as server:
        yield server


def test_a_job_file_is_submitted_updated_and_made_a_template(
    pubsub: str, bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", pubsub)
    desk = _DESK["PubsubDesk"](tmp_path)
    project = _DESK["PROJECT"]
    desk.publisher.create_topic(name=desk.publisher.topic_path(project, f"{desk.name}-veiled"))
    job = desk.write_job(
        output={"uri": f"pubsub://{project}/{desk.name}-veiled", "format": "json"},
        dead_letters=None,
        checkpoint=None,
        stop_when_refused=None,
    )
    text = job.read_text().replace('"dead_letters": null, "checkpoint": null, "stop_when_refused": null', '"allow_loss": true')
    where = ["--project", project, "--region", "europe-west1", "--temp-location", f"gs://{BUCKET}/temp"]

    with FakeDataflow() as service:
        options = [*service.flags, "--sdk_container_image=registry.example.org/eventveil:1"]
        told = ", ".join(f'"{option}"' for option in options)
        dataflow = (
            f'"runner": "dataflow", "dataflow": {{"project": "p", "region": "r", "temp_location": "gs://xxx/y", "options": [{told}]}}'
        )
        job.write_text(f"{text[:-1]}, {dataflow}}}")

        def run(*flags: str) -> subprocess.CompletedProcess[str]:
            environment = {**os.environ, "STORAGE_EMULATOR_HOST": bucket.address, "GOOGLE_CLOUD_PROJECT": project}
            command = [*COMMAND, "run", str(job), *where, *flags]
            return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False, env=environment)

        first = run()
        assert (0, 1) == (first.returncode, len(service.jobs)), first.stderr
        assert "console.cloud.google.com" in first.stdout
        again = run()
        assert (True, 1) == ("EV424 a job counted runs already" in again.stderr, len(service.jobs)), again.stderr
        updated = run("--update")
        assert (0, 2) == (updated.returncode, len(service.jobs)), updated.stderr
        template = run("--template", f"gs://{BUCKET}/templates/counted")
        assert (0, 2) == (template.returncode, len(service.jobs)), template.stderr
        assert any("templates/counted" in name for name in bucket.files(BUCKET))
