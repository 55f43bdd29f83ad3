from __future__ import annotations

import pytest
from pydantic import ValidationError

from eventveil.transforms.operators.move import Move


class TestMove:
    @pytest.mark.parametrize("to", ["country", "buyer.country", "lines[].price.net"])
    def test_an_output_path(self, to: str) -> None:
        assert Move(to=to).to == to

    @pytest.mark.parametrize("to", ["", ".a", "a.", "a..b", "a.*", "*", "a{b}", "[].a", "$window", "a.$b", "a b"])
    def test_other_text(self, to: str) -> None:
        with pytest.raises(ValidationError, match="EV110 "):
            Move(to=to)
