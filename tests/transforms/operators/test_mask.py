from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from eventveil.transforms.operators.mask import Mask

TEXT = pa.string()


class TestWhatIsShown:
    @pytest.mark.parametrize(
        ("rule", "value", "expected"),
        [
            pytest.param({}, "4111111111111111", "********", id="nothing"),
            pytest.param({}, "x", "********", id="nothing of a short one"),
            pytest.param({"keep_first": 2}, "Zürich", "Zü********", id="first"),
            pytest.param({"keep_last": 2}, "Zürich", "********ch", id="last"),
            pytest.param({"keep_first": 1, "keep_last": 1}, "abc", "a********c", id="one hidden"),
            pytest.param({"keep_last": 4, "length": "same"}, "4111111111111111", "************1111", id="same length"),
            pytest.param({"keep_first": 1, "length": "same"}, "👩‍👩‍👧", "👩****", id="code points, not graphemes"),
            pytest.param({"keep_last": 1, "length": "same"}, "e\u0301", "*\u0301", id="combining mark"),
            pytest.param({"keep_first": 1, "keep_last": 1}, "a\x00b", "a********b", id="NUL"),
        ],
    )
    def test_ends_stay(self, treat: Any, rule: dict[str, Any], value: str, expected: str) -> None:
        assert treat("mask", rule, [value], TEXT).values == [expected]

    @pytest.mark.parametrize(
        ("rule", "value", "expected"),
        [
            pytest.param({"keep_first": 2, "keep_last": 2}, "abcd", "********", id="as long as both"),
            pytest.param({"keep_first": 8, "keep_last": 8}, "a", "********", id="shorter"),
            pytest.param({"keep_last": 4, "length": "same"}, "12", "**", id="shorter, same length"),
            pytest.param({"keep_last": 2, "length": "same"}, "éß", "**", id="two code points in four bytes"),
            pytest.param({}, "", "********", id="empty"),
            pytest.param({"keep_first": 3}, "", "********", id="empty, with a keep"),
            pytest.param({"length": "same"}, "", "", id="empty, same length"),
        ],
    )
    def test_a_short_value_is_masked_whole(self, treat: Any, rule: dict[str, Any], value: str, expected: str) -> None:
        assert treat("mask", rule, [value], TEXT).values == [expected]

    def test_null_stays_null(self, treat: Any) -> None:
        assert treat("mask", {"keep_first": 1}, [None, "ab", None], TEXT).values == [None, "a********", None]

    @given(
        st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="*"), max_size=24) | st.none(), max_size=8),
        st.integers(0, 8),
        st.integers(0, 8),
        st.sampled_from(["fixed", "same"]),
    )
    @settings(max_examples=150, deadline=None)
    def test_is_what_a_loop_would_do(self, treat: Any, values: list[str | None], first: int, last: int, length: str) -> None:
        def masked(value: str | None) -> str | None:
            if value is None:
                return None
            short = len(value) <= first + last
            stars = "*" * (8 if length == "fixed" else len(value) - (0 if short else first + last))
            return stars if short else value[:first] + stars + (value[-last:] if last else "")

        result = treat("mask", {"keep_first": first, "keep_last": last, "length": length}, values, TEXT).values

        assert result == [masked(value) for value in values]


class TestParameters:
    @pytest.mark.parametrize(
        "wrong", [{"keep_first": 9}, {"keep_last": -1}, {"keep_first": "2"}, {"keep_last": True}, {"length": "short"}], ids=str
    )
    def test_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            Mask(**wrong)

    @pytest.mark.parametrize(
        ("rule", "expected"),
        [
            ({}, "nothing of the value"),
            ({"keep_first": 1}, "the first character"),
            ({"keep_first": 2, "keep_last": 4, "length": "same"}, "the first 2 characters and the last 4 characters and the length"),
        ],
        ids=["nothing", "one", "all"],
    )
    def test_says_what_it_discloses(self, rule: dict[str, Any], expected: str) -> None:
        assert Mask(**rule).discloses() == expected
