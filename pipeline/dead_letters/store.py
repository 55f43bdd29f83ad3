"""A folder of dead letters: one file per part, there as a whole or not at all; read back without trusting any of it."""

from __future__ import annotations

import base64
import hmac
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from eventveil.pipeline.sinks.atomic import local_path, make_folder, publish_file, remove_file, remove_leftovers
from eventveil.schemas.errors import CODES, StorageError
from eventveil.transforms.seal import LETTER_VERSION, canonical_header, letter_mac

__all__ = ["Letter", "LetterFolder", "list_letters"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,199}\Z")
_FILE = re.compile(r"letters-[A-Za-z0-9][A-Za-z0-9_-]{0,199}\.jsonl\Z")
# An event of 8 MB, padded to 16, in base64, has 22 MB; what is much longer is no letter of ours.
_MOST_BYTES = 256 << 20
_TEXTS = ("code", "path", "rule", "origin", "policy", "digest", "custodian")


@dataclass(frozen=True)
class Letter:
    """A letter as it was found.

    Attributes:
        file, line: where; the first line is 1.
        header: see `Sealer.seal`; empty if the line is damaged. Its texts come from a file that others may have written: show
            them with care.
        sealed: the sealed event. mac: the mark of the keyring.
        damaged: whether the line is no letter of ours: cut short, or changed so that it cannot be read.
    """

    file: str
    line: int
    header: Mapping[str, Any] = field(default_factory=dict)
    sealed: bytes = b""
    mac: bytes = b""

    @property
    def damaged(self) -> bool:
        return not self.header

    def is_authentic(self, letters_key: bytes) -> bool:
        """Whether the run of this keyring wrote the letter, as it is."""
        return not self.damaged and hmac.compare_digest(letter_mac(letters_key, canonical_header(self.header), self.sealed), self.mac)


@dataclass(frozen=True)
class LetterFolder:
    """Where the letters of a job go. Several policies may share one; files are told apart by the names of their parts.

    Args:
        folder: a local path, or one that begins with ``file://``.
    """

    folder: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", local_path(self.folder))

    def prepare(self) -> None:
        """At the start of a job: make the folder, see that it can be written, remove what killed runs have left behind.

        Raises StorageError EV404.
        """
        make_folder(self.folder)
        remove_leftovers(self.folder)
        probe = os.path.join(self.folder, ".eventveil-probe")
        publish_file(probe, [b""])
        remove_file(probe)

    def publish(self, name: str, letters: Iterable[bytes | None]) -> int:
        """Write the letters of one part, replacing those of an earlier run; returns their number. No letters, no file.

        Args:
            name: of the part: letters, digits, ``-`` and ``_``.
            letters: lines, as `Sealer.seal` makes them; a null is a letter that nobody could have opened, and is left out.

        Raises:
            StorageError: EV404; nothing is left under a temporary or half-written name.
        """
        if not _NAME.match(name):
            raise ValueError("the name of a part is made of letters, digits, - and _")
        path = os.path.join(self.folder, f"letters-{name}.jsonl")
        lines = [letter for letter in letters if letter is not None]
        if lines:
            publish_file(path, lines)
        else:
            remove_file(path)
        return len(lines)


def list_letters(folder: str | os.PathLike[str]) -> Iterator[Letter]:
    """All letters of a folder (or of one file), in the order of names and lines. A damaged line is reported as a damaged letter.

    Raises:
        StorageError: EV401 there is no such folder; EV402 a file cannot be read.
    """
    path = local_path(os.fspath(folder))
    if os.path.isfile(path):
        return _letters_of(path)
    try:
        names = sorted(name for name in os.listdir(path) if _FILE.match(name))
    except OSError as error:
        raise StorageError.of("EV401", f"no folder of dead letters: {_cause(error)}", "correct the path", file=path) from None
    return (letter for name in names for letter in _letters_of(os.path.join(path, name)))


def _letters_of(path: str) -> Iterator[Letter]:
    try:
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(_MOST_BYTES):
                number += 1
                yield _letter(line, path, number)
    except OSError as error:
        raise StorageError.of("EV402", _cause(error), "check that the file may be read", file=path) from None


def _letter(line: bytes, path: str, number: int) -> Letter:
    try:
        found = json.loads(line)
        letter = Letter(path, number, found["header"], base64.b64decode(found["sealed"], validate=True), bytes.fromhex(found["mac"]))
        sound = set(found) == {"header", "sealed", "mac"} and len(letter.mac) == 32 and _is_header(letter.header)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        sound = False
    return letter if sound else Letter(path, number)


def _is_header(header: Mapping[str, Any]) -> bool:
    return (
        set(header) == {*_TEXTS, "window", "position", "format"}
        and type(header["format"]) is type(header["position"]) is int
        and header["format"] == LETTER_VERSION
        and all(isinstance(header[name], str) for name in _TEXTS)
        and isinstance(header["window"], (str, type(None)))
        and header["code"] in CODES
    )


def _cause(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno else "cannot be read"
