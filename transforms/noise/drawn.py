"""What `noise`, `randomize` and `shift` have in common: whom a draw belongs to, and which key it comes from."""

from __future__ import annotations

import json
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from eventveil.transforms.context import Context, Words
from eventveil.transforms.keys.canonical import canonical_tag
from eventveil.transforms.noise.draw import draws, value_words
from eventveil.transforms.registry import Operator

__all__ = ["Drawn"]


class Drawn(Operator):
    """An operator whose result depends on a keyed draw.

    Args:
        per: ``event``: equal values of two events get different draws; ``subject``: all events of one subject share
            theirs.
        together: a label. Rules of one event with the same label, operator and parameters share one draw; the value
            is then left out of it.
    """

    purpose: ClassVar[Literal["pseudonym", "noise"] | None] = "noise"
    may_return_input = True  # a draw may be 0, or keep the value

    per: Literal["event", "subject"]
    together: str | None = Field(None, min_length=1)

    def needs(self) -> frozenset[str]:
        return frozenset({"id" if self.per == "event" else "subject"})

    def key_info(self, path: str, position: int, given: pa.DataType) -> tuple[str, ...]:
        parameters = json.dumps(self.parameters(given), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        if self.together is not None:
            # Neither leaf nor type: columns of different precision may move together.
            return ("together", self.together, self.name, parameters)
        return ("leaf", path, str(position), self.name, parameters, canonical_tag(given))

    def parameters(self, given: pa.DataType) -> dict[str, Any]:
        """All parameters in canonical form: equal for policies that mean the same."""
        return self.model_dump(mode="json", exclude_none=True)

    def draw(self, context: Context, values: pa.Array[Any] | None, number: int = 0) -> Words:
        """Two random words per value.

        Args:
            values: what the draw depends on, without nulls; None where the value is to be left out.
            number: of the draw, where one value needs several.
        """
        keys, codes = context.keys()
        ids = context.release_ids() if self.per == "event" else context.subjects()
        words = None if values is None or self.together is not None else value_words(values, keys, codes)
        elements = context.element if self.per == "event" and self.together is None else None
        return draws(keys, codes, ids, words, elements, number)

    def averages_out(self) -> list[str]:
        """The warning that a fresh draw per event deserves."""
        if self.per == "subject":
            return []
        fact = "drawn afresh per event: where a subject's value stays the same over many events, averaging discloses it"
        return [f"{fact}; then say per: subject"]
