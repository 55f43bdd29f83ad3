"""What a job publishes is the same whoever runs it: over files, in slices over a topic, and on Flink. All events are of the past."""

from __future__ import annotations

import csv
import json
import os
import runpy
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import fastavro
import pyarrow.parquet as pq
import pytest

from eventveil.pipeline.runners._flink_rest import ENDED, FlinkRest

deltalake = pytest.importorskip("deltalake")

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"
SHIPPING, RETAIL = EXAMPLES / "shipping_order", EXAMPLES / "online_retail"
PARTITIONS = 4

_DESK = runpy.run_path(str(HERE / "live_desk.py"))
eventually, files_of = _DESK["eventually"], _DESK["files_of"]
_invoices = runpy.run_path(str(RETAIL / "make_orders.py"))
_orders = runpy.run_path(str(SHIPPING / "produce.py"))["orders"]

Event = dict[str, Any]


def shipping_orders() -> list[bytes]:
    """Some days of orders; some cannot be decoded, and some are refused by one policy alone."""
    found = [json.dumps(one, ensure_ascii=False).encode() for one in _orders(7, 4_000, datetime(2014, 9, 4, tzinfo=timezone.utc), 0.01, 60)]
    found[100::500] = [value[:-9] for value in found[100::500]]
    found[50::400] = [json.dumps({**json.loads(value), "status": "lost"}).encode() for value in found[50::400]]
    return found


def invoices() -> list[bytes]:
    """Real ones where there are some."""
    if "EVENTVEIL_DATA" not in os.environ:
        return (RETAIL / "sample.jsonl").read_bytes().splitlines()
    with _invoices["open_text"](Path(os.environ["EVENTVEIL_DATA"], "online_retail", "2010-12_to_2011-06.csv.gz")) as file:
        found = [json.dumps(one, ensure_ascii=False).encode() for one in _invoices["invoices"](csv.DictReader(file))]
    return found[:400]


