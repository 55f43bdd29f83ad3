"""pseudonymize: who shares a pseudonym with whom, and what it looks like."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, datetime, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from eventveil.schemas.durations import Duration
from eventveil.transforms.context import Context, RowContext, SubKeys
from eventveil.transforms.keys.derive import HeldKeys
from eventveil.transforms.operators.pseudonymize import Pseudonymize
from eventveil.transforms.registry import Setting

DAY = 86_400_000_000
PRFS = ["blake2b", "hmac-sha256", "aes-cmac"]


class _NoRefusals:
    def refuse_rows(self, rows: Any, code: str, path: str, rule: str) -> None:
        raise AssertionError("a pseudonym refuses nothing")


def rule(path: Any = "customer", given: Any = None, **parameters: Any) -> Pseudonymize:
    setting = Setting(path, "UTC", False, Duration(1, "d"), given or pa.string(), True, lambda name: b"")
    settled = Pseudonymize(**parameters).settle(setting)
    assert isinstance(settled, Pseudonymize)
    return settled


def pseudonyms(
    operator: Pseudonymize, column: pa.Array[Any], *, path: str = "customer", domain: str = "a", days: list[int] | None = None
) -> list[Any]:
    """What the plan does: a sub-key per window of the batch, and each value's window."""
    keys = HeldKeys(bytes(32)).domain(domain)
    info = operator.key_info(path, 0, column.type)
    if operator.key_scope() == "domain":
        sub_keys = SubKeys([keys.for_domain("pseudonym", *info)])
    else:
        windows, codes = np.unique(np.array(days or [0] * len(column), np.int64), return_inverse=True)
        sub_keys = SubKeys([keys.for_window(int(day) * DAY, "1d", "UTC", "pseudonym", *info) for day in windows], codes.reshape(-1))
    result = operator.apply(column, Context(RowContext(len(column)), _NoRefusals(), path, f"fields.{path}", sub_keys=sub_keys))
    result.validate(full=True)
    assert result.type == operator.returns(column.type)
    return result.to_pylist()


class TestWhoSharesAPseudonym:
    @pytest.mark.parametrize("prf", PRFS)
    def test_equal_values_within_a_window(self, prf: str) -> None:
        ann, bob, again, later = pseudonyms(rule(prf=prf), pa.array(["ann", "bob", "ann", "ann"]), days=[1, 1, 1, 2])

        assert ann == again
        assert 3 == len({ann, bob, later})

    def test_stable_is_the_same_in_every_window(self) -> None:
        one = pseudonyms(rule(stable="domain"), pa.array(["book"]), days=[1])

        assert one == pseudonyms(rule(stable="domain"), pa.array(["book"]), days=[2])
        assert one != pseudonyms(rule(), pa.array(["book"]), days=[1])

    def test_never_two_domains(self) -> None:
        column = pa.array(["ann", "bob"])

        for parameters in ({}, {"stable": "domain"}):
            one, other = (pseudonyms(rule(**parameters), column, domain=domain) for domain in "ab")
            assert set() == set(one) & set(other)

    def test_fields_of_one_class(self) -> None:
        column = pa.array(["ann"])
        buyer, payer = (pseudonyms(rule(path, **{"class": "person"}), column, path=path) for path in ("buyer", "payer"))

        assert buyer == payer
        assert buyer != pseudonyms(rule("buyer", **{"class": "other"}), column, path="buyer")

    def test_the_class_defaults_to_the_leaf(self) -> None:
        column = pa.array(["ann"])

        assert "buyer" == rule("buyer").class_
        assert pseudonyms(rule("buyer"), column, path="buyer") == pseudonyms(rule("payer", **{"class": "buyer"}), column, path="payer")
        assert pseudonyms(rule("buyer"), column, path="buyer") != pseudonyms(rule("payer"), column, path="payer")

    def test_text_in_two_normal_forms(self) -> None:
        composed, decomposed = pseudonyms(rule(), pa.array(["Zo\u00eb", "Zoe\u0308"]))

        assert composed == decomposed

    def test_prf_and_type_have_keys_of_their_own(self) -> None:
        infos = {rule(prf=prf).key_info("customer", 0, kind) for prf in PRFS for kind in (pa.string(), pa.int64())}

        assert 6 == len(infos)

    def test_numbers_of_every_width(self) -> None:
        narrow, wide = (pseudonyms(rule(given=kind), pa.array([7, -7], kind)) for kind in (pa.int32(), pa.int64()))

        assert narrow == wide


