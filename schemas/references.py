"""References to secrets: ``${NAME}`` for a variable of the environment, ``${file:PATH}`` for a file; ``$${`` stands for ``${`` itself.

Settings of a client keep them as they are written, so that no secret stands in a job, in what a runner stores, or in a message: they
are filled where the client is made.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from eventveil.schemas.document import shorten
from eventveil.schemas.errors import PolicyError, Problem

__all__ = ["REFERENCE", "fill_references", "from_home", "unfilled"]

REFERENCE = r"\$\{(?:[A-Za-z_][A-Za-z0-9_]*|file:[^}\0]+)\}"
"""One reference, as a regular expression."""

_LARGEST_SECRET = 1 << 16
_MARK = re.compile(r"\$\$\{|\$\{(?:([A-Za-z_][A-Za-z0-9_]*)\}|file:([^}\0]+)\})?")


def fill_references(text: str, environ: Mapping[str, str] = os.environ) -> str:
    """The text with its references filled; of a file without the line end that its last line may have.

    Raises PolicyError: EV103 EV115 EV117, with the name of what is missing and never a value.
    """
    problems = [Problem("", 0, code, fact, remedy) for code, fact, remedy in unfilled(text, environ)]
    if problems:
        raise PolicyError(problems)

    def fill(found: re.Match[str]) -> str:
        return "${" if found[0] == "$${" else environ[found[1]] if found[1] else _read(found[2]) or ""

    return _MARK.sub(fill, text)


def unfilled(text: str, environ: Mapping[str, str] = os.environ) -> Iterator[tuple[str, str, str]]:
    """What stands in the way of filling a text: code, fact and remedy of each."""
    for found in _MARK.finditer(text):
        name, file = found[1], found[2]
        if name is not None and name not in environ:
            yield "EV117", f"the environment variable {shorten(name)} is not set", "set it, or write a value"
        elif file is not None and _read(file) is None:
            fact = f"the file {shorten(file, 80)} cannot be read"
            yield "EV115", fact, f"correct the path: a file of text, up to {_LARGEST_SECRET // 1024} KB, that this user may read"
        elif name is None and file is None and found[0] != "$${":
            yield "EV103", "${ stands without the name of a variable", "write ${NAME} or ${file:PATH}, or $${ for the characters themselves"


def from_home(text: str, home: Path) -> str:
    """The text with the paths in its references, which are relative to `home`, relative to where the job runs."""
    return _MARK.sub(lambda found: f"${{file:{home / found[2]}}}" if found[2] else found[0], text)


def _read(file: str) -> str | None:
    try:
        with Path(file).open("rb") as stream:
            data = stream.read(_LARGEST_SECRET + 1)
        text = data.decode("utf-8")
    except (OSError, ValueError):
        return None
    if len(data) > _LARGEST_SECRET or "\0" in text:
        return None
    return text.removesuffix("\n").removesuffix("\r")
