from __future__ import annotations

from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from eventveil.transforms.operators.nullify import Nullify


class TestNullify:
    @pytest.mark.parametrize(
        "values",
        [pa.array(["a", None]), pa.array([1, None], pa.timestamp("us", "UTC")), pa.array([Decimal("0.37"), None], pa.decimal128(9, 2))],
        ids=lambda values: str(values.type),
    )
    def test_all_values_are_null_and_the_type_stays(self, treat: Any, values: pa.Array[Any]) -> None:
        result = treat("nullify", {}, values)

        assert (result.values, result.type) == ([None, None], values.type)

    def test_result_is_nullable_whatever_the_field_is(self) -> None:
        assert Nullify().nullable(False)

    def test_no_byte_of_a_value_stays_behind_the_nulls(self) -> None:
        result = Nullify().apply(pa.array(["canary-7f3a"]), None)  # type: ignore[arg-type]

        assert b"canary" not in b"".join(buffer.to_pybytes() for buffer in result.buffers() if buffer is not None)
