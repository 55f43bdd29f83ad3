"""Derivation of keys: root -> domain key -> window key -> one sub-key per purpose.

Every step is HKDF with SHA-256 (RFC 5869). Root, domain and window steps extract and expand; sub-keys are only
expanded, because a window key is a pseudorandom key already (RFC 5869 section 3.3). The context of every step names product, format
version and level, and all parts are length-prefixed, so no two contexts can be read as each other.

`DERIVATION_VERSION` is part of every context. What this module writes must never change under the same version: the
golden vectors in tests/vectors say what it is.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Protocol

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

__all__ = ["DERIVATION_VERSION", "DomainKeys", "HeldKeys", "KeyProvider", "Keys", "context", "expand", "hkdf", "lengths"]

DERIVATION_VERSION = 1
KEY_BYTES = 32
_PRODUCT = "eventveil"
_WINDOWS_KEPT = 4096


def lengths(*parts: str | bytes | int) -> bytes:
    """Parts as one byte string that can be read in one way only.

    Each part is a letter for its kind (``s`` UTF-8 text, ``b`` bytes, ``i`` integer as 8 bytes two's complement), its length
    in 4 bytes and its content, all big-endian.
    """
    out = []
    for part in parts:
        if isinstance(part, str):
            kind, content = b"s", part.encode()
        elif isinstance(part, bytes):
            kind, content = b"b", part
        else:
            kind, content = b"i", part.to_bytes(8, "big", signed=True)
        out.append(kind + len(content).to_bytes(4, "big") + content)
    return b"".join(out)


def context(level: str, *parts: str | bytes | int) -> bytes:
    """The context of one step of the derivation, for `level` of the chain."""
    return lengths(_PRODUCT, DERIVATION_VERSION, level, *parts)


def hkdf(parent: bytes, context: bytes) -> bytes:
    """32 bytes by HKDF-SHA256, without salt. Source: RFC 5869."""
    return HKDF(hashes.SHA256(), KEY_BYTES, None, context).derive(parent)


def expand(parent: bytes, context: bytes) -> bytes:
    """32 bytes by HKDF-Expand-SHA256 from a pseudorandom key. Source: RFC 5869 section 2.3.

    One block of output is one HMAC, written out because a batch may need some thousand sub-keys; a test
    compares it with `cryptography`.
    """
    return hmac.digest(parent, context + b"\x01", "sha256")


@lru_cache(maxsize=1024)
def _sub_context(domain: str, purpose: str, info: tuple[str | bytes, ...]) -> bytes:
    """The same for all windows, and public: so it is kept."""
    return context("sub-key", domain, purpose, *info)


class KeyProvider:
    """What holds keys: shows none of their bytes and refuses to be pickled or copied."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"

    def __reduce__(self) -> Any:
        raise TypeError("keys are never pickled: load them where they are used")


class DomainKeys(KeyProvider):
    """The sub-keys of one domain.

    Args:
        deriver: the one call to whoever holds the domain's secret: context -> 32 bytes. Called once for the domain
            and once per window, never per event.
        domain: the recipients within which equal identifiers may be recognised.
    """

    def __init__(self, deriver: Callable[[bytes], bytes], domain: str) -> None:
        self.domain = domain
        self._derive = deriver
        self._window = lru_cache(maxsize=_WINDOWS_KEPT)(self._window_key)
        self._always = lru_cache(maxsize=1)(self._domain_wide_key)

    def __repr__(self) -> str:
        return f"DomainKeys({self.domain!r})"

    def for_domain(self, purpose: str, *info: str | bytes) -> bytes:
        """The sub-key for a purpose that holds until the root is rotated, whatever the window."""
        return expand(self._always(), _sub_context(self.domain, purpose, info))

    def for_window(self, start_us: int, size: str, zone: str, purpose: str, *info: str | bytes) -> bytes:
        """The sub-key for a purpose within one key window.

        Args:
            start_us: start of the window, microseconds since 1970 UTC.
            size: as the policy says it, as ``1d``.
            zone: the time zone that the windows are counted in.
            purpose: as ``pseudonym`` or ``noise``.
            info: what else distinguishes the sub-key.
        """
        return expand(self._window(int(start_us), size, zone), _sub_context(self.domain, purpose, info))

    def _domain_wide_key(self) -> bytes:
        return self._derive(context("domain-wide", self.domain))

    def _window_key(self, start_us: int, size: str, zone: str) -> bytes:
        return self._derive(context("window", self.domain, start_us, size, zone))


class Keys(Protocol):
    """What a job holds of keys.

    Attributes:
        id: a public fingerprint, 16 hexadecimal digits: tells two keyrings apart, discloses nothing.
    """

    @property
    def id(self) -> str: ...

    def domain(self, domain: str) -> DomainKeys:
        """The keys of one domain."""
        ...

    def letters_key(self) -> bytes:
        """The key that authenticates dead letters: one per keyring, without domain or window."""
        ...


class HeldKeys(KeyProvider):
    """Keys whose roots are held in memory: from a keyring file, the environment, or thrown away after use.

    Args:
        root: 32 random bytes.
        domains: roots of the domains that have their own.
    """

    def __init__(self, root: bytes, domains: Mapping[str, bytes] | None = None) -> None:
        if any(len(secret) != KEY_BYTES for secret in (root, *(domains or {}).values())):
            raise ValueError("a root has 32 bytes")
        self._root = bytes(root)
        self._roots = dict(domains or {})
        self.id = hkdf(self._root, context("id")).hex()[:16]

    def __repr__(self) -> str:
        return f"HeldKeys({self.id})"

    def domain(self, domain: str) -> DomainKeys:
        """The keys of one domain, from its own root where it has one."""
        key = hkdf(self._roots.get(domain, self._root), context("domain", domain))
        return DomainKeys(lambda of: hkdf(key, of), domain)

    def letters_key(self) -> bytes:
        """The key that authenticates dead letters."""
        return hkdf(self._root, context("letters"))
