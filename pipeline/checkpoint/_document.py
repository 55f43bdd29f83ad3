"""Checkpoint and intent as files: a readable head, and a sealed body.

    {"format": 1, "kind": "checkpoint" | "intent", "job": ..., "keys": ..., "slice": n, "sealed": base64}

`keys` is the keyring's public fingerprint. The head is bound to the body: under a changed head it does not open. Job and keyring stand
outside, so that another job's checkpoint can be told from a damaged one.

Discloses, to whoever can read the folder: the job's name, the number of the slice and the size of the body. Positions, watermark and
identity are sealed.
"""

from __future__ import annotations

import base64
import json
import os
from typing import Any

from eventveil.pipeline.checkpoint._disk import cause, damaged, open_regular
from eventveil.pipeline.checkpoint.seal import StateSeal
from eventveil.pipeline.sinks.atomic import publish_file
from eventveil.schemas.errors import EventveilError, StorageError, remedy_for
from eventveil.transforms.keys.derive import lengths

__all__ = ["other", "read_document", "write_document"]

FORMAT = 1
_MOST_BYTES = 256 << 20
_ENTRIES = {"format", "kind", "job", "keys", "slice", "sealed"}


def other(path: str, differing: list[str]) -> EventveilError:
    """EV409, with the names of what differs: their values may be addresses or secrets."""
    told = ", ".join(differing[:8]) + (f" and {len(differing) - 8} more" if len(differing) > 8 else "")
    fact = f"belongs to another job, policy or keyring: {told} differ{'s' if len(differing) == 1 else ''}"
    return StorageError.of("EV409", fact, remedy_for("EV409"), file=path)


def write_document(path: str, kind: str, job: str, number: int, body: dict[str, Any], seal: StateSeal) -> None:
    """Replace the file at once, durably. Raises StorageError EV404."""
    head = {"format": FORMAT, "kind": kind, "job": job, "keys": seal.keys_id, "slice": number}
    content = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
    sealed = seal.seal(content, _info(head))
    text = json.dumps({**head, "sealed": base64.b64encode(sealed).decode()})
    publish_file(path, [text.encode() + b"\n"], mode=0o600)


def read_document(path: str, kind: str, job: str, seal: StateSeal) -> tuple[int, dict[str, Any]] | None:
    """The number of the slice, and the body; None where there is no such file.

    Raises:
        StorageError: EV409 it belongs to another job or keyring; EV411 it is damaged.
    """
    content = _content(path)
    if content is None:
        return None
    try:
        found = json.loads(content)
        sound = set(found) >= {"format", "kind"} and found["kind"] == kind and type(found["format"]) is int
    except (ValueError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise damaged(path, f"is no {kind}, or not a whole one")
    if found["format"] != FORMAT:
        fact = f"has format {found['format']}, and this version of eventveil knows {FORMAT}"
        raise damaged(path, fact, "use the version that wrote it")
    if set(found) != _ENTRIES or type(found["slice"]) is not int or any(type(found[name]) is not str for name in ("job", "keys", "sealed")):
        raise damaged(path, f"is no {kind}, or not a whole one")
    differing = [told for name, told, mine in (("job", "job", job), ("keys", "keyring", seal.keys_id)) if found[name] != mine]
    if differing:
        raise other(path, differing)
    try:
        head = {name: found[name] for name in ("format", "kind", "job", "keys", "slice")}
        body = json.loads(seal.open(base64.b64decode(found["sealed"], validate=True), _info(head)))
    except ValueError:
        raise damaged(path, "cannot be opened: it was changed") from None
    return found["slice"], body


def _info(head: dict[str, Any]) -> bytes:
    return lengths("eventveil checkpoint", head["format"], head["kind"], head["job"], head["keys"], head["slice"])


def _content(path: str) -> bytes | None:
    if not os.path.lexists(path):
        return None
    with os.fdopen(open_regular(path), "rb") as file:
        try:
            if os.fstat(file.fileno()).st_size > _MOST_BYTES:
                raise damaged(path, "is too large")
            return file.read()
        except OSError as error:
            raise damaged(path, f"cannot be read: {cause(error)}") from None
