from __future__ import annotations

import csv
import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

FILES = {"countries.csv": b"France;Europe;*\nGermany;Europe;*\nKenya;Africa;*\n;nowhere;*\n"}
RULE = {"hierarchy": "countries.csv", "level": 1}


class TestLookUp:
    @pytest.mark.parametrize(
        ("level", "expected"), [(1, ["Europe", "Africa", None, "Europe"]), (2, ["*", "*", None, "*"])], ids=["finer", "coarser"]
    )
    def test_level(self, treat: Any, level: int, expected: list[str | None]) -> None:
        result = treat("generalize", {**RULE, "level": level}, ["France", "Kenya", None, "Germany"], pa.string(), files=FILES)

        assert (result.values, result.refused) == (expected, {})

    @pytest.mark.parametrize("text", ["Atlantis", "france", "France ", "Europe", "*", "\ufeffFrance", "France;Europe"])
    def test_match_is_exact(self, treat: Any, text: str) -> None:
        assert treat("generalize", RULE, [text], pa.string(), files=FILES).refused == {0: "EV521"}
        assert treat("generalize", {**RULE, "otherwise": "nullify"}, [text], pa.string(), files=FILES).values == [None]
        assert treat("generalize", {**RULE, "otherwise": "other"}, [text], pa.string(), files=FILES).values == ["other"]

    def test_empty_text_may_stand_in_the_file(self, treat: Any) -> None:
        assert treat("generalize", RULE, [""], pa.string(), files=FILES).values == ["nowhere"]

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            (pa.array([7, 39, None], pa.int32()), ["0-9", "30-39", None]),
            (pa.array([True, None]), ["yes", None]),
            (pa.array([16317], pa.date32()), ["2014"]),
        ],
        ids=["int", "bool", "date"],
    )
    def test_other_types_are_matched_by_their_text(self, treat: Any, values: pa.Array[Any], expected: list[str | None]) -> None:
        files = {"any.csv": b"7;0-9\n39;30-39\ntrue;yes\n2014-09-04;2014\n"}

        assert treat("generalize", {"hierarchy": "any.csv", "level": 1}, values, files=files).values == expected

    @pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"], ids=["none", "LF", "CRLF"])
    def test_last_line_may_end(self, treat: Any, ending: bytes) -> None:
        assert treat("generalize", RULE, ["a"], pa.string(), files={"countries.csv": b"a;b" + ending}).values == ["b"]

    def test_windows_line_ends(self, treat: Any) -> None:
        assert treat("generalize", RULE, ["a", "c"], pa.string(), files={"countries.csv": b"a;b\r\nc;d\r\n"}).values == ["b", "d"]

    def test_the_same_line_twice(self, treat: Any) -> None:
        assert treat("generalize", RULE, ["a"], pa.string(), files={"countries.csv": b"a;b\na;b\n"}).values == ["b"]


class TestTheFile:
    @pytest.mark.parametrize(
        ("content", "says"),
        [
            pytest.param(b"", "is empty", id="empty"),
            pytest.param(b"canary;b\nx;y;z\n", "line 2 has 3 columns, the first line 2", id="ragged, longer"),
            pytest.param(b"canary;b;c\nx;y\n", "line 2 has 2 columns, the first line 3", id="ragged, shorter"),
            pytest.param(b"canary;b\n\nx;y\n", "line 2 has 1 columns", id="blank line"),
            pytest.param(b"canary\n", "at least 2 are needed", id="one column"),
            pytest.param(b"canary;b\ncanary;c\n", "line 2 gives a value of an earlier line other groups", id="two groups for one value"),
            pytest.param(b"\xef\xbb\xbfcanary;b\n", "begins with a byte order mark", id="byte order mark"),
            pytest.param(b'canary;b\n"x;y";z\n', "line 2 has quotes", id="quotes"),
            pytest.param(b"canary;b\rx;y\r", "lone carriage return", id="old Mac line ends"),
            pytest.param(b"canary;\xff\n", "is not UTF-8", id="Latin-1"),
            pytest.param("canary;b\n".encode("utf-16"), "is not UTF-8", id="UTF-16"),
        ],
    )
    def test_malformed(self, in_place: Any, content: bytes, says: str) -> None:
        with pytest.raises(ValueError, match=r"^EV217 ") as caught:
            in_place("generalize", RULE, pa.string(), files={"countries.csv": content})

        assert says in str(caught.value)
        assert "canary" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None

    def test_level_too_high(self, in_place: Any) -> None:
        with pytest.raises(ValueError, match=r"^EV217 level 3 of countries\.csv: it has 2$"):
            in_place("generalize", {**RULE, "level": 3}, pa.string(), files=FILES)

    @pytest.mark.parametrize("level", [0, -1, "1", True])
    def test_level_is_a_number_from_1(self, in_place: Any, level: Any) -> None:
        with pytest.raises(ValueError, match="level"):
            in_place("generalize", {**RULE, "level": level}, pa.string(), files=FILES)

    def test_table_survives_pickling_and_counts_for_equality(self, in_place: Any) -> None:
        one = in_place("generalize", RULE, pa.string(), files=FILES)
        other = in_place("generalize", RULE, pa.string(), files={"countries.csv": b"France;France\n"})

        assert pickle.loads(pickle.dumps(one)) == one
        assert one != other


class TestWarnings:
    def warned(self, in_place: Any, content: bytes) -> list[str]:
        return list(in_place("generalize", RULE, pa.string(), files={"countries.csv": content}).warnings(None))

    def test_none_for_groups_of_several(self, in_place: Any) -> None:
        assert self.warned(in_place, b"a;x\nb;x\n") == []

    def test_values_that_stay(self, in_place: Any) -> None:
        assert self.warned(in_place, b"a;a\nb;a\n") == ["level 1 of countries.csv leaves 1 of its values as they are"]

    def test_groups_of_one(self, in_place: Any) -> None:
        assert self.warned(in_place, b"a;x\nb;y\nc;y\n") == ["level 1 of countries.csv has 1 groups of one value"]


@pytest.mark.data
class TestAdult:
    """The hierarchies of ARX over its census records."""

    @pytest.fixture
    def adult(self) -> Path:
        folder = os.environ.get("EVENTVEIL_DATA")
        if not folder:
            pytest.skip("EVENTVEIL_DATA is not set: the census records and hierarchies were not read")
        return Path(folder) / "adult"

    @pytest.mark.parametrize(
        "column", ["age", "education", "marital-status", "native-country", "occupation", "race", "salary-class", "sex", "workclass"]
    )
    def test_every_record_has_its_group_at_every_level(self, treat: Any, adult: Path, column: str) -> None:
        name = f"adult_hierarchy_{column}.csv"
        content = (adult / name).read_bytes()
        with (adult / "adult.csv").open(newline="", encoding="utf-8") as file:
            values = [record[column] for record in csv.DictReader(file, delimiter=";")]
        table = {row[0]: row[1:] for row in csv.reader(content.decode().splitlines(), delimiter=";")}
        typed = pa.array(list(map(int, values)), pa.int32()) if column == "age" else pa.array(values)

        assert len(values) == 30_162
        for level in range(1, len(next(iter(table.values()))) + 1):
            result = treat("generalize", {"hierarchy": name, "level": level}, typed, files={name: content})

            assert result.refused == {}
            assert Counter(result.values) == Counter(table[value][level - 1] for value in values)
