"""What Beam is told for a job on Flink: without these options nothing flows, and whoever knows better has the last word."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from eventveil.pipeline.prepare import Live, ReadyJob
from eventveil.pipeline.runners.flink import flink_options
from eventveil.schemas.durations import Duration
from eventveil.schemas.errors import PolicyError
from eventveil.schemas.job import FlinkDoc

LIVE = Live(cast(Any, None), "state", 1, 1, 1, None)
FILES = ReadyJob("orders", (), (), cast(Any, None), None, "", 1, 1, 1, runner="flink")
STREAM = replace(FILES, live=LIVE)
DOC = FlinkDoc("localhost:8081")


def options(job: ReadyJob = STREAM, doc: FlinkDoc = DOC, savepoint: str | None = None) -> list[str]:
    return flink_options(job, doc, 2, "127.0.0.1:7", "eventveil-orders-1", savepoint)


def test_a_stream_has_all_that_it_needs_to_flow() -> None:
    found = options()

    assert {"--max_bundle_size=1", "--max_bundle_time_mills=50", "--checkpointing_interval=10000", "--streaming"} <= set(found)
    assert {"--environment_type=EXTERNAL", "--environment_config=127.0.0.1:50000", "--parallelism=2"} <= set(found)
    assert {"--externalized_checkpoints_enabled", "--retain_externalized_checkpoints_on_cancellation"} <= set(found)
    assert "--finish_bundle_before_checkpointing" in found
    assert not [flag for flag in found if "shutdown_sources" in flag or "save_main" in flag or "dill" in flag]


def test_single_messages_make_larger_bundles() -> None:
    assert "--max_bundle_size=1000" in options(replace(STREAM, live=replace(LIVE, single=True)))


def test_files_are_no_stream() -> None:
    assert not {"--streaming", "--externalized_checkpoints_enabled"} & set(options(FILES))
    assert not [flag for flag in options(FILES) if flag.startswith("--checkpointing")]


def test_the_job_says_where_and_how_often() -> None:
    found = options(doc=replace(DOC, worker_pool="pool:1", checkpointing=Duration(2, "s")), savepoint="file:/lake/savepoint-1")

    assert {"--environment_config=pool:1", "--checkpointing_interval=2000", "--savepoint_path=file:/lake/savepoint-1"} <= set(found)


def test_who_knows_better_has_the_last_word() -> None:
    found = options(doc=replace(DOC, options=("--max_bundle_size=5", "--state_backend=rocksdb")))

    assert ["--max_bundle_size=5", "--state_backend=rocksdb"] == found[-2:]


def test_a_secret_is_no_option_and_is_not_shown() -> None:
    with pytest.raises(PolicyError, match=r"EV118 flink\.options: --s3_secret_access_key is a secret") as caught:
        options(doc=replace(DOC, options=("--s3_secret_access_key=hunter2",)))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "option",
    ["--runner=DirectRunner", "--save_main_session", "--no_save_main_session", "--pickle_library=dill", "--environment_type=LOOPBACK"],
)
def test_what_would_break_a_promise_is_refused(option: str) -> None:
    with pytest.raises(PolicyError, match=r"EV103 flink\.options: --[a-z_]+ is not for a job to set"):
        options(doc=replace(DOC, options=(option,)))
