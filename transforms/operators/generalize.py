"""generalize: the group of a value in a hierarchy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, PrivateAttr

from eventveil.transforms.context import Context
from eventveil.transforms.registry import Operator, Placing, Setting, operator

__all__ = ["Generalize"]


@operator("generalize")
class Generalize(Placing):
    """Replace a value with its group in a hierarchy.

    Discloses the group: joinable by it. Reversible only where a group holds one value, or is the value: `check` warns of both.
    Whole numbers, booleans and dates are looked up by their text (``39``, ``true``, ``2014-09-04``). Null stays null.

    Args:
        hierarchy: path of a file, relative to the policy: UTF-8, columns separated by ``;``, no header, no quotes.
            A line is a value and its groups, from fine to coarse.
        level: which group, at least 1: level 1 is the second column.
        otherwise: ``refuse`` the event, ``nullify`` the value, or write the text ``other``, where the value is not in the
            first column.

    Raises:
        EV217: the hierarchy cannot be read, or has no such level (when the policy is compiled).
        EV521: the value is not in the hierarchy.

    Source:
        The file format of ARX (arx.deidentifier.org).

    Example:
        {generalize: {hierarchy: countries.csv, level: 1}}: "France" -> "Europe", null -> null, "Atlantis" -> refused EV521
    """

    may_return_input = True  # a hierarchy may list a value as its own group
    refusals = ("EV521",)

    hierarchy: str = Field(min_length=1)
    level: int = Field(ge=1)

    _values: pa.StringArray = PrivateAttr(default_factory=lambda: pa.array([], pa.string()))
    _groups: pa.StringArray = PrivateAttr(default_factory=lambda: pa.array([], pa.string()))

    def returns(self, given: pa.DataType) -> pa.DataType | None:
        textual = pa.types.is_string(given) or pa.types.is_integer(given) or pa.types.is_boolean(given) or pa.types.is_date32(given)
        return pa.string() if textual else None

    def settle(self, setting: Setting) -> Operator:
        super().settle(setting)
        rows = _rows(setting.read(self.hierarchy), self.hierarchy)
        columns = len(next(iter(rows.values())))
        if self.level > columns:
            raise ValueError(f"EV217 level {self.level} of {self.hierarchy}: it has {columns}")
        settled = self.model_copy()
        settled._values = pa.array(list(rows), pa.string())
        settled._groups = pa.array([groups[self.level - 1] for groups in rows.values()], pa.string())
        return settled

    def discloses(self) -> str:
        return f"the group of level {self.level} in {self.hierarchy}"

    def warnings(self, setting: Setting) -> Sequence[str]:
        pairs = list(zip(self._values.to_pylist(), self._groups.to_pylist(), strict=True))
        sizes = Counter(group for _, group in pairs)
        own = sum(value == group for value, group in pairs)
        alone = sum(value != group and sizes[group] == 1 for value, group in pairs)
        place = f"level {self.level} of {self.hierarchy}"
        said = [f"{place} leaves {own} of its values as they are"] if own else []
        return [*said, f"{place} has {alone} groups of one value"] if alone else said

    def apply(self, values: pa.Array[Any], context: Context) -> pa.Array[Any]:
        found = pc.index_in(values.cast(pa.string()), value_set=self._values)
        return self.place(self._groups.take(found), pc.and_(pc.is_null(found), pc.is_valid(values)), context)


def _rows(content: bytes, file: str) -> dict[str, tuple[str, ...]]:
    """Value -> groups. Raises ValueError with file and line, and nothing of what stands there."""
    if content.startswith(b"\xef\xbb\xbf"):
        raise ValueError(f"EV217 {file} begins with a byte order mark: save it as plain UTF-8")
    try:
        lines = content.decode().split("\n")
    except UnicodeDecodeError:
        raise ValueError(f"EV217 {file} is not UTF-8") from None
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise ValueError(f"EV217 {file} is empty")
    rows: dict[str, tuple[str, ...]] = {}
    width = lines[0].count(";")
    for number, line in enumerate(lines, 1):
        value, *groups = line.removesuffix("\r").split(";")
        if '"' in line or "\r" in "".join(groups) + value:
            raise ValueError(f"EV217 {file} line {number} has quotes or a lone carriage return: write values as they are")
        if len(groups) != width or not groups:
            raise ValueError(f"EV217 {file} line {number} has {len(groups) + 1} columns, the first line {width + 1}; at least 2 are needed")
        if rows.setdefault(value, tuple(groups)) != tuple(groups):
            raise ValueError(f"EV217 {file} line {number} gives a value of an earlier line other groups")
    return rows
