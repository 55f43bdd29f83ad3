"""renumber: 1, 2, 3 instead of identifiers, within one event or one window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from eventveil.transforms.columns import Column, buffer_of, flags, validity
from eventveil.transforms.context import Context
from eventveil.transforms.keys.canonical import canonical, canonical_tag
from eventveil.transforms.keys.prf import macs
from eventveil.transforms.operators._class_name import ClassName
from eventveil.transforms.registry import GroupOperator, Operator, Setting, operator

__all__ = ["Renumber"]

_DISCLOSES = {
    "event": "which values of one event are equal, and how many different ones it has",
    "window": "pseudonymous: equal values within a release window can be recognised across events, and how many different ones it has",
}


@operator("renumber")
class Renumber(GroupOperator):
    """Number the distinct values of a class from 1, within their event or within their release window.

    Not reversible. Null stays null and takes no number.

    Within an event values are numbered in the order in which they first appear. Discloses which values of one event are equal and
    how many different ones it has; nothing joins across events.

    Within a window they are numbered when it closes, 1 to n over all event types of the job that name the class, in an order that is
    keyed for each window: neither the values nor their arrival show in it. Pseudonymous: within a window equal values can be
    recognised across events, and how often each occurs; nothing joins across windows. Only `rename` and `move` may follow.
    Events wait for their window, and late ones are refused.

    Args:
        scope: ``event`` or ``window``.
        class: fields of one class share their numbers; within an event they count in the order of the schema, then of elements. A
            class has one scope. Default: the leaf's path.

    Raises:
        EV113: an operator follows `scope: window` (when the policy is compiled).

    Example:
        {renumber: {scope: event}}: "ksm6573er" -> 1, "ka1234" -> 1, null -> null

    Example (keyed):
        {renumber: {scope: window, class: product}}: "ksm6573er" -> 2, "ka1234" -> 1, "ksm6573er" -> 2
    """

    short = "scope"
    may_return_input = True  # a 1 may become a 1: the number says nothing of the value

    scope: Literal["event", "window"]
    class_: ClassName | None = Field(default=None, alias="class")

    def returns(self, given: pa.DataType) -> pa.DataType | None:
        return _numbers_of(given)

    def settle(self, setting: Setting) -> Operator:
        class_ = self.class_ or setting.path
        if self.scope == "window":
            return _WithinWindow(class_=class_)
        return self.model_copy(update={"class_": class_})

    def group(self) -> str:
        return self.class_ or ""

    def discloses(self) -> str:
        return _DISCLOSES[self.scope]

    def apply_together(self, columns: Sequence[pa.Array[Any]], contexts: Sequence[Context]) -> list[pa.Array[Any]]:
        # Compile refuses one class over two types (EV208), so canonical forms can be compared.
        forms: Any = pa.concat_arrays([canonical(column) for column in columns])
        of_event = [np.arange(len(column)) if context.row is None else context.row for column, context in zip(columns, contexts)]
        there = forms.is_valid().to_numpy(zero_copy_only=False)
        numbers = np.zeros(len(forms), np.int64)
        numbers[there] = _numbered(np.concatenate(of_event)[there], forms.drop_null())
        ends = np.cumsum([len(column) for column in columns])
        return [pa.array(some, mask=~valid) for some, valid in zip(np.split(numbers, ends[:-1]), np.split(there, ends[:-1]))]


class _WithinWindow(Operator):
    """What `scope: window` settles as: a keyed digest of each value, which stands in until transforms/release/renumber.py numbers it."""

    name = "renumber"
    purpose = "renumber"
    may_return_input = True  # the number, as above
    stands_in = pa.binary(16)

    class_: str

    def returns(self, given: pa.DataType) -> pa.DataType | None:
        return _numbers_of(given)

    def needs(self) -> frozenset[str]:
        return frozenset({"time"})

    def key_info(self, path: str, position: int, given: pa.DataType) -> tuple[str, ...]:
        # Neither path nor position, nor the type of event: a class counts over all of them.
        return ("class", self.class_, canonical_tag(given))

    def discloses(self) -> str:
        return _DISCLOSES["window"]

    def apply(self, values: pa.Array[Any], context: Context) -> pa.Array[Any]:
        keys, codes = context.keys()
        forms: Column = canonical(values)
        there = flags(forms.is_valid())
        digests = np.zeros((len(forms), 16), np.uint8)
        digests[there] = macs("blake2b", keys, None if codes is None else codes[there], forms.drop_null(), 16)
        buffers = [validity(forms), buffer_of(digests)]
        made: pa.Array[Any] = pa.Array.from_buffers(self.stands_in, len(forms), buffers, forms.null_count)
        return made


def _numbers_of(given: pa.DataType) -> pa.DataType | None:
    try:
        canonical_tag(given)
    except TypeError:
        return None
    return pa.int64()


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
