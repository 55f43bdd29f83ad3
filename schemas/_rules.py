"""The rules of a policy, read into chains of steps. Which operators exist and what their parameters mean is not known here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from eventveil.schemas.document import Mapping, line_at, place, shorten, shown
from eventveil.schemas.errors import PolicyError, Problem
from eventveil.schemas.events.paths import Path, is_of_stream, is_stream_leaf, parse_path
from eventveil.schemas.grammar import empties

__all__ = ["LATER", "STREAM_PATHS", "Chains", "RuleDoc", "StepDoc", "canonical_chain", "parse_chain", "read_rules"]

LATER: frozenset[str] = frozenset(
    {
        "at_most",
        "count",
        "encode",
        "encrypt",
        "fake",
        "grid",
        "label",
        "redact",
        "release",
        "share",
        "shuffle",
        "tokenize",
        "url",
        "user_agent",
    }
)
"""Operators that the language names already, and that this version does not have."""

STREAM_PATHS = "write what a stream says beside an event as $key, $headers.name, $topic or $time"

_SHAPES = ("rename", "move")
_LAST = ("into", "release")
_DEEPEST_INTO = 8


@dataclass(frozen=True)
class StepDoc:
    """One operator of a chain, as written.

    Attributes:
        given: None for a bare word, a mapping of parameters, or the bare value of the one required parameter.
    """

    name: str
    given: Any
    line: int


@dataclass(frozen=True)
class RuleDoc:
    """One entry of `fields`.

    Attributes:
        text: the key as written.
        paths: the places it is for: one, or the two of ``before|after.email``.
    """

    text: str
    paths: tuple[Path, ...]
    steps: tuple[StepDoc, ...]
    line: int


def canonical_chain(steps: tuple[StepDoc, ...]) -> list[list[Any]]:
    return [
        [step.name, {name: canonical_chain(Chains("").read(rule, "", 0)) for name, rule in step.given.items()}]
        if step.name == "into"
        else [step.name, step.given]
        for step in steps
    ]


def parse_chain(value: Any, path_text: str, line: int, file: str) -> tuple[StepDoc, ...]:
    """Read a rule's value: an operator, one with parameters, or a list of those.

    Args:
        path_text: where it stands, for messages, as ``fields.card``; line: the line of its key.

    Raises PolicyError with everything that is wrong (EV103 EV107 EV108 EV111 EV113).
    """
    chains = Chains(file)
    steps = chains.read(value, path_text, line)
    if chains.problems:
        raise PolicyError(chains.problems)
    return steps


def read_rules(document: Mapping, chains: Chains) -> tuple[RuleDoc, ...]:
    fields = document.get("fields")
    if not isinstance(fields, Mapping):
        return ()  # missing or of another kind: the grammar has said so
    if not fields:
        chains.add(document.lines.get("fields", 0), "EV107", "fields is empty", "write a rule for every leaf of the event schema")
    rules: list[RuleDoc] = []
    for text, value in fields.items():
        line = fields.lines.get(text, 0)
        paths = _rule_paths(text, line, chains)
        before = len(chains.problems)
        steps = chains.read(value, place([text], "fields"), line)
        if paths and len(chains.problems) == before:
            rules.append(RuleDoc(text, paths, steps, line))
    return tuple(rules)


def _rule_paths(text: str, line: int, chains: Chains) -> tuple[Path, ...]:
    """The places a rule's key names; none where it is wrong."""
    whole = parse_path(text)
    if whole is not None and is_of_stream(whole):
        # Below headers nothing is known: a star says that all others go, which they do anyway.
        if is_stream_leaf(whole) or str(whole) == "$headers.*":
            return (whole,)
        chains.add(line, "EV110", f"'{shorten(text)}' in fields is not a path", STREAM_PATHS)
        return ()
    first = re.match(r"[^.\[{]*", text)
    names = first[0].split("|") if first else [text]
    rest = text[len(first[0]) :] if first else ""
    paths = tuple(path for name in names if (path := parse_path(name + rest)) is not None)
    if len(paths) != len(names) or len(names) > 2 or len(set(names)) != len(names):
        remedy = "write paths as a.b, a[].b, a[], a{key}, before|after.a; `.*` only at the end"
        chains.add(line, "EV110", f"'{shorten(text)}' in fields is not a path", remedy)
        return ()
    return paths


