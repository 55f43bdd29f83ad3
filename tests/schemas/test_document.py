"""Strict YAML 1.2 core, with positions."""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventveil.schemas.document import (
    LARGEST,
    Hidden,
    Mapping,
    Sequence,
    line_at,
    load_document,
    parse_document,
    place,
    shorten,
    shown,
)
from eventveil.schemas.errors import PolicyError


def problems(text: str | bytes) -> list[tuple[str, int]]:
    """Code and line of everything that is wrong."""
    with pytest.raises(PolicyError) as caught:
        parse_document(text, "p.yaml")
    return [(problem.code, problem.line) for problem in caught.value.problems]


class TestScalars:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            *((word, word) for word in ("yes", "no", "on", "off", "Yes", "NO", "y", "n")),
            ("true", True),
            ("True", True),
            ("FALSE", False),
            ("tRue", "tRue"),
            ("null", None),
            ("~", None),
            ("nULL", "nULL"),
            ("12", 12),
            ("-12", -12),
            ("+12", 12),
            ("007", 7),
            ("0o17", 15),
            ("0x1F", 31),
            ("0b11", "0b11"),
            ("1_000", "1_000"),
            ("1:30", "1:30"),
            ("12:30:45", "12:30:45"),
            ("2024-01-01", "2024-01-01"),
            ("1.5", 1.5),
            (".5", 0.5),
            ("5.", 5.0),
            ("1e3", 1000.0),
            ("1E-3", 0.001),
            ("1.5.2", "1.5.2"),
            ("10min", "10min"),
            ("'1'", "1"),
            ('"true"', "true"),
            ("''", ""),
            ('"\\u00e9"', "é"),
            ('"\\ud83d\\ude00"', "😀"),
            ("$position", "$position"),
            ("a b", "a b"),
        ],
        ids=repr,
    )
    def test_are_resolved_by_the_core_schema_alone(self, text: str, expected: object) -> None:
        found = parse_document(f"a: {text}\n", "p.yaml")["a"]

        assert (type(expected), expected) == (type(found), found)

    @pytest.mark.parametrize("text", [".inf", "-.INF", ".nan", "1e999", "9" * 65, "-" + "1" * 70], ids=lambda text: text[:8])
    def test_a_number_that_is_not_finite_or_endless_is_refused(self, text: str) -> None:
        assert [("EV103", 2)] == problems(f"b: 1\na: {text}\n")

    def test_a_block_text_is_text(self) -> None:
        assert {"a": "1\n", "b": "x y\n"} == parse_document("a: |\n  1\nb: >\n  x\n  y\n", "p.yaml")


class TestKeys:
    def test_a_key_that_stands_twice_names_both_lines(self) -> None:
        with pytest.raises(PolicyError) as caught:
            parse_document("fields:\n  a: drop\n  b: drop\n  a: keep\n", "p.yaml")

        assert "p.yaml:4: EV106 key 'a' stands twice in fields\n  it stands at line 2 already" == str(caught.value)

    def test_a_quoted_key_equals_a_plain_one(self) -> None:
        assert [("EV106", 2)] == problems('a: 1\n"a": 2\n')

    @pytest.mark.parametrize("key", ["true", "False", "1", "0x1", "1.5", ".nan"])
    def test_an_unquoted_boolean_or_number_is_no_key(self, key: str) -> None:
        assert [("EV108", 1)] == problems(f"{key}: drop\n")

    @pytest.mark.parametrize("key", ["yes", "no", "on", "null", "a[].b", "before|after.x", "p{a.b}", "x.*", "$key"])
    def test_other_words_are_text(self, key: str) -> None:
        assert {key: "drop"} == parse_document(f"{key}: drop\n", "p.yaml")

    def test_a_quoted_number_is_a_key(self) -> None:
        assert {"1": "drop"} == parse_document('"1": drop\n', "p.yaml")

    def test_an_empty_key_is_refused(self) -> None:
        assert [("EV107", 1)] == problems('"": drop\n')

    @pytest.mark.parametrize("text", ["? [a]\n: b\n", "? {a: b}\n: c\n", "{[a]: b}\n"], ids=["list", "mapping", "flow"])
    def test_a_key_that_is_no_text_is_refused(self, text: str) -> None:
        assert [("EV116", 1)] == problems(text)


