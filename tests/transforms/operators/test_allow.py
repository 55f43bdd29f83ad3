from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from eventveil.transforms.operators.allow import Allow


class TestPlacing:
    values = ("EUR", "XAU", None, "USD", "", "eur")

    def test_refuse(self, treat: Any) -> None:
        result = treat("allow", {"values": ["EUR", "USD"]}, self.values, pa.string())

        assert result.values == ["EUR", None, None, "USD", None, None]
        assert result.refused == {1: "EV520", 4: "EV520", 5: "EV520"}

    def test_nullify(self, treat: Any) -> None:
        result = treat("allow", {"values": ["EUR", "USD"], "otherwise": "nullify"}, self.values, pa.string())

        assert result.values == ["EUR", None, None, "USD", None, None]
        assert (result.refused, result.counts) == ({}, {"otherwise": 3})

    def test_other(self, treat: Any) -> None:
        result = treat("allow", {"values": ["EUR", "USD"], "otherwise": "other"}, self.values, pa.string())

        assert result.values == ["EUR", "other", None, "USD", "other", "other"]
        assert result.refused == {}

    def test_nothing_is_counted_where_all_are_listed(self, treat: Any) -> None:
        assert treat("allow", {"values": ["EUR"]}, ["EUR", None], pa.string()).counts == {}

    @pytest.mark.parametrize("text", ["e\u0301", "É", "é ", "\ufeffé"], ids=["decomposed", "upper case", "space", "mark"])
    def test_text_is_compared_exactly(self, treat: Any, text: str) -> None:
        assert treat("allow", {"values": ["é"]}, [text], pa.string()).refused == {0: "EV520"}

    def test_empty_text_may_be_listed(self, treat: Any) -> None:
        assert treat("allow", {"values": [""]}, ["", "x"], pa.string()).refused == {1: "EV520"}

    @pytest.mark.parametrize(
        ("listed", "values", "given", "refused"),
        [
            ([1, -2], [1, 2, -2, None], pa.int32(), {1: "EV520"}),
            ([2**40], [2**40, 2**40 + 1], pa.int64(), {1: "EV520"}),
            ([False], [True, False, None], pa.bool_(), {0: "EV520"}),
        ],
        ids=["int32", "int64", "bool"],
    )
    def test_other_types(self, treat: Any, listed: list[Any], values: list[Any], given: pa.DataType, refused: dict[int, str]) -> None:
        result = treat("allow", {"values": listed}, values, given)

        assert result.refused == refused
        assert result.type == given


class TestParameters:
    @pytest.mark.parametrize(
        ("values", "given"),
        [
            (["1"], pa.int32()),
            ([1], pa.string()),
            ([True], pa.int64()),
            ([1], pa.bool_()),
            (["a", 1], pa.string()),
            ([2**31], pa.int32()),
            ([-(2**63) - 1], pa.int64()),
            (["\ud800"], pa.string()),
        ],
        ids=["text for int", "int for text", "bool for int", "int for bool", "mixed", "too large", "too small", "surrogate"],
    )
    def test_listed_values_are_of_the_fields_type(self, in_place: Any, values: list[Any], given: pa.DataType) -> None:
        with pytest.raises(ValueError, match=r"^EV217 "):
            in_place("allow", {"values": values}, given)

    def test_other_is_for_text(self, in_place: Any) -> None:
        with pytest.raises(ValueError, match=r"^EV215 "):
            in_place("allow", {"values": [1], "otherwise": "other"}, pa.int64())

    @pytest.mark.parametrize(
        "wrong",
        [
            {},
            {"values": []},
            {"values": "EUR"},
            {"values": [1.5]},
            {"values": [None]},
            {"values": ["a", "a"]},
            {"values": ["a"], "otherwise": "keep"},
        ],
        ids=str,
    )
    def test_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            Allow(**wrong)

    def test_one_problem_for_one_wrong_value(self) -> None:
        with pytest.raises(ValidationError) as caught:
            Allow(values=[1.5])

        assert [error["msg"] for error in caught.value.errors()] == ["Value error, EV103 write texts, whole numbers or booleans"]

    def test_true_and_one_are_two_values(self) -> None:
        assert Allow(values=[True, 1]).values == (True, 1)
