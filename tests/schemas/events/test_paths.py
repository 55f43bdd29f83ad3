"""Paths as a policy writes them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventveil.schemas.events.paths import Path, parse_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", Path(("a",))),
        ("a.b_1", Path(("a", "b_1"))),
        ("a[]", Path(("a", "[]"))),
        ("a[].b", Path(("a", "[]", "b"))),
        ("a[][]", Path(("a", "[]", "[]"))),
        ("a{k}", Path(("a", "{k}"))),
        ("a{k.l m}.b", Path(("a", "{k.l m}", "b"))),
        ("a{[]}", Path(("a", "{[]}"))),
        ("a.*", Path(("a",), star=True)),
        ("a[].*", Path(("a", "[]"), star=True)),
        ("$position", Path(("$position",))),
    ],
)
def test_a_path_is_read_and_written_back(text: str, expected: Path) -> None:
    found = parse_path(text)

    assert expected == found
    assert text == str(found)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "*",
        "[]",
        "{k}",
        "a.[]",
        "a.{k}",
        "a[]b",
        "a[",
        "a[0]",
        "a{}",
        "a{k",
        "a*",
        "a.*.b",
        "a.*.*",
        "a b",
        " a",
        "a|b",
        "1a",
    ],
)
def test_what_is_no_path(text: str) -> None:
    assert parse_path(text) is None


@given(st.text(alphabet="ab.[]{}*$|- 1", max_size=12))
@settings(max_examples=500, deadline=None, derandomize=True)
def test_what_is_read_is_written_back(text: str) -> None:
    found = parse_path(text)

    assert found is None or text == str(found)


def test_the_lists_of_a_path_are_what_two_leaves_of_one_element_share() -> None:
    first, second = parse_path("a[].b[].c"), parse_path("a[].b[].d.e")

    assert first is not None and second is not None
    assert ("a", "[]", "b", "[]") == first.lists == second.lists
