"""Numbers within a window: 1 to n for the values of a class, whatever batches they came in, and in an order that only the key knows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from eventveil.schemas.durations import Duration
from eventveil.schemas.errors import EventveilError
from eventveil.schemas.events.avro import parse_avro
from eventveil.schemas.policy import parse_policy
from eventveil.transforms.batch import Part, part_of, with_part
from eventveil.transforms.compile import compile_policy
from eventveil.transforms.decode.decoded import decoded_type
from eventveil.transforms.keys.derive import HeldKeys
from eventveil.transforms.plan import Plan
from eventveil.transforms.release.renumber import Numbers, WindowNumbers, decision_columns, shared_windows
from eventveil.transforms.windows import WindowRule

KEYS = HeldKeys(bytes(range(32)))
DAY_US = 86_400_000_000
DAY = 19_849 * DAY_US  # 2024-05-06
TEXT = ["null", "string"]
PERSON = {"renumber": {"scope": "window", "class": "person"}}
LOTS = 1 << 30


def record(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": [{"name": one, "type": kind} for one, kind in fields.items()]}


def planned(fields: Mapping[str, Any], rules: Mapping[str, Any], *, window: Any = "1d", name: str = "test", more: str = "") -> Plan:
    head = {"policy": name, "version": 1, "for": {"recipient": "tests"}, "schema": "e.avsc", "domain": "d", "event": {"time": "at"}}
    text = "\n".join(f"{key}: {json.dumps(value)}" for key, value in {**head, "window": window, "fields": {"at": "drop", **rules}}.items())
    return compile_policy(parse_policy(f"{text}\n{more}", "p.yaml"), parse_avro(record("Event", at="string", **fields), "e.avsc"))


LINE = record("Line", who=TEXT, tags={"type": "array", "items": TEXT})
FIELDS = {"n": "int", "who": TEXT, "box": ["null", record("Box", to="string")], "lines": ["null", {"type": "array", "items": LINE}]}
NESTED = planned(FIELDS, {"n": "keep", "who": PERSON, "box.to": PERSON, "lines[].who": PERSON, "lines[].tags[]": {"renumber": "window"}})
FLAT = planned({"n": "int", "buyer": TEXT}, {"n": "keep", "buyer": [PERSON, {"rename": "who"}]}, name="flat")


def veiled(plan: Plan, events: Sequence[Mapping[str, Any]], day: str = "2024-05-06") -> pa.RecordBatch:
    given = pa.array([{"at": f"{day}T12:00:00Z", **one} for one in events], decoded_type(plan.schema, plan.used))
    outcome = plan.bind(KEYS).apply(given)
    assert outcome.codes == []
    return outcome.veiled


def window(start_us: int = DAY, most_bytes: int = LOTS, rule: WindowRule | None = None) -> WindowNumbers:
    return WindowNumbers(KEYS.domain("d"), start_us, rule or WindowRule(Duration(1, "d")), most_bytes)


def numbered(*given: tuple[Plan, pa.RecordBatch], start_us: int = DAY) -> list[pa.RecordBatch]:
    numbers = window(start_us)
    for plan, batch in given:
        numbers.add(plan, batch)
    found = [numbers.number(plan, batch) for plan, batch in given]
    for batch, (plan, before) in zip(found, given):
        batch.validate(full=True)
        assert plan.output_schema == pa.schema(list(batch.schema)[: len(plan.output_schema)])
        assert before.num_rows == batch.num_rows
    return found


def plain(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    return batch.select([name for name in batch.schema.names if name[0] != "$"]).to_pylist()


def people(given: Mapping[str, Any]) -> list[str | None]:
    """What an event holds of the class person, in the order of the output."""
    box = given.get("box")
    return [given.get("who"), box and box["to"], *((line or {}).get("who") for line in given.get("lines") or [])]


def numbers_of(events: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Value -> number; each value must have one, and each number one value."""
    pairs = [pair for event, row in zip(events, rows, strict=True) for pair in zip(people(event), people(row), strict=True)]
    found = {value: number for value, number in pairs if value is not None}
    assert all((number is None) if value is None else found[value] == number for value, number in pairs)
    assert sorted(found.values()) == list(range(1, len(found) + 1))
    return found


NAMES = st.one_of(st.none(), st.sampled_from(["ann", "bob", "cy", "Zoë", ""]), st.text(max_size=3))
LINES = st.lists(st.fixed_dictionaries({"who": NAMES, "tags": st.lists(NAMES, max_size=3)}), max_size=3)
EVENTS = st.lists(
    st.fixed_dictionaries(
        {
            "n": st.integers(0, 99),
            "who": NAMES,
            "box": st.one_of(st.none(), st.fixed_dictionaries({"to": st.text(max_size=2)})),
            "lines": st.one_of(st.none(), LINES),
        }
    ),
    max_size=12,
)


