"""Several types of event in one stream: each goes to the policies that are for it, and what nobody is for is refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eventveil.pipeline.dead_letters.open import open_letter
from eventveil.pipeline.dead_letters.store import list_letters
from eventveil.pipeline.prepare import prepare
from eventveil.pipeline.report.summary import PolicySummary, summarize
from eventveil.pipeline.runners.local import run
from eventveil.schemas.errors import EventveilError
from eventveil.schemas.job import load_job
from eventveil.transforms.keys.custodian import load_private, new_custodian
from eventveil.transforms.keys.keyring import load_keys
from eventveil.transforms.keys.providers.keyring_file import new_keyring

NAME = ["null", "string"]
SCHEMAS: dict[str, dict[str, Any]] = {
    "shipped": {
        "id": "string",
        "meta": {"type": "record", "name": "Meta1", "fields": [{"name": "type", "type": "string"}]},
        "to": "string",
    },
    "returned": {
        "id": "string",
        "meta": {"type": "record", "name": "Meta2", "fields": [{"name": "type", "type": "string"}]},
        "parcels": "int",
    },
}
RULES = {
    "shipped": {"id": "drop", "meta.type": "drop", "to": "{pseudonymize: {class: person, stable: domain}}"},
    "returned": {"id": "drop", "meta.type": "keep", "parcels": "{clamp: {max: 5}}"},
}
# What is read, and what becomes of it under which policies: both shipping policies are for one type.
ORDERS: list[tuple[dict[str, Any], str]] = [
    *(({"id": f"s{i}", "meta": {"type": "shipped"}, "to": f"p{i % 3}"}, "shipped") for i in range(40)),
    *(({"id": f"r{i}", "meta": {"type": "returned"}, "parcels": i}, "returned") for i in range(20)),
    *(({"id": f"u{i}", "meta": {"type": "paid"}}, "EV509") for i in range(3)),
]
BROKEN: list[tuple[bytes, str]] = [
    (b"{", "EV501"),
    (b'{"id": "x", "meta": {"type": "shipped"}, "to": "p1"} {"id": "y"}', "EV501"),
    (b'{"id": "x"}', "EV503"),
    (b'{"id": "x", "meta": null}', "EV503"),
    (b'{"id": "x", "meta": {"type": 7}}', "EV502"),
    (b'{"id": "x", "meta": {"type": "Shipped"}}', "EV509"),
    (b'{"id": "x", "meta": {"type": "shipped "}}', "EV509"),
]
# Of the right type, and then refused by its schema.
MALFORMED = [
    b'{"id": "m", "meta": {"type": "shipped"}}',
    b'{"id": "m", "meta": {"type": "shipped"}, "meta": {"type": "returned"}, "to": "x", "parcels": 1}',
]


@dataclass
class Done:
    """What a job has made."""

    rows: Mapping[str, list[dict[str, Any]]]
    summaries: Mapping[str, PolicySummary]
    refused: list[tuple[str, bytes]]
    folder: Path


def write_policy(folder: Path, name: str, kind: str, domain: str = "tests", field: str = "meta.type") -> None:
    fields = [{"name": one, "type": of} for one, of in SCHEMAS[kind].items()]
    (folder / f"{kind}.avsc").write_text(json.dumps({"type": "record", "name": kind.title(), "fields": fields}))
    rules = "".join(f"  {path}: {rule}\n" for path, rule in RULES[kind].items())
    head = f"policy: {name}\nversion: 1\nfor: {{recipient: tests}}\nschema: {kind}.avsc\ndomain: {domain}\n"
    (folder / f"{name}.yaml").write_text(f"{head}event: {{id: id, type: {{field: {field}, is: {kind}}}}}\nfields:\n{rules}")


def run_all(folder: Path, source: Path, policies: list[str], **more: Any) -> Done:
    new_keyring(folder / "keyring.json")
    new_custodian(folder / "custodian")
    variants = [{"policy": f"{name}.yaml", "output": {"uri": f"out/{name}", "format": "jsonl"}} for name in policies]
    document = {"job": "types", "input": {"uri": str(source)}, "variants": variants, "keys": "keyring.json"}
    document["dead_letters"] = {"uri": "refused", "custodian": "custodian.pub"}
    (folder / "job.yaml").write_text(json.dumps({**document, **more}))
    job = prepare(load_job(folder / "job.yaml"))
    described = [(variant.name, variant.plan.version, variant.plan.digest) for variant in job.variants]
    summary = summarize(job.name, 0.0, job.keys_id, described, run(job))
    files = {name: sorted((folder / "out" / name).glob("part-*.jsonl")) for name in policies}
    rows = {name: [json.loads(line) for file in found for line in file.read_bytes().splitlines()] for name, found in files.items()}
    private, key = load_private(folder / "custodian.key"), load_keys(str(folder / "keyring.json")).letters_key()
    letters = [(letter.header["code"], open_letter(letter, private, key)) for letter in list_letters(folder / "refused")]
    return Done(rows, {one.policy: one for one in summary.policies}, sorted(letters), folder)


POLICIES = ["shipping", "shipping-others", "returns"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("types")
    write_policy(path, "shipping", "shipped")
    write_policy(path, "shipping-others", "shipped", domain="others")
    write_policy(path, "returns", "returned")
    return path


@pytest.fixture(scope="module")
def done(folder: Path) -> Done:
    lines = [*(json.dumps(order).encode() for order, _ in ORDERS), *(value for value, _ in BROKEN), *MALFORMED]
    # Types in turn, so that every batch holds each of them.
    mixed = [lines[i * 31 % len(lines)] for i in range(len(lines))]
    (folder / "in.jsonl").write_bytes(b"".join(line + b"\n" for line in mixed))
    return run_all(folder, folder / "in.jsonl", POLICIES, batch_bytes=500, part_bytes=2_000)


class TestJson:
    def test_every_event_goes_to_the_policies_that_are_for_it(self, done: Done) -> None:
        assert [{"meta", "parcels"}] * 20 == [set(row) for row in done.rows["returns"]]
        assert sorted(min(i, 5) for i in range(20)) == sorted(row["parcels"] for row in done.rows["returns"])
        for name in ("shipping", "shipping-others"):
            assert sorted(Counter(p % 3 for p in range(40)).values()) == sorted(Counter(row["to"] for row in done.rows[name]).values())
        assert not {row["to"] for row in done.rows["shipping"]} & {row["to"] for row in done.rows["shipping-others"]}

    def test_what_nobody_is_for_is_refused_once_and_opens(self, done: Done) -> None:
        strange = [("EV509", json.dumps(order).encode()) for order, code in ORDERS if code == "EV509"]
        broken = [(code, value) for value, code in BROKEN]
        malformed = [("EV503", MALFORMED[0]), ("EV507", MALFORMED[1])]

        assert sorted((code, value + b"\n") for code, value in strange + broken + malformed) == done.refused

    def test_counts_add_up_for_each_policy(self, done: Done) -> None:
        sizes = {name: (one.into, one.out, one.filtered, one.refused_total) for name, one in done.summaries.items()}

        # Nobody knows whose an event of no known type is: each policy counts it.
        unknown = 3 + len(BROKEN)
        assert all(one.balanced for one in done.summaries.values())
        assert {"shipping": 41 + unknown, "shipping-others": 41 + unknown, "returns": 21 + unknown} == {
            name: into for name, (into, *_) in sizes.items()
        }
        assert {"shipping": 40, "shipping-others": 40, "returns": 20} == {name: out for name, (_, out, *_) in sizes.items()}

    def test_a_part_without_an_event_of_a_type_leaves_no_file(self, done: Done) -> None:
        sizes = [file.stat().st_size for file in done.folder.glob("out/*/part-*")]

        assert min(sizes) > 0


def table() -> pa.Table:
    """All types in one file: the columns of all, null where an event has none."""
    kinds = [order["meta"]["type"] for order, _ in ORDERS]
    meta = pa.StructArray.from_arrays([pa.array(kinds).dictionary_encode().cast(pa.string())], ["type"])
    columns = {name: [order.get(name) for order, _ in ORDERS] for name in ("id", "to", "parcels")}
    return pa.table({**columns, "meta": meta}).cast(
        pa.schema([("id", pa.string()), ("to", pa.string()), ("parcels", pa.int32()), ("meta", meta.type)])
    )


class TestColumns:
    def test_parquet(self, folder: Path, tmp_path: Path, done: Done) -> None:
        for file in folder.glob("*.[ay][va][sm]*"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
        pq.write_table(table(), tmp_path / "in.parquet", row_group_size=10)

        columns = run_all(tmp_path, tmp_path / "in.parquet", POLICIES)

        assert [("EV509", order["id"]) for order, code in ORDERS if code == "EV509"] == sorted(
            (code, json.loads(value)["id"]) for code, value in columns.refused
        )
        assert (40, 40, 20) == tuple(len(columns.rows[name]) for name in POLICIES)
        assert sorted(map(str, done.rows["returns"])) == sorted(map(str, columns.rows["returns"]))
        assert all(one.balanced for one in columns.summaries.values())

    def test_avro(self, folder: Path, tmp_path: Path, done: Done) -> None:
        write_policy(tmp_path, "shipping", "shipped")
        write_policy(tmp_path, "returns", "returned")
        meta = SCHEMAS["shipped"]["meta"]
        fields = [{"name": "id", "type": "string"}, {"name": "meta", "type": meta}, {"name": "to", "type": NAME}]
        schema = {"type": "record", "name": "Any", "fields": [*fields, {"name": "parcels", "type": ["null", "int"]}]}
        with (tmp_path / "in.avro").open("wb") as file:
            fastavro.writer(file, fastavro.parse_schema(schema), [order for order, _ in ORDERS])

        found = run_all(tmp_path, tmp_path / "in.avro", ["shipping", "returns"])

        assert (40, 20) == (len(found.rows["shipping"]), len(found.rows["returns"]))
        assert sorted(map(str, done.rows["returns"])) == sorted(map(str, found.rows["returns"]))
        assert ["EV509"] * 3 == [code for code, _ in found.refused]
        assert all(one.balanced for one in found.summaries.values())

    def test_a_file_without_the_column_of_the_type_stops_the_job(self, tmp_path: Path) -> None:
        write_policy(tmp_path, "returns", "returned")
        pq.write_table(table().drop_columns(["meta"]), tmp_path / "in.parquet")

        with pytest.raises(EventveilError, match="EV407 column meta is missing"):
            run_all(tmp_path, tmp_path / "in.parquet", ["returns"])


class TestPolicies:
    def test_all_name_one_field(self, tmp_path: Path) -> None:
        write_policy(tmp_path, "shipping", "shipped")
        write_policy(tmp_path, "returns", "returned", field="id")
        (tmp_path / "in.jsonl").write_bytes(b"")

        with pytest.raises(EventveilError, match="EV220"):
            run_all(tmp_path, tmp_path / "in.jsonl", ["shipping", "returns"])

    def test_the_field_holds_text(self, tmp_path: Path) -> None:
        write_policy(tmp_path, "returns", "returned", field="parcels")
        (tmp_path / "in.jsonl").write_bytes(b"")

        with pytest.raises(EventveilError, match=r"EV103 event\.type: parcels is int32, not text"):
            run_all(tmp_path, tmp_path / "in.jsonl", ["returns"])

    def test_names_of_stages_are_free(self, tmp_path: Path) -> None:
        # A policy may be called what a part of the job is called.
        for name in ("decoding", "types"):
            write_policy(tmp_path, name, "returned", domain=name)
        (tmp_path / "in.jsonl").write_bytes(b"".join(json.dumps(order).encode() + b"\n" for order, _ in ORDERS))

        found = run_all(tmp_path, tmp_path / "in.jsonl", ["decoding", "types"])

        assert (20, 20) == (len(found.rows["decoding"]), len(found.rows["types"]))
        assert 43 == len(found.refused)
