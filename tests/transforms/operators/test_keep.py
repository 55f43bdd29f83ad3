from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from eventveil.transforms.operators.keep import Keep


class TestKeep:
    def test_values_stay(self, treat: Any) -> None:
        assert treat("keep", {}, ["usps", None, ""], pa.string()).values == ["usps", None, ""]

    def test_without_a_reason_it_warns(self) -> None:
        assert len(Keep().warnings(None)) == 1  # type: ignore[arg-type]

    def test_with_a_reason_it_does_not(self) -> None:
        assert Keep(because="a carrier is no person").warnings(None) == ()  # type: ignore[arg-type]

    @pytest.mark.parametrize("because", ["", "  ", 3], ids=repr)
    def test_a_reason_says_something(self, because: Any) -> None:
        with pytest.raises(ValidationError):
            Keep(because=because)
