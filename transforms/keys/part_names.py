"""The name of an output part: keyed, so that neither a file's name nor a position joins the outputs of two recipients."""

from __future__ import annotations

import hashlib

from eventveil.transforms.batch import Part
from eventveil.transforms.keys.derive import lengths

__all__ = ["part_name"]


def part_name(key: bytes, part: Part) -> str:
    """32 hexadecimal digits: keyed BLAKE2b of origin and start."""
    return hashlib.blake2b(lengths(part.origin, part.start), key=key, digest_size=16).hexdigest()
