"""Addresses of tables.

delta:///lake/orders                        a Delta table in a folder; delta+s3://bucket/orders and delta+gs://bucket/orders elsewhere
iceberg:///lake/warehouse/shop.orders       an Iceberg table, by its namespace and name, in a warehouse
bigquery://project/dataset/table
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast

__all__ = ["TABLE_SCHEMES", "TableAddress", "is_table"]

Kind = Literal["delta", "iceberg", "bigquery"]

_KINDS = ("delta", "iceberg", "bigquery")
_STORES = ("s3", "gs")
TABLE_SCHEMES = frozenset({*_KINDS, *(f"{kind}+{store}" for kind in ("delta", "iceberg") for store in _STORES)})

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9.-]*)(?:\+([A-Za-z0-9.-]+))?://")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9](?:/[^/\x00-\x1f?#]+)*\Z")
_TABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}(?:\.[A-Za-z_][A-Za-z0-9_]{0,127})+\Z")
_BIGQUERY = re.compile(r"([a-z][a-z0-9.:-]{4,61}[a-z0-9])/([A-Za-z0-9_]{1,1024})/([A-Za-z0-9_]{1,1024})\Z")
_EXAMPLES = {
    "delta": "delta:///folder, delta+s3://bucket/folder or delta+gs://bucket/folder",
    "iceberg": "iceberg:///warehouse/namespace.table, or iceberg+s3://bucket/warehouse/namespace.table",
    "bigquery": "bigquery://project/dataset/table",
}


def is_table(uri: str) -> bool:
    """Whether a table is addressed, well or badly."""
    scheme = _SCHEME.match(uri)
    return scheme is not None and scheme[1] in _KINDS


@dataclass(frozen=True)
class TableAddress:
    """Where a table is.

    Attributes:
        place: of Delta the table's folder, of Iceberg the warehouse, a path or ``s3://bucket/...``; of BigQuery ``project/dataset``.
        table: of Iceberg ``namespace.name``, of BigQuery the name; of Delta empty.
    """

    kind: Kind
    place: str
    table: str = ""

    @classmethod
    def parse(cls, text: str) -> TableAddress:
        """Raises ValueError (EV103) where it is none."""
        scheme = _SCHEME.match(text)
        kind, store = ("", None) if scheme is None else (scheme[1], scheme[2])
        rest = text.partition("://")[2]
        wrong = ValueError(f"EV103 not an address of a table: write {_EXAMPLES.get(kind, _EXAMPLES['delta'])}")
        if kind == "bigquery" and store is None:
            found = _BIGQUERY.match(rest)
            if found is None:
                raise wrong
            return cls("bigquery", f"{found[1]}/{found[2]}", found[3])
        if kind not in ("delta", "iceberg") or store not in (None, *_STORES):
            raise wrong
        place, table = rest.rstrip("/"), ""
        if kind == "iceberg":
            place, _, table = place.rpartition("/")
            if _TABLE.match(table) is None:
                raise wrong
        if not (place.startswith("/") and len(place) > 1 and "\0" not in place if store is None else _BUCKET.match(place)):
            raise wrong
        return cls(cast(Kind, kind), place if store is None else f"{store}://{place}", table)

    @property
    def is_local(self) -> bool:
        """Whether it lies in a folder of this machine, or of one that all workers see."""
        return self.place.startswith("/")

    def __str__(self) -> str:
        store, _, bucket = self.place.rpartition("://")
        if self.kind == "bigquery":
            return f"bigquery://{self.place}/{self.table}"
        return f"{self.kind}{'+' if store else ''}{store}://{bucket}{'/' if self.table else ''}{self.table}"