class TestNumbers:
    def test_are_one_to_n_over_all_places_of_a_class(self) -> None:
        events = [
            {"n": 1, "who": "ann", "box": {"to": "bob"}, "lines": [{"who": "cy", "tags": ["ann", "x"]}, {"who": None, "tags": [None]}]},
            {"n": 2, "who": "bob", "box": None, "lines": None},
            {"n": 3, "who": None, "box": {"to": "ann"}, "lines": []},
        ]
        (batch,) = numbered((NESTED, veiled(NESTED, events)))
        rows = plain(batch)

        assert {"ann", "bob", "cy"} == set(numbers_of(events, rows))
        assert [{1, 2}, None, []] == [
            rows[0]["lines"] and {number for line in rows[0]["lines"] for number in line["tags"]} - {None},
            rows[1]["lines"],
            rows[2]["lines"],
        ]
        assert [1, 2, 3] == [row["n"] for row in rows]
        assert rows[1]["box"] is None

    @settings(max_examples=60, deadline=None)
    @given(EVENTS, st.data())
    def test_do_not_depend_on_batches_their_order_or_their_repetition(self, events: list[dict[str, Any]], data: st.DataObject) -> None:
        whole = veiled(NESTED, events)
        (batch,) = numbered((NESTED, whole))
        expected = numbers_of([{**one, "who": one["who"]} for one in _normal(events)], plain(batch))

        cuts = sorted({0, len(events), *data.draw(st.lists(st.integers(0, len(events)), max_size=4))})
        pieces = [(low, whole.slice(low, high - low)) for low, high in pairwise(cuts)]
        order = data.draw(st.permutations([*pieces, *data.draw(st.lists(st.sampled_from(pieces), max_size=2) if pieces else st.just([]))]))
        found = numbered(*((NESTED, piece) for _, piece in order))

        for (low, piece), result in zip(order, found):
            assert plain(batch)[low : low + piece.num_rows] == plain(result)
        assert len(expected) == len({value for one in _normal(events) for value in people(one) if value is not None})

    def test_are_shared_by_event_types_that_name_one_class(self) -> None:
        carts, orders = [{"n": 1, "who": name} for name in "abc"], [{"n": 1, "buyer": name} for name in "dcb"]
        given = [(NESTED, veiled(NESTED, [{"box": None, "lines": None, **one} for one in carts])), (FLAT, veiled(FLAT, orders))]

        first, second = (plain(batch) for batch in numbered(*given))
        found = numbers_of([*carts, *({"who": one["buyer"]} for one in orders)], [*first, *({"who": row["who"]} for row in second)])

        assert set("abcd") == set(found)
        again = numbered(*reversed(given))
        assert [second, first] == [plain(batch) for batch in again]

    def test_of_two_classes_are_counted_apart(self) -> None:
        rules = {"a": {"renumber": {"scope": "window", "class": "x"}}, "b": {"renumber": {"scope": "window", "class": "y"}}}
        plan = planned({"a": "string", "b": "string"}, rules)
        (batch,) = numbered((plan, veiled(plan, [{"a": str(i), "b": str(i % 7)} for i in range(50)])))

        assert list(range(1, 51)) == sorted(batch.column("a").to_pylist())
        assert set(range(1, 8)) == set(batch.column("b").to_pylist())

    def test_have_another_order_in_another_window_of_the_same_key(self) -> None:
        plan = planned({"who": "string"}, {"who": PERSON}, window={"keys": "1w", "release": "1d"})
        names = [{"who": str(i)} for i in range(40)]
        monday, tuesday = (veiled(plan, names, day) for day in ("2024-05-06", "2024-05-07"))
        (first,), (second,) = numbered((plan, monday), start_us=DAY), numbered((plan, tuesday), start_us=DAY + DAY_US)

        assert monday.column("who").equals(tuesday.column("who"))
        assert first.column("who") != second.column("who")
        matches = sum(one == other for one, other in zip(first.column("who").to_pylist(), second.column("who").to_pylist()))
        assert matches < 8  # of 40, one by chance

    def test_are_the_order_of_aes_under_a_sub_key_of_the_release_window(self) -> None:
        """Worked out once more with the library's own AES: what was published under a keyring must never change."""
        batch = veiled(FLAT, [{"n": 0, "buyer": name} for name in "hgfedcba"])
        digests = batch.column("who").to_pylist()
        key = KEYS.domain("d").for_window(DAY, "1d", "UTC", "renumber", "order", "person")
        blocks = [Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(digest) for digest in digests]

        (found,) = numbered((FLAT, batch))

        assert [1 + sorted(blocks).index(block) for block in blocks] == found.column("who").to_pylist()
        assert [4, 1, 3, 7, 5, 2, 6, 8] == found.column("who").to_pylist()


