"""drop: remove a field or a sub-tree."""

from __future__ import annotations

from eventveil.transforms.registry import Shape, operator

__all__ = ["Drop"]


@operator("drop")
class Drop(Shape):
    """Leave a field out of the output.

    Discloses nothing. Not reversible. The only rule that may cover a sub-tree: `shipping: drop` covers all of it,
    `shipping.*: drop` the leaves below it that have no rule of their own. A record or list without surviving
    leaves vanishes. The field is still judged by the event schema.

    Example:
        drop: {"zip": "450075", "carrier": "usps"} -> {"carrier": "usps"}
    """