class TestWhatIsNotAccepted:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            pytest.param("a: &x 1\nb: *x\n", [("EV116", 1), ("EV116", 2)], id="anchor and alias"),
            pytest.param("&x a: 1\n*x : 2\n", [("EV116", 1), ("EV116", 2)], id="as keys"),
            pytest.param("a: &x {b: 1}\nc:\n  <<: *x\n", [("EV116", 1), ("EV116", 3)], id="merge"),
            pytest.param("a: !!str 3\n", [("EV116", 1)], id="tag"),
            pytest.param("a: ! 3\n", [("EV116", 1)], id="non-specific tag"),
            pytest.param("a: !!python/object/apply:os.system [ls]\n", [("EV116", 1)], id="python tag"),
            pytest.param("a: 1\n---\nb: 2\n", [("EV116", 2)], id="second document"),
            pytest.param("a: 1\n...\n---\n", [("EV116", 3)], id="empty second document"),
            pytest.param("%YAML 1.1\n---\na: yes\n", [("EV116", 2)], id="directive"),
            pytest.param("%TAG !e! tag:e,2000:\n---\na: yes\n", [("EV116", 2)], id="tag directive"),
        ],
    )
    def test_is_refused_with_its_line(self, text: str, expected: list[tuple[str, int]]) -> None:
        assert expected == problems(text)

    def test_the_directive_of_our_own_version_passes(self) -> None:
        assert {"a": 1} == parse_document("%YAML 1.2\n---\na: 1\n", "p.yaml")

    def test_all_problems_come_at_once(self) -> None:
        text = "a: 1\na: 2\nb: &x 3\ntrue: 4\nc: .inf\nd: [1\n"

        assert [("EV106", 2), ("EV116", 3), ("EV108", 4), ("EV103", 5), ("EV105", 7)] == sorted(problems(text), key=lambda found: found[1])


class TestSyntax:
    @pytest.mark.parametrize(
        ("text", "line"),
        [
            pytest.param("a: 1\nb:\n\t- c\n", 3, id="tab"),
            pytest.param("a: b: c\n", 1, id="two colons"),
            pytest.param("a: [1, 2\n", 2, id="open bracket"),
            pytest.param("a: {uri: ${X}}\n", 1, id="braces"),
            pytest.param("a: 1\n  b: 2\n", 2, id="indentation"),
            pytest.param("a: @x\n", 1, id="reserved"),
            pytest.param("a: 'x\n", 1, id="open quote"),
            pytest.param('a: "\\q"\n', 1, id="escape"),
            pytest.param('a: "\\UFFFFFFFF"\n', 1, id="no character"),
            pytest.param('a: "\\ud800"\n', 1, id="lone surrogate"),
            pytest.param('"\\ud800": 1\n', 1, id="lone surrogate key"),
            pytest.param("a: 1\nb: x\x01y\n", 2, id="control"),
            pytest.param("a: 1\nb: x\x00y\n", 2, id="nul"),
            pytest.param(b"a: 1\nb: \xff\n", 2, id="not UTF-8"),
            pytest.param(b"\xff\xfea\x00:\x00 \x001\x00", 1, id="UTF-16"),
        ],
    )
    def test_an_error_has_code_and_line(self, text: str | bytes, line: int) -> None:
        ((code, found),) = problems(text)

        assert "EV105" == code
        assert found in (line, line + 1)

    @pytest.mark.parametrize(
        "text", ["a: 'CANARY" + "x" * 5000, "CANARYCANARY\nb: 1", "a: !CANARY!x 1\n"], ids=["quote", "no key", "handle"]
    )
    def test_an_error_repeats_no_long_text(self, text: str) -> None:
        with pytest.raises(PolicyError) as caught:
            parse_document(text, "p.yaml")

        assert max(map(len, str(caught.value).splitlines())) < 200

    @pytest.mark.parametrize(
        ("text", "code"),
        [("", "EV107"), ("# only a comment\n", "EV107"), ("- a\n", "EV103"), ("a\n", "EV103"), ("12", "EV103")],
        ids=["empty", "comment", "list", "text", "number"],
    )
    def test_a_document_must_be_a_mapping(self, text: str, code: str) -> None:
        ((found, _),) = problems(text)

        assert code == found

    def test_a_byte_order_mark_is_no_part_of_it(self) -> None:
        assert {"a": 1} == parse_document(b"\xef\xbb\xbfa: 1", "p.yaml")

    def test_windows_line_ends_count_as_one(self) -> None:
        assert {"a": 1, "b": 2} == parse_document("a: 1\r\nb: 2\r\n", "p.yaml").lines


class TestSize:
    @pytest.mark.parametrize(
        "text", ["[" * 50_000, "a: " + "{a: " * 50_000, "- " * 50_000, "[\n" * 50_000], ids=["flow", "mapping", "block", "lines"]
    )
    def test_a_nesting_bomb_is_refused_at_once(self, text: str) -> None:
        start = time.perf_counter()

        assert ["EV105"] == [code for code, _ in problems(text)]
        assert time.perf_counter() - start < 5

    def test_sixty_levels_pass(self) -> None:
        found: Any = parse_document("a: " + "[" * 60 + "1" + "]" * 60, "p.yaml")["a"]

        for _ in range(60):
            (found,) = found
        assert 1 == found

    def test_a_document_over_the_limit_is_refused(self) -> None:
        assert [("EV105", 0)] == problems(b"a: " + b"x" * LARGEST)


