"""into: several outputs from one leaf."""

from __future__ import annotations

from typing import Any

from pydantic import ValidatorFunctionWrapHandler, field_validator

from eventveil.transforms.operators._output_name import output_name
from eventveil.transforms.registry import Shape, operator

__all__ = ["Into"]


@operator("into")
class Into(Shape):
    """Write siblings of a leaf, each by a rule of its own; the leaf itself does not leave.

    Discloses what the rules of its branches disclose, and that these values belong together. After `parse` a branch
    starts from the capture of its name, else from the value. Ends a chain.

    Args:
        branches: output name -> rule; written directly below `into`.

    Raises:
        EV110: a branch is not a single name (when the policy is compiled).

    Example:
        {into: {whole: keep, family: {truncate: 2}}}: {"code": "85123A"} -> {"whole": "85123A", "family": "85"}
    """

    short = "branches"

    branches: dict[str, Any]

    @field_validator("branches", mode="wrap")
    @classmethod
    def _named(cls, given: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        branches = handler(given)
        if not branches:
            raise ValueError("EV107 into has no branches")
        for name in branches:
            output_name(name)
        return given  # not the copy that pydantic made: the document's own mapping knows its lines
