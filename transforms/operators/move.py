"""move: another place in the output."""

from __future__ import annotations

from pydantic import field_validator

from eventveil.transforms.operators._output_name import output_path
from eventveil.transforms.registry import Shape, operator

__all__ = ["Move"]


@operator("move")
class Move(Shape):
    """Put a leaf, a record or a list under another path of the output.

    Discloses nothing more and hides nothing but the place: it covers no value, so a leaf also needs `keep` or another
    operator. Follows the operators on values.

    Args:
        to: the absolute output path, within the same list: ``products[].price`` may become ``products[].paid.net``.

    Raises:
        EV110: `to` is not a path (when the policy is compiled).
        EV216: `to` lies in another list (when the policy is compiled).

    Example:
        [keep, {move: buyer.country}]: {"land": "FR"} -> {"buyer": {"country": "FR"}}
    """

    short = "to"

    to: str

    _to = field_validator("to")(output_path)
