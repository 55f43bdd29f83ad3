"""Tables as sinks: Delta, Iceberg, BigQuery. Their libraries are extras, and are imported where a table is opened."""

from __future__ import annotations

from collections.abc import Mapping

from eventveil.pipeline.sinks.tables._sink import TableSink
from eventveil.pipeline.sinks.tables.bigquery import BigQuerySink
from eventveil.pipeline.sinks.tables.delta import DeltaSink
from eventveil.pipeline.sinks.tables.iceberg import IcebergSink
from eventveil.schemas.errors import Problem, SchemaError
from eventveil.schemas.job import OutputDoc
from eventveil.transforms.plan import Plan

__all__ = ["BigQuerySink", "DeltaSink", "IcebergSink", "TableSink", "table_sink"]

_SINKS: dict[str, type[TableSink]] = {"delta": DeltaSink, "iceberg": IcebergSink, "bigquery": BigQuerySink}


def table_sink(output: OutputDoc, plan: Plan, provenance: Mapping[str, str], *, is_gathered: bool) -> TableSink:
    """The sink that a job names for a policy.

    Args:
        output: its `table`, `client`, `partition_by` and `evolve`.
        is_gathered: whether rows wait for their window, or roll, and are published by it; otherwise parts of bounded input are.

    Raises:
        SchemaError: EV104 the policy has no window to partition by; EV206, EV219 columns that the table cannot have.
        PolicyError: EV103 settings that it cannot have.
    """
    address = output.table
    assert address is not None, "files and topics have sinks of their own"
    by_window, window = output.partition_by == "window", plan.release_window
    if by_window and window is None:
        raise SchemaError(Problem("", 0, "EV104", f"{plan.name} has no window to partition by", "name event.time and window in the policy"))
    return _SINKS[address.kind](
        place=address.place,
        table=address.table,
        schema=plan.output_schema,
        provenance=dict(provenance),
        settings=output.client,
        partition_by_window=by_window,
        order="keep" if plan.keep_order else "keyed",
        zone=window.zone if window is not None else "UTC",
        by_day=window is not None and window.duration.unit not in ("s", "min", "h"),
        layout="windows" if is_gathered else "parts",
        evolve=output.evolve,
    )