class TestPositions:
    DOCUMENT = "a: 1\nb:\n  c: [x,\n    y]\n  d:\n  - {e: 1}\n  - f\n"

    def test_every_entry_knows_its_line(self) -> None:
        found = parse_document(self.DOCUMENT, "p.yaml")

        assert {"a": 1, "b": 2} == found.lines
        assert {"c": 3, "d": 5} == found["b"].lines
        assert [3, 4] == found["b"]["c"].lines
        assert [6, 7] == found["b"]["d"].lines
        assert {"e": 6} == found["b"]["d"][0].lines

    @pytest.mark.parametrize(
        ("steps", "line"),
        [
            (("a",), 1),
            (("b", "c", 1), 4),
            (("b", "d", 0, "e"), 6),
            (("b", "d", 0, "missing"), 6),
            (("b", "x", "y"), 2),
            ((), 0),
            (("x",), 0),
            (("a", 3), 1),
        ],
    )
    def test_the_deepest_entry_that_exists_gives_the_line(self, steps: tuple[str | int, ...], line: int) -> None:
        assert line == line_at(parse_document(self.DOCUMENT, "p.yaml"), steps)

    def test_they_survive_pickling(self) -> None:
        found = parse_document(self.DOCUMENT, "p.yaml")
        back = pickle.loads(pickle.dumps(found))

        assert (found, found.lines, found["b"]["c"].lines) == (back, back.lines, back["b"]["c"].lines)
        assert (Mapping, Sequence) == (type(back), type(back["b"]["c"]))

    def test_a_path_is_written_as_policies_write_it(self) -> None:
        assert "fields.products[].price[1].round" == place(["fields", "products[].price", 1, "round"])


class TestWhatMessagesMayRepeat:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("a", "'a'"),
            ("x" * 50, f"'{'x' * 37}...'"),
            ("a\nb", "'a?b'"),
            (True, "true"),
            (1.5, "1.5"),
            ({}, "a mapping"),
            ([], "a list"),
            (None, "nothing"),
        ],
        ids=["text", "long", "line", "boolean", "number", "mapping", "list", "null"],
    )
    def test_a_value_is_short_and_on_one_line(self, value: object, expected: str) -> None:
        assert expected == shown(value)

    def test_a_hidden_text_is_not_shown(self) -> None:
        assert "the text given" == shown(Hidden("secret"))

    def test_forty_characters_pass_whole(self) -> None:
        assert ("x" * 40, "x" * 37 + "...") == (shorten("x" * 40), shorten("x" * 41))


class TestFiles:
    def test_a_file_is_read(self, tmp_path: Path) -> None:
        (tmp_path / "p.yaml").write_text("a: é\n", "utf-8")

        assert {"a": "é"} == load_document(tmp_path / "p.yaml")

    @pytest.mark.parametrize("name", ["missing.yaml", ".", "a\0b"], ids=["missing", "folder", "nul"])
    def test_what_cannot_be_read_says_so(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(PolicyError) as caught:
            load_document(str(tmp_path / name))

        assert ["EV115"] == [problem.code for problem in caught.value.problems]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(min_size=1), inner, max_size=4),
    max_leaves=12,
)


class TestJson:
    @given(st.dictionaries(st.text(min_size=1), JSON_VALUES, max_size=4))
    @settings(max_examples=80, deadline=None, derandomize=True)
    def test_every_json_object_is_read_as_json_reads_it(self, value: dict[str, Any]) -> None:
        assert value == parse_document(json.dumps(value), "p.json")

    @pytest.mark.parametrize(
        "text", ['{\n\t"a": [1,\t2]\n}', '{"a":{"b":"c\\/d"}}', '{"a":"\\u0041\\n\\t"}'], ids=["tabs", "slash", "escapes"]
    )
    def test_forms_of_json_that_yaml_writes_otherwise(self, text: str) -> None:
        assert json.loads(text) == parse_document(text, "p.json")

    def test_a_key_twice_is_refused_in_json_too(self) -> None:
        assert [("EV106", 1)] == problems('{"a": 1, "a": 2}')

    @given(st.binary(max_size=60) | st.text(alphabet="ab:{}[]-,'\"|>&*!%@`#? \n\t~01\\u", max_size=60).map(str.encode))
    @settings(max_examples=300, deadline=None, derandomize=True)
    def test_no_text_brings_it_down(self, data: bytes) -> None:
        try:
            found = parse_document(data, "p.yaml")
        except PolicyError:
            return

        assert isinstance(found, Mapping)
