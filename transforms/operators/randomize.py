"""randomize: keep a choice with some probability, else replace it by another (randomized response)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import exp
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, StrictBool, StrictInt, StrictStr, field_validator, model_validator

from eventveil.transforms.context import Context
from eventveil.transforms.noise.draw import scaled
from eventveil.transforms.noise.drawn import Drawn
from eventveil.transforms.noise.number import Number, plain
from eventveil.transforms.noise.table import BITS, exponential, rounded_up
from eventveil.transforms.registry import Operator, Setting, operator

__all__ = ["Randomize"]

_pc: Any = pc  # the stubs know no calls with an array and a scalar
_POINT = 256  # fractional bits of `exponential`
_LARGEST = 32
_KINDS: dict[type, Callable[[pa.DataType], bool]] = {
    str: pa.types.is_string,
    bool: pa.types.is_boolean,
    int: lambda kind: pa.types.is_int32(kind) or pa.types.is_int64(kind),
}


@operator("randomize")
class Randomize(Drawn):
    """Keep one of k choices with probability e^epsilon / (e^epsilon + k - 1), else give another, each as likely.

    Discloses each value with deniability: (epsilon, delta)-differential privacy of this value, delta from the rounding
    of the probabilities to 2^-63. Frequencies can be estimated and corrected, single values not. Who holds the key can
    tell which values were kept. Not joinable, except ``per: subject``: equal values of one subject then leave equal.
    The result is never null.

    Args:
        epsilon: over 0, at most 32.
        choices: all values that may occur, at least two, of one kind: texts, whole numbers or booleans.
        per: ``event`` (fresh for every event) or ``subject`` (all events of a subject share the draw of equal values).
        together: a label; rules of one event with the same label and parameters share one draw.
        null: ``refuse``, or the choice that a null becomes before the draw.

    Raises:
        EV217: a choice lies outside the field's type, or is no symbol of its enum (when the policy is compiled).
        EV526: a null, unless `null` says what it becomes.
        EV527: a value that is no choice.

    Source:
        S. Warner, "Randomized response" (1965); P. Kairouz, S. Oh, P. Viswanath, "Extremal mechanisms for local
        differential privacy" (2014) for k choices.

    Example (keyed):
        {randomize: {epsilon: 1, choices: [card, cash, invoice], per: event}}: "card" -> "cash"
    """

    refusals = ("EV527", "EV526")

    epsilon: Number
    choices: tuple[StrictBool | StrictInt | StrictStr, ...] = Field(min_length=2, max_length=10_000)
    null: StrictBool | StrictInt | StrictStr = "refuse"

    @field_validator("choices", mode="before")
    @classmethod
    def _as_tuple(cls, given: Any) -> Any:
        return tuple(given) if isinstance(given, list) else given

    @model_validator(mode="after")
    def _consistent(self) -> Randomize:
        if not 0 < self.epsilon <= _LARGEST:
            raise ValueError(f"EV103 epsilon lies between 0 and {_LARGEST}: above, hardly a value would ever change")
        if len({type(choice) for choice in self.choices}) > 1:
            raise ValueError("EV103 choices are of one kind: texts, whole numbers or booleans")
        if len(set(self.choices)) < len(self.choices):
            raise ValueError("EV103 a choice stands twice")
        if self.null != "refuse" and self._place_of_null() is None:
            raise ValueError("EV103 null is refuse or one of the choices")
        return self

    def returns(self, given: pa.DataType) -> pa.DataType | None:
        return given if _KINDS[type(self.choices[0])](given) else None

    def nullable(self, given: bool) -> bool:
        return False

    def settle(self, setting: Setting) -> Operator:
        if pa.types.is_int32(setting.given) and any(not -(1 << 31) <= choice < 1 << 31 for choice in self.choices):  # type: ignore[operator]
            raise ValueError("EV217 a choice lies outside int32")
        strange = [place for place, choice in enumerate(self.choices, 1) if setting.symbols and choice not in setting.symbols]
        if strange:
            raise ValueError(f"EV217 choice {strange[0]} is no symbol of the enum: {', '.join(setting.symbols)}")
        return self

    def discloses(self) -> str:
        return f"the value with deniability (epsilon {plain(self.epsilon)} per draw, {len(self.choices)} choices)"

    def warnings(self, setting: Setting) -> Sequence[str]:
        delta = self.total_variation() * (1 + exp(float(self.epsilon)))
        stay = f"{float(self.keeps()):.0%} of values stay as they are"
        said = [f"spends epsilon {plain(self.epsilon)} and delta {delta:.2g} with every draw; {stay}"]
        if self.together is not None:
            said.append("values that share their draw are kept or replaced together: one that is known tells about the others")
        return said + self.averages_out()

    def keeps(self) -> Fraction:
        """The exact probability of keeping a value, to 256 bits."""
        return Fraction(1 << _POINT, (1 << _POINT) + (len(self.choices) - 1) * exponential(-self.epsilon))

    def total_variation(self) -> float:
        """Distance between the drawn and the exact distribution."""
        others = len(self.choices) - 1
        keep, drawn = self.keeps(), Fraction(self._threshold(), 1 << BITS)
        error = abs(keep - drawn)
        # 2^63 words over the others: `more` of them get one word more.
        share, more = divmod(1 << BITS, others)
        for words, count in ((share, others - more), (share + 1, more)):
            error += count * abs((1 - keep) / others - (1 - drawn) * Fraction(words, 1 << BITS))
        return rounded_up(error / 2)

    def apply(self, values: pa.Array[Any], context: Context) -> pa.Array[Any]:
        choices = pa.array(list(self.choices), values.type)
        null = self._place_of_null()
        nulls = values.is_null()
        found = _pc.index_in(values, value_set=choices)
        if null is None:
            context.refuse(nulls, "EV526")
        context.refuse(_pc.and_(found.is_null(), _pc.invert(nulls)), "EV527")
        # What was refused needs a value in its slot all the same.
        code = _pc.if_else(nulls, null or 0, found).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        words = self.draw(context, choices.take(pa.array(code)))
        other = scaled(words[:, 1], len(choices) - 1).astype(np.int64)
        other += other >= code
        drawn = np.where(words[:, 0] < np.uint64(self._threshold()), code, other)
        taken: pa.Array[Any] = choices.take(pa.array(drawn))
        return taken

    def _threshold(self) -> int:
        return round(self.keeps() * (1 << BITS))

    def _place_of_null(self) -> int | None:
        # By type too: True equals 1.
        same = [i for i, choice in enumerate(self.choices) if type(choice) is type(self.null) and choice == self.null]
        return None if self.null == "refuse" or not same else same[0]
