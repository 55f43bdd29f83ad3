"""Unicode normal forms in linear time.

Python sorts a run of combining marks by insertion: a hostile text of a megabyte would take half a minute, one of eight half an
hour. So the marks of long texts are sorted before; by the definition of canonical order that changes no normal form.
Source: Unicode Standard Annex 15; The Unicode Standard, section 3.11.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import groupby
from typing import Literal
from unicodedata import combining, is_normalized, normalize

__all__ = ["is_normal_form", "normal_form"]

Form = Literal["NFC", "NFKC"]

# A millisecond at most, however it is made.
_SHORT = 1_000


def normal_form(form: Form, text: str) -> str:
    """`text` in the normal form."""
    return normalize(form, text if len(text) <= _SHORT else _ordered(form, text))


def is_normal_form(form: Form, text: str) -> bool:
    """Whether `text` is in the normal form already."""
    return is_normalized(form, text) if len(text) <= _SHORT else normal_form(form, text) == text


def _ordered(form: Form, text: str) -> str:
    """The text taken apart, the marks of each run in canonical order."""
    apart = "".join([_decomposed(form, one) for one in text])
    # A stable sort, because marks of one class keep their order.
    return "".join(["".join(sorted(run, key=combining) if are_marks else run) for are_marks, run in groupby(apart, key=_is_mark)])


@lru_cache(maxsize=1 << 16)
def _decomposed(form: Form, character: str) -> str:
    return normalize("NFD" if form == "NFC" else "NFKD", character)


def _is_mark(character: str) -> bool:
    return combining(character) > 0
