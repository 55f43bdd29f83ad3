"""The policies of the examples and of the bench, through the command line, from an unrelated folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
POLICIES = ["examples/shipping_order/policy.yaml", "examples/shipping_order/trusted.yaml", "examples/online_retail/marketing.yaml"]
POLICIES += ["examples/online_retail/logistics.yaml", "examples/change_data/policy.yaml", "bench/policy.yaml", "bench/policy-minutes.yaml"]


def eventveil(*arguments: str | Path, folder: Path) -> str:
    command = [sys.executable, "-c", "from eventveil.pipeline.cli.main import main; main()", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("policy", POLICIES)
def test_check_finds_nothing_wrong(policy: str, tmp_path: Path) -> None:
    assert eventveil("check", ROOT / policy, folder=tmp_path)


@pytest.fixture(scope="module")
def retail(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The online retail example after the three commands of its README."""
    folder = tmp_path_factory.mktemp("examples") / "online_retail"
    shutil.copytree(ROOT / "examples" / "online_retail", folder, ignore=shutil.ignore_patterns("out", "keyring.json", "custodian*"))
    eventveil("keys", "new", "keyring.json", folder=folder)
    eventveil("keys", "custodian", "custodian", folder=folder)
    eventveil("run", "job.yaml", folder=folder)
    return folder


class TestOnlineRetail:
    def test_both_recipients_get_files(self, retail: Path) -> None:
        assert list((retail / "out" / "marketing").rglob("*.parquet"))
        assert list((retail / "out" / "logistics").rglob("*.jsonl"))

    def test_no_order_of_the_sample_is_refused_and_none_is_lost(self, retail: Path) -> None:
        lines = [line for path in (retail / "out" / "logistics").rglob("*.jsonl") for line in path.read_bytes().splitlines()]

        assert len(lines) == len((retail / "sample.jsonl").read_bytes().splitlines())

    def test_nothing_that_names_an_order_or_a_customer_is_left(self, retail: Path) -> None:
        events = [json.loads(line) for line in (retail / "sample.jsonl").read_bytes().splitlines()]
        output = b"".join(path.read_bytes() for path in (retail / "out" / "logistics").rglob("*.jsonl"))

        assert not [event["invoice"] for event in events if f'"{event["invoice"]}"'.encode() in output]
        assert not [event["customer"] for event in events if event["customer"] and f'"{event["customer"]}"'.encode() in output]