def records(place: Path, kind: str) -> Counter[str]:
    """The records that stand in an output, each as often as it does."""
    found: list[Event] = []
    if kind == "delta":
        if (place / "_delta_log").exists():
            found = deltalake.DeltaTable(str(place)).to_pyarrow_table().to_pylist()
    else:
        for path in files_of(place) if place.exists() else ():
            if kind == "parquet":
                found += pq.read_table(path).to_pylist()
            elif kind == "avro":
                with path.open("rb") as file:
                    found += [dict(one) for one in fastavro.reader(file) if isinstance(one, dict)]
            else:
                found += [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return Counter(json.dumps(one, sort_keys=True, default=str) for one in found)


class Runs:
    """The same variants under the same keyring, run in several ways."""

    def __init__(self, desk: Any, flink: Any, policies: Sequence[tuple[Path, str]]) -> None:
        self.desk = desk
        self.flink = flink
        self.rest = FlinkRest(flink.address)
        self._policies = policies

    def records(self, name: str) -> dict[str, Counter[str]]:
        return {variant: records(self._place(name, variant), kind) for variant, kind, _ in self._variants()}

    def letters(self, name: str) -> Counter[tuple[str, bytes]]:
        # An event from a file comes with the end of its line.
        return Counter((header["code"], event.rstrip(b"\n")) for header, event in self.desk.letters(name))

    def files(self, name: str, source: Path, **entries: Any) -> None:
        """A job that ends by itself."""
        (self.desk.folder / name).mkdir()
        document = {
            "job": name,
            "input": {"uri": str(source)},
            "variants": self._documents(name),
            "keys": str(self.desk.keyring),
            "dead_letters": {"uri": str(self.desk.folder / name / "refused"), "custodian": str(self.desk.folder / "custodian.pub")},
            **entries,
        }
        path = self.desk.folder / f"{name}.yaml"
        path.write_text(json.dumps(document))
        run = self.desk.start(path)
        assert 0 == run.wait(240), run.log.read_text("utf-8")[-3000:]

    def topic(self, name: str, topic: str, expected: dict[str, Counter[str]], roll: str, **entries: Any) -> None:
        """A job on a stream, until as much is published as is expected; it is told to stop then."""
        path = self.desk.write_job(name, f"kafka://{self.desk.kafka}/{topic}", self._documents(name), idle_after="3s", roll=roll, **entries)
        run = self.desk.start(path)
        wanted = {variant: found.total() for variant, found in expected.items()}

        def is_there() -> bool:
            assert run.process.poll() is None, run.log.read_text("utf-8")[-3000:]
            time.sleep(1)  # it reads all that there is
            return all(wanted[variant] <= found.total() for variant, found in self.records(name).items())

        eventually(is_there, 400)
        assert 0 == run.drain(120), run.log.read_text("utf-8")[-3000:]

    def on_flink(self) -> dict[str, Any]:
        where = {"master": self.flink.address, "worker_pool": self.flink.pool, "job_server": str(self.flink.jars), "checkpointing": "2s"}
        return {"runner": "flink", "workers": 2, "flink": where}

    def close(self) -> None:
        for job in self.rest.jobs():
            if job.state not in ENDED:
                self.rest.cancel(job.id)

    def _variants(self) -> Iterator[tuple[str, str, Path]]:
        return ((f"{path.stem}-{kind}", kind, path) for path, kind in self._policies)

    def _place(self, name: str, variant: str) -> Path:
        place: Path = self.desk.folder / name / variant
        return place

    def _documents(self, name: str) -> list[Event]:
        found = []
        for variant, kind, policy in self._variants():
            place = self._place(name, variant)
            output = {"uri": f"delta://{place}"} if kind == "delta" else {"uri": str(place), "format": kind}
            found.append({"name": variant, "policy": str(policy), "output": output})
        return found


@pytest.fixture
def runs(desk: Any, flink: Any) -> Iterator[Callable[..., Runs]]:
    made: list[Runs] = []

    def make(*policies: tuple[Path, str]) -> Runs:
        made.append(Runs(desk, flink, policies))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_shipping_orders_over_files_in_slices_and_on_flink(runs: Callable[..., Runs], new_topic: Callable[[int], str]) -> None:
    values, trusted, research = shipping_orders(), SHIPPING / "trusted.yaml", SHIPPING / "policy.yaml"
    job = runs((trusted, "parquet"), (trusted, "avro"), (trusted, "delta"), (research, "jsonl"), (research, "parquet"))
    _same_everywhere(
        job, new_topic(PARTITIONS), values, json.dumps({**json.loads(values[0]), "time": "2014-12-01T00:00:00"}).encode(), "12h"
    )
    letters = job.letters("files")
    assert {"EV501": 8, "EV520": 10} == {code: len({event for (each, event) in letters if each == code}) for code in ("EV501", "EV520")}
    # Messages may come twice, and be refused twice.
    assert letters.keys() == job.letters("slices").keys() == job.letters("flink").keys()


def test_invoices_over_files_in_slices_and_on_flink(runs: Callable[..., Runs], new_topic: Callable[[int], str]) -> None:
    values, marketing, logistics = invoices(), RETAIL / "marketing.yaml", RETAIL / "logistics.yaml"
    job = runs((marketing, "parquet"), (marketing, "delta"), (logistics, "jsonl"), (logistics, "avro"))
    _same_everywhere(
        job, new_topic(PARTITIONS), values, json.dumps({**json.loads(values[0]), "time": "2011-12-01T00:00:00"}).encode(), "15min"
    )
    assert not job.letters("flink")


def _same_everywhere(job: Runs, topic: str, values: Sequence[bytes], closing: bytes, roll: str) -> None:
    """`closing`: an event that comes last in each partition; its own window stays open."""
    source = job.desk.folder / "events.jsonl"
    source.write_bytes(b"".join(value + b"\n" for value in values))
    for partition in range(PARTITIONS):
        job.desk.produce(topic, [*values[partition::PARTITIONS], closing], partition=partition)
    job.files("files", source)
    expected = job.records("files")
    assert all(len(values) * 0.95 <= found.total() <= len(values) for found in expected.values())

    job.topic("slices", topic, expected, roll, slice="1s")
    job.topic("flink", topic, expected, roll, **job.on_flink())

    for name in ("slices", "flink"):
        for variant, found in job.records(name).items():
            assert (name, variant, Counter(), Counter()) == (name, variant, expected[variant] - found, found - expected[variant])


def test_a_job_over_files_ends_on_flink_as_it_does_here(runs: Callable[..., Runs]) -> None:
    job = runs((SHIPPING / "trusted.yaml", "parquet"), (SHIPPING / "policy.yaml", "parquet"))
    values, source = shipping_orders(), job.desk.folder / "events"
    source.mkdir()
    for number in range(3):
        (source / f"{number}.jsonl").write_bytes(b"".join(value + b"\n" for value in values[number::3]))
    pattern = source / "*.jsonl"

    job.files("files", pattern)
    job.files("flink", pattern, **job.on_flink())

    assert job.records("files") == job.records("flink")
    assert min(found.total() for found in job.records("flink").values()) > 3_900
    assert job.letters("files") == job.letters("flink")
