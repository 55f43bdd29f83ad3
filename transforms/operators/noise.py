"""noise: add keyed integer noise to a number."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import ceil, exp
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, PlainSerializer, PlainValidator, WithJsonSchema, model_validator

from eventveil.transforms.context import Context
from eventveil.transforms.noise.drawn import Drawn
from eventveil.transforms.noise.lattice import Lattice, is_numeric
from eventveil.transforms.noise.number import Number, number_text, plain, read_number
from eventveil.transforms.noise.table import Table, gaussian, laplace
from eventveil.transforms.registry import Operator, Setting, operator

__all__ = ["Bounds", "Noise"]

Replacement = Annotated[
    Literal["refuse"] | Number,
    PlainValidator(lambda given: given if given == "refuse" else read_number(given)),
    PlainSerializer(lambda given: given if given == "refuse" else number_text(given), return_type=str),
    WithJsonSchema({"anyOf": [{"const": "refuse"}, {"type": "number"}]}),
]


class Bounds(BaseModel):
    """Inclusive bounds in the leaf's units, at least one."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    min: Number | None = None
    max: Number | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Bounds:
        if self.min is None and self.max is None:
            raise ValueError("EV104 min, max or both are needed")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("EV103 min is more than max")
        return self


# e^20 is half a billion: a likelihood ratio that any two values may reach is no promise.
_MEANINGLESS = 20


