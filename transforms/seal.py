"""Refused events as sealed letters: a readable header, the event sealed to the custodian, and a mark that we wrote it.

The event is sealed by HPKE (RFC 9180: X25519, HKDF-SHA256, AES-128-GCM) with the header as `info`: under a header that was changed
nothing opens. HPKE does not say who sealed, so each letter carries an HMAC-SHA256 over header and sealed bytes, under the keyring's
key for letters.

Discloses, to whoever can read the letters: why, where in the policy and the event schema, from which file and place, in which window,
and the size of the event up to the next power of two (what is sealed is padded). Never a value of the event.
"""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import pyarrow as pa
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from eventveil.transforms.batch import LETTERS
from eventveil.transforms.keys.custodian import CustodianKey
from eventveil.transforms.keys.keyring import load_keys

__all__ = ["LETTER_VERSION", "Sealer", "Sealing", "canonical_header", "letter_mac", "unseal"]

LETTER_VERSION = 1

_SUITE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_128_GCM)
_LABEL = b"eventveil dead letter\x00"
_LEAST = 256
_LENGTH = 4
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class Sealing:
    """How a job seals: may be pickled, for it holds the name of the keyring and a public key only.

    Args:
        keys: the keyring, as `load_keys` takes it.
        custodian: whom to seal to; None: refused events are lost.
    """

    keys: str
    custodian: CustodianKey | None

    def sealer(self) -> Sealer:
        """Load the key that authenticates letters; where the letters are made. Raises KeyringError."""
        return Sealer(load_keys(self.keys).letters_key(), self.custodian)


class Sealer:
    """Seals refused events. Refuses to be pickled.

    Args:
        letters_key: of the keyring. custodian: as for `Sealing`.
    """

    def __init__(self, letters_key: bytes, custodian: CustodianKey | None) -> None:
        self._letters_key = letters_key
        self._id = None if custodian is None else custodian.id
        self._public = None if custodian is None else custodian.public_key()

    def __repr__(self) -> str:
        return "Sealer(...)"

    def __reduce__(self) -> Any:
        raise TypeError("keys are never pickled: make the sealer where it is used")

    def seal(self, refused: pa.RecordBatch, *, origin: str, policy: str, digest: str) -> pa.RecordBatch:
        """A refused batch -> letters, row by row: one line of JSON each, null where there is nobody to seal to.

        The header of a letter says `code`, `path` (leaf of the event schema), `rule` (place in the policy), `origin` and `position`
        (where it was read), `window` (its start, ISO 8601, or null), `policy` (its name), `digest` (of policy and schema),
        `custodian` (id of the key) and `format`.
        """
        letters: list[bytes | None] = [None] * refused.num_rows
        if self._public is not None:
            columns = [refused.column(name).to_pylist() for name in ("code", "path", "rule", "position", "window")]
            # Event by event: each letter has a key of its own, at some 0.1 ms, and refused events are few.
            for number, (value, code, path, rule, position, window) in enumerate(zip(refused.column("value"), *columns)):
                where = {"origin": origin, "position": position, "window": _iso(window)}
                why = {"code": code, "path": path, "rule": rule, "policy": policy, "digest": digest}
                header = canonical_header({**where, **why, "custodian": self._id, "format": LETTER_VERSION})
                sealed = _SUITE.encrypt(_padded(value.as_buffer().to_pybytes()), self._public, info=_LABEL + header.encode())
                mac = letter_mac(self._letters_key, header, sealed)
                body = base64.b64encode(sealed).decode()
                letters[number] = f'{{"header":{header},"sealed":"{body}","mac":"{mac.hex()}"}}\n'.encode()
        return pa.RecordBatch.from_arrays([pa.array(letters, pa.binary())], schema=LETTERS)


def canonical_header(header: Mapping[str, Any]) -> str:
    """The one form in which a header is sealed and authenticated: JSON, sorted keys, ASCII, no spaces."""
    return json.dumps(header, sort_keys=True, separators=(",", ":"))


def letter_mac(letters_key: bytes, header: str, sealed: bytes) -> bytes:
    """The mark of the keyring. Lengths stand before the parts, so that nothing can move from one to the other."""
    info = header.encode()
    return hmac.digest(letters_key, _LABEL + len(info).to_bytes(8, "big") + info + len(sealed).to_bytes(8, "big") + sealed, "sha256")


def unseal(header: str, sealed: bytes, private: X25519PrivateKey) -> bytes:
    """The event, byte for byte. Raises ValueError if header or sealed bytes were changed, or belong to another key."""
    try:
        padded = _SUITE.decrypt(sealed, private, info=_LABEL + header.encode())
    except InvalidTag:
        raise ValueError("cannot be opened") from None
    length = int.from_bytes(padded[:_LENGTH], "big")
    if len(padded) < _LENGTH + length:
        raise ValueError("cannot be opened")
    return padded[_LENGTH : _LENGTH + length]


def _iso(window_us: int | None) -> str | None:
    if window_us is None:
        return None
    try:
        return (_EPOCH + timedelta(microseconds=window_us)).isoformat().replace("+00:00", "Z")
    except OverflowError:
        # Not in the years 1 to 9999: no window that can be named, but never a reason to lose the event.
        return None


def _padded(value: bytes) -> bytes:
    """The length in 4 bytes, the value, zeros up to a power of two, at least 256: the size of what is sealed says no more."""
    size = max(_LEAST, 1 << (len(value) + _LENGTH - 1).bit_length())
    return (len(value).to_bytes(_LENGTH, "big") + value).ljust(size, b"\0")
