"""What every message says beside its row: under which keyed id it goes, in which window, and what made it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from eventveil.schemas.errors import PolicyError, Problem, did_you_mean
from eventveil.schemas.events.paths import EACH, parse_path
from eventveil.transforms.encode.json_events import encode_json
from eventveil.transforms.keys.derive import DomainKeys, KeyProvider
from eventveil.transforms.keys.prf import base32, macs
from eventveil.transforms.plan import Plan
from eventveil.transforms.windows import WindowRule

__all__ = ["RECORD_ID", "Entries", "Int64s", "Names", "RecordIds", "bytes_of", "column_of", "key_field", "texts_of"]

RECORD_ID = "eventveil-record-id"

Names = tuple[str, ...]
Entries: TypeAlias = "list[tuple[str, bytes]]"
Int64s = npt.NDArray[np.int64]

_pc: Any = pc  # the stubs know no fields of structs
_WINDOWS_KEPT = 4096


class RecordIds(KeyProvider):
    """The ids of one policy's rows, and the entries around them. Refuses to be pickled.

    The record id is the keyed BLAKE2b of the event's release id, 128 bits in lower-case base32, under a sub-key of the key window, or of
    the domain where rows have no window.

    Args:
        keys: of the policy's domain. rule: the windows that keys live for; None: record ids are the domain's.
        provenance: as of files.
    """

    def __init__(self, keys: DomainKeys, rule: WindowRule | None, provenance: Mapping[str, str]) -> None:
        self._keys = keys
        self._rule = rule
        entries = [(f"eventveil-{'format' if name == 'eventveil' else name}", text.encode()) for name, text in provenance.items()]
        self._provenance = sorted(entries)
        self._window_keys: dict[int, bytes] = {}

    def of(self, order: pa.Array[Any], starts: Int64s | None) -> pa.Array[Any]:
        """The ids of rows with these release ids, in windows that begin then."""
        rule = self._rule
        if starts is None or rule is None:
            keys, codes = [self._keys.for_domain("record")], None
        else:
            distinct, codes = np.unique(starts, return_inverse=True)
            first = rule.bounds(rule.index(distinct))[0]
            keys = [self._window_key(start, rule) for start in first.tolist()]
        return base32(macs("blake2b", keys, codes, order.cast(pa.binary()), 16))

    def entries(self, record_id: bytes, window: int | None = None) -> Entries:
        """The record id first, then what made the row, then the start of its window, microseconds since 1970, if it has one."""
        found = [(RECORD_ID, record_id), *self._provenance]
        if window is not None:
            found.append(("eventveil-window", f"{np.datetime64(window // 1_000_000, 's')}Z".encode()))
        return found

    def _window_key(self, start: int, rule: WindowRule) -> bytes:
        key = self._window_keys.get(start)
        if key is None:
            if len(self._window_keys) >= _WINDOWS_KEPT:
                self._window_keys.clear()
            key = self._window_keys[start] = self._keys.for_window(start, str(rule.duration), rule.zone, "record")
        return key


def column_of(batch: pa.RecordBatch, names: Names) -> Any:
    """The column of a field, which may lie in structs."""
    column: Any = batch.column(names[0])
    for name in names[1:]:
        column = _pc.struct_field(column, name)
    return column


def bytes_of(texts: Any) -> list[Any]:
    found: list[Any] = texts.cast(pa.binary()).to_pylist()
    return found


def texts_of(column: pa.Array[Any]) -> list[Any]:
    """Values as keys: text and bytes as they are, everything else as JSON writes it, without quotes; None for null."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return texts_of(column.dictionary_decode())  # type: ignore[attr-defined]
    if pa.types.is_fixed_size_binary(kind) or pa.types.is_binary(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return bytes_of(column)
    valid = column.is_valid().to_pylist()
    lines = bytes_of(encode_json(pa.RecordBatch.from_arrays([column], ["k"])))
    return [line[5:-2].strip(b'"') if there else None for line, there in zip(lines, valid)]


def key_field(plan: Plan, key: str) -> Names:
    """Where the output field that is a message's key stands. Raises PolicyError EV103 where the policy has no such field."""
    found = parse_path(key)
    if found is None or str(found) not in {one.name for one in plan.fields} or EACH in found.steps:
        known = sorted(one.name for one in plan.fields if EACH not in one.name)
        raise PolicyError(Problem("", 0, "EV103", f"'{key}' is no field of the output of {plan.name}", did_you_mean(key, known)))
    return found.steps
