"""parse: a text taken apart by its form."""

from __future__ import annotations

import re
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from eventveil.transforms.context import Context
from eventveil.transforms.operators._exact import read_decimals
from eventveil.transforms.registry import Placing, operator

__all__ = ["Parse"]

_pc: Any = pc  # the stubs know no calls with an array and a scalar
_PIECE = re.compile(r"\{\{|\}\}|\{(?P<name>[A-Za-z_][A-Za-z0-9_]*):(?P<kind>[a-z]*)\}|[^{}]+|(?P<wrong>[{}])", re.ASCII)
_KINDS = ("number", "text")


@operator("parse")
class Parse(Placing):
    """Take a text apart into named parts, for `into` to treat each by a rule of its own.

    Discloses nothing by itself and covers no field: the parts leave by their rules. Null stays null.

    Args:
        form: literals and captures ``{name:number}``, ``{name:text}``, with at least one literal character between two captures;
            ``{{`` and ``}}`` are braces. The whole text must match, without white space at its ends; literals match exactly.
            A number is an optional sign and digits, with at most one `decimal` between digits; no grouping, no exponent. A
            text is at least one character, and as short as the rest of the form allows.
        decimal: ``.`` or ``,``.
        scale: decimal places of the numbers, 0 to 38: they become exact decimals of 38 digits.
        otherwise: ``refuse`` the event, or ``nullify`` all parts, where the text does not have the form or a number has more
            digits than fit.

    Raises:
        EV217: the form cannot be read, names a part twice, or leaves open where one part ends (when the policy is compiled).
        EV523: the text does not have the form.

    Example:
        {parse: {form: "{amount:number} {currency:text}"}}: "7.99 EUR" -> {"amount": 7.99, "currency": "EUR"}, "free" -> refused EV523
    """

    short = "form"
    refusals = ("EV523",)
    covers = False

    form: str
    decimal: Literal[".", ","] = "."
    scale: int = Field(9, ge=0, le=38)

    @model_validator(mode="after")
    def _can_be_read(self) -> Parse:
        _pieces(self.form)
        return self

    def returns(self, given: pa.DataType) -> pa.DataType | None:
        if not pa.types.is_string(given):
            return None
        return pa.struct([(name, pa.decimal128(38, self.scale) if kind == "number" else given) for name, kind in _captures(self.form)])

    def discloses(self) -> str:
        return "the parts of the text"

    def apply(self, values: pa.Array[Any], context: Context) -> pa.Array[Any]:
        wanted: Any = self.returns(values.type)
        found = _pc.extract_regex(_pc.utf8_trim_whitespace(values), pattern=self._pattern())
        misplaced = _pc.and_(found.is_null(), values.is_valid())
        parts = []
        # A slice of a struct keeps its children whole: flatten() cuts them, and puts the parent's nulls into them.
        groups = dict(zip((one.name for one in found.type), found.flatten()))
        for number, part in enumerate(wanted):
            if pa.types.is_decimal(part.type):
                column, too_long = read_decimals(groups[f"s{number}"], groups[f"w{number}"], groups[f"f{number}"], part.type)
                misplaced = _pc.or_(misplaced, too_long)
            else:
                column = groups[f"t{number}"]
            parts.append(column)
        nothing = np.asarray(_pc.or_(misplaced, values.is_null()).to_numpy(zero_copy_only=False))
        taken = pa.StructArray.from_arrays(parts, fields=list(wanted), mask=pa.array(nothing))
        return self.place(taken, misplaced, context)

    def _pattern(self) -> str:
        """An RE2 expression: time linear in the text, whatever the text. Literals are escaped, groups have our names."""
        point = re.escape(self.decimal)
        text, number = "", 0
        for literal, kind in _pieces(self.form):
            if kind == "":
                text += re.escape(literal)
                continue
            if kind == "number":
                text += f"(?P<s{number}>[+-]?)(?P<w{number}>[0-9]+)(?:{point}(?P<f{number}>[0-9]+))?"
            else:
                text += f"(?P<t{number}>.+?)"
            number += 1
        return rf"(?s)\A{text}\z"


def _captures(form: str) -> list[tuple[str, str]]:
    return [(name, kind) for name, kind in _pieces(form) if kind]


def _pieces(form: str) -> list[tuple[str, str]]:
    """(literal, "") and (name, kind), in order. Raises ValueError (EV217)."""
    pieces: list[tuple[str, str]] = []
    for found in _PIECE.finditer(form):
        if found["wrong"]:
            raise ValueError("EV217 form: write {name:number} or {name:text}; a brace as {{ or }}")
        if found["name"] is None:
            literal = found[0][0] if found[0] in ("{{", "}}") else found[0]
            if pieces and pieces[-1][1] == "":
                literal = pieces.pop()[0] + literal
            pieces.append((literal, ""))
            continue
        if found["kind"] not in _KINDS:
            raise ValueError(f"EV217 form: {found['name']} is a number or a text, not {found['kind']!r}")
        if pieces and pieces[-1][1]:
            raise ValueError(f"EV217 form: nothing stands between {pieces[-1][0]} and {found['name']}")
        pieces.append((found["name"], found["kind"]))
    names = [name for name, kind in pieces if kind]
    if not names:
        raise ValueError("EV217 form: no {name:number} or {name:text} in it")
    if len(set(names)) < len(names):
        raise ValueError("EV217 form: a name stands twice")
    if form != form.strip():
        raise ValueError("EV217 form: white space at an end never matches")
    return pieces
