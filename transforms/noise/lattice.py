"""Values as whole steps of a public grid, and back: the only numbers that noise is added to.

Integers and decimals are exact, in integer arithmetic. A float is divided by the grid and rounded to the nearest whole
step; what leaves is a function of whole steps alone, so its last bits say nothing about the input.

Range. A step that the type cannot hold does not exist: results saturate at the last one that it can. For floats that
is 2^53 steps, from where a double no longer tells two steps apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from eventveil.transforms.noise.number import plain

__all__ = ["Lattice", "Steps", "is_numeric"]

Int64s = npt.NDArray[np.int64]
Steps = npt.NDArray[Any]  # int64; Python integers where decimals are too wide for that

_INT64 = (-(1 << 63), (1 << 63) - 1)
_WHOLE_FLOATS = 1 << 53


def is_numeric(given: pa.DataType) -> bool:
    """Whether a lattice can lie under the type."""
    is_ = pa.types
    return is_.is_int32(given) or is_.is_int64(given) or is_.is_float32(given) or is_.is_float64(given) or is_.is_decimal128(given)


@dataclass(frozen=True)
class Lattice:
    """A type and the grid that its values are rounded to, in the leaf's units."""

    type: pa.DataType
    grid: Fraction

    @classmethod
    def over(cls, given: pa.DataType, grid: Fraction | None) -> Lattice:
        """The lattice of a type, with its default grid: 1 for integers, the last digit for decimals, none for floats.

        Raises ValueError (EV217) for a grid that does not fit the type.
        """
        exact = not pa.types.is_floating(given)
        if grid is None and not exact:
            raise ValueError("EV217 a float has no finest step: give a grid, as grid: 0.01")
        unit = _unit(given)
        grid = unit if grid is None else grid
        if grid <= 0:
            raise ValueError("EV217 grid is more than 0")
        if exact and (grid / unit).denominator != 1:
            raise ValueError(f"EV217 grid {plain(grid)} is no multiple of {plain(unit)}, the finest step of {given}")
        lattice = cls(given, grid)
        if lattice.last < 1:
            raise ValueError(f"EV217 grid {plain(grid)} is wider than the range of {given}")
        return lattice

    @property
    def first(self) -> int:
        """The lowest step that the type can hold."""
        return ceil(_range(self.type)[0] / self.grid) if not pa.types.is_floating(self.type) else -self.last

    @property
    def last(self) -> int:
        """The highest step that the type can hold."""
        last = floor(_range(self.type)[1] / self.grid)
        return min(last, _WHOLE_FLOATS) if pa.types.is_floating(self.type) else last

    def inside(self, low: Fraction | None, high: Fraction | None) -> tuple[int, int]:
        """The lowest and highest step between two bounds: bounds off the grid are moved inward.

        Raises ValueError (EV217) where no step lies between them.
        """
        first = self.first if low is None else max(self.first, ceil(low / self.grid))
        last = self.last if high is None else min(self.last, floor(high / self.grid))
        if first > last:
            raise ValueError(f"EV217 no multiple of the grid {plain(self.grid)} lies within the bounds of the output")
        return first, last

    def bounded(self, low: Fraction | None, high: Fraction | None) -> tuple[Fraction | None, Fraction | None]:
        """Bounds of the input, moved inward to values that the type can hold; for floats to the nearest.

        Raises ValueError (EV217) where no value lies between them.
        """
        least, most = _range(self.type)
        if pa.types.is_floating(self.type):
            low, high = (None if bound is None else Fraction(float(bound)) for bound in (low, high))
        else:
            unit = _unit(self.type)
            low = None if low is None else ceil(low / unit) * unit
            high = None if high is None else floor(high / unit) * unit
        low = None if low is None else max(low, least)
        high = None if high is None else min(high, most)
        if (least if low is None else low) > (most if high is None else high):
            raise ValueError(f"EV217 no value of {self.type} lies within the bounds of the input")
        return low, high

    def step(self, value: Fraction) -> int:
        """The step that one value is rounded to: the same rounding as `steps`."""
        if pa.types.is_floating(self.type):
            return int(self._float_steps(np.array([float(value)]))[0])
        scaled = value / self.grid
        return round(scaled)  # of a Fraction: exact, ties to even

    def steps(self, values: pa.Array[Any], low: Fraction | None, high: Fraction | None, reach: int) -> Steps:
        """Values, clamped to `low` and `high`, as the nearest steps, ties to even.

        Args:
            values: without nulls; finite.
            low, high: bounds of the input in the leaf's units, as `bounded` gives them.
            reach: the largest number that will be added, so that decimals are widened only where they must be.
        """
        if pa.types.is_floating(self.type):
            numbers = values.to_numpy(zero_copy_only=False).astype(np.float64)
            if low is not None or high is not None:
                numbers = np.clip(numbers, None if low is None else float(low), None if high is None else float(high))
            return self._float_steps(numbers)
        unit = _unit(self.type)
        size = int(self.grid / unit)
        digits = _unscaled(values, (reach + 2) * size) if pa.types.is_decimal(self.type) else _int64s(values)
        # Bounds lie on the type's own digits: `bounded`.
        return _rounded(_clipped(digits, *(None if bound is None else int(bound / unit) for bound in (low, high))), size)

    def add(self, steps: Steps, noise: Int64s, low: int, high: int) -> Steps:
        """The sum, saturating at `low` and `high`, two steps that the type can hold."""
        total = steps + noise
        if total.dtype != object:
            # Wrapped around: the sum lies on the wrong side of where it started.
            total = np.where((noise > 0) & (total < steps), _INT64[1], total)
            total = np.where((noise < 0) & (total > steps), _INT64[0], total)
        return _clipped(total, low, high)

    def values(self, steps: Steps) -> pa.Array[Any]:
        """Steps within the type's range as values of the type."""
        if pa.types.is_floating(self.type):
            # Both factors are exact for the usual grids (1/100, 5, 0.25): one rounding, to the nearest float.
            numbers = steps.astype(np.float64) * float(self.grid.numerator) / float(self.grid.denominator)
            return pa.array(numbers.astype(_dtype(self.type)), self.type)
        unscaled = steps * int(self.grid / _unit(self.type))
        if pa.types.is_decimal(self.type):
            return _decimals(unscaled, self.type)
        return pa.array(unscaled.astype(_dtype(self.type)), self.type)

    def _float_steps(self, numbers: npt.NDArray[np.float64]) -> Int64s:
        """Monotone in the input: the sensitivity in steps is that of the bounds."""
        edge = float(self.last * self.grid)
        scaled = np.clip(numbers, -edge, edge) * float(self.grid.denominator) / float(self.grid.numerator)
        return np.clip(np.rint(scaled).astype(np.int64), -self.last, self.last)


