"""Names of classes: values of one class are treated alike wherever they stand."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import AfterValidator, Field

__all__ = ["ClassName", "printable"]


def printable(text: str) -> str:
    """`text`, if every character can be seen. Else ValueError: two names that look the same must be the same."""
    if not text.isprintable():
        raise ValueError("EV103 only printable characters are allowed here")
    return text


ClassName: TypeAlias = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(printable)]