class TestForm:
    @pytest.mark.parametrize("prf", PRFS)
    @pytest.mark.parametrize(("bits", "characters"), [(80, 16), (104, 21), (128, 26)])
    def test_text(self, prf: str, bits: int, characters: int) -> None:
        (found,) = pseudonyms(rule(prf=prf, bits=bits, prefix="c-"), pa.array(["ann"]))

        assert re.fullmatch(rf"c-[a-z2-7]{{{characters}}}", found)

    def test_binary_is_what_the_text_says(self) -> None:
        (binary,) = pseudonyms(rule(**{"as": "binary", "bits": 256}), pa.array(["ann"]))
        (text,) = pseudonyms(rule(bits=256), pa.array(["ann"]))

        assert 32 == len(binary)
        assert pa.string() == rule().returns(pa.string()) and pa.binary() == rule(**{"as": "binary"}).returns(pa.string())
        assert f"{int.from_bytes(binary, 'big') << 4:0260b}" == "".join(f"{'abcdefghijklmnopqrstuvwxyz234567'.index(c):05b}" for c in text)

    def test_every_type_that_can_identify(self) -> None:
        for column in (
            pa.array([1], pa.int32()),
            pa.array([1.5]),
            pa.array([Decimal("1.50")]),
            pa.array([b"\0"]),
            pa.array([date(2024, 1, 1)]),
            pa.array([datetime(2024, 1, 1, tzinfo=timezone.utc)]),
            pa.array(["a"]).dictionary_encode(),
        ):
            assert 26 == len(pseudonyms(rule(given=column.type), column)[0]), column.type

    @pytest.mark.parametrize(
        "given", [pa.bool_(), pa.list_(pa.string()), pa.struct([]), pa.null(), pa.dictionary(pa.int8(), pa.bool_())], ids=str
    )
    def test_what_is_not_accepted(self, given: pa.DataType) -> None:
        assert rule().returns(given) is None


class TestNulls:
    @pytest.mark.parametrize("prf", PRFS)
    @pytest.mark.parametrize("as_", ["text", "binary"])
    def test_stay_null_and_change_no_other(self, prf: str, as_: str) -> None:
        operator = rule(**{"prf": prf, "as": as_})
        with_nulls = pseudonyms(operator, pa.array([None, "ann", None, "", "ann"]), days=[1, 2, 3, 4, 5])
        without = pseudonyms(operator, pa.array(["ann", "", "ann"]), days=[2, 4, 5])

        assert [None, without[0], None, *without[1:]] == with_nulls

    def test_nothing_but_nulls_and_nothing(self) -> None:
        assert [None, None] == pseudonyms(rule(), pa.array([None, None], pa.string()))
        assert [] == pseudonyms(rule(), pa.array([], pa.string()))

    def test_empty_text_and_blanks_have_pseudonyms(self) -> None:
        assert 3 == len(set(pseudonyms(rule(), pa.array(["", " ", "  "]))))


class TestParameters:
    @pytest.mark.parametrize(
        "parameters",
        [
            {"bits": 72},
            {"bits": 81},
            {"bits": 264},
            {"bits": "128"},
            {"prf": "aes-cmac", "bits": 136},
            {"prf": "md5"},
            {"stable": "window"},
            {"stable": True},
            {"prefix": "a\nb"},
            {"prefix": "a\u200bb"},
            {"prefix": "x" * 33},
            {"as": "binary", "prefix": "x"},
            {"as": "hex"},
            {"class": ""},
            {"class": "a\tb"},
            {"klass": "a"},
        ],
        ids=str,
    )
    def test_wrong_ones_are_refused(self, parameters: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            Pseudonymize(**parameters)

    def test_check_is_told(self) -> None:
        setting = Setting("a", "UTC", False, None, pa.float64(), True, lambda name: b"")

        assert "pseudonymous" in rule().discloses() and "anonymous" not in rule().discloses().replace("pseudonymous", "")
        assert "window" in rule().discloses() and "domain" in rule(stable="domain").discloses()
        assert [] == list(rule().warnings(Setting("a", "UTC", False, None, pa.string(), True, lambda name: b"")))
        assert 2 == len(rule(prf="aes-cmac").warnings(setting))


def test_the_fixtures_of_all_operators(treat: Callable[..., Any]) -> None:
    treated = treat("pseudonymize", {"class": "c"}, ["a", None, "b", "a"], pa.string())

    assert treated.values[1] is None and {} == treated.refused
