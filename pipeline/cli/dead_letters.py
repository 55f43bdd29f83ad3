"""eventveil dead-letters: list and open refused events."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from eventveil.pipeline.dead_letters.open import open_letter
from eventveil.pipeline.dead_letters.store import list_letters
from eventveil.schemas.errors import CODES, KeyringError, StorageError
from eventveil.transforms.keys.custodian import load_private
from eventveil.transforms.keys.keyring import load_keys

__all__ = ["list_folder", "open_folder"]


def list_folder(folder: str, code: str | None, keys: str | None, *, as_json: bool) -> int:
    """List what was refused: counts by code and place, or one JSON object per letter. Returns the exit code."""
    letters_key = load_keys(keys).letters_key() if keys is not None else None
    letters = [letter for letter in list_letters(folder) if code is None or letter.header.get("code") == code]
    if as_json:
        for letter in letters:
            told: dict[str, Any] = {**letter.header, "damaged": letter.damaged}
            if letters_key is not None:
                told["authentic"] = letter.is_authentic(letters_key)
            print(json.dumps(told, ensure_ascii=False))
        return 0
    console = Console(highlight=False)
    found: Counter[tuple[str, str, str]] = Counter()
    damaged = forged = 0
    for letter in letters:
        if letter.damaged:
            damaged += 1
        elif letters_key is not None and not letter.is_authentic(letters_key):
            forged += 1
        else:
            found[letter.header["code"], letter.header["path"], letter.header["rule"]] += 1
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("events", "code", "field", "rule", "meaning"):
        table.add_column(title, overflow="fold", justify="right" if title == "events" else "left")
    for (of_code, path, rule), number in sorted(found.items()):
        table.add_row(f"{number:,}", of_code, path, rule, CODES[of_code][0] if of_code in CODES else "")
    console.print(table)
    console.print(f"{sum(found.values()):,} refused events" + ("" if letters_key else "; not verified: give --keys to tell forged letters"))
    if damaged:
        console.print(f"{damaged:,} damaged letters")
    if forged:
        console.print(f"{forged:,} letters were not written with this keyring: changed, forged, or of another keyring")
    return 1 if damaged or forged else 0


def open_folder(folder: str, key: str, keys: str | None, code: str | None, output: str | None) -> int:
    """Write the opened events, one per line as they came, to standard output or a new private file. Returns the exit code."""
    private = load_private(key)
    letters_key = load_keys(keys).letters_key() if keys is not None else None
    letters = (letter for letter in list_letters(folder) if code is None or letter.header.get("code") == code)
    failed = 0

    def opened() -> Iterator[bytes]:
        nonlocal failed
        for letter in letters:
            try:
                yield open_letter(letter, private, letters_key)
            except KeyringError as error:
                failed += 1
                print(error, file=sys.stderr)

    if output is None:
        for event in opened():
            sys.stdout.buffer.write(event if event.endswith(b"\n") else event + b"\n")
    else:
        try:
            descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise StorageError.of("EV404", os.strerror(error.errno or 0).lower(), "name a new file", file=output) from None
        with open(descriptor, "wb") as file:
            for event in opened():
                file.write(event if event.endswith(b"\n") else event + b"\n")
    if failed:
        print(f"{failed} letters could not be opened", file=sys.stderr)
    return 3 if failed else 0
