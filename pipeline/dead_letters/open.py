"""Opens a dead letter, with the custodian's private key."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from eventveil.pipeline.dead_letters.store import Letter
from eventveil.schemas.errors import EventveilError, KeyringError
from eventveil.transforms.keys.custodian import CustodianKey
from eventveil.transforms.seal import canonical_header, unseal

__all__ = ["open_letter"]


def open_letter(letter: Letter, private: X25519PrivateKey, letters_key: bytes | None) -> bytes:
    """The event in a letter, byte for byte as it was read: with its line end, where it came from a file of lines.

    Args:
        letters_key: of the run's keyring; None: who wrote the letter is not checked. Anybody who has the public key can write one:
            never feed an unchecked letter back into a job.

    Raises:
        KeyringError: EV307 it is damaged or changed, or sealed to another key; EV308 it was not written with this keyring.
    """
    if letter.damaged:
        raise _refused(letter, "EV307", "the letter is damaged", "restore the file from a backup")
    if letters_key is not None and not letter.is_authentic(letters_key):
        raise _refused(letter, "EV308", "the letter was changed, or written with another keyring", "do not replay it")
    mine = CustodianKey.of(private).id
    if letter.header["custodian"] != mine:
        fact = f"the letter is sealed to custodian {letter.header['custodian'][:16]!r}, this is {mine!r}"
        raise _refused(letter, "EV307", fact, "use the private key that belongs to the public key of the run")
    try:
        return unseal(canonical_header(letter.header), letter.sealed, private)
    except ValueError:
        raise _refused(letter, "EV307", "the letter was changed after it was sealed", "do not trust it") from None


def _refused(letter: Letter, code: str, fact: str, remedy: str) -> EventveilError:
    return KeyringError.of(code, fact, remedy, file=letter.file, line=letter.line)