class Chains:
    """Reads the values of rules and gathers what is wrong with them."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []

    def add(self, line: int, code: str, fact: str, remedy: str) -> None:
        self.problems.append(Problem(self.file, line, code, fact, remedy))

    def read(self, value: Any, at: str, line: int, depth: int = 0) -> tuple[StepDoc, ...]:
        if not isinstance(value, list):
            step = self._step(value, at, line, depth)
            return () if step is None else (step,)
        if not value:
            self.add(line, "EV107", f"{at} is empty", "write an operator; to remove the field write `drop`")
        steps = []
        for number, item in enumerate(value):
            here = place([number], at)
            step_line = line_at(value, [number], line)
            if isinstance(item, list):
                self.add(step_line, "EV103", f"{here} is a list in a list", "write one list of operators")
            elif (step := self._step(item, here, step_line, depth)) is not None:
                steps.append(step)
        self._check_order(steps, at)
        return tuple(steps)

    def _step(self, value: Any, at: str, line: int, depth: int) -> StepDoc | None:
        if value is None or value == "" or value == {}:
            self.add(line, "EV107", f"{at} is empty", "write an operator; to remove the field write `drop`")
            return None
        name, given = value, None
        if isinstance(value, dict):
            if len(value) > 1:
                words = ", ".join(f"{{{shorten(word, 20)}: ...}}" for word in list(value)[:3])
                self.add(line, "EV103", f"{at} holds {len(value)} operators in one mapping", f"write a list, in the order meant: [{words}]")
                return None
            name, given = next(iter(value.items()))
            line = line_at(value, [name], line)
        if not isinstance(name, str):
            remedy = "write an operator; for a fixed value write {replace: {with: ...}}"
            self.add(line, "EV108", f"{at} must be an operator, not {shown(name)}", remedy)
            return None
        if name in LATER:
            self.add(line, "EV111", f"operator '{name}' in {at} is not available yet", "use another operator, or drop the field")
            return None
        if isinstance(value, dict):
            self._check_given(name, value, at, line, depth)
        return StepDoc(name, given, line)

    def _check_given(self, name: str, written: dict[str, Any], at: str, line: int, depth: int) -> None:
        given = written[name]
        self.problems += empties(written, self.file, at=at, line=line)
        if name == "into" and given is not None:
            self._check_branches(given, place([name], at), line, depth)

    def _check_branches(self, given: Any, at: str, line: int, depth: int) -> None:
        if not isinstance(given, dict):
            self.add(line, "EV103", f"{at} must be a mapping, not {shown(given)}", "write {name: rule} for every field to be written")
        elif not given:
            self.add(line, "EV107", f"{at} is empty", "write {name: rule} for every field to be written")
        elif depth == _DEEPEST_INTO:
            self.add(line, "EV103", f"{at} stands more than {_DEEPEST_INTO} deep", "write it flatter")
        else:
            for name, rule in given.items():
                if rule is not None:  # found empty already
                    self.read(rule, place([name], at), line_at(given, [name], line), depth + 1)

    def _check_order(self, steps: list[StepDoc], at: str) -> None:
        shaped: StepDoc | None = None
        for number, step in enumerate(steps):
            if step.name == "drop" and len(steps) > 1:
                self.add(step.line, "EV113", f"drop stands in a chain in {at}", "drop stands alone: remove it, or all the others")
            if step.name in _LAST and number + 1 < len(steps):
                follower = shorten(steps[number + 1].name)
                self.add(
                    steps[number + 1].line, "EV113", f"'{follower}' follows {step.name} in {at}", f"{step.name} ends a chain: put it last"
                )
            if any(step.name == other.name for other in steps[:number]) and step.name in _SHAPES:
                self.add(step.line, "EV113", f"'{step.name}' stands twice in {at}", "write it once")
            if step.name in _SHAPES:
                shaped = step
            elif shaped is not None and step.name != "drop":
                remedy = f"rename and move follow the operators on values: put {shaped.name} last"
                self.add(step.line, "EV113", f"'{shorten(step.name)}' follows {shaped.name} in {at}", remedy)
