from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from eventveil.transforms.operators.normalize import Normalize

Treat = Callable[..., Any]


class TestSteps:
    @pytest.mark.parametrize(
        ("steps", "text", "expected"),
        [
            pytest.param(["trim"], "\u00a0 a b\u2003\t\n", "a b", id="trim-unicode"),
            pytest.param(["lower"], "ABDULLIN Ångström ΣΑΣ", "abdullin ångström σασ", id="lower"),
            pytest.param(["nfkc"], "ﬁ１２e\u0301", "fi12é", id="nfkc"),
            pytest.param(["digits"], "+49 (0) 30/12 １２٣", "4903012", id="digits-ascii-only"),
            pytest.param(["digits"], "none", "", id="digits-none"),
            pytest.param(["nfkc", "digits"], "１２", "12", id="in-order"),
            pytest.param(["digits", "nfkc"], "１２", "", id="in-the-other-order"),
            pytest.param(["nfkc", "trim"], "\u3000x", "x", id="trim-after"),
        ],
    )
    def test_in_the_listed_order(self, treat: Treat, steps: list[str], text: str, expected: str) -> None:
        done = treat("normalize", {"steps": steps}, ["", text, None, text], pa.string())

        assert (done.values, done.type) == (["", expected, None, expected], pa.string())


class TestParameters:
    @pytest.mark.parametrize("steps", [[], ["upper"], "trim", None, [1]])
    def test_wrong_ones(self, steps: Any) -> None:
        with pytest.raises(ValueError, match="steps"):
            Normalize(steps=steps)

    def test_covers_nothing(self) -> None:
        assert Normalize(steps=["trim"]).covers is False

    def test_text_only(self) -> None:
        assert [Normalize(steps=["trim"]).returns(of) for of in (pa.int64(), pa.binary(), pa.bool_())] == [None] * 3
