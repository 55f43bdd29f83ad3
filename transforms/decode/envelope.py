"""What stands around an event: Kafka Connect's ``{"schema": ..., "payload": {...}}``, as Debezium writes it.

The payload is the event, cut out of the message without reading it again; messages without the wrapper are events as they are.
A wrapper in which a key stands twice, or beside others, can be read in two ways and is refused: a parser that keeps the last of two
payloads must not decide for one that keeps the first.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from eventveil.schemas.events.tree import Record
from eventveil.transforms.columns import Column, flags

__all__ = ["unwrap"]

_HEAD = re.compile(rb'[ \t\r\n]*\{[ \t\r\n]*"(schema|payload)"[ \t\r\n]*:[ \t\r\n]*')
_NEXT = re.compile(rb'[ \t\r\n]*,[ \t\r\n]*"(schema|payload)"[ \t\r\n]*:[ \t\r\n]*')
_TAIL = re.compile(rb"[ \t\r\n]*\}[ \t\r\n]*\Z")


class _Wrapper(msgspec.Struct):
    schema: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    payload: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_decode = msgspec.json.Decoder(_Wrapper).decode


def unwrap(values: Column, root: Record | None, max_bytes: int) -> tuple[Column, dict[int, str]]:
    """The events of messages, and the code by row of those that are refused, whose value is null then.

    Args:
        root: an event that has both fields itself is a wrapper only where it has no others; None: not known.
        max_bytes: larger messages stay as they are, for the decoder to refuse.
    """
    looked: Any = pc.match_substring(values, '"payload"')
    rows = np.flatnonzero(flags(looked))
    if not len(rows):
        return values, {}
    has_both = root is not None and root.field("schema") is not None and root.field("payload") is not None
    texts: list[bytes | None] = values.to_pylist()
    refused: dict[int, str] = {}
    for row in rows.tolist():
        text = texts[row]
        if text is None or len(text) > max_bytes:
            continue
        try:
            found = _payload(text, has_both)
        except _Refused as error:
            found, refused[row] = None, error.code
        texts[row] = found
    return pa.array(texts, pa.binary()), refused


class _Refused(Exception):
    def __init__(self, code: str) -> None:
        self.code = code


def _payload(text: bytes, has_both: bool) -> bytes:
    try:
        wrapper = _decode(text)
    except Exception:  # noqa: BLE001 - whatever cannot be read is no event, and what the library says of it quotes it
        # Left as it is, another parser might read what this one cannot, and find an event without any of its fields.
        raise _Refused("EV501") from None
    schema, payload = wrapper.schema, wrapper.payload
    if isinstance(schema, msgspec.UnsetType) or isinstance(payload, msgspec.UnsetType):
        return text
    parts = {b"schema": bytes(schema), b"payload": bytes(payload)}
    if not _is_whole(text, parts):
        if has_both:
            return text
        raise _Refused("EV507")
    if parts[b"payload"] == b"null":
        raise _Refused("EV517")
    if parts[b"schema"] != b"null" and parts[b"schema"][:1] != b"{":
        if has_both:
            return text
        raise _Refused("EV501")
    return parts[b"payload"]


def _is_whole(text: bytes, parts: dict[bytes, bytes]) -> bool:
    """Whether the message is the two entries, each once and as it was read, and nothing else."""
    first = _HEAD.match(text)
    if first is None or not text.startswith(parts[first[1]], first.end()):
        return False
    second = _NEXT.match(text, first.end() + len(parts[first[1]]))
    if second is None or second[1] == first[1] or not text.startswith(parts[second[1]], second.end()):
        return False
    return _TAIL.match(text, second.end() + len(parts[second[1]])) is not None
