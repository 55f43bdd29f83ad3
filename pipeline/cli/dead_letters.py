"""eventveil dead-letters: list and open refused events."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from rich.text import Text

from eventveil.pipeline.cli.screen import columns, printable, screen
from eventveil.pipeline.dead_letters.open import open_letter
from eventveil.pipeline.dead_letters.store import Letter, list_letters
from eventveil.pipeline.sinks.atomic import unwritable
from eventveil.schemas.errors import CODES, KeyringError, PolicyError, Problem, StorageError, did_you_mean
from eventveil.transforms.keys.custodian import load_private
from eventveil.transforms.keys.keyring import load_keys

__all__ = ["list_folder", "open_folder"]


def list_folder(folder: str, code: str | None, keys: str | None, *, as_json: bool) -> int:
    """List what was refused: counts by code and place, or one JSON object per letter. Returns the exit code."""
    letters_key = load_keys(keys).letters_key() if keys is not None else None
    letters = _letters(folder, code)
    return (_list_json if as_json else _list_counts)(letters, letters_key)


def open_folder(folder: str, key: str, keys: str | None, code: str | None, output: str | None) -> int:
    """Write the opened events, one per line as they came, to standard output or a new private file. Returns the exit code."""
    private = load_private(key)
    letters_key = load_keys(keys).letters_key() if keys is not None else None
    letters = _letters(folder, code)
    failed = 0

    def opened() -> Iterator[bytes]:
        nonlocal failed
        for letter in letters:
            try:
                event = open_letter(letter, private, letters_key)
            except KeyringError as error:
                failed += 1
                print(printable(str(error)), file=sys.stderr)
            else:
                yield event if event.endswith(b"\n") else event + b"\n"

    if output is not None:
        _write_new(output, opened())
    elif sys.stdout.isatty():
        for event in opened():
            # Whoever wrote the event must not command this terminal.
            print(printable(event.decode("utf-8", "replace")), end="")
    else:
        for event in opened():
            sys.stdout.buffer.write(event)
    if failed:
        print(f"{failed:,} letter{'s' if failed > 1 else ''} could not be opened", file=sys.stderr)
    return 3 if failed else 0


def _letters(folder: str, code: str | None) -> Iterator[Letter]:
    """The letters with a code, and the damaged ones, whose code nobody knows."""
    if code is not None and code not in CODES:
        raise PolicyError(
            Problem("", 0, "EV120", f"there is no code '{code}'", did_you_mean(code, [one for one in CODES if one[2] == "5"]))
        )
    return (letter for letter in list_letters(folder) if code is None or letter.damaged or letter.header["code"] == code)


def _list_json(letters: Iterable[Letter], letters_key: bytes | None) -> int:
    sound = True
    for letter in letters:
        told: dict[str, Any] = {"file": letter.file, "line": letter.line, **letter.header, "damaged": letter.damaged}
        sound = sound and not letter.damaged
        if letters_key is not None:
            told["authentic"] = letter.is_authentic(letters_key)
            sound = sound and told["authentic"]
        # ASCII: whoever wrote the letter must not command this terminal.
        print(json.dumps(told))
    return 0 if sound else 1


def _list_counts(letters: Iterable[Letter], letters_key: bytes | None) -> int:
    found: Counter[tuple[str, str, str]] = Counter()
    damaged = forged = 0
    for letter in letters:
        if letter.damaged:
            damaged += 1
        elif letters_key is not None and not letter.is_authentic(letters_key):
            forged += 1
        else:
            found[letter.header["code"], letter.header["path"], letter.header["rule"]] += 1
    console = screen()
    if found:
        table = columns("events", "code", "field", "rule", "meaning", right="events")
        for (code, path, rule), number in sorted(found.items()):
            table.add_row(*(Text(printable(cell)) for cell in (f"{number:,}", code, path, rule, CODES[code][0])))
        console.print(table)
    total = sum(found.values())
    verified = "" if letters_key or not found else "; not verified: give --keys to tell forged letters"
    console.print(f"{total:,} refused event{'' if total == 1 else 's'}{verified}", soft_wrap=True)
    if damaged:
        console.print(f"{damaged:,} damaged: cut short, or no letter of ours", soft_wrap=True)
    if forged:
        console.print(f"{forged:,} not written with this keyring: changed, forged, or of another keyring", soft_wrap=True)
    return 1 if damaged or forged else 0


def _write_new(path: str, events: Iterable[bytes]) -> None:
    """A file that its owner alone may read; one that is there already is never touched."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise StorageError.of("EV404", "file exists", "name a new file: none is overwritten", file=path) from None
    except OSError as error:
        raise unwritable(path, error) from None
    try:
        with open(descriptor, "wb") as file:
            file.writelines(events)
    except OSError as error:
        # Half of the events in clear would be taken for all of them.
        os.unlink(path)
        raise unwritable(path, error) from None
