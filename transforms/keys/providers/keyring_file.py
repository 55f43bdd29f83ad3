"""Keys from a keyring file: JSON, readable by its owner alone.

    {"eventveil_keyring": 1, "root": "<base64 of 32 bytes>", "domains": {"analytics": "<base64 of 32 bytes>"}}

`domains` holds the roots of those domains that have their own; all others are derived from `root`.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from eventveil.schemas.errors import EventveilError, KeyringError, StorageError
from eventveil.transforms.keys.derive import HeldKeys, Keys

__all__ = ["KEYRING_VERSION", "load_keyring", "new_keyring", "read_root"]

KEYRING_VERSION = 1
_ROOT_BYTES = 32
_LARGEST = 1 << 20
_WIDER = 0o7777 & ~0o600


def new_keyring(path: str | Path, domains: Iterable[str] = ()) -> Keys:
    """Make a keyring of random roots, and write it for its owner alone.

    The file appears complete or not at all, and never replaces another.

    Args:
        path: where to; its folder must exist.
        domains: names of domains that get a root of their own.

    Raises:
        KeyringError: EV304 where something of that name exists.
        StorageError: EV404 where the file cannot be written.
    """
    target = Path(path)
    root = secrets.token_bytes(_ROOT_BYTES)
    roots = {domain: secrets.token_bytes(_ROOT_BYTES) for domain in domains}
    document = {
        "eventveil_keyring": KEYRING_VERSION,
        "root": base64.b64encode(root).decode(),
        "domains": {domain: base64.b64encode(secret).decode() for domain, secret in roots.items()},
    }
    try:
        _write_new(target, json.dumps(document, indent=2).encode() + b"\n")
    except FileExistsError:
        raise KeyringError.of(
            "EV304", "the keyring exists already", "keys are never overwritten: choose another name", file=str(path)
        ) from None
    except OSError as error:
        raise StorageError.of("EV404", f"the keyring cannot be written: {error.strerror}", file=str(path)) from None
    return HeldKeys(root, roots)


def load_keyring(path: str | Path) -> Keys:
    """Read a keyring.

    Raises KeyringError: EV301 where it is missing or cannot be read, EV302 where others than its owner have any right to it, EV303
    where it is malformed. No message quotes its content.
    """
    name = str(path)
    content = _read_private(name)
    try:
        document = json.loads(content.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError):
        raise _malformed(name, "it is not JSON in UTF-8, or names a key twice") from None
    if not isinstance(document, dict) or "eventveil_keyring" not in document:
        raise _malformed(name, "it is no eventveil keyring")
    version = document["eventveil_keyring"]
    if version != KEYRING_VERSION or isinstance(version, bool):
        raise _malformed(name, f"its version is not {KEYRING_VERSION}", "use the release of eventveil that wrote it, or a later one")
    if not document.keys() <= {"eventveil_keyring", "root", "domains", "created"}:
        raise _malformed(name, "it has entries that a keyring does not have")
    domains = document.get("domains", {})
    if not isinstance(domains, dict) or "" in domains:
        raise _malformed(name, "`domains` does not map names to roots")
    root = read_root(document.get("root"))
    roots = {domain: read_root(secret) for domain, secret in domains.items()}
    if root is None or None in roots.values():
        raise _malformed(name, f"a root is not the base64 of {_ROOT_BYTES} bytes")
    return HeldKeys(root, {domain: secret for domain, secret in roots.items() if secret is not None})


def read_root(text: object) -> bytes | None:
    """32 bytes from their base64 (RFC 4648 section 4, padded); None where `text` is anything else."""
    if not isinstance(text, str):
        return None
    try:
        secret = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return None
    return secret if len(secret) == _ROOT_BYTES else None


def _write_new(target: Path, content: bytes) -> None:
    """Write a file for its owner alone, durably; FileExistsError where the name is taken, even by a dangling link."""
    part = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    # 0600 from the first moment, and whatever the umask takes away is given back.
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, 0o600)
            file.write(content)
            file.flush()
            os.fsync(handle)
        # A link, not a rename: a rename would silently replace what stands there.
        os.link(part, target, follow_symlinks=False)
    finally:
        part.unlink(missing_ok=True)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read_private(name: str) -> bytes:
    """The content of a regular file that nobody but its owner has any right to."""
    try:
        # The rights are asked of the open file: between a look and an opening the name could be given to another.
        # O_NONBLOCK so that a named pipe is refused, not waited for.
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(name, error) from None
    except ValueError:  # a NUL in the name
        raise KeyringError.of("EV301", "no keyring can have this name", "name another file with --keys") from None
    try:
        state = os.fstat(handle)
        if not stat.S_ISREG(state.st_mode):
            raise _malformed(name, "it is not a regular file")
        mode = stat.S_IMODE(state.st_mode)
        if mode & _WIDER:
            raise KeyringError.of(
                "EV302",
                f"the keyring has mode {mode:04o}: others than its owner may use it",
                "chmod 600 the file; if others may have read it, make a new one",
                file=name,
            )
        with os.fdopen(handle, "rb", closefd=False) as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise _unreadable(name, error) from None
    finally:
        os.close(handle)
    if len(content) > _LARGEST:
        raise _malformed(name, f"it has more than {_LARGEST} bytes")
    return content


def _unreadable(name: str, error: OSError) -> EventveilError:
    if Path(name).is_symlink():
        return _malformed(name, "it is a symbolic link", "name the file that it points to: a link can be turned to another file")
    if isinstance(error, FileNotFoundError):
        return KeyringError.of("EV301", "there is no keyring", "make one with `eventveil keys new`, or name one with --keys", file=name)
    return KeyringError.of("EV301", f"the keyring cannot be read: {error.strerror}", file=name)


def _malformed(name: str, fact: str, remedy: str = "restore it from a backup; keys are never repaired") -> EventveilError:
    return KeyringError.of("EV303", f"the keyring cannot be used: {fact}", remedy, file=name)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key twice")
    return found
