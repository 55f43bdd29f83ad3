"""What happens to events: plans, operators, decoders, encoders, keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eventveil.transforms.beam.anonymize import Anonymize

__all__ = ["Anonymize"]


def __getattr__(name: str) -> Any:
    """Import Beam only when `Anonymize` is used: policies, plans and keys work without it."""
    if name == "Anonymize":
        from eventveil.transforms.beam.anonymize import Anonymize

        return Anonymize
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
