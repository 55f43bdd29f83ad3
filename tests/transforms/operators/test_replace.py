from __future__ import annotations

from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from eventveil.transforms.operators.replace import Replace


class TestReplace:
    def test_every_value_and_every_null(self, treat: Any) -> None:
        assert treat("replace", {"with": "hidden"}, ["Ufa", None, ""], pa.string()).values == ["hidden"] * 3

    def test_result_is_never_null(self) -> None:
        assert not Replace(**{"with": 0}).nullable(True)

    @pytest.mark.parametrize(
        ("literal", "given", "expected"),
        [
            pytest.param(7, pa.int32(), pa.int32(), id="int in int32"),
            pytest.param(2**31, pa.int32(), pa.int64(), id="too large for int32"),
            pytest.param(7, pa.float64(), pa.float64(), id="int in float"),
            pytest.param(2**53 + 1, pa.float64(), pa.int64(), id="int that a float cannot hold"),
            pytest.param(2**24 + 1, pa.float32(), pa.int64(), id="int that a float32 cannot hold"),
            pytest.param(7, pa.decimal128(9, 2), pa.decimal128(9, 2), id="int in decimal"),
            pytest.param(10**8, pa.decimal128(9, 2), pa.int64(), id="int too large for decimal"),
            pytest.param(7, pa.string(), pa.int64(), id="int in text"),
            pytest.param(7, pa.bool_(), pa.int64(), id="int in bool"),
            pytest.param(0.25, pa.float32(), pa.float32(), id="float that a float32 holds"),
            pytest.param(0.1, pa.float32(), pa.float64(), id="float that a float32 cannot hold"),
            pytest.param(1e300, pa.float32(), pa.float64(), id="float too large for float32"),
            pytest.param(1.0, pa.int64(), pa.float64(), id="float in int"),
            pytest.param(0.5, pa.decimal128(9, 2), pa.float64(), id="float in decimal"),
            pytest.param(True, pa.bool_(), pa.bool_(), id="bool in bool"),
            pytest.param(True, pa.int64(), pa.bool_(), id="bool in int"),
            pytest.param("x", pa.string(), pa.string(), id="text in text"),
            pytest.param("x", pa.int64(), pa.string(), id="text in int"),
            pytest.param("x", pa.binary(), pa.string(), id="text in bytes"),
            pytest.param(0, pa.timestamp("us", "UTC"), pa.int64(), id="int in time"),
            pytest.param("2014-09-04", pa.date32(), pa.string(), id="text in date"),
        ],
    )
    def test_keeps_the_type_where_the_literal_fits(self, treat: Any, literal: Any, given: pa.DataType, expected: pa.DataType) -> None:
        result = treat("replace", {"with": literal}, pa.nulls(2, given))

        assert (result.type, result.values) == (expected, [literal, literal])

    def test_a_decimal_is_exact(self, treat: Any) -> None:
        assert treat("replace", {"with": 12}, pa.nulls(1, pa.decimal128(38, 9))).values == [Decimal(12)]

    @pytest.mark.parametrize(
        "wrong",
        [{}, {"with": None}, {"with": []}, {"with": float("nan")}, {"with": float("inf")}, {"with": 2**63}, {"with": "\ud800"}],
        ids=["missing", "null", "list", "nan", "inf", "too large", "surrogate"],
    )
    def test_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ValidationError) as caught:
            Replace(**wrong)

        assert len(caught.value.errors()) == 1
