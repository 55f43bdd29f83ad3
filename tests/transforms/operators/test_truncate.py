from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from eventveil.transforms.operators.truncate import Truncate


class TestTruncate:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            pytest.param("85123A", "85", id="longer"),
            pytest.param("851", "85", id="longer by one"),
            pytest.param("71", None, id="as long: would pass whole"),
            pytest.param("7", None, id="shorter"),
            pytest.param("", None, id="empty"),
            pytest.param(None, None, id="null"),
            pytest.param("éßx", "éß", id="code points, not bytes"),
            pytest.param("éß", None, id="as long in code points"),
            pytest.param("👩‍👩‍👧", "👩\u200d", id="emoji"),
            pytest.param("a\x00b", "a\x00", id="NUL"),
        ],
    )
    def test_keeps_the_first_two(self, treat: Any, value: str | None, expected: str | None) -> None:
        assert treat("truncate", {"keep_first": 2}, [value], pa.string()).values == [expected]

    def test_refuses_no_event(self, treat: Any) -> None:
        assert treat("truncate", {"keep_first": 3}, ["ab", "abcd"], pa.string()).refused == {}

    def test_result_is_nullable_whatever_the_field_is(self) -> None:
        assert Truncate(keep_first=2).nullable(False)

    @pytest.mark.parametrize("wrong", [{}, {"keep_first": 0}, {"keep_first": "2"}, {"keep_first": 2**40}], ids=str)
    def test_wrong_parameters(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            Truncate(**wrong)
