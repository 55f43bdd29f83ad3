"""bin: the range that a number lies in, as a text."""

from __future__ import annotations

from bisect import bisect_right
from fractions import Fraction
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator, model_validator

from eventveil.transforms.context import Context
from eventveil.transforms.operators._exact import (
    Number,
    in_units,
    is_decimal,
    is_number,
    join_words,
    nulls_of,
    numbers,
    plain,
    words,
    wraps,
)
from eventveil.transforms.registry import Operator, Placing, Setting, operator

__all__ = ["Bin"]

Mask = npt.NDArray[np.bool_]
Column = npt.NDArray[Any]
_pc: Any = pc  # the stubs know no calls with an array and a scalar


@operator("bin")
class Bin(Placing):
    """Put a number into a bin, and give the bin's label instead.

    Discloses the bin: the number to within its width. Not reversible; joinable by the bin. Null stays null. The result is text.

    Args:
        width: a positive number: bins of one width, counted from 0. Whole for fields of whole numbers, and not finer than the
            last digit of decimals. Labels are `[a,b)`.
        edges: ascending numbers, at least two: the bins are [a, b), from each edge to the next. Either `edges` or `width`.
        labels: one text per bin of `edges`, in place of `[a,b)`.
        otherwise: ``refuse`` the event, ``nullify`` the value, or write the text ``other``, where it lies in no bin.

    Raises:
        EV217: `width` is finer than the field's numbers (when the policy is compiled).
        EV522: the number lies below the first edge, not below the last one, or is not finite or too large for its bin to be told.

    Example:
        {bin: 10}: 17 -> "[10,20)", -1 -> "[-10,0)", null -> null
        {bin: {edges: [0, 18, 65], labels: [minor, adult], otherwise: other}}: 17 -> "minor", 18 -> "adult", 65 -> "other"
    """

    short = "width"
    refusals = ("EV522",)

    width: Number | None = None
    edges: tuple[Number, ...] | None = Field(None, strict=False, min_length=2)
    labels: tuple[str, ...] | None = Field(None, strict=False, min_length=1)

    @field_validator("width")
    @classmethod
    def _positive(cls, width: Number | None) -> Number | None:
        if width is not None and width <= 0:
            raise ValueError("EV103 width must be more than 0")
        return width

    @model_validator(mode="after")
    def _fits_together(self) -> Bin:
        if (self.edges is None) == (self.width is None):
            raise ValueError("EV104 give either edges or width")
        if self.labels is not None and (self.edges is None or len(self.labels) != len(self.edges) - 1):
            raise ValueError("EV103 labels go with edges: one for each two neighbours")
        if self.edges is not None and any(a >= b for a, b in zip(self.edges, self.edges[1:])):
            raise ValueError("EV103 edges must be ascending")
        return self

    def returns(self, given: pa.DataType) -> pa.DataType | None:
        return pa.string() if is_number(given) else None

    def settle(self, setting: Setting) -> Operator:
        if self.width is not None and not pa.types.is_floating(setting.given):
            size = in_units(self.width, setting.given)
            if size.denominator != 1 or size >= 2**63:
                raise ValueError(f"EV217 bins of {plain(self.width)} do not fit the numbers of {setting.given}")
        return super().settle(setting)

    def discloses(self) -> str:
        return "which of the bins the number lies in" if self.width is None else f"the number to within a bin of {plain(self.width)}"

    def apply(self, values: pa.Array[Any], context: Context) -> pa.Array[Any]:
        nulls = nulls_of(values)
        wide: dict[int, int] = {}
        column: Column
        if is_decimal(values.type):
            found = words(values)
            column = np.ascontiguousarray(found[:, 0])
            # More than 18 digits: one by one, for numpy has no such numbers. Amounts of money do not come here.
            wide = {row: join_words(found[row]) for row in np.flatnonzero(wraps(found)).tolist()}
        else:
            column = numbers(values)
        texts, misplaced = self._by_width(column, values.type, wide) if self.edges is None else self._by_edges(column, values.type, wide)
        if nulls is not None:
            texts, misplaced = _pc.if_else(pa.array(nulls), pa.scalar(None, pa.string()), texts), misplaced & ~nulls
        return self.place(texts, misplaced, context)

    def _by_edges(self, column: Column, given: pa.DataType, wide: dict[int, int]) -> tuple[pa.Array[Any], Mask]:
        assert self.edges is not None
        labels = self.labels or [f"[{plain(a)},{plain(b)})" for a, b in zip(self.edges, self.edges[1:])]
        if pa.types.is_floating(given):
            # What is not a number sorts behind the last edge.
            number = np.searchsorted(np.array([float(edge) for edge in self.edges]), column.astype(np.float64), side="right") - 1
        else:
            # A whole number is not below an edge if it is not below the next whole number.
            edges = [ceil(in_units(edge, given)) for edge in self.edges]
            limits = np.iinfo(column.dtype)
            near = np.array([max(edge, int(limits.min)) for edge in edges if edge <= limits.max], column.dtype)
            number = np.searchsorted(near, column, side="right") - 1
            for row, value in wide.items():
                number[row] = bisect_right(edges, value) - 1
        misplaced = (number < 0) | (number >= len(labels))
        return pa.array(labels, pa.string()).take(np.where(misplaced, 0, number)), misplaced

    def _by_width(self, column: Column, given: pa.DataType, wide: dict[int, int]) -> tuple[pa.Array[Any], Mask]:
        assert self.width is not None
        if pa.types.is_floating(given):
            number, misplaced = _float_bins(column.astype(np.float64, copy=False), Fraction(self.width))
        else:
            size = in_units(self.width, given).numerator
            if column.dtype != np.uint64:
                column = column.astype(np.int64, copy=False)
            number, misplaced = column // column.dtype.type(size), np.zeros(len(column), np.bool_)
        # A label is made once for each bin that occurs.
        coded: Any = pa.array(number).dictionary_encode()
        texts: pa.Array[Any] = pa.array([self._label(of) for of in coded.dictionary.to_pylist()], pa.string()).take(coded.indices)
        if wide:
            held = np.isin(np.arange(len(column)), list(wide))
            more = [self._label(value // size) for value in wide.values()]
            texts = _pc.replace_with_mask(texts, pa.array(held), pa.array(more, pa.string()))
        return texts, misplaced

    def _label(self, number: int) -> str:
        width = Fraction(self.width or 0)
        return f"[{plain(number * width)},{plain((number + 1) * width)})"


def _float_bins(values: npt.NDArray[np.float64], width: Fraction) -> tuple[npt.NDArray[np.int64], Mask]:
    """Number of each float's bin, the edges being the doubles nearest to the multiples; misplaced where these are not exact."""
    top, bottom = float(width.numerator), float(width.denominator)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        number = np.floor(values * bottom / top)
        misplaced = ~(np.abs(number) + 1 < 2.0**52 / top) | (max(top, bottom) >= 2.0**52)
        number[misplaced] = 0
        # The division may be off by one bin beside an edge.
        number += values >= (number + 1) * top / bottom
        number -= values < number * top / bottom
    number[misplaced] = 0
    return number.astype(np.int64), misplaced
