"""The seal of what a job keeps for itself: AES-256-GCM with a random nonce, bound to where it stands."""

from __future__ import annotations

import os
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from eventveil.transforms.keys.derive import DomainKeys, KeyProvider, Keys
from eventveil.transforms.windows import WindowRule

__all__ = ["SEAL_BYTES", "StateSeal", "WindowSeals"]

_NONCE = 12
# What a seal adds: the nonce before, the tag behind.
SEAL_BYTES = _NONCE + 16
_WINDOWS_KEPT = 256


class StateSeal(KeyProvider):
    """Seals and opens. Refuses to be pickled.

    Args:
        key: 32 bytes.
        keys_id: the public fingerprint of the keyring, which stands beside what is sealed.
    """

    def __init__(self, key: bytes, keys_id: str = "") -> None:
        self._cipher = AESGCM(key)
        self.keys_id = keys_id

    @classmethod
    def of(cls, keys: Keys) -> StateSeal:
        """The seal of checkpoints and intents: one per keyring, until its root is rotated."""
        return cls(keys.domain("checkpoint").for_domain("state"), keys.id)

    def seal(self, content: bytes | memoryview, info: bytes) -> bytes:
        """The content, longer by `SEAL_BYTES`; it opens only with the same `info`."""
        nonce = os.urandom(_NONCE)
        return nonce + self._cipher.encrypt(nonce, content, info)

    def open(self, sealed: bytes, info: bytes) -> bytes:
        """Raises ValueError if anything was changed, or belongs elsewhere or to another key."""
        try:
            return self._cipher.decrypt(sealed[:_NONCE], memoryview(sealed)[_NONCE:], info)
        except (InvalidTag, ValueError):
            raise ValueError("cannot be opened") from None


class WindowSeals(KeyProvider):
    """The seals of the windows of one variant: each window has a key of its own. Refuses to be pickled.

    Args:
        keys: of the variant's domain. rule: the windows that its rows are gathered in.
    """

    def __init__(self, keys: DomainKeys, rule: WindowRule) -> None:
        size, zone = str(rule.duration), rule.zone
        self._of = lru_cache(_WINDOWS_KEPT)(lambda start_us: StateSeal(keys.for_window(start_us, size, zone, "state")))

    def of(self, start_us: int) -> StateSeal:
        """The seal of the window that begins there."""
        return self._of(start_us)
