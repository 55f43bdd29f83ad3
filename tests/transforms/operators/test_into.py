from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from eventveil.transforms.operators.into import Into


class TestInto:
    def test_branches_are_handed_on_as_they_stand(self) -> None:
        """A document's mapping knows its lines: it may not be copied into a plain one."""

        class Lined(dict[str, Any]):
            line = 7

        branches = Lined(product="keep", family=[{"truncate": 2}])

        assert Into(branches=branches).branches is branches

    @pytest.mark.parametrize("name", ["", "a.b", "a[]", "a{b}", "*", "$order", "a b"])
    def test_a_branch_has_a_single_name(self, name: str) -> None:
        with pytest.raises(ValidationError, match="EV110 "):
            Into(branches={name: "keep"})

    @pytest.mark.parametrize("branches", [{}, [], "keep", None, {1: "keep"}], ids=repr)
    def test_no_branches(self, branches: Any) -> None:
        with pytest.raises(ValidationError):
            Into(branches=branches)
