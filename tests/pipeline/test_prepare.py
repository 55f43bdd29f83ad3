"""What is found out about a job on a stream before anything is read."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from eventveil.pipeline.prepare import ReadyJob, job_of_flags, prepare
from eventveil.schemas.errors import EventveilError
from eventveil.schemas.job import parse_job
from eventveil.transforms.keys.custodian import new_custodian
from eventveil.transforms.keys.providers.keyring_file import new_keyring

SCHEMA = {
    "type": "record",
    "name": "Event",
    "fields": [{"name": name, "type": "string"} for name in ("id", "at", "who", "type")],
}
POLICY = """
policy: {name}
version: 1
for: {{recipient: tests}}
schema: event.avsc
domain: d
{event}
{window}
fields: {{id: {{keep: {{because: test}}}}, at: drop, who: {who}, type: drop}}
"""
EVENT = "event: {time: at, id: id}"
NUMBERED = "{renumber: {scope: window, class: who}}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    new_keyring(tmp_path / "keyring.json")
    new_custodian(tmp_path / "custodian")
    (tmp_path / "event.avsc").write_text(json.dumps(SCHEMA))
    (tmp_path / "in").mkdir()
    return tmp_path


def ready(folder: Path, *policies: dict[str, str], **entries: Any) -> ReadyJob:
    variants = []
    for number, changes in enumerate(policies or ({},)):
        texts = {"name": f"p{number}", "event": EVENT, "window": "window: 1h", "who": "drop", **changes}
        (folder / f"p{number}.yaml").write_text(POLICY.format(**texts))
        variants.append({"policy": f"p{number}.yaml", "output": {"uri": f"out{number}"}})
    document = {
        "job": "j",
        "input": {"uri": "in", "format": "jsonl"},
        "variants": variants,
        "keys": "keyring.json",
        "dead_letters": {"uri": "refused", "custodian": "custodian.pub"},
        "watch": True,
        "checkpoint": "state",
        **entries,
    }
    document = {name: entry for name, entry in document.items() if entry is not None}
    return prepare(parse_job(json.dumps(document), str(folder / "job.yaml")))


def refused(folder: Path, *policies: dict[str, str], **entries: Any) -> list[tuple[str, str]]:
    with pytest.raises(EventveilError) as caught:
        ready(folder, *policies, **entries)
    return [(problem.code, problem.fact) for problem in caught.value.problems]


class TestGathering:
    def test_files_of_a_stream_are_rolled_every_minute(self, folder: Path) -> None:
        gathering = ready(folder).variants[0].gathering

        assert gathering is not None
        assert ("1min", False, 0) == (str(gathering.rule.duration), gathering.released, gathering.lateness_us)

    def test_a_release_model_waits_for_its_window_and_lateness(self, folder: Path) -> None:
        gathering = ready(folder, {"who": NUMBERED, "window": "window: 1h\nallowed_lateness: 5min"}, roll="1min").variants[0].gathering

        assert gathering is not None
        assert ("1h", True, 300_000_000) == (str(gathering.rule.duration), gathering.released, gathering.lateness_us)

    @pytest.mark.parametrize("roll", ["1s", "15min", "30min", "1h"])
    def test_a_roll_divides_the_release_window(self, folder: Path, roll: str) -> None:
        assert str(ready(folder, roll=roll).variants[0].gathering.rule.duration) == roll  # type: ignore[union-attr]

    @pytest.mark.parametrize("roll", ["7min", "2h", "1d"])
    def test_one_that_does_not_is_refused(self, folder: Path, roll: str) -> None:
        assert [("EV103", f"roll: {roll} does not divide p0's release window of 1h")] == refused(folder, roll=roll)

    def test_in_a_zone_with_days_of_23_hours_a_roll_divides_the_quarter_of_an_hour(self, folder: Path) -> None:
        window = "window: {keys: 1d, release: 1d, zone: Europe/Berlin}"

        assert ready(folder, {"window": window}, roll="15min").variants[0].gathering is not None
        assert "EV103" == refused(folder, {"window": window}, roll="2h")[0][0]

    def test_files_of_a_stream_need_an_event_time(self, folder: Path) -> None:
        assert "EV104" == refused(folder, {"event": "event: {id: id}", "window": ""})[0][0]

    def test_bounded_files_wait_for_nothing(self, folder: Path) -> None:
        (folder / "in" / "a.jsonl").write_text("")

        assert ready(folder, watch=False, checkpoint=None).variants[0].gathering is None


class TestSingleMessages:
    @pytest.mark.parametrize(("scheme", "expected"), [("kafka", False), ("kafka+java", True)])
    def test_come_from_java_alone(self, folder: Path, scheme: str, expected: bool) -> None:
        pytest.importorskip("confluent_kafka", reason="needs eventveil[kafka]")
        where = {"watch": None, "runner": "flink", "flink": {"master": "localhost:8081"}}

        live = ready(folder, input={"uri": f"{scheme}://localhost:9/orders?group=g"}, **where).live

        assert live is not None
        assert expected == live.single


class TestTogether:
    def test_values_that_are_numbered_together_wait_for_the_same_window(self, folder: Path) -> None:
        found = refused(folder, {"who": NUMBERED}, {"who": NUMBERED, "window": "window: 1d"})

        assert ["EV208"] == [code for code, _ in found]

    def test_plain_avro_has_no_types_to_be_told_by_a_field(self, folder: Path) -> None:
        event = "event: {time: at, id: id, type: {field: type, is: a}}"
        stream = {"uri": "kafka://127.0.0.1:1/topic", "format": "avro"}

        assert ["EV220"] == [code for code, _ in refused(folder, {"event": event}, input=stream, watch=False)]


def test_what_a_job_writes_is_not_what_it_watches(folder: Path) -> None:
    assert "EV120" == refused(folder, input={"uri": ".", "format": "jsonl"})[0][0]


def test_without_the_client_of_kafka_nothing_is_claimed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)

    found = refused(folder, input={"uri": "kafka://127.0.0.1:1/topic"}, watch=None)

    assert [("EV413", "the client for Kafka is not installed")] == found
    assert not (folder / "out0").exists()


class TestFlags:
    """What the command line says becomes a job of the same meaning."""

    FLAGS = {"policy": "p.yaml", "input": ["kafka://127.0.0.1:1/in"], "output": "out", "checkpoint": "state"}

    def test_a_secret_of_the_client_is_named_and_not_filled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BROKER_PASSWORD", "s3cret")

        job = job_of_flags({**self.FLAGS, "client": ["sasl.password=${BROKER_PASSWORD}", "security.protocol=SASL_SSL"]})

        assert (("sasl.password", "${BROKER_PASSWORD}"), ("security.protocol", "SASL_SSL")) == job.input.client
        assert "s3cret" not in repr(job)

    def test_one_that_is_written_out_is_refused_without_showing_it(self) -> None:
        with pytest.raises(EventveilError) as caught:
            job_of_flags({**self.FLAGS, "client": ["sasl.password=s3cret"]})

        assert ["EV118"] == [problem.code for problem in caught.value.problems]
        assert "s3cret" not in str(caught.value)

    def test_braces_elsewhere_are_the_user_s_own(self) -> None:
        assert "${HOME}" == job_of_flags({**self.FLAGS, "output": "${HOME}"}).variants[0].output.uri

    def test_settings_go_to_streams_alone(self) -> None:
        job = job_of_flags({**self.FLAGS, "output": "kafka://127.0.0.1:1/out", "client": ["linger.ms=5"], "registry": "http://127.0.0.1:1"})

        assert (("linger.ms", "5"),) == job.input.client == job.variants[0].output.client
        assert job.input.registry == job.variants[0].output.registry is not None
        assert () == job_of_flags({**self.FLAGS, "client": ["linger.ms=5"]}).variants[0].output.client

    @pytest.mark.parametrize("given", [["no-setting"], ["linger.ms=1", "linger.ms=2"]], ids=["no value", "twice"])
    def test_no_setting(self, given: list[str]) -> None:
        with pytest.raises(EventveilError, match="EV120"):
            job_of_flags({**self.FLAGS, "client": given})
