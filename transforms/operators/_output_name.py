"""Names and paths that a policy gives to outputs."""

from __future__ import annotations

from eventveil.schemas.events.paths import EACH, parse_path

__all__ = ["output_name", "output_path"]


def output_path(text: str) -> str:
    """`text`, if it is a path that an output can have: no star, no map entry, no name of ours. Else ValueError (EV110)."""
    path = parse_path(text)
    if path is None or path.star or any(step.startswith("{") for step in path.steps):
        raise ValueError("EV110 not an output path: write it as a.b or a[].b, without star or map entry")
    if any(step.startswith("$") for step in path.steps):
        raise ValueError("EV110 not an output path: names that begin with $ are reserved")
    return text


def output_name(text: str) -> str:
    """`text`, if it is a single output name. Else ValueError (EV110)."""
    path = parse_path(output_path(text))
    if path is None or len(path.steps) != 1 or EACH in path.steps:
        raise ValueError("EV110 not a single output name: to put the field elsewhere use move")
    return text
