"""The rules of keys, canonical values and pseudonyms once more: in plain Python, value by value, without a line of eventveil.

The golden vectors beside this file were computed with it, and tests hold both it and eventveil to them.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import struct
import unicodedata
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def hkdf_extract(salt: bytes, secret: bytes) -> bytes:
    """RFC 5869 section 2.2; no salt is a salt of zeros."""
    return hmac.new(salt or bytes(32), secret, hashlib.sha256).digest()


def hkdf_expand(key: bytes, info: bytes, size: int) -> bytes:
    """RFC 5869 section 2.3."""
    out, block = b"", b""
    for number in range(1, -(-size // 32) + 1):
        block = hmac.new(key, block + info + bytes([number]), hashlib.sha256).digest()
        out += block
    return out[:size]


def hkdf(secret: bytes, info: bytes) -> bytes:
    return hkdf_expand(hkdf_extract(b"", secret), info, 32)


def parts(*values: str | int) -> bytes:
    """Letter of the kind, length in 4 bytes, content."""
    out = b""
    for value in values:
        content = value.encode() if isinstance(value, str) else struct.pack(">q", value)
        out += (b"s" if isinstance(value, str) else b"i") + struct.pack(">I", len(content)) + content
    return out


def fingerprint(root: bytes) -> str:
    return hkdf(root, parts("eventveil", 1, "id"))[:8].hex()


def letters_key(root: bytes) -> bytes:
    return hkdf(root, parts("eventveil", 1, "letters"))


def sub_key(root: bytes, domain: str, window: tuple[int, str, str] | None, purpose: str, *info: str) -> bytes:
    """root -> domain key -> window key (or the key of the whole domain) -> sub-key."""
    domain_key = hkdf(root, parts("eventveil", 1, "domain", domain))
    if window is None:
        above = hkdf(domain_key, parts("eventveil", 1, "domain-wide", domain))
    else:
        above = hkdf(domain_key, parts("eventveil", 1, "window", domain, *window))
    return hkdf_expand(above, parts("eventveil", 1, "sub-key", domain, purpose, *info), 32)


def canonical(tag: str, value: Any) -> bytes:
    """The canonical form of a Python value, under the tag of its column."""
    if tag == "s":
        return unicodedata.normalize("NFC", value).encode()
    if tag == "y":
        return bytes(value)
    if tag == "d":
        return decimal_text(value).encode()
    if tag == "f":
        return struct.pack(">d", value + 0.0)
    if tag == "b":
        return b"\1" if value else b"\0"
    return struct.pack(">Q" if tag == "u" else ">q", whole(tag, value))


def whole(tag: str, value: Any) -> int:
    """Dates and times as whole numbers; datetimes know microseconds, so nanoseconds are given as integers."""
    if isinstance(value, datetime):
        return (value.replace(tzinfo=value.tzinfo or timezone.utc) - EPOCH) // timedelta(microseconds=1)
    if isinstance(value, date):
        return (value - EPOCH.date()).days
    if isinstance(value, time):
        return ((value.hour * 60 + value.minute) * 60 + value.second) * 1_000_000 + value.microsecond
    return int(value)


def decimal_text(value: Decimal) -> str:
    text = format(value, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def mac(prf: str, key: bytes, value: bytes, size: int) -> bytes:
    if prf == "blake2b":
        return hashlib.blake2b(value, digest_size=size, key=key).digest()
    if prf == "hmac-sha256":
        return hmac.new(key, value, hashlib.sha256).digest()[:size]
    made = CMAC(AES(key))
    made.update(value)
    return made.finalize()[:size]


def base32(value: bytes) -> str:
    return base64.b32encode(value).decode().rstrip("=").lower()
