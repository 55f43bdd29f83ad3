from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from eventveil.transforms.operators.rename import Rename


class TestRename:
    @pytest.mark.parametrize("to", ["date", "d", "_x", "unit-price", "A1"])
    def test_a_single_name(self, to: str) -> None:
        assert Rename(to=to).to == to

    @pytest.mark.parametrize("to", ["", "a.b", "a[]", "[]", "a{b}", "*", "a.*", "1a", "a b", "$order", "a\n", "naïve"])
    def test_other_text(self, to: str) -> None:
        with pytest.raises(ValidationError, match="EV110 "):
            Rename(to=to)

    @pytest.mark.parametrize("to", [None, 3, ["a"]], ids=repr)
    def test_no_text(self, to: Any) -> None:
        with pytest.raises(ValidationError):
            Rename(to=to)
