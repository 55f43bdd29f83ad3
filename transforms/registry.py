"""Operators by name.

The word in the policy is the module in `operators/`, the class in CapWords, the metric and the docs anchor. Built-in
operators are imported when a policy names them, so that `check` loads only what it needs; third parties register
through the entry point group ``eventveil.operators`` (entry name = operator name, value = the module).
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from eventveil.schemas.durations import Duration
from eventveil.transforms.context import Context

__all__ = ["GroupOperator", "Operator", "Otherwise", "Placing", "Setting", "Shape", "find", "known", "operator"]

Otherwise = Literal["refuse", "nullify", "other"]


@dataclass(frozen=True)
class Setting:
    """What compile knows and an operator may take over when it settles in its place.

    Attributes:
        path: the leaf's path; the default of `class`.
        zone: the zone of `event.time`.
        is_event_time: whether this leaf is `event.time`.
        window: length of the release window, as in the policy.
        given: the Arrow type that reaches the operator; nullable: whether nulls may.
        read: reads a file named by the policy, relative to it, and makes it part of the policy digest.
        symbols: the only texts that can reach the operator, where it is the first to treat an enum; empty elsewhere.
    """

    path: str
    zone: str
    is_event_time: bool
    window: Duration | None
    given: pa.DataType
    nullable: bool
    read: Callable[[str], bytes]
    symbols: tuple[str, ...] = ()


class Operator(BaseModel):
    """A frozen, validated treatment of one column. Parameters are the model's fields; `apply` takes only data.

    Class attributes:
        short: the one required parameter, so that `floor: 1min` may be written for `floor: {size: 1min}`.
        purpose: which sub-key it needs: "pseudonym", "noise" or "renumber"; None if none.
        may_return_input: whether a non-empty value may leave as it came (conformance suite).
        refusals: the codes it may refuse values with.
        covers: whether it says what happens to the value; false for what only prepares it (cast, parse, normalize).
        stands_in: the type of what `apply` writes, where the window's end turns it into what `returns` promises; None: `returns`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True, defer_build=True)

    name: ClassVar[str] = ""
    short: ClassVar[str | None] = None
    purpose: ClassVar[Literal["pseudonym", "noise", "renumber"] | None] = None
    may_return_input: ClassVar[bool] = False
    refusals: ClassVar[tuple[str, ...]] = ()
    covers: ClassVar[bool] = True
    stands_in: ClassVar[pa.DataType | None] = None

    def returns(self, given: pa.DataType) -> pa.DataType | None:
        """The type of the result; None where `given` is not accepted."""
        raise NotImplementedError

    def nullable(self, given: bool) -> bool:
        """Whether the result may be null, when the input may (`given`)."""
        return given

    def settle(self, setting: Setting) -> Operator:
        """A copy that took over from its place in the policy what it needs. Raises ValueError with a fact if it does not fit."""
        return self

    def needs(self) -> frozenset[str]:
        """What must be named under `event`: of "id", "subject", "time"."""
        return frozenset()

    def key_scope(self) -> Literal["window", "domain"]:
        """Under which key the sub-key is derived."""
        return "window"

    def key_info(self, path: str, position: int, given: pa.DataType) -> tuple[str, ...]:
        """What distinguishes this rule's sub-key, beside domain, window and purpose."""
        return ()

    def discloses(self) -> str:
        """What a recipient still learns from the result: one phrase for `check`."""
        raise NotImplementedError

    def warnings(self, setting: Setting) -> Sequence[str]:
        """What `check` should point out about this use: bias, spent epsilon, weak settings."""
        return ()

    def apply(self, values: pa.Array[Any], context: Context) -> pa.Array[Any]:
        """Treat a column. Never raises on a value: what cannot be placed is refused, and any value may stand in its slot."""
        raise NotImplementedError


class Placing(Operator):
    """An operator that may meet values it cannot place; `otherwise` says where they go."""

    otherwise: Otherwise = "refuse"

    def nullable(self, given: bool) -> bool:
        return given or self.otherwise == "nullify"

    def settle(self, setting: Setting) -> Operator:
        result = self.returns(setting.given)
        if self.otherwise == "other" and result is not None and not pa.types.is_string(result):
            raise ValueError("EV215 otherwise: other needs a text result")
        return self

    def place(self, placed: pa.Array[Any], misplaced: pa.Array[Any] | np.ndarray[Any, Any], context: Context) -> pa.Array[Any]:
        """`placed`, with the values under `misplaced` refused, null or the text ``other``."""
        mask: Any = misplaced if isinstance(misplaced, pa.Array) else pa.array(misplaced, pa.bool_())
        found = pc.sum(mask).as_py() or 0
        if not found:
            return placed
        context.count("otherwise", found)
        if self.otherwise == "refuse":
            context.refuse(mask, self.refusals[0])
        filler = "other" if self.otherwise == "other" else None
        result: pa.Array[Any] = pc.if_else(mask.fill_null(False), pa.scalar(filler, placed.type), placed)
        return result


class GroupOperator(Operator):
    """An operator that sees all leaves of one class of an event together."""

    def group(self) -> str:
        """The class: all rules with the same operator and group are treated together."""
        raise NotImplementedError

    def apply_together(self, columns: Sequence[pa.Array[Any]], contexts: Sequence[Context]) -> list[pa.Array[Any]]:
        raise NotImplementedError

    def apply(self, values: pa.Array[Any], context: Context) -> pa.Array[Any]:
        return self.apply_together([values], [context])[0]


class Shape(BaseModel):
    """drop, rename, move, into, release: what shapes the event, handled by compile; no kernel."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True, defer_build=True)

    name: ClassVar[str] = ""
    short: ClassVar[str | None] = None


_Any = TypeVar("_Any", bound="type[Operator] | type[Shape]")
_found: dict[str, type[Operator] | type[Shape]] = {}
_PACKAGE = "eventveil.transforms.operators"


def operator(name: str) -> Callable[[_Any], _Any]:
    """Register a class under the word that policies use. Refuses a word that is taken, and says by whom."""

    def register(cls: _Any) -> _Any:
        holder = _found.get(name)
        if holder is not None and holder.__qualname__ != cls.__qualname__:
            raise LookupError(f"operator {name!r} is already held by {holder.__module__}.{holder.__qualname__}")
        cls.name = name
        _found[name] = cls
        return cls

    return register


def _built_in() -> Iterator[str]:
    for module in pkgutil.iter_modules(import_module(_PACKAGE).__path__):
        if not module.name.startswith("_"):
            yield module.name


def known() -> list[str]:
    """All operator names, sorted: built in and from entry points."""
    return sorted({*_built_in(), *(entry.name for entry in metadata.entry_points(group="eventveil.operators"))})


def find(name: str) -> type[Operator] | type[Shape] | None:
    """The operator of that name, or None."""
    if name not in _found:
        if name in _built_in():
            import_module(f"{_PACKAGE}.{name}")
        else:
            for entry in metadata.entry_points(group="eventveil.operators"):
                if entry.name == name:
                    entry.load()
    return _found.get(name)
