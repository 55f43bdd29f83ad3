"""The change data example: its messages are what its script makes, and what its job gives tells nobody from the others."""

from __future__ import annotations

import json
import runpy
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from eventveil.pipeline.prepare import prepare
from eventveil.pipeline.runners.local import run
from eventveil.schemas.job import load_job
from eventveil.transforms.keys.custodian import new_custodian
from eventveil.transforms.keys.providers.keyring_file import new_keyring

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "change_data"
made = runpy.run_path(str(EXAMPLE / "make_messages.py"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("examples") / "change_data"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("out", "keyring.json", "custodian*"))
    new_keyring(folder / "keyring.json")
    new_custodian(folder / "custodian")
    run(prepare(load_job(folder / "job.yaml")))
    return [json.loads(line) for path in (folder / "out" / "changes").glob("*.jsonl") for line in path.read_text().splitlines()]


def test_the_messages_are_those_of_the_script() -> None:
    assert made["messages"]() == [json.loads(line) for line in (EXAMPLE / "messages.jsonl").read_text().splitlines()]


def test_with_the_wrapper_and_without_they_are_changes(rows: list[dict[str, Any]]) -> None:
    def sides(found: list[dict[str, Any]]) -> Counter[tuple[str, bool, bool]]:
        return Counter((one["op"], one["before"] is not None, one["after"] is not None) for one in found)

    assert sides(made["changes"]()) == sides(rows)
    assert {("c", False, True), ("u", True, True), ("d", True, False)} == set(sides(rows))


def test_both_sides_of_a_change_are_of_one_customer(rows: list[dict[str, Any]]) -> None:
    updates = [one for one in rows if one["op"] == "u"]

    assert all(one["before"]["id"] == one["after"]["id"] and one["before"]["email"] != one["after"]["email"] for one in updates)


def test_nobody_is_named(rows: list[dict[str, Any]]) -> None:
    text = json.dumps(rows)

    # Names of fields with their quotes: a pseudonym may hold any three letters.
    assert not any(word in text for word in ("example.com", "Customer", '"lsn"', '"txId"'))
    assert {len(side["postcode"]) for one in rows for side in (one["before"], one["after"]) if side} == {2}
