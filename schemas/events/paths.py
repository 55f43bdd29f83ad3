"""Paths as a policy writes them: a.b, a[].b, a[] (scalars), a{key} (a map's entry), x.* (all below x).

What a stream says beside an event has paths too: $key, $topic, $time, and $headers.name, where all behind the dot is the name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["EACH", "Path", "is_of_stream", "is_stream_leaf", "parse_path"]

EACH = "[]"
_HEADER = re.compile(r"\$headers\.([^\[\]{}*\x00-\x1f\x7f]+)\Z")
_OF_STREAM = ("$key", "$headers", "$topic", "$time")
_STEP = re.compile(r"(?P<name>[A-Za-z_$][A-Za-z0-9_$-]*)|(?P<each>\[\])|\{(?P<key>[^{}]+)\}|(?P<star>\*)")


@dataclass(frozen=True)
class Path:
    """Steps: a field's name, `[]` for the elements of a list, `{key}` (with braces) for a map's entry.

    `star` says that the path ends in `.*`: all below it.
    """

    steps: tuple[str, ...]
    star: bool = False

    def __str__(self) -> str:
        text = ""
        for step in self.steps:
            text += step if step == EACH or step.startswith("{") else f".{step}" if text else step
        return f"{text}.*" if self.star else text

    @property
    def lists(self) -> tuple[str, ...]:
        """The steps up to and including the last `[]`: what must agree for two leaves to stand in one list."""
        last = max((i + 1 for i, step in enumerate(self.steps) if step == EACH), default=0)
        return self.steps[:last]


def parse_path(text: str) -> Path | None:
    """The path that `text` writes, or None if it writes none."""
    header = _HEADER.match(text)
    if header is not None:
        return Path(("$headers", header[1]))
    steps: list[str] = []
    at = 0
    while at < len(text):
        if steps:
            if text[at] == ".":
                at += 1
            elif text[at] not in "[{":
                return None
        found = _STEP.match(text, at)
        if found is None or (at > 0 and text[at - 1] == "." and found.lastgroup not in ("name", "star")):
            return None
        if not steps and found.lastgroup != "name":
            return None
        if found.lastgroup == "star":
            return Path(tuple(steps), star=True) if found.end() == len(text) and text[at - 1] == "." else None
        steps.append(found.group("name") or (EACH if found.group("each") else "{" + found.group("key") + "}"))
        at = found.end()
    return Path(tuple(steps)) if steps and not text.endswith(".") else None


def is_of_stream(path: Path) -> bool:
    """Whether a path leads to what a stream says beside an event."""
    return path.steps[0] in _OF_STREAM


def is_stream_leaf(path: Path) -> bool:
    """Whether it leads to one value of that: $key, $headers.name, $topic or $time."""
    if path.star or not is_of_stream(path):
        return False
    return len(path.steps) == 1 if path.steps[0] != "$headers" else len(path.steps) == 2 and path.steps[1][0] not in "[{"
