"""A rule's chain, as written -> operators, built and validated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from eventveil.schemas.errors import CODES, Problem, did_you_mean, remedy_for
from eventveil.schemas.grammar import explain_one
from eventveil.schemas.policy import StepDoc
from eventveil.transforms.registry import Operator, Shape, find, known

__all__ = ["Chain", "Chains", "coded"]


@dataclass(frozen=True)
class Chain:
    """A chain's operators with their lines and positions, and the shape behind them."""

    operators: tuple[tuple[Operator, int, int], ...]
    rename: str | None = None
    move: str | None = None
    branches: Mapping[str, Any] | None = None
    line: int = 0


class Chains:
    """Reads chains, and collects what is wrong with them."""

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self.file = file
        self.problems = problems

    def fail(self, code: str, fact: str, remedy: str = "", line: int = 0) -> None:
        self.problems.append(Problem(self.file, line, code, fact, remedy or remedy_for(code)))

    def read(self, steps: Sequence[StepDoc], path: str) -> Chain | None:
        """Build the operators of a chain; None if one of them cannot be built."""
        operators: list[tuple[Operator, int, int]] = []
        rename = move = branches = None
        whole = True
        for position, step in enumerate(steps):
            cls = find(step.name)
            if cls is None:
                self.fail("EV101", f"unknown operator '{step.name}' in fields.{path}", did_you_mean(step.name, known()), step.line)
                whole = False
                continue
            built = self._build(cls, step, path)
            if built is None:
                whole = False
            elif step.name == "into":
                branches = step.given
            elif step.name == "rename":
                rename = built.to  # type: ignore[union-attr]
            elif step.name == "move":
                move = built.to  # type: ignore[union-attr]
            elif isinstance(built, Operator):
                operators.append((built, position, step.line))
        line = steps[0].line if steps else 0
        return Chain(tuple(operators), rename, move, branches, line) if whole else None

    def _build(self, cls: type[Operator] | type[Shape], step: StepDoc, path: str) -> Operator | Shape | None:
        given = _plain(step.given)
        if step.name == "into":
            given = {"branches": given}
        elif not isinstance(given, dict):
            if given is not None and cls.short is None:
                self.fail("EV103", f"{step.name} in fields.{path} takes no bare value", self._known(cls), step.line)
                return None
            given = {} if given is None else {cls.short: given}
        # By the names that policies use alone: a field's Python name, as with_, is no spelling of a parameter.
        unknown = [name for name in given if name not in _parameters(cls)]
        for name in unknown:
            line = getattr(step.given, "lines", {}).get(name, step.line)
            self.fail("EV102", f"unknown parameter '{name}' of {step.name} in fields.{path}", self._known(cls, str(name)), line)
        if unknown:
            return None
        try:
            return cls(**given)
        except ValidationError as error:
            for one in error.errors(include_url=False):
                self._parameter_problem(cls, step, path, one)
        return None

    def _parameter_problem(self, cls: type[Operator] | type[Shape], step: StepDoc, path: str, one: Mapping[str, Any]) -> None:
        where = ".".join(str(part) for part in one["loc"])
        place = f"{step.name}{'.' + where if where else ''} in fields.{path}"
        line = (
            getattr(step.given, "lines", {}).get(one["loc"][0], step.line) if one["loc"] and isinstance(step.given, Mapping) else step.line
        )
        if one["type"] == "missing":
            self.fail("EV104", f"{place} is missing", self._known(cls), line)
        else:
            self.problems.append(explain_one(one, place, self.file, line))

    @staticmethod
    def _known(of: type[Operator] | type[Shape], wrong: str = "") -> str:
        names = _parameters(of)
        if not names:
            return "it has no parameters"
        return did_you_mean(wrong, names) if wrong else f"parameters: {', '.join(names)}"


def _parameters(of: type[Operator] | type[Shape]) -> list[str]:
    return [info.alias or name for name, info in of.model_fields.items()]


def _plain(value: Any) -> Any:
    """A document's value without positions, as pydantic expects it."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


def coded(message: str, default: str) -> tuple[str, str]:
    """The code that a message begins with, and the rest."""
    code, _, rest = message.partition(" ")
    return (code, rest) if code in CODES else (default, message)
