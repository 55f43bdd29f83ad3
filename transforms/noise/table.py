"""Exact tables of discrete noise: a distribution function in integers, inverted with random words.

A distribution function is computed in 256-bit fixed point (after `decimal` with 120 digits for the exponentials; no
float takes part), rounded to multiples of 2^-63 and kept as uint64. A draw is one binary search. How far a table is
from its distribution is computed with it, the tails that the table cuts off included.

Support. A table ends where a tail weighs less than 2^-64: at about 44 scales for Laplace noise, 9.2 sigmas for
Gaussian noise. `Table.bound` says where exactly.

Sources: A. Ghosh, T. Roughgarden, M. Sundararajan, "Universally utility-maximizing privacy mechanisms" (2009), for
discrete Laplace noise; C. Canonne, G. Kamath, T. Steinke, "The discrete Gaussian for differential privacy" (2020);
I. Mironov, "On significance of the least significant bits for differential privacy" (2012), for why no floats.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Context, Decimal
from fractions import Fraction
from functools import lru_cache

import numpy as np
import numpy.typing as npt

__all__ = ["BITS", "GAUSSIAN_LIMIT", "LAPLACE_LIMIT", "Table", "exponential", "gaussian", "laplace", "rounded_up"]

Int64s = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

BITS = 63  # of a random word; 64 would leave no room for a threshold of one
LAPLACE_LIMIT = 1_000_000  # grid steps
GAUSSIAN_LIMIT = 100_000  # grid steps: its table does not factor, and has 18 entries per step of sigma
_COARSE = 256  # the scale, in blocks, of the coarse part of a wide Laplace table

_POINT = 256  # fractional bits of the exact computation
_ONE = 1 << _POINT
_SHIFT = _POINT - BITS
_HALF = 1 << (_SHIFT - 1)
_DECIMAL = Context(prec=120)
_NONE: Words = np.zeros(0, np.uint64)


@dataclass(frozen=True, eq=False)
class Table:
    """A distribution over integers, to be inverted.

    A wide Laplace distribution is drawn in two independent parts, a block and a place within the block: two small
    tables instead of one of many megabytes, and nearer to the exact distribution.

    Attributes:
        thresholds: the distribution function in units of 2^-63, ascending, from `low` on.
        low: the least block.
        total_variation: distance to the exact distribution: of a draw of one part exactly, of two parts at most.
        width: integers in a block; 1 where there is one part only.
        places: the distribution function of the place within a block.
    """

    thresholds: Words
    low: int
    total_variation: float
    width: int = 1
    places: Words = field(default_factory=lambda: _NONE)

    @property
    def bound(self) -> int:
        """No draw is larger than this in absolute value."""
        high = self.low + len(self.thresholds)
        return max(-self.low * self.width, high * self.width + self.width - 1)

    def sample(self, words: Words) -> Int64s:
        """One draw per row of `words`: (n, 2) words below 2^63. The second is used by wide tables only."""
        # uint64 on both sides: against int64 numpy would compare as float64 and be wrong at the edges.
        if words.dtype != np.uint64:
            raise TypeError("random words are uint64")
        block = np.searchsorted(self.thresholds, words[:, 0], side="right") + np.int64(self.low)
        if self.width == 1:
            return block
        place = np.searchsorted(self.places, words[:, 1], side="right")
        # Places count away from zero: block -1 is -1 - 0, -1 - 1, ...
        return np.where(block >= 0, block * self.width + place, (block + 1) * self.width - 1 - place)


@lru_cache(maxsize=64)
def laplace(scale: Fraction) -> Table:
    """P(x) proportional to exp(-|x| / scale), over the integers.

    Args:
        scale: in grid steps, at most 1,000,000; epsilon-differentially private for sensitivity scale * epsilon.

    Raises ValueError (EV217) for a scale beyond the limit, or so small that no value would ever change.
    """
    scale = _checked(Fraction(scale), LAPLACE_LIMIT, "the Laplace scale")
    width = max(1, -(-scale.numerator // (scale.denominator * _COARSE)))
    # Not negative with probability 1 / (1 + r): then x, else -1 - x, is geometric with ratio r. A geometric number is
    # width * block + place, and the two are independent.
    ratio, per_block = exponential(-1 / scale), exponential(-width / scale)
    not_negative = (_ONE << _POINT) // (_ONE + ratio)
    below = _geometric(_ONE - not_negative, per_block)
    above = _geometric((not_negative * per_block) >> _POINT, per_block)
    thresholds, low, error = _two_sided(below, above)
    places, more = _within_block(ratio, per_block, width)
    return Table(thresholds, low, rounded_up(Fraction(error + more, 2 * _ONE)), width, places)


@lru_cache(maxsize=64)
def gaussian(sigma: Fraction) -> Table:
    """P(x) proportional to exp(-x^2 / (2 sigma^2)), over the integers.

    Args:
        sigma: in grid steps, at most 100,000; D^2 / (2 sigma^2)-zCDP for sensitivity D.

    Raises ValueError (EV217) for a sigma beyond the limit, or so small that no value would ever change.
    """
    sigma = _checked(Fraction(sigma), GAUSSIAN_LIMIT, "sigma")
    half = sum(_bell(sigma))
    total = _ONE + 2 * half
    thresholds, low, error = _two_sided(_tails(sigma, half, total), _tails(sigma, half, total))
    return Table(thresholds, low, rounded_up(Fraction(error, 2 * _ONE)))


def exponential(power: Fraction) -> int:
    """e^power in units of 2^-256, for a power of at most 0."""
    exact = _DECIMAL.divide(Decimal(power.numerator), Decimal(power.denominator))
    return int(_DECIMAL.multiply(_DECIMAL.exp(exact), Decimal(_ONE)))


def rounded_up(exact: Fraction) -> float:
    """As a float that is not below it: covers the rounding of the 256-bit computation too."""
    return float(exact) * (1 + 2.0**-40)


def _checked(scale: Fraction, limit: int, name: str) -> Fraction:
    if scale > limit:
        raise ValueError(
            f"EV217 {name} is more than {limit:,} steps of the grid: give a coarser grid, at least {_plain(scale / limit)} times as wide"
        )
    # Below, every threshold would round to 0 or 1: P(0) > 1 - 2^-63.
    if scale * 40 < 1:
        raise ValueError(f"EV217 {name} is less than a fortieth of a step of the grid: no value would change; give a finer grid")
    return scale


def _plain(number: Fraction) -> str:
    return f"{float(number):.3g}"


def _geometric(first: int, ratio: int) -> Iterator[int]:
    while True:
        yield first
        first = (first * ratio) >> _POINT


def _bell(sigma: Fraction) -> Iterator[int]:
    """exp(-x^2 / (2 sigma^2)) for x = 1, 2, ...: until what is left weighs less than 2^-100 of the whole."""
    square = sigma * sigma
    value, factor, ratio = _ONE, exponential(-1 / (2 * square)), exponential(-1 / square)
    while True:
        value = (value * factor) >> _POINT
        factor = (factor * ratio) >> _POINT
        if value >> (_POINT - 128) == 0:
            return
        yield value


def _tails(sigma: Fraction, half: int, total: int) -> Iterator[int]:
    """P(X > 0), P(X > 1), ... A second pass is cheaper than keeping a million wide integers."""
    inverse = (1 << (2 * _POINT)) // total
    left = half
    for value in _bell(sigma):
        yield (left * inverse) >> _POINT
        left -= value
    yield (left * inverse) >> _POINT


def _two_sided(below: Iterable[int], above: Iterable[int]) -> tuple[Words, int, int]:
    """Thresholds and least integer, from P(X < 0), P(X < -1), ... and P(X > 0), P(X > 1), ..., and twice the distance."""
    down, first_down, error_down = _rounded(below)
    up, first_up, error_up = _rounded(above)
    kept = sum(side[0] if side else 0 for side in (down, up))
    error = abs((_ONE - first_down - first_up) - (((1 << BITS) - kept) << _SHIFT))
    thresholds = np.array(down[::-1] + [(1 << BITS) - tail for tail in up], np.uint64)
    if not len(thresholds):
        raise ValueError("EV217 the noise is so small that no value would change: give a finer grid")
    thresholds.setflags(write=False)
    return thresholds, -len(down), error + error_down + error_up


def _rounded(tails: Iterable[int]) -> tuple[list[int], int, int]:
    """One side's tails as multiples of 2^-63 as long as they are not 0, the first exact one, and the distance of all points beyond."""
    kept: list[int] = []
    first = before = error = 0
    for exact in tails:
        near = (exact + _HALF) >> _SHIFT
        if kept:
            error += abs((before - exact) - ((kept[-1] - near) << _SHIFT))
        else:
            first = exact
        if not near:
            return kept, first, error + exact  # all that lies beyond is never drawn
        kept.append(near)
        before = exact
    return kept, first, error


def _within_block(ratio: int, per_block: int, width: int) -> tuple[Words, int]:
    """Thresholds of a geometric number below `width`, and twice the distance."""
    thresholds: list[int] = []
    power, before, last, error = _ONE, 0, 0, 0
    inverse = (1 << (2 * _POINT)) // (_ONE - per_block)
    for place in range(width):
        power = (power * ratio) >> _POINT
        exact = ((_ONE - power) * inverse) >> _POINT if place < width - 1 else _ONE
        near = (exact + _HALF) >> _SHIFT
        error += abs((exact - before) - ((near - last) << _SHIFT))
        thresholds.append(near)
        before, last = exact, near
    places = np.array(thresholds[:-1], np.uint64)
    places.setflags(write=False)
    return places, error
