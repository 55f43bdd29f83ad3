"""A table's own description in BigQuery: made, read and changed by the REST API. Its rows go another way."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

__all__ = ["TableResource", "fields_of", "schema_of"]

_NAMES: dict[pa.DataType, str] = {
    pa.bool_(): "BOOLEAN",
    pa.int64(): "INTEGER",
    pa.float64(): "FLOAT",
    pa.decimal128(38, 9): "NUMERIC",
    pa.string(): "STRING",
    pa.binary(): "BYTES",
    pa.date32(): "DATE",
    pa.time64("us"): "TIME",
    pa.timestamp("us"): "DATETIME",
    pa.timestamp("us", "UTC"): "TIMESTAMP",
}
_TYPES: dict[str, pa.DataType] = {name: kind for kind, name in _NAMES.items()} | {
    "BOOL": pa.bool_(),
    "INT64": pa.int64(),
    "FLOAT64": pa.float64(),
}


class TableResource:
    """One table, by the REST API. Raises what `google.api_core.exceptions` has for the answer's status, without its words.

    Args:
        path: ``projects/P/datasets/D/tables/T``. root: of the server.
        credentials: None for a server that wants none.
        seconds: that a request may take.
    """

    def __init__(self, path: str, root: str, credentials: Any, seconds: float) -> None:
        self._tables, _, self._table = f"{root.rstrip('/')}/bigquery/v2/{path}".rpartition("/")
        _, self._project, _, self._dataset, *_ = path.split("/")
        self._seconds = seconds
        if credentials is None:
            from requests import Session

            self._session = Session()
        else:
            from google.auth.transport.requests import AuthorizedSession

            self._session = AuthorizedSession(credentials)  # type: ignore[no-untyped-call]

    def get(self) -> Mapping[str, Any] | None:
        """The table as it is described; None where there is none."""
        return self._ask("GET", f"/{self._table}", None, {}, without=404)

    def create(self, fields: list[dict[str, Any]], entries: Mapping[str, str], more: Mapping[str, Any]) -> bool:
        """Make it; False where it is there."""
        reference = {"projectId": self._project, "datasetId": self._dataset, "tableId": self._table}
        body = {"tableReference": reference, "schema": {"fields": fields}, "description": _text(entries), **more}
        return self._ask("POST", "", body, {}, without=409) is not None

    def patch(self, entries: Mapping[str, str], more: Mapping[str, Any], etag: str) -> Mapping[str, Any] | None:
        """Change it, if it is still as it was; None where it is not."""
        body = {"description": _text(entries), **more}
        return self._ask("PATCH", f"/{self._table}", body, {"If-Match": etag}, without=412)

    def entries(self, resource: Mapping[str, Any]) -> dict[str, str]:
        """What is kept in its description; empty where that is somebody else's."""
        try:
            found = json.loads(resource.get("description", ""))
        except ValueError:
            return {}
        return {name: text for name, text in found.items() if isinstance(text, str)} if isinstance(found, dict) else {}

    def close(self) -> None:
        self._session.close()

    def _ask(self, method: str, path: str, body: Any, headers: Mapping[str, str], without: int) -> Mapping[str, Any] | None:
        from google.api_core.exceptions import from_http_status

        answer = self._session.request(method, f"{self._tables}{path}", json=body, headers=dict(headers), timeout=self._seconds)
        if answer.status_code == without:
            return None
        if not answer.ok:
            raise from_http_status(answer.status_code, "")  # type: ignore[no-untyped-call]
        found: Mapping[str, Any] = answer.json()
        return found


def fields_of(schema: Iterable[Any]) -> list[dict[str, Any]]:
    """Columns as the API describes them."""
    return [_described(field.name, field.type) for field in schema]


def schema_of(resource: Mapping[str, Any]) -> pa.Schema:
    """Columns of a table that the API describes; a type that we never store is one of BigQuery's extension, and equal to none of ours."""
    return pa.schema([_field(one) for one in resource.get("schema", {}).get("fields", [])])


def _described(name: str, kind: Any) -> dict[str, Any]:
    if pa.types.is_list(kind):
        return {**_described(name, kind.value_type), "mode": "REPEATED"}
    if pa.types.is_struct(kind):
        return {"name": name, "type": "RECORD", "mode": "NULLABLE", "fields": fields_of(kind)}
    return {"name": name, "type": _NAMES[kind], "mode": "NULLABLE"}


def _field(described: Mapping[str, Any]) -> pa.Field[Any]:
    name, of = described["name"], described["type"]
    kind: Any
    if of in ("RECORD", "STRUCT"):
        kind = pa.struct([_field(one) for one in described.get("fields", [])])
    else:
        # Geographies, ranges and the like: no column of ours is of this type.
        kind = _TYPES.get(of, pa.month_day_nano_interval())
    found: pa.Field[Any] = pa.field(name, pa.list_(pa.field("element", kind)) if described.get("mode") == "REPEATED" else kind)
    return found


def _text(entries: Mapping[str, str]) -> str:
    return json.dumps(dict(entries), sort_keys=True, ensure_ascii=False)
