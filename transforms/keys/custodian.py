"""The custodian's pair of keys: events are sealed to the public one; only the holder of the private one can open them.

The pipeline holds the public key alone, so whoever takes over a worker cannot open what was sealed before. The files
are JSON, versioned; the private key is X25519 and lies unencrypted in a file of mode 0600: keep it off the machines that run jobs.
"""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import json
import os
import stat
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from eventveil.schemas.errors import KeyringError, StorageError

__all__ = ["CustodianFiles", "CustodianKey", "load_private", "load_public", "new_custodian"]

_PUBLIC = "eventveil custodian, public key"
_PRIVATE = "eventveil custodian, private key"
_VERSION = 1
_MOST_BYTES = 64 << 10


@dataclass(frozen=True)
class CustodianKey:
    """The public half: no secret, and unlike the library's object it may be pickled.

    Args:
        raw: the 32 bytes of an X25519 public key.
    """

    raw: bytes

    def __post_init__(self) -> None:
        self.public_key()

    @classmethod
    def of(cls, private: X25519PrivateKey) -> CustodianKey:
        return cls(private.public_key().public_bytes_raw())

    @property
    def id(self) -> str:
        """16 hexadecimal digits that tell keys apart and disclose nothing."""
        return hashlib.sha256(b"eventveil custodian\x00" + self.raw).hexdigest()[:16]

    def public_key(self) -> X25519PublicKey:
        """Raises ValueError if the bytes are no key."""
        return X25519PublicKey.from_public_bytes(self.raw)


@dataclass(frozen=True)
class CustodianFiles:
    """What `new_custodian` wrote. `id` tells pairs apart and discloses nothing."""

    public: str
    private: str
    id: str


def new_custodian(prefix: str | os.PathLike[str]) -> CustodianFiles:
    """Make a pair: ``<prefix>.pub`` (mode 0644), ``<prefix>.key`` (mode 0600).

    Raises:
        KeyringError: EV304 if either file is there already: keys are never overwritten.
        StorageError: EV404 if they cannot be written.
    """
    path = os.fspath(prefix)
    public, private = f"{path}.pub", f"{path}.key"
    for file in (public, private):
        if os.path.lexists(file):
            raise _exists(file)
    secret = X25519PrivateKey.generate()
    open_key = CustodianKey.of(secret)
    _write(private, _document(_PRIVATE, secret.private_bytes_raw(), open_key), 0o600)
    try:
        _write(public, _document(_PUBLIC, open_key.raw, open_key), 0o644)
    except BaseException:
        os.unlink(private)
        raise
    return CustodianFiles(public, private, open_key.id)


def load_public(path: str | os.PathLike[str]) -> CustodianKey:
    """The public key that a job seals to.

    Raises KeyringError EV306 if the file is missing, or holds anything else than a custodian's public key.
    """
    try:
        return CustodianKey(_key(os.fspath(path), _PUBLIC, private=False))
    except ValueError:
        raise _unusable(os.fspath(path), "holds no X25519 public key") from None


def load_private(path: str | os.PathLike[str]) -> X25519PrivateKey:
    """The private key that opens letters.

    Raises:
        KeyringError: EV302 if others may read the file; EV306 if it is missing, or holds anything else than a custodian's private key.
    """
    try:
        return X25519PrivateKey.from_private_bytes(_key(os.fspath(path), _PRIVATE, private=True))
    except ValueError:
        raise _unusable(os.fspath(path), "holds no X25519 private key") from None


def _document(kind: str, key: bytes, public: CustodianKey) -> bytes:
    fields = {"kind": kind, "version": _VERSION, "algorithm": "X25519", "id": public.id, "key": base64.b64encode(key).decode()}
    return json.dumps(fields, indent=2).encode() + b"\n"


def _key(path: str, kind: str, *, private: bool) -> bytes:
    """The bytes of the key in a file of this kind. What is wrong is said without quoting the file: it may hold the other key."""
    try:
        # Not blocking: a pipe in place of the file must not stop us.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise _unusable(path, "is no regular file")
            text = file.read(_MOST_BYTES)
    except OSError as error:
        raise _unusable(path, os.strerror(error.errno or errno.EIO).lower()) from None
    try:
        document: Any = json.loads(text)
        found, version, key = document["kind"], document["version"], document["key"]
        if found in (_PUBLIC, _PRIVATE) and found != kind:
            raise _unusable(
                path, "holds the public key; the private one is needed" if private else "holds a private key; the public one is needed"
            )
        if private and stat.S_IMODE(status.st_mode) & 0o077:
            remedy = "chmod 600 the file; if others may have read it, make a new pair"
            raise KeyringError.of("EV302", "the private key can be read by others", remedy, file=path)
        if (found, version) == (kind, _VERSION):
            return base64.b64decode(key, validate=True)
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
        pass
    raise _unusable(path, f"is not as `eventveil keys custodian` writes it, version {_VERSION}")


def _unusable(path: str, fact: str) -> Exception:
    return KeyringError.of("EV306", fact, "make a pair with `eventveil keys custodian`", file=path)


def _exists(path: str) -> Exception:
    return KeyringError.of("EV304", "exists already", "keys are never overwritten: choose another name", file=path)


def _write(path: str, content: bytes, mode: int) -> None:
    """A new file; one that is there is never replaced, not even one that appeared since we looked."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), mode)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        raise _not_written(path, error) from None
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        os.unlink(path)
        raise _not_written(path, error) from None


def _not_written(path: str, error: OSError) -> Exception:
    cause = os.strerror(error.errno or errno.EIO).lower()
    return StorageError.of("EV404", cause, "check that the folder exists and may be written", file=path)
