"""renumber: 1, 2, 3 instead of identifiers, within one event."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, field_validator

from eventveil.transforms.context import Context
from eventveil.transforms.keys.canonical import canonical, canonical_tag
from eventveil.transforms.operators._class_name import ClassName
from eventveil.transforms.registry import GroupOperator, Setting, operator

__all__ = ["Renumber"]


@operator("renumber")
class Renumber(GroupOperator):
    """Number the distinct values of a class within their event, from 1, in the order in which they first appear.

    Discloses which values of one event are equal and how many different ones it has; nothing joins across events. Not
    reversible. Null stays null and takes no number.

    Args:
        scope: ``event``.
        class: fields of one class share their numbers; they count in the order of the schema, then of elements. Default: the
            leaf's path.

    Example:
        {renumber: {scope: event}}: "ksm6573er" -> 1, "ka1234" -> 1, null -> null
    """

    short = "scope"
    may_return_input = True  # a 1 may become a 1: the number says nothing of the value

    scope: Literal["event"]
    class_: ClassName | None = Field(default=None, alias="class")

    @field_validator("scope", mode="before")
    @classmethod
    def _is_available(cls, scope: object) -> object:
        if scope == "window":
            raise ValueError("EV111 renumber within a window is not available yet")
        return scope

    def returns(self, given: pa.DataType) -> pa.DataType | None:
        try:
            canonical_tag(given)
        except TypeError:
            return None
        return pa.int64()

    def settle(self, setting: Setting) -> Renumber:
        return self if self.class_ is not None else self.model_copy(update={"class_": setting.path})

    def group(self) -> str:
        return self.class_ or ""

    def discloses(self) -> str:
        return "which values of one event are equal, and how many different ones it has"

    def apply_together(self, columns: Sequence[pa.Array[Any]], contexts: Sequence[Context]) -> list[pa.Array[Any]]:
        # Compile refuses one class over two types (EV208), so canonical forms can be compared.
        forms: Any = pa.concat_arrays([canonical(column) for column in columns])
        of_event = [np.arange(len(column)) if context.row is None else context.row for column, context in zip(columns, contexts)]
        there = forms.is_valid().to_numpy(zero_copy_only=False)
        numbers = np.zeros(len(forms), np.int64)
        numbers[there] = _numbered(np.concatenate(of_event)[there], forms.drop_null())
        ends = np.cumsum([len(column) for column in columns])
        return [pa.array(some, mask=~valid) for some, valid in zip(np.split(numbers, ends[:-1]), np.split(there, ends[:-1]))]


def _numbered(events: npt.NDArray[np.int64], forms: Any) -> npt.NDArray[np.int64]:
    """The number of each value within its event."""
    if not len(forms):
        return np.zeros(0, np.int64)
    found = forms.dictionary_encode()
    many = np.int64(len(found.dictionary))
    # Event by event, and within one as they came: then dictionaries, which are in order of first appearance, are too.
    order = np.argsort(events, kind="stable")
    pairs: Any = pa.array((events * many + found.indices.to_numpy())[order]).dictionary_encode()
    event_of_pair = pairs.dictionary.to_numpy() // many
    first_of_event = np.searchsorted(event_of_pair, event_of_pair)
    numbers = np.empty(len(forms), np.int64)
    numbers[order] = (np.arange(len(event_of_pair)) - first_of_event + 1)[pairs.indices.to_numpy()]
    return numbers