@operator("noise")
class Noise(Drawn):
    """Round a number to a public grid and add keyed discrete noise, in whole steps of that grid.

    Discloses the value up to the noise; that is (epsilon, delta)-differential privacy of this value where the input is
    clamped, and none in the formal sense where it is not. Who holds the key can subtract the noise. Not joinable,
    except ``per: subject``: equal values of one subject then leave equal. Only integers are drawn, added and compared,
    so the last bits of a float say nothing about the input. Overflow saturates at the type's bounds (floats: at 2^53
    steps). The result is never null.

    Args:
        laplace_scale: scale of discrete Laplace noise, in the leaf's units; at most 1,000,000 steps of the grid.
        gaussian_sigma: sigma of discrete Gaussian noise, in the leaf's units; at most 100,000 steps of the grid.
        epsilon: discrete Laplace noise for this epsilon, over 0; needs `clamp_input` with both bounds. Of these three
            exactly one.
        sensitivity: with `epsilon`: how far one value can be from another, in the leaf's units; at least (and by
            default) the width of `clamp_input`. In steps it is rounded up.
        grid: in the leaf's units; inputs are rounded to its multiples, ties to even. Default: 1 for integers, the last
            digit for decimals; floats have none.
        per: ``event`` (fresh noise for every event) or ``subject`` (all events of a subject share the noise of equal values).
        together: a label; rules of one event with the same label and parameters add the same noise.
        clamp_input: ``min`` and ``max`` in the leaf's units, applied before the noise.
        clamp_output: ``min``, ``max`` or both, applied after it, moved inward to multiples of the grid: results stay
            on the grid and within the bounds. Brings a bias.
        null: ``refuse``, or the number that a null becomes before the noise.

    Raises:
        EV217: the grid or the noise does not fit the field (when the policy is compiled).
        EV526: a null, unless `null` says what it becomes.
        EV528: a number that is not finite.

    Source:
        see `eventveil.transforms.noise.table`.

    Example (keyed):
        {noise: {laplace_scale: 1, per: event, clamp_output: {min: 1}}}: 10 -> 11
    """

    refusals = ("EV526", "EV528")

    laplace_scale: Number | None = None
    gaussian_sigma: Number | None = None
    epsilon: Number | None = None
    sensitivity: Number | None = None
    grid: Number | None = None
    clamp_input: Bounds | None = None
    clamp_output: Bounds | None = None
    null: Replacement = "refuse"

    @model_validator(mode="after")
    def _one_kind_of_noise(self) -> Noise:
        sizes = {"laplace_scale": self.laplace_scale, "gaussian_sigma": self.gaussian_sigma, "epsilon": self.epsilon}
        given = [name for name, size in sizes.items() if size is not None]
        if len(given) != 1:
            raise ValueError(f"{'EV104' if not given else 'EV103'} exactly one of laplace_scale, gaussian_sigma and epsilon is needed")
        for name in (given[0], "sensitivity", "grid"):
            size = getattr(self, name)
            if size is not None and size <= 0:
                raise ValueError(f"EV103 {name} is more than 0")
        if self.epsilon is None:
            if self.sensitivity is not None:
                raise ValueError("EV103 sensitivity goes with epsilon")
            return self
        bounds = self.clamp_input
        if bounds is None or bounds.min is None or bounds.max is None:
            raise ValueError("EV104 epsilon needs clamp_input with min and max: without them one value can be any distance from another")
        width = bounds.max - bounds.min
        if width == 0 or (self.sensitivity is not None and self.sensitivity < width):
            fact = f"sensitivity is less than {plain(width)}, the width of clamp_input" if width else "clamp_input leaves one value only"
            raise ValueError(f"EV103 {fact}")
        return self

    def returns(self, given: pa.DataType) -> pa.DataType | None:
        return given if is_numeric(given) else None

    def nullable(self, given: bool) -> bool:
        return False

    def settle(self, setting: Setting) -> Operator:
        lattice = self._lattice(setting.given)
        self._input(lattice)
        self._output(lattice)
        self._table(lattice)
        if self.null != "refuse" and pa.types.is_floating(setting.given):
            lattice.bounded(self.null, self.null)
        elif self.null != "refuse":
            value, finest = self.null, Lattice.over(setting.given, None)
            if (value / finest.grid).denominator != 1 or not finest.first <= value / finest.grid <= finest.last:
                raise ValueError(f"EV217 null: {plain(value)} is no {setting.given}")
        return self

    def parameters(self, given: pa.DataType) -> dict[str, Any]:
        return {**super().parameters(given), "grid": str(self._lattice(given).grid)}

    def discloses(self) -> str:
        if self.epsilon is not None:
            return f"the value up to noise (epsilon {plain(self.epsilon)} per draw)"
        kind, size = ("Laplace, scale", self.laplace_scale) if self.laplace_scale is not None else ("Gaussian, sigma", self.gaussian_sigma)
        assert size is not None
        return f"the value up to noise ({kind} {plain(size)})"

    def warnings(self, setting: Setting) -> Sequence[str]:
        lattice = self._lattice(setting.given)
        said = self.averages_out()
        spent = self.true_epsilon(setting.given)
        if spent is not None:
            asked = (
                self.epsilon is not None
                and spent != self.epsilon
                and f"; {plain(self.epsilon)} was asked for, the rest is lost to the grid"
            )
            if spent > _MEANINGLESS:
                said.append(f"spends epsilon {plain(spent)} with every draw, which guarantees nothing: values are blurred, not hidden")
            else:
                said.append(f"spends epsilon {plain(spent)} and delta {self.true_delta(setting.given):.2g} with every draw{asked or ''}")
        elif self.clamp_input is None or self.clamp_input.min is None or self.clamp_input.max is None:
            said.append("the input has no clamp on both sides: a value far from all others is still recognised; say clamp_input")
        else:
            rho = (self._width(lattice) / self._size(lattice)) ** 2 / 2
            said.append(f"spends {plain(rho)}-zCDP with every draw")
        if self.clamp_output is not None:
            bias = plain(self._bias(lattice) * lattice.grid)
            for bound, does, shows in (
                (self.clamp_output.min, "raises", "every value that is less as at least"),
                (self.clamp_output.max, "lowers", "every value that is more as at most"),
            ):
                if bound is not None:
                    at = plain(bound)
                    said.append(f"clamp_output {does} values of {at} by {bias} on average, and shows {shows} {at}: totals are biased")
        if self.together is not None:
            said.append("values that share their noise disclose their exact difference; so does a corrected event")
        return said

    def true_epsilon(self, given: pa.DataType) -> Fraction | None:
        """Epsilon spent by one draw on a leaf of this type; None without Laplace noise or bounds of the input.

        Exact, for the grid and rounding as they are: steps between the rounded bounds over the scale in steps. At most
        the epsilon asked for.
        """
        bounds = self.clamp_input
        if self.gaussian_sigma is not None or bounds is None or bounds.min is None or bounds.max is None:
            return None
        lattice = self._lattice(given)
        return self._width(lattice) / self._size(lattice)

    def true_delta(self, given: pa.DataType) -> float:
        """Delta that the table adds to `true_epsilon`: its distance to the exact distribution, times 1 + e^epsilon."""
        spent = self.true_epsilon(given)
        assert spent is not None
        return self._table(self._lattice(given)).total_variation * (1 + exp(min(float(spent), 700.0)))

    def apply(self, values: pa.Array[Any], context: Context) -> pa.Array[Any]:
        lattice = self._lattice(values.type)
        table = self._table(lattice)
        placed = self._placed(values, context)
        low, high = self._input(lattice)
        steps = lattice.steps(placed, low, high, table.bound)
        noise = table.sample(self.draw(context, placed))
        return lattice.values(lattice.add(steps, noise, *self._output(lattice)))

    def _placed(self, values: pa.Array[Any], context: Context) -> pa.Array[Any]:
        """The values without nulls and without what is not finite: replaced or refused."""
        if values.null_count:
            if self.null == "refuse":
                context.refuse(values.is_null(), "EV526")
            values = values.fill_null(_scalar(Fraction(0) if self.null == "refuse" else self.null, values.type))
        if pa.types.is_floating(values.type):
            numbers = values.to_numpy(zero_copy_only=False)
            finite = np.isfinite(numbers)
            if not finite.all():
                context.refuse(~finite, "EV528")
                values = pa.array(np.where(finite, numbers, numbers.dtype.type(0)), values.type)
        return values

    def _lattice(self, given: pa.DataType) -> Lattice:
        return Lattice.over(given, self.grid)

    def _input(self, lattice: Lattice) -> tuple[Fraction | None, Fraction | None]:
        bounds = self.clamp_input
        return (None, None) if bounds is None else lattice.bounded(bounds.min, bounds.max)

    def _output(self, lattice: Lattice) -> tuple[int, int]:
        bounds = self.clamp_output
        return (lattice.first, lattice.last) if bounds is None else lattice.inside(bounds.min, bounds.max)

    def _width(self, lattice: Lattice) -> Fraction:
        """Steps between the bounds of the input, once rounded: how far one value can be from another."""
        low, high = self._input(lattice)
        assert low is not None and high is not None
        return Fraction(lattice.step(high) - lattice.step(low))

    def _size(self, lattice: Lattice) -> Fraction:
        """The scale of the noise, or its sigma, in steps."""
        size = self.laplace_scale if self.laplace_scale is not None else self.gaussian_sigma
        if size is not None:
            return size / lattice.grid
        assert self.epsilon is not None and self.clamp_input is not None
        assert self.clamp_input.min is not None and self.clamp_input.max is not None
        sensitivity = self.sensitivity if self.sensitivity is not None else self.clamp_input.max - self.clamp_input.min
        # Ties to even can put two values further apart than their distance rounded up: 0.5 -> 0, 1.5 -> 2.
        return max(Fraction(ceil(sensitivity / lattice.grid)), self._width(lattice)) / self.epsilon

    def _table(self, lattice: Lattice) -> Table:
        size = self._size(lattice)
        return gaussian(size) if self.gaussian_sigma is not None else laplace(size)

    def _bias(self, lattice: Lattice) -> Fraction:
        """Steps by which a bound of the output moves, on average, a value that lies on it: the mean of the positive part."""
        size = float(self._size(lattice))
        if self.gaussian_sigma is None:
            ratio = exp(-1 / size)
            return Fraction(ratio / (1 - ratio * ratio))
        weights = np.exp(-0.5 * (np.arange(1, int(10 * size) + 10) / size) ** 2)
        return Fraction(float((np.arange(1, len(weights) + 1) * weights).sum() / (1 + 2 * weights.sum())))


def _scalar(value: Fraction, kind: pa.DataType) -> pa.Scalar[Any]:
    """A number of the policy as a value of the leaf's type; exact, `settle` has seen to it."""
    lattice = Lattice(kind, Fraction(1)) if pa.types.is_floating(kind) else Lattice.over(kind, None)
    if pa.types.is_floating(kind):
        return pa.scalar(float(value), kind)
    scalar: pa.Scalar[Any] = lattice.values(np.array([int(value / lattice.grid)], object))[0]
    return scalar
