"""What is done to a job's document before its grammar is asked: the environment fills it, secrets in clear are found, the settings of
clients are taken out of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from collections.abc import Mapping as Environment
from pathlib import Path
from typing import Any

from eventveil.schemas.document import Hidden, Mapping, Sequence, place, shorten
from eventveil.schemas.errors import Problem
from eventveil.schemas.references import REFERENCE, from_home, unfilled
from eventveil.schemas.streams import LATER_SCHEMES, SCHEME, STREAM_SCHEMES, Settings, is_secret, owned
from eventveil.schemas.tables import TABLE_SCHEMES

__all__ = ["Reader", "with_clients"]

_VARIABLE = re.compile(r"\$\$\{|\$\{(?:([A-Za-z_][A-Za-z0-9_]*)\})?")
_CREDENTIALS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/@]*:[^/@]*@")
_SETTING = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")
# a name may stand in clear before its password
_HIDDEN_SECRET = re.compile(rf"(?:[^:${{}}]*:)?{REFERENCE}(?::{REFERENCE})?\Z")


class Reader:
    """Fills the environment in, looks for secrets, and gathers what is wrong."""

    def __init__(self, file: str, environ: Environment[str, str]) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self.unread: set[str] = set()
        """Entries that could not be filled: what else is wrong with them cannot be known."""
        self._environ = environ

    def add(self, line: int, code: str, fact: str, remedy: str) -> None:
        self.problems.append(Problem(self.file, line, code, fact, remedy))

    def fill(self, value: Any, at: tuple[str | int, ...], line: int) -> Any:
        if isinstance(value, Mapping):
            entries = {key: self.fill(entry, (*at, key), value.lines.get(key, line)) for key, entry in value.items()}
            return Mapping(entries, value.line, value.lines)
        if isinstance(value, Sequence):
            items = [self.fill(item, (*at, number), value.lines[number]) for number, item in enumerate(value)]
            return Sequence(items, value.line, value.lines)
        if isinstance(value, str):
            return self._refer(value, at, line) if _is_setting(at) else self._fill_text(value, at, line)
        return value

    def _refer(self, text: str, at: tuple[str | int, ...], line: int) -> str:
        """A setting of a client: it is filled later, and judged now."""
        text = from_home(text, Path(self.file).parent)
        for code, fact, remedy in unfilled(text, self._environ):
            self.add(line, code, f"{place(at)}: {fact}", remedy)
        return text

    def take_settings(self, entry: Mapping, at: tuple[str | int, ...]) -> Settings:
        """Take the settings of a client out of a mapping, which keeps our own entries."""
        below = entry.pop("client") if isinstance(entry.get("client"), Mapping) else Mapping()
        found = [(key, entry.pop(key), place([*at, key]), entry.lines.get(key, 0)) for key in list(entry) if "." in key]
        found += [(key, value, place([*at, "client", key]), below.lines.get(key, 0)) for key, value in below.items()]
        settings: dict[str, str] = {}
        for key, value, where, line in found:
            if not _SETTING.match(key):
                self.add(line, "EV103", f"{where} is no name of a setting", "write letters, digits and . _ - alone")
            elif (instead := owned(key)) is not None:
                self.add(line, "EV103", f"{where} is not for a job to decide", instead)
            elif key in settings:
                self.add(line, "EV103", f"{where} stands beside client too", "write it once")
            elif isinstance(value, (bool, int, float, str)):
                settings[key] = str(value) if isinstance(value, str) else str(value).lower()
            elif value is not None:
                self.add(line, "EV103", f"{where} must be text, a number, true or false", "correct the value")
        return tuple(sorted(settings.items()))

    def _fill_text(self, text: str, at: tuple[str | int, ...], line: int) -> str:
        hidden = _holds_secret(text)

        def replace(found: re.Match[str]) -> str:
            nonlocal hidden
            if found[0] == "$${":
                return "${"
            if found[1] is None:
                remedy = "write ${NAME}, or $${ for the characters themselves"
                self.add(line, "EV103", f"{place(at)} has ${{ without the name of a variable", remedy)
                self.unread.add(place(at))
                return ""
            hidden = True
            if found[1] not in self._environ:
                self.add(line, "EV117", f"{place(at)}: the environment variable {shorten(found[1])} is not set", "set it, or write a value")
                self.unread.add(place(at))
                return ""
            return self._environ[found[1]]

        filled = _VARIABLE.sub(replace, text)
        return Hidden(filled) if hidden else filled

    def find_secrets(self, value: Any, at: tuple[str | int, ...], line: int = 0, named: bool = False) -> None:
        if isinstance(value, Mapping):
            for key, entry in value.items():
                self.find_secrets(entry, (*at, key), value.lines.get(key, line), named or is_secret(key))
        elif isinstance(value, Sequence):
            for number, item in enumerate(value):
                self.find_secrets(item, (*at, number), value.lines[number], named)
        elif value is not None and not isinstance(value, bool):
            if named and not (isinstance(value, str) and _HIDDEN_SECRET.match(value)):
                self.add(line, "EV118", f"{place(at)} is a secret", _hide(at))
            elif isinstance(value, str) and _holds_secret(value, in_clear=True):
                self.add(line, "EV118", f"{place(at)} holds a password", _hide(at))


def _hide(at: tuple[str | int, ...]) -> str:
    file = ", or in a file and write ${file:PATH}" if _is_setting(at) else ""
    return f"put it in an environment variable and write ${{NAME}}{file}"


def _holds_secret(text: str, in_clear: bool = False) -> bool:
    """Whether an address holds credentials, or asks for something that is named like a secret."""
    found = _CREDENTIALS.match(text)
    if found is not None:
        return not in_clear or "${" not in found[0]
    query = text.partition("?")[2] if SCHEME.match(text) else ""
    return any(is_secret(name) and not (in_clear and value.startswith("${")) for name, _, value in _pairs(query))


def _pairs(query: str) -> Iterator[tuple[str, str, str]]:
    return (entry.partition("=") for entry in query.split("&"))


def _is_setting(at: tuple[str | int, ...]) -> bool:
    """Whether an entry is a setting of a client."""
    below = at[1:] if at[:1] == ("input",) else at[3:] if at[:1] == ("variants",) and at[2:3] == ("output",) else ()
    if below[:1] == ("registry",):
        below = below[1:]
    elif below[:1] == ("client",):
        return len(below) > 1
    return bool(below) and "." in str(below[0])


_ENTRIES = {"uri", "format", "compression", "partition_by", "key", "envelope", "evolve", "expansion_service"}


def with_clients(filled: Mapping) -> Iterator[tuple[tuple[str | int, ...], Mapping]]:
    """The mappings that settings of clients may stand in, where they name no path."""
    variants = filled.get("variants")
    ends: list[tuple[tuple[str | int, ...], Any]] = [(("input",), filled.get("input"))]
    for number, variant in enumerate(variants if isinstance(variants, list) else ()):
        if isinstance(variant, Mapping):
            ends.append((("variants", number, "output"), variant.get("output")))
    for at, entry in ends:
        if not isinstance(entry, Mapping):
            continue
        uris = entry.get("uri")
        schemes = {found and found[1] for uri in (uris if isinstance(uris, list) else [uris]) for found in [SCHEME.match(str(uri))]}
        # Tables are written to, and not read yet.
        if schemes & (LATER_SCHEMES | (TABLE_SCHEMES if at == ("input",) else frozenset())):
            # That it is not available is said by the address; what only its client would read is not judged.
            for key in set(entry) - _ENTRIES:
                entry.pop(key)
        elif uris is not None and not schemes & (STREAM_SCHEMES | TABLE_SCHEMES):
            continue
        yield at, entry
        registry = entry.get("registry")
        if isinstance(registry, Mapping):
            yield (*at, "registry"), registry
