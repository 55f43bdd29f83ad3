"""Columns of raw batches out of messages of Kafka: one call per message and column, the rest over whole columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import confluent_kafka as ck
import numpy as np
import pyarrow as pa

from eventveil.transforms.columns import Column

__all__ = ["columns_of", "columns_told"]

Headers: TypeAlias = "list[tuple[str, bytes | None]] | None"

_pa: Any = pa  # the stubs know no column of offsets but its class
_INSTANT = pa.timestamp("us", "UTC")


class _Source(NamedTuple):
    """Where a column comes from: what is asked of a message, and how the answers become a column."""

    of: Callable[[Any], Any]
    column: Callable[[Sequence[Any]], Column]


def _headers_of(message: ck.Message) -> Headers:
    """All headers, in their order. None where the name of one is not UTF-8: nothing can be said of any of them then."""
    try:
        return message.headers() or []  # type: ignore[return-value]
    except (SystemError, ValueError):
        # The client reports a name that it cannot decode in a way that Python calls a defect.
        return None


def _headers(told: Sequence[Headers]) -> Column:
    flat = [header for headers in told for header in headers or ()]
    names: Column = pa.array([name for name, _ in flat], pa.string())
    values: Column = pa.array([value for _, value in flat], pa.binary())
    offsets = np.zeros(len(told) + 1, np.int32)
    np.cumsum([len(headers or ()) for headers in told], out=offsets[1:])
    unreadable: Any = pa.array([headers is None for headers in told])
    entries: Column = pa.StructArray.from_arrays([names, values], ["name", "value"])
    found: Column = _pa.ListArray.from_arrays(pa.array(offsets), entries, mask=unreadable)
    return found


def _times(told: Sequence[tuple[int, int]], kinds: tuple[int, ...]) -> Column:
    """Instants of messages; null where the timestamp is of another kind."""
    if not {kind for kind, _ in told}.intersection(kinds):
        return pa.nulls(len(told), _INSTANT)
    found = np.array(told, np.int64).reshape(-1, 2)
    return pa.array(found[:, 1] * 1000, pa.int64(), mask=~np.isin(found[:, 0], kinds)).cast(_INSTANT)


def _time(told: Sequence[tuple[int, int]]) -> Column:
    return _times(told, (ck.TIMESTAMP_CREATE_TIME, ck.TIMESTAMP_LOG_APPEND_TIME))


def _appended(told: Sequence[tuple[int, int]]) -> Column:
    # What a producer says of the time proves nothing: only the broker's own clock counts.
    return _times(told, (ck.TIMESTAMP_LOG_APPEND_TIME,))


_COLUMNS = {
    "value": _Source(ck.Message.value, lambda told: pa.array(told, pa.binary())),
    "position": _Source(ck.Message.offset, lambda told: pa.array(told, pa.int64())),
    "key": _Source(ck.Message.key, lambda told: pa.array(told, pa.binary())),
    "headers": _Source(_headers_of, _headers),
    "topic": _Source(ck.Message.topic, lambda told: pa.array(told, pa.string())),
    "time": _Source(ck.Message.timestamp, _time),
    "appended": _Source(ck.Message.timestamp, _appended),
}


def columns_of(messages: list[ck.Message], names: Sequence[str]) -> pa.RecordBatch:
    """Messages, none of them an error, as the raw columns of these names."""
    return columns_told({name: list(map(_COLUMNS[name].of, messages)) for name in names})


def columns_told(told: Mapping[str, Sequence[Any]]) -> pa.RecordBatch:
    """The raw columns of what messages say, by name; `time` and `appended` as pairs of the client's kind of timestamp and milliseconds."""
    return pa.RecordBatch.from_arrays([_COLUMNS[name].column(answers) for name, answers in told.items()], list(told))
