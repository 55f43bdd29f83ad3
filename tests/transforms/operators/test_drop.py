from __future__ import annotations

import pytest
from pydantic import ValidationError

from eventveil.transforms.operators.drop import Drop


class TestDrop:
    def test_has_no_parameters(self) -> None:
        with pytest.raises(ValidationError):
            Drop(because="of this")