def _normal(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events whose texts are in normal form C, in which values are compared."""
    import unicodedata

    def normal(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: normal(one) for name, one in value.items()}
        if isinstance(value, list):
            return [normal(one) for one in value]
        return unicodedata.normalize("NFC", value) if isinstance(value, str) else value

    return [normal(one) for one in events]


class TestABatch:
    EVENTS = [
        {"n": i, "who": None if i % 3 == 0 else str(i % 5), "box": None if i % 4 else {"to": str(i)}, "lines": None if i % 5 == 0 else []}
        | ({"lines": [{"who": str(j), "tags": [str(i), None]} for j in range(i % 4)]} if i % 2 else {})
        for i in range(40)
    ]

    def test_a_slice_gives_the_slice(self) -> None:
        whole = veiled(NESTED, self.EVENTS)
        numbers = window()
        numbers.add(NESTED, whole)

        part = numbers.number(NESTED, whole.slice(7, 21))
        part.validate(full=True)

        assert plain(numbers.number(NESTED, whole))[7:28] == plain(part)

    @pytest.mark.parametrize("events", [[], [{"n": 1, "who": None, "box": None, "lines": None}]], ids=["empty", "nothing but null"])
    def test_without_values(self, events: list[dict[str, Any]]) -> None:
        (batch,) = numbered((NESTED, veiled(NESTED, events)))

        assert events == plain(batch)

    def test_all_else_stays(self) -> None:
        given = with_part(veiled(NESTED, self.EVENTS), Part("o", 3))
        (found,) = numbered((NESTED, given))

        assert part_of(found) == Part("o", 3)
        for name in ("n", "$order", "$window"):
            assert given.column(name).equals(found.column(name))
        assert given.schema.names == found.schema.names

    def test_what_a_null_list_hides_is_neither_counted_nor_asked_for(self) -> None:
        plan = planned({"tags": ["null", {"type": "array", "items": "string"}]}, {"tags[]": PERSON})
        batch = veiled(plan, [{"tags": [str(i) for i in range(50)]}, {"tags": ["c"]}])
        held = batch.column("tags")
        hiding = pa.ListArray.from_arrays(held.offsets, held.values, type=held.type, mask=pa.array([True, False]))

        (found,) = numbered((plan, pa.RecordBatch.from_arrays([hiding, *batch.columns[1:]], schema=batch.schema)))

        assert [None, [1]] == found.column("tags").to_pylist()
        (found,) = numbered((plan, batch.slice(1)))
        assert [[1]] == found.column("tags").to_pylist()

    def test_digests_that_end_in_zeros_are_what_they_are(self) -> None:
        digests = [bytes(16), b"\1" + bytes(15), bytes(15) + b"\1", b"\1\0\1" + bytes(13)]
        batch = veiled(FLAT, [{"n": i, "buyer": str(i)} for i in range(4)])
        batch = batch.set_column(batch.schema.get_field_index("who"), batch.schema.field("who"), pa.array(digests, pa.binary(16)))
        (found,) = numbered((FLAT, batch))

        assert [1, 2, 3, 4] == sorted(found.column("who").to_pylist())


class TestFailsClosed:
    def test_on_a_digest_that_was_not_added(self) -> None:
        numbers = window()
        numbers.add(FLAT, veiled(FLAT, [{"n": 1, "buyer": name} for name in "abc"]))

        for name in "defghijk":  # below, between and above those that are there
            with pytest.raises(EventveilError, match="EV901") as caught:
                numbers.number(FLAT, veiled(FLAT, [{"n": 1, "buyer": "a"}, {"n": 1, "buyer": name}]))
            assert "person" in str(caught.value)

    def test_on_a_class_of_which_nothing_was_added(self) -> None:
        with pytest.raises(EventveilError, match="EV901"):
            window().number(FLAT, veiled(FLAT, [{"n": 1, "buyer": "a"}]))

    def test_on_what_comes_behind_the_decision(self) -> None:
        batch = veiled(FLAT, [{"n": 1, "buyer": "a"}])
        numbers = window()
        numbers.add(FLAT, batch)
        numbers.number(FLAT, batch)

        with pytest.raises(EventveilError, match="EV901"):
            numbers.add(FLAT, batch)

    def test_on_a_batch_that_is_numbered_already(self) -> None:
        (batch,) = numbered((FLAT, veiled(FLAT, [{"n": 1, "buyer": "a"}])))

        with pytest.raises(EventveilError, match="EV901"):
            numbered((FLAT, batch))


class TestALargeWindow:
    BATCHES = [veiled(FLAT, [{"n": 1, "buyer": str(i * j)} for i in range(20)]) for j in range(1, 6)]
    DISTINCT = len({str(i * j) for i in range(20) for j in range(1, 6)})

    @pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 2, 0, 4, 1, 3, 1]], ids=["up", "down", "repeated"])
    def test_what_counts_is_sixteen_bytes_for_each_distinct_value(self, order: list[int]) -> None:
        found = []
        for most in (16 * self.DISTINCT, 16 * self.DISTINCT - 1):
            numbers = window(most_bytes=most)
            for i in order:
                numbers.add(FLAT, self.BATCHES[i])
            found.append(numbers.is_too_large)

        assert [False, True] == found

    def test_is_never_numbered(self) -> None:
        numbers = window(most_bytes=100)
        for batch in self.BATCHES:
            numbers.add(FLAT, batch)

        with pytest.raises(EventveilError, match="EV603") as caught:
            numbers.number(FLAT, self.BATCHES[0])
        assert caught.value.problems[0].remedy
        numbers.add(FLAT, self.BATCHES[0])  # nothing is kept, and nothing breaks
        assert numbers.is_too_large

    def test_many_digests_in_small_pieces(self) -> None:
        """More than are kept apart from what is sorted, with repetitions in every piece."""
        seeded = np.random.default_rng(3)
        pool = seeded.integers(0, 256, (200_000, 16), dtype=np.uint8)
        batch = veiled(FLAT, [{"n": 1, "buyer": "a"}])
        field = batch.schema.field("who")
        numbers = window()
        pieces: list[pa.RecordBatch] = []
        for _ in range(30):
            chosen = pool[seeded.integers(0, len(pool), 20_000)]
            column = pa.Array.from_buffers(pa.binary(16), len(chosen), [None, pa.py_buffer(np.ascontiguousarray(chosen))])
            pieces.append(pa.RecordBatch.from_arrays([column], schema=pa.schema([field])))
            numbers.add(FLAT, pieces[-1])
        given = pa.concat_arrays([piece.column("who") for piece in pieces]).to_pylist()
        found = pa.concat_arrays([numbers.number(FLAT, piece).column("who") for piece in pieces]).to_pylist()

        assert len(set(zip(given, found))) == len(set(given)) == max(found)


class TestPartsOfAWindow:
    """Where rows and decisions travel apart, a part is numbered by its own table."""

    def test_are_numbered_as_the_window_is(self) -> None:
        batches = TestALargeWindow.BATCHES
        expected = [plain(batch) for batch in numbered(*((FLAT, batch) for batch in batches))]
        numbers = window()
        columns = [decision_columns(FLAT, batch) for batch in batches]
        for one in columns:
            numbers.gather(one)
        tables = [numbers.decide().decided(one) for one in columns]

        assert expected == [plain(Numbers.joined([table]).number(FLAT, batch)) for table, batch in zip(tables, batches)]
        assert expected == [plain(Numbers.joined(tables[::-1]).number(FLAT, batch)) for batch in batches]

    def test_a_table_answers_for_its_own_part_alone(self) -> None:
        first, second = (veiled(FLAT, [{"n": 1, "buyer": name}]) for name in "ab")
        numbers = window()
        numbers.add(FLAT, first)
        numbers.add(FLAT, second)
        table = numbers.decide().decided(decision_columns(FLAT, first))

        with pytest.raises(EventveilError, match="EV901"):
            Numbers.joined([table]).number(FLAT, second)

    def test_nothing_to_decide(self) -> None:
        columns = decision_columns(FLAT, veiled(FLAT, []))
        numbers = window()
        numbers.gather(columns)

        assert 0 == Numbers.joined([numbers.decide().decided(columns)]).number(FLAT, veiled(FLAT, [])).num_rows
        assert 0 == Numbers.joined([]).number(FLAT, veiled(FLAT, [])).num_rows


class TestSharedWindows:
    def test_policies_that_number_a_class_together_close_it_together(self) -> None:
        assert [] == shared_windows([NESTED, FLAT, FLAT])

    @pytest.mark.parametrize(
        "other",
        [
            pytest.param({"release_window": WindowRule(Duration(1, "h"))}, id="release"),
            pytest.param({"key_window": WindowRule(Duration(1, "w"))}, id="keys"),
            pytest.param({"release_window": WindowRule(Duration(1, "d"), "Europe/London")}, id="zone"),
            pytest.param({"lateness_us": 5_000_000}, id="lateness"),
        ],
    )
    def test_a_difference_is_told(self, other: dict[str, Any]) -> None:
        (problem,) = shared_windows([NESTED, FLAT, replace(FLAT, name="third", **other)])

        assert "EV208" == problem.code
        assert "test and third number class person of domain d in windows that differ" == problem.fact

    def test_another_domain_is_another_class(self) -> None:
        assert [] == shared_windows([FLAT, replace(FLAT, domain="e", lateness_us=1)])