def _dtype(given: pa.DataType) -> np.dtype[Any]:
    return np.dtype(f"{'f' if pa.types.is_floating(given) else 'i'}{given.bit_width // 8}")


def _unit(given: pa.DataType) -> Fraction:
    """The finest step that an exact type can hold."""
    return Fraction(10) ** -given.scale if pa.types.is_decimal(given) else Fraction(1)


def _range(given: pa.DataType) -> tuple[Fraction, Fraction]:
    """The least and the largest value of the type."""
    if pa.types.is_decimal(given):
        most = (10**given.precision - 1) * _unit(given)
        return -most, most
    if pa.types.is_floating(given):
        largest = Fraction(float(np.finfo(_dtype(given)).max))
        return -largest, largest
    return Fraction(-(1 << (given.bit_width - 1))), Fraction((1 << (given.bit_width - 1)) - 1)


def _rounded(numbers: Steps, size: int) -> Steps:
    """Nearest multiples of `size`, in multiples; ties to even."""
    if size == 1:
        return numbers
    below = numbers // size
    rest = numbers - below * size
    # Without doubling the rest, which may be too wide for that.
    up = (rest > size - rest) | ((rest == size - rest) & (below % 2 == 1))
    nearest: Steps = below + up.astype(below.dtype)
    return nearest


def _clipped(numbers: Steps, low: int | None, high: int | None) -> Steps:
    if numbers.dtype != object:  # a bound beyond int64 bounds nothing
        low = None if low is None or low <= _INT64[0] else min(low, _INT64[1])
        high = None if high is None or high >= _INT64[1] else max(high, _INT64[0])
    if low is not None:
        numbers = np.maximum(numbers, low)
    if high is not None:
        numbers = np.minimum(numbers, high)
    return numbers


def _int64s(values: pa.Array[Any]) -> Int64s:
    return values.to_numpy(zero_copy_only=False).astype(np.int64)


def _unscaled(values: pa.Array[Any], room: int) -> Steps:
    """The digits of decimals as integers: int64 where all of them, and `room` beside them, fit; else Python integers."""
    if not len(values):
        return np.zeros(0, np.int64)
    buffer: Any = values.buffers()[1]
    words = np.frombuffer(buffer, "<i8", 2 * len(values), values.offset * 16).reshape(-1, 2)
    low, high = words[:, 0], words[:, 1]
    narrow = bool((high == low >> 63).all())
    if narrow and max(int(low.max()), -int(low.min())) + room < 1 << 63:
        return np.asarray(low, np.int64)
    # Row by row, in effect: numpy has no 128-bit integers, and decimals of 19 digits are rare.
    digits: Steps = high.astype(object) * (1 << 64) + low.view("<u8").astype(object)
    return digits


def _decimals(unscaled: Steps, kind: pa.DataType) -> pa.Array[Any]:
    words = np.empty((len(unscaled), 2), "<i8")
    if unscaled.dtype == object:
        words[:, 0] = (unscaled & ((1 << 64) - 1)).astype("<u8").view("<i8")
        words[:, 1] = (unscaled >> 64).astype("<i8")
    else:
        words[:, 0] = unscaled
        words[:, 1] = unscaled >> 63
    return pa.Array.from_buffers(kind, len(unscaled), [None, pa.py_buffer(words.data)])
