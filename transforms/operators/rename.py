"""rename: another name in the output."""

from __future__ import annotations

from pydantic import field_validator

from eventveil.transforms.operators._output_name import output_name
from eventveil.transforms.registry import Shape, operator

__all__ = ["Rename"]


@operator("rename")
class Rename(Shape):
    """Change the last name of a leaf, a record or a list.

    Discloses nothing more and hides nothing but the name: it covers no value, so a leaf also needs `keep` or another
    operator. Rules below a renamed record or list keep their input paths. Follows the operators on values.

    Args:
        to: the name in the output: letters, digits, ``_`` and ``-``, not beginning with a digit or ``$``.

    Raises:
        EV110: `to` is not a single name (when the policy is compiled).

    Example:
        [keep, {rename: date}]: {"time": 7} -> {"date": 7}
    """

    short = "to"

    to: str

    _to = field_validator("to")(output_name)
