from __future__ import annotations

import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventveil.transforms.operators.parse import Parse

Treat = Callable[..., Any]
PRICE = {"form": "{amount:number} {currency:text}"}


class TestForms:
    def test_the_parts_by_name(self, treat: Treat) -> None:
        done = treat("parse", PRICE, ["200 EUR", "7.99 EUR", " -0.5 US dollars\n", None], pa.string())

        assert done.values == [
            {"amount": Decimal(200), "currency": "EUR"},
            {"amount": Decimal("7.99"), "currency": "EUR"},
            {"amount": Decimal("-0.5"), "currency": "US dollars"},
            None,
        ]
        assert done.type == pa.struct([("amount", pa.decimal128(38, 9)), ("currency", pa.string())])

    @pytest.mark.parametrize(
        "text",
        ["", " ", "EUR", "200", "200EUR", "200  ", "x200 EUR", "2,00 EUR", "1e3 EUR", ".5 EUR", "5. EUR", "+-5 EUR", "٣ EUR", "- 5 EUR"],
    )
    def test_texts_of_another_form(self, treat: Treat, text: str) -> None:
        assert treat("parse", PRICE, ["1 EUR", text], pa.string()).refused == {1: "EV523"}

    @pytest.mark.parametrize(
        ("form", "text", "expected"),
        [
            pytest.param("{a:text}-{b:text}", "x-y-z", {"a": "x", "b": "y-z"}, id="as-short-as-possible"),
            pytest.param("{a:text}", "a\nb", {"a": "a\nb"}, id="line-break"),
            pytest.param("({a:number})", "(+007.50)", {"a": Decimal("7.5")}, id="parentheses-sign-zeros"),
            pytest.param("a.*{a:text}|\\d[x]", "a.*1|\\d[x]", {"a": "1"}, id="nothing-is-an-expression"),
            pytest.param("{{{a:text}}}", "{x}", {"a": "x"}, id="braces"),
            pytest.param("é€ {a:text}", "é€ ü", {"a": "ü"}, id="unicode"),
            pytest.param("{a:text}#{b:number}", "x##5", {"a": "x#", "b": Decimal(5)}, id="text-grows-until-the-rest-matches"),
            pytest.param("{a:number}", "-0", {"a": Decimal(0)}, id="minus-zero"),
        ],
    )
    def test_literals_and_captures(self, treat: Treat, form: str, text: str, expected: dict[str, Any]) -> None:
        assert treat("parse", {"form": form}, [text], pa.string()).values == [expected]

    def test_a_dot_in_the_form_is_a_dot(self, treat: Treat) -> None:
        assert treat("parse", {"form": "a.{x:text}"}, ["abc"], pa.string()).refused == {0: "EV523"}

    def test_decimal_comma(self, treat: Treat) -> None:
        done = treat("parse", {**PRICE, "decimal": ","}, ["7,99 EUR", "7.99 EUR"], pa.string())

        assert (done.values[0]["amount"], done.refused) == (Decimal("7.99"), {1: "EV523"})

    def test_a_slice(self, treat: Treat) -> None:
        done = treat("parse", PRICE, pa.array(["x", "1 A", None, "2 B", "3 C"]).slice(1, 3))

        assert done.values == [{"amount": Decimal(1), "currency": "A"}, None, {"amount": Decimal(2), "currency": "B"}]

    def test_a_megabyte_takes_no_time(self, treat: Treat) -> None:
        start = time.process_time()
        done = treat(
            "parse", {"form": "{a:text}-{b:text}-{c:number}"}, ["-" * 1_000_000, "1" * 1_000_000, "a-b-" + "1" * 1_000_000], pa.string()
        )

        assert done.refused == {0: "EV523", 1: "EV523", 2: "EV523"}
        assert time.process_time() - start < 5


class TestNumbers:
    @pytest.mark.parametrize(
        ("scale", "text", "fits"),
        [
            (9, "9" * 29 + "." + "9" * 9, True),
            (9, "9" * 30, False),
            (9, "0." + "0" * 9 + "1", False),
            (9, "0" * 500 + "1." + "5" + "0" * 500, True),
            (0, "9" * 38, True),
            (0, "1.0", True),
            (0, "1.1", False),
            (38, "0." + "9" * 38, True),
            (38, "1", False),
        ],
    )
    def test_more_digits_than_fit_are_misplaced(self, treat: Treat, scale: int, text: str, fits: bool) -> None:
        done = treat("parse", {"form": "{a:number}", "scale": scale, "otherwise": "nullify"}, [text, "-" + text, "0"], pa.string())
        exact = Decimal(text) if fits else None

        assert done.type == pa.struct([("a", pa.decimal128(38, scale))])
        assert done.values == ([{"a": exact}, {"a": exact.copy_negate()}, {"a": 0}] if exact is not None else [None, None, {"a": 0}])

    @settings(max_examples=60, deadline=None)
    @given(number=st.decimals(-(10**28), 10**28, places=9), plus=st.booleans())
    def test_exact(self, treat: Treat, number: Decimal, plus: bool) -> None:
        text = f"{number:{'+' if plus else ''}f}"

        assert treat("parse", PRICE, [f"{text} EUR"], pa.string()).values == [{"amount": number, "currency": "EUR"}]

    @settings(max_examples=60, deadline=None)
    @given(texts=st.lists(st.one_of(st.text(), st.from_regex(r"[+-]?[0-9]+(\.[0-9]*)? ?[A-Z]*", fullmatch=True), st.none())))
    def test_no_text_raises_nor_changes_its_neighbours(self, treat: Treat, texts: list[str | None]) -> None:
        done = treat("parse", {**PRICE, "otherwise": "nullify"}, texts, pa.string())

        assert done.values == [treat("parse", {**PRICE, "otherwise": "nullify"}, [text], pa.string()).values[0] for text in texts]


class TestParameters:
    @pytest.mark.parametrize(
        "form",
        [
            "",
            "abc",
            "{a}",
            "{a:int}",
            "{a:number}{b:text}",
            "{a:text} {a:text}",
            "{1a:text}",
            "{a:text",
            "a:text}",
            "{a:text} ",
            "{}",
            "{a :text}",
            "{é:text}",
        ],
    )
    def test_forms_that_cannot_be_read(self, form: str) -> None:
        with pytest.raises(ValueError, match="EV217 form: "):
            Parse(form=form)

    @pytest.mark.parametrize("given", [{"decimal": ";"}, {"scale": 39}, {"scale": -1}])
    def test_other_parameters(self, given: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=next(iter(given))):
            Parse(form="{a:text}", **given)

    def test_no_text_stands_for_parts(self, in_place: Callable[..., Any]) -> None:
        with pytest.raises(ValueError, match=r"^EV215 "):
            in_place("parse", {**PRICE, "otherwise": "other"}, pa.string())

    def test_text_only(self) -> None:
        assert [Parse(**PRICE).returns(of) for of in (pa.int64(), pa.binary())] == [None, None]
        assert Parse(**PRICE).covers is False
