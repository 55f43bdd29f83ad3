"""From what a job says to the sink: the same rows as a folder gets, by a whole job."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from eventveil.pipeline.sinks.tables import BigQuerySink, DeltaSink, IcebergSink, table_sink
from eventveil.schemas.errors import PolicyError, SchemaError
from eventveil.schemas.job import OutputDoc
from eventveil.schemas.tables import TableAddress
from eventveil.transforms.compile import load_plan
from eventveil.transforms.plan import Plan

from .rows import PROVENANCE, SCHEMA, START, cut, published
from .test_open_tables import KINDS, Place

EXAMPLES = Path(__file__).parents[4] / "examples"
ADDRESSES = {
    "delta:///lake/orders": DeltaSink,
    "delta+s3://bucket/orders": DeltaSink,
    "iceberg:///lake/warehouse/shop.orders": IcebergSink,
    "bigquery://acme-shop/sales/orders": BigQuerySink,
}


def output(uri: str, **more: Any) -> OutputDoc:
    return OutputDoc(uri, table=TableAddress.parse(uri), **more)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return load_plan(EXAMPLES / "shipping_order" / "policy.yaml")


@pytest.mark.parametrize(("uri", "kind"), ADDRESSES.items())
def test_an_address_gives_the_sink_of_its_kind(plan: Plan, uri: str, kind: type) -> None:
    sink = table_sink(output(uri, partition_by="window"), plan, PROVENANCE, is_gathered=True)

    assert type(sink) is kind
    assert (True, True, "windows") == (sink.partition_by_window, sink.by_day, sink.layout)
    assert str(TableAddress.parse(uri)) == sink._address


def test_a_table_of_a_policy_without_windows_has_no_partitions(plan: Plan) -> None:
    with pytest.raises(SchemaError, match="EV104 shipping-order has no window to partition by"):
        table_sink(output("delta:///lake/orders", partition_by="window"), replace(plan, release_window=None), PROVENANCE, is_gathered=False)


def test_a_setting_that_loses_commits_is_refused(plan: Plan) -> None:
    with pytest.raises(PolicyError, match="EV103"):
        table_sink(output("delta+s3://b-b/o", client=(("allow_unsafe_rename", "true"),)), plan, PROVENANCE, is_gathered=False)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_policy_puts_out_can_be_stored(tmp_path: Path, kind: str, plan: Plan) -> None:
    place = Place(kind, tmp_path / "lake")
    sink = place.ready(schema=plan.output_schema)

    assert not published(sink, []).conflict
    assert plan.output_schema.names == place.table().schema.names


def test_a_store_is_written_through_the_librarys_own_way(tmp_path: Path) -> None:
    """As on S3: files go through the store of the library, whatever it is; here one of a folder."""
    sink = DeltaSink(f"file://{tmp_path}/lake", "", SCHEMA, PROVENANCE, layout="windows", partition_by_window=True)
    (tmp_path / "lake").mkdir()
    sink.prepare()

    for _ in range(2):
        assert not published(sink, cut(range(100), 1, START)).conflict
    table = DeltaTable(str(tmp_path / "lake"))
    assert list(range(100)) == sorted(table.to_pyarrow_table().column("n").to_pylist())
    assert 1 == table.version()
    assert {"window=2014-09-04T22-00-00Z"} == {path.parent.name for path in (tmp_path / "lake").rglob("part-*")}
