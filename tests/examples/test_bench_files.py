"""The inputs and peers of the bench: they do the work that the policy states."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro
import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, dict[str, Any]]]:
    """The bench's scripts; they import one another by bare names, as when they are run."""
    sys.path.insert(0, str(BENCH))
    try:
        yield {name: runpy.run_path(str(BENCH / f"{name}.py")) for name in ("orders", "loop", "limit")}
    finally:
        sys.path.remove(str(BENCH))
        sys.modules.pop("measure", None)


def made(scripts: dict[str, dict[str, Any]], path: Path, events: int = 3_000, **changed: Any) -> dict[str, Any]:
    settings = {"seed": 1, "emails": 200_000, "products": 10_000, "hours": 24.0, "malformed": 0.0, "shuffled": False, **changed}
    result: dict[str, Any] = scripts["orders"]["write"](path, events, **settings)
    return result


def test_orders_fit_the_schema_and_have_the_stated_size(scripts: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    counts = made(scripts, tmp_path / "orders.jsonl")
    events = [json.loads(line) for line in (tmp_path / "orders.jsonl").read_bytes().splitlines()]
    schema = fastavro.parse_schema(json.loads((BENCH / "orders.avsc").read_text("utf-8")))

    assert all(fastavro.validate(event, schema, strict=True) for event in events)
    assert 400 < counts["bytes_per_event"] < 500
    assert len({event["id"] for event in events}) == 3_000
    assert sum(len(event["products"]) for event in events) / 3_000 == pytest.approx(2.5, abs=0.1)


def test_same_arguments_same_bytes(scripts: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    for name in ("once.jsonl", "again.jsonl"):
        made(scripts, tmp_path / name, malformed=0.1, shuffled=True)

    assert (tmp_path / "once.jsonl").read_bytes() == (tmp_path / "again.jsonl").read_bytes()


def test_shuffled_times_are_the_same_times(scripts: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    made(scripts, tmp_path / "ordered.jsonl")
    made(scripts, tmp_path / "shuffled.jsonl", shuffled=True)
    ordered, shuffled = (
        [json.loads(line)["time"] for line in (tmp_path / f"{name}.jsonl").read_bytes().splitlines()] for name in ("ordered", "shuffled")
    )

    assert ordered == sorted(ordered)
    assert shuffled != ordered
    assert sorted(shuffled) == ordered


def test_the_loop_does_the_work_and_counts_what_it_refuses(scripts: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    counts = made(scripts, tmp_path / "orders.jsonl", malformed=0.05)
    results = {}
    for memo in (True, False):
        lines = scripts["loop"]["lines_of"](str(tmp_path / "orders.jsonl"))
        results[memo] = scripts["loop"]["run"](lines, tmp_path / f"{memo}.jsonl", memo)
    veiled = [json.loads(line) for line in (tmp_path / "True.jsonl").read_bytes().splitlines()]

    assert results[True] == results[False]
    assert (tmp_path / "True.jsonl").read_bytes() == (tmp_path / "False.jsonl").read_bytes()
    assert 0 < results[True]["refused"] <= counts["malformed"]
    assert len(veiled) == 3_000 - results[True]["refused"]
    assert {"date", "area", "customer", "group"} == set(veiled[0])
    assert {"ref", "delta", "price"} == set(veiled[0]["group"][0])


def test_the_limit_decodes_every_event_whatever_the_block(scripts: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    made(scripts, tmp_path / "orders.jsonl")

    counts = {size: scripts["limit"]["decode"](tmp_path / "orders.jsonl", size) for size in (700, 1 << 16, 4 << 20)}

    assert {3_000} == set(counts.values())


def test_the_limit_declares_every_leaf_of_the_schema(scripts: dict[str, dict[str, Any]]) -> None:
    schema = json.loads((BENCH / "orders.avsc").read_text("utf-8"))
    fields = {field["name"]: field["type"] for field in schema["fields"]}
    declared = scripts["limit"]["SCHEMA"]

    assert list(fields) == declared.names
    assert [field["name"] for field in fields["shipping"]["fields"]] == [field.name for field in declared.field("shipping").type]
    assert [field["name"] for field in fields["products"]["items"]["fields"]] == [
        field.name for field in declared.field("products").type.value_type
    ]
