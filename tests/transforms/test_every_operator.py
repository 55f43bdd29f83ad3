"""What every registered operator keeps to. An operator without samples here fails the suite."""

from __future__ import annotations

import json
import pickle
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from eventveil.schemas.document import parse_document
from eventveil.schemas.errors import CODES
from eventveil.schemas.events.avro import parse_avro
from eventveil.schemas.policy import parse_policy
from eventveil.transforms.compile import compile_policy
from eventveil.transforms.decode.decoded import decoded_type
from eventveil.transforms.keys.keyring import throw_away_keys
from eventveil.transforms.language import FAMILIES, describe, parameters
from eventveil.transforms.registry import GroupOperator, Operator, Shape, find, known

UTC = timezone.utc
SHAPES = {"drop", "into", "move", "rename"}

TYPES: dict[str, pa.DataType] = {
    "bool": pa.bool_(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "string": pa.string(),
    "binary": pa.binary(),
    "decimal": pa.decimal128(9, 2),
    "wide decimal": pa.decimal128(38, 9),
    "date32": pa.date32(),
    "time32": pa.time32("ms"),
    "time64": pa.time64("us"),
    "ms UTC": pa.timestamp("ms", "UTC"),
    "us UTC": pa.timestamp("us", "UTC"),
    "ns UTC": pa.timestamp("ns", "UTC"),
    "ms": pa.timestamp("ms"),
    "us": pa.timestamp("us"),
    "ns": pa.timestamp("ns"),
}
INTEGERS = ("int32", "int64")
FLOATS = ("float32", "float64")
DECIMALS = ("decimal", "wide decimal")
NUMBERS = (*INTEGERS, *FLOATS, *DECIMALS)
INSTANTS = ("ms UTC", "us UTC", "ns UTC")
LOCAL = ("ms", "us", "ns")
TIMESTAMPS = (*INSTANTS, *LOCAL)
EVERY = tuple(TYPES)

_T0 = datetime(2014, 9, 4, 22, 57, 55, 123456, tzinfo=UTC)
_TEXTS = [
    "Abdullin Rinat",
    "ul. Zorge 66-61",
    "Zoë Ångström",
    "👩‍👩‍👧 family",
    "e\u0301toile",
    "450075",
    "a b",
    "שלום עולם",
    "x\x00y",
    "R2-D2 ",
    "été",
    "q",
]
_INTS = [1, -1, 2, 7, 10, 13, 99, -47, 1_000, 123_457, 2_000_003, -2_147_000_001]

# Values that no operator has a reason to find equal to its result, none of them empty.
VALUES: dict[str, list[Any]] = {
    "bool": [True, False] * 6,
    "int32": _INTS,
    "int64": [*_INTS[:-2], 9_007_199_254_740_993, -123_456_789_012],
    "float32": [value + 0.375 for value in (*_INTS[:-2], 0.5, 77)],
    "float64": [value + 0.3 for value in (*_INTS[:-1], 0.5)],
    "string": _TEXTS,
    "binary": [text.encode() + b"\xff" for text in _TEXTS],
    "decimal": [Decimal(value) + Decimal("0.37") for value in (*_INTS[:-1], 5)],
    "wide decimal": [Decimal(value) + Decimal("0.123456789") for value in (*_INTS[:-1], 5)],
    "date32": [date(2014, 9, 4) + timedelta(days=37 * n) for n in range(12)],
    "time32": [time(n + 3, 7 * n % 60, 13, 123_000) for n in range(12)],
    "time64": [time(n + 3, 7 * n % 60, 13, 123_456) for n in range(12)],
    **{name: [_T0 + n * timedelta(hours=37, milliseconds=41) for n in range(12)] for name in INSTANTS},
    **{name: [_T0.replace(tzinfo=None) + n * timedelta(hours=37, milliseconds=41) for n in range(12)] for name in LOCAL},
}
VALUES["ms UTC"] = [value.replace(microsecond=value.microsecond // 1000 * 1000) for value in VALUES["ms UTC"]]
VALUES["ms"] = [value.replace(microsecond=value.microsecond // 1000 * 1000) for value in VALUES["ms"]]

_EXTREME_64 = [0, 1, -1, 2**63 - 1, -(2**63), 2**62, -(2**62) - 1, 2**53 + 1, 16_000 * 86_400_000_000]
HOSTILE: dict[str, list[Any]] = {
    "bool": [True, False],
    "int32": [0, 1, -1, 2**31 - 1, -(2**31)],
    "int64": _EXTREME_64,
    "float32": [0.0, -0.0, float("nan"), float("inf"), -float("inf"), 3.4e38, -3.4e38, 1e-45, 0.1],
    "float64": [0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1.79e308, -1.79e308, 5e-324, 0.1, 2.0**63, -(2.0**63), 2.5],
    "string": [
        *(
            "",
            " ",
            "\x00",
            "a\x00b",
            "\n",
            "*",
            "********",
            "\ufeff",
            "👩‍👩‍👧‍👦" * 9,
            "e\u0301" * 9,
            "\u202eabc",
            "ﬀ",
            "İ",
            "ß",
            "٣",
            "other",
            "null",
        ),
        *("-", "+", ".", "-.", "1e400", "NaN", "9" * 400, "0." + "9" * 400, "-0", "007", "1.", ".5", "1,5", "0x10", "１２"),
        *("2014-09-04T22:57:55", "2014-02-30", "9999-12-31T23:59:59.999999999Z", "0000-00-00", "2014-09-04T25:00:00+99:99", "-2014-01-01"),
        *(
            "1.2.3.4",
            "1.2.3.4\n",
            "01.2.3.4",
            "::",
            "::ffff:1.2.3.4",
            "fe80::1%eth0",
            ":" * 60,
            "1" * 1_000_000,
            "é" * 500_000,
            "{",
            "{}",
            "[",
            "%s",
            "\\",
        ),
    ],
    "binary": [b"", b"\x00", b"\xff\xfe", b"a" * 1_000_000],
    "decimal": [Decimal("9999999.99"), Decimal("-9999999.99"), Decimal(0), Decimal("0.01"), Decimal("-0.01"), Decimal("0.50")],
    "wide decimal": [
        Decimal("9" * 29 + "." + "9" * 9),
        Decimal("-" + "9" * 29 + "." + "9" * 9),
        Decimal(0),
        Decimal("0.000000001"),
        Decimal("1E+18"),
    ],
    "date32": [0, 1, -1, 2**31 - 1, -(2**31), 3_000_000, -1_000_000],
    "time32": [0, 86_399_999],
    "time64": [0, 86_399_999_999],
    **dict.fromkeys(TIMESTAMPS, _EXTREME_64),
}


@dataclass(frozen=True)
class Sample:
    """One use of an operator.

    Attributes:
        accepts: the types of `TYPES` that it takes, exactly.
        given: the parameters, as a policy writes them.
        values: type -> values to use instead of `VALUES`: where those would all be refused, or equal the result.
        where: what `Setting` says, beside the type.
    """

    accepts: Sequence[str]
    given: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    where: Mapping[str, Any] = field(default_factory=dict)


ADDRESSES = [f"192.0.2.{n}" for n in range(2, 8)] + [f"2001:db8:{n:x}::{n:x}" for n in range(1, 5)] + ["::ffff:10.1.2.3", "no address"]
COUNTRIES = ["France", "Germany", "Kenya", "Peru", "France", "Atlantis", "france", "France ", "Kenya", "Kenya", "Peru", "Peru"]

SAMPLES: dict[str, list[Sample]] = {
    "allow": [
        Sample(["string"], {"values": ["450075", "été", "x\x00y"]}),
        Sample(["string"], {"values": ["q"], "otherwise": "other"}),
        Sample(INTEGERS, {"values": [1, 7, -47], "otherwise": "nullify"}),
        Sample(["int64"], {"values": [2**40]}),
        Sample(["bool"], {"values": [True]}),
    ],
    "bin": [
        Sample([*NUMBERS], {"width": 10}),
        Sample([*FLOATS, *DECIMALS], {"width": 0.5, "otherwise": "other"}),
        Sample([*NUMBERS], {"edges": [-50, 0, 18, 65.5, 1e6], "labels": ["less", "minor", "adult", "old"], "otherwise": "nullify"}),
    ],
    "cast": [
        Sample([of for of in EVERY if of not in ("time32", "time64")], {"to": "string"}),
        Sample(["bool", "string", *NUMBERS], {"to": "int32", "otherwise": "nullify"}),
        Sample(["string", *NUMBERS], {"to": "float32", "otherwise": "nullify"}),
        Sample(["string", *NUMBERS], {"to": "decimal128(12, 2)"}, {"string": [f"{n}.50" for n in range(11)] + ["none"]}),
        Sample(["string", "date32", *TIMESTAMPS], {"to": "timestamp[us]"}),
        Sample(["string", "date32", *TIMESTAMPS], {"to": "date32", "zone": "Europe/London", "otherwise": "nullify"}),
        Sample(["bool", "string", *INTEGERS], {"to": "bool"}),
        Sample(["string", "binary"], {"to": "binary"}),
    ],
    "clamp": [
        Sample(NUMBERS, {"min": 0, "max": 100}),
        Sample([*FLOATS, *DECIMALS], {"max": 99.5}),
        Sample([*TIMESTAMPS, "date32"], {"min": "2014-09-10", "max": "2014-10-01"}),
        Sample(INSTANTS, {"max": "2014-09-10T12:00:00Z"}),
    ],
    "floor": [
        Sample(TIMESTAMPS, {"size": "1min"}),
        Sample([*TIMESTAMPS, "date32"], {"size": "1mo"}),
        Sample([*TIMESTAMPS, "date32"], {"size": "1w", "zone": "Europe/London"}),
    ],
    "normalize": [Sample(["string"], {"steps": ["trim", "lower", "nfkc"]}), Sample(["string"], {"steps": ["digits"]})],
    "parse": [
        Sample(["string"], {"form": "{amount:number} {currency:text}"}, {"string": [f"{n}.5 EUR" for n in range(6)] + ["free"] * 6}),
        Sample(["string"], {"form": "{all:text}", "otherwise": "nullify"}),
        Sample(
            ["string"],
            {"form": "-{n:number}", "decimal": ",", "scale": 2, "otherwise": "nullify"},
            {"string": ["-1,5", "-1,555", "1", *"abcdefghi"]},
        ),
    ],
    "round": [
        Sample(NUMBERS, {"to": 10}),
        Sample([*FLOATS, *DECIMALS], {"to": "0.05"}),
        Sample(NUMBERS, {"to": 7}),
    ],
    "generalize": [
        Sample(["string", "bool", *INTEGERS, "date32"], {"hierarchy": "countries.csv", "level": 1}, {"string": COUNTRIES}),
        Sample(
            ["string", "bool", *INTEGERS, "date32"],
            {"hierarchy": "numbers.csv", "level": 1, "otherwise": "other"},
            {"int32": list(range(12)), "int64": list(range(-98, -86)), "string": [str(n) for n in range(12)]},
        ),
    ],
    "pseudonymize": [
        Sample([of for of in EVERY if of != "bool"]),
        Sample([of for of in EVERY if of != "bool"], {"class": "customer", "prefix": "c-", "stable": "domain", "prf": "aes-cmac"}),
        Sample([of for of in EVERY if of != "bool"], {"as": "binary", "bits": 256, "prf": "hmac-sha256"}),
    ],
    "renumber": [
        Sample(EVERY, {"scope": "event"}),
        Sample(EVERY, {"scope": "window", "class": "product"}),
        Sample(EVERY, {"scope": "window"}),
    ],
    "keep": [Sample(EVERY), Sample(EVERY, {"because": "a carrier is no person"})],
    "mask": [
        Sample(["string"]),
        Sample(["string"], {"keep_last": 4, "length": "same"}),
        Sample(["string"], {"keep_first": 1, "keep_last": 2}),
        Sample(["string"], {"length": "same"}),
    ],
    "nullify": [Sample(EVERY)],
    "noise": [
        Sample([*INTEGERS, "decimal"], {"laplace_scale": 1, "per": "event"}),
        Sample([*FLOATS, *DECIMALS], {"gaussian_sigma": 2.5, "grid": 0.5, "per": "subject", "null": 0}),
        Sample(
            NUMBERS,
            {"epsilon": 1, "grid": 2, "per": "event", "clamp_input": {"min": 0, "max": 9}, "clamp_output": {"min": 0}, "together": "a"},
        ),
    ],
    "randomize": [
        Sample(["string"], {"epsilon": 1, "choices": ["q", "a b", "450075"], "per": "event"}),
        Sample(INTEGERS, {"epsilon": 0.5, "choices": [1, 2, 7, 10], "per": "subject", "null": 7}),
        Sample(["bool"], {"epsilon": 2, "choices": [True, False], "per": "event"}),
    ],
    "shift": [
        Sample(TIMESTAMPS, {"within": "10min", "per": "event"}),
        Sample([*TIMESTAMPS, "date32"], {"within": "3d", "per": "subject", "together": "stay"}),
        Sample(TIMESTAMPS, {"within": "10min", "per": "event"}, where={"is_event_time": True, "zone": "Europe/London"}),
    ],
    "replace": [Sample(EVERY, {"with": literal}) for literal in ("hidden", 12345, 0.25, 1e300, 2**40)]
    + [Sample(EVERY, {"with": True}, {"bool": [False] * 12})],
    "truncate": [Sample(["string"], {"keep_first": 1}), Sample(["string"], {"keep_first": 7})],
    "truncate_ip": [
        Sample(["string"], {}, {"string": ADDRESSES}),
        Sample(["string"], {"v4": 13, "v6": 127, "otherwise": "nullify"}, {"string": ADDRESSES}),
        Sample(["string"], {"v4": 0, "v6": 0, "otherwise": "other"}, {"string": ADDRESSES}),
    ],
}


def _found(name: str) -> Any:
    cls = find(name)
    assert cls is not None
    return cls


def _cases() -> Iterable[Any]:
    """Each type with the first two samples that accept it; behind the first, samples for nearly every type take turns in sharing them."""
    for name, samples in SAMPLES.items():
        seen = Counter[str]()
        for number, sample in enumerate(samples, 1):
            seen.update(sample.accepts)
            wide = len(sample.accepts) > len(EVERY) - 4
            for place, of in enumerate(sample.accepts):
                if seen[of] == 1 or name == "cast" or len(sample.accepts) == 1 or (place % 4 == number % 4 if wide else seen[of] == 2):
                    yield pytest.param(name, sample, of, id=f"{name}-{number}-{of}")


each_case = pytest.mark.parametrize(("name", "sample", "of"), list(_cases()))
each_sample = pytest.mark.parametrize(
    ("name", "sample"), [pytest.param(name, one, id=f"{name}-{n}") for name, samples in SAMPLES.items() for n, one in enumerate(samples, 1)]
)
each_operator = pytest.mark.parametrize("name", known())


@pytest.fixture
def operator(name: str, sample: Sample, of: str, in_place: Callable[..., Operator]) -> Operator:
    return in_place(name, sample.given, TYPES[of], **sample.where)


@pytest.fixture
def column(sample: Sample, of: str) -> pa.Array[Any]:
    """Values, with nulls among them."""
    return _column(sample, of, nulls=True)


@pytest.fixture
def at_root(surroundings: Any, column: pa.Array[Any]) -> Any:
    return surroundings(len(column))


@pytest.fixture(params=[False, True], ids=["root", "nested"])
def around(request: pytest.FixtureRequest, surroundings: Any, column: pa.Array[Any]) -> Any:
    return surroundings(len(column), request.param)


@each_case
class TestAColumn:
    """The rules of design and house style, for each operator, sample and type."""

    def test_row_count_and_promised_type(self, operator: Operator, column: pa.Array[Any], around: Any) -> None:
        result, _ = around.run(operator, column)

        assert isinstance(result, pa.Array)
        assert len(result) == len(column)
        assert result.type == _written(operator, column.type)
        result.validate(full=True)

    def test_null_in_null_out_unless_declared(self, operator: Operator, column: pa.Array[Any], around: Any) -> None:
        result, refused = around.run(operator, column)
        rows = around.rows()

        for i in np.flatnonzero(np.asarray(column.is_null())):
            if rows[i] not in refused:
                assert result[int(i)].is_valid is (not operator.nullable(True)), i

    def test_no_null_that_was_not_promised(self, operator: Operator, sample: Sample, of: str, surroundings: Any) -> None:
        full = _column(sample, of, nulls=False)
        around = surroundings(len(full))
        result, refused = around.run(operator, full)

        if not operator.nullable(False):
            nulls = set(np.flatnonzero(np.asarray(result.is_null())).tolist())
            assert nulls <= set(refused)

    def test_sliced_input_gives_the_same(self, operator: Operator, column: pa.Array[Any], around: Any) -> None:
        whole = around.run(operator, column)
        sliced = pa.concat_arrays([column[3:], column, column[:5]]).slice(len(column) - 3, len(column))

        _assert_same(around.run(operator, sliced), whole)

    def test_slicing_the_input_slices_the_output(self, operator: Operator, column: pa.Array[Any], surroundings: Any) -> None:
        around = surroundings(len(column))
        whole, refused = around.run(operator, column)
        part, refused_part = around.run(operator, column.slice(5, 9), slice(5, 14))

        _assert_same((part, refused_part), (whole.slice(5, 9), {row: code for row, code in refused.items() if 5 <= row < 14}))

    def test_chunking_does_not_matter(self, operator: Operator, column: pa.Array[Any], around: Any) -> None:
        whole = around.run(operator, column)
        rows = around.rows()
        middle = int(np.searchsorted(rows, rows[len(rows) // 2]))  # between two events
        first, refused_first = around.run(operator, column[:middle], slice(0, middle))
        second, refused_second = around.run(operator, column[middle:], slice(middle, None))

        _assert_same((pa.concat_arrays([first, second]), refused_first | refused_second), whole)

    def test_order_of_events_does_not_matter(self, operator: Operator, column: pa.Array[Any], surroundings: Any) -> None:
        around = surroundings(len(column))
        whole, refused = around.run(operator, column)
        order = np.random.default_rng(5).permutation(len(column))
        shuffled, refused_shuffled = around.run(operator, column.take(pa.array(order)), order)

        _assert_same((shuffled, refused_shuffled), (whole.take(pa.array(order)), refused))

    def test_empty_column(self, operator: Operator, column: pa.Array[Any], surroundings: Any) -> None:
        for empty in (column[:0], column[4:4], pa.array([], column.type)):
            result, refused = surroundings(0).run(operator, empty)

            assert (len(result), result.type, refused) == (0, _written(operator, column.type), {})

    def test_nothing_but_nulls(self, operator: Operator, column: pa.Array[Any], surroundings: Any) -> None:
        result, refused = surroundings(5).run(operator, pa.nulls(5, column.type))

        assert result.type == _written(operator, column.type)
        if not refused:
            assert result.null_count == (5 if operator.nullable(True) else 0)

    def test_what_hides_behind_a_null_has_no_effect(self, operator: Operator, of: str, column: pa.Array[Any], around: Any) -> None:
        plain = around.run(operator, column)
        nulls = np.flatnonzero(np.asarray(column.is_null())).tolist()
        bits = pa.py_buffer(np.packbits(np.asarray(column.is_valid()), bitorder="little"))
        hostile = pa.array(HOSTILE[of], TYPES[of])
        for start in range(0, len(hostile), len(nulls)):
            filler = dict(zip(nulls, range(start, start + len(nulls)), strict=True))
            pieces = [hostile.slice(filler[i] % len(hostile), 1) if i in filler else column.slice(i, 1) for i in range(len(column))]
            hiding = pa.Array.from_buffers(column.type, len(column), [bits, *pa.concat_arrays(pieces).buffers()[1:]])

            assert hiding.equals(column)
            _assert_same(around.run(operator, hiding), plain)

    def test_input_is_untouched(self, operator: Operator, column: pa.Array[Any], at_root: Any) -> None:
        own = pa.concat_arrays([column])
        before = [None if buffer is None else buffer.to_pybytes() for buffer in own.buffers()]
        at_root.run(operator, own)

        assert [None if buffer is None else buffer.to_pybytes() for buffer in own.buffers()] == before

    def test_same_input_same_output(self, operator: Operator, column: pa.Array[Any], at_root: Any) -> None:
        _assert_same(at_root.run(operator, column), at_root.run(operator, column))

    def test_survives_pickling(self, operator: Operator, column: pa.Array[Any], at_root: Any) -> None:
        again = pickle.loads(pickle.dumps(operator))

        assert again == operator
        _assert_same(at_root.run(again, column), at_root.run(operator, column))

    def test_no_value_passes_unchanged_unless_declared(self, operator: Operator, column: pa.Array[Any], at_root: Any) -> None:
        result, refused = at_root.run(operator, column)

        if operator.may_return_input or result.type != column.type:
            return
        rows = at_root.rows()
        passed = [i for i in range(len(column)) if column[i].is_valid and rows[i] not in refused and result[i].equals(column[i])]
        assert passed == []

    def test_some_value_is_treated(self, operator: Operator, column: pa.Array[Any], surroundings: Any, sample: Sample, of: str) -> None:
        """Samples whose values are all refused show nothing."""
        _, refused = surroundings(len(column)).run(operator, column)

        assert len(refused) < len(column) - column.null_count or of not in sample.values

    def test_refuses_with_declared_codes_only(self, operator: Operator, column: pa.Array[Any], at_root: Any) -> None:
        _, refused = at_root.run(operator, column)

        assert set(refused.values()) <= set(operator.refusals)

    def test_hostile_values(self, operator: Operator, of: str, surroundings: Any) -> None:
        hostile = pa.array([*HOSTILE[of], None], TYPES[of])
        around = surroundings(len(hostile))
        whole, refused = around.run(operator, hostile)

        whole.validate(full=True)
        assert (len(whole), whole.type) == (len(hostile), _written(operator, hostile.type))
        assert set(refused.values()) <= set(operator.refusals)
        for i in range(len(hostile)):  # each is treated as if it were alone
            alone, refused_alone = around.run(operator, hostile.slice(i, 1), slice(i, i + 1))
            _assert_same((alone, refused_alone), (whole.slice(i, 1), {i: refused[i]} if i in refused else {}))

    def test_says_what_it_discloses(self, operator: Operator) -> None:
        said = operator.discloses()

        assert said
        assert said == said.strip()
        assert "\n" not in said

    def test_needs_and_scope_are_known_words(self, operator: Operator) -> None:
        assert operator.needs() <= {"id", "subject", "time"}
        assert operator.purpose in (None, "pseudonym", "noise", "renumber")
        assert operator.key_scope() in ("window", "domain")

    def test_what_stands_in_for_a_result_is_keyed_and_belongs_to_a_window(self, operator: Operator, column: pa.Array[Any]) -> None:
        """It lies in files, sealed, until the window closes; a release model puts what was promised in its place."""
        if operator.stands_in is not None:
            assert operator.stands_in != operator.returns(column.type)
            assert operator.purpose is not None
            assert "time" in operator.needs()


@each_sample
class TestASample:
    def test_accepts_these_types_and_no_other(self, name: str, sample: Sample, in_place: Callable[..., Operator]) -> None:
        accepted = [of for of, given in TYPES.items() if _accepts(in_place, name, sample, given)]

        assert sorted(sample.accepts) == sorted(accepted)

    def test_parameters_survive_json(self, name: str, sample: Sample) -> None:
        """So that a policy in JSON means what the same policy means in YAML."""
        cls = _found(name)

        assert cls(**json.loads(json.dumps(sample.given))) == cls(**sample.given)


@each_operator
class TestAnOperator:
    def test_has_samples(self, name: str) -> None:
        assert name in SHAPES or SAMPLES.get(name), f"add samples for {name} to {__file__}"

    def test_word_module_and_class_are_one_name(self, name: str) -> None:
        cls = _found(name)

        assert cls.name == name
        assert cls.__module__.rpartition(".")[2] == name
        assert cls.__name__ == "".join(part.title() for part in name.split("_"))
        assert issubclass(cls, Shape) is (name in SHAPES)

    def test_stands_in_one_family(self, name: str) -> None:
        assert [family for family, names in FAMILIES.items() if name in names] != []
        assert sum(name in names for names in FAMILIES.values()) == 1

    def test_is_frozen_and_takes_nothing_unknown(self, name: str) -> None:
        cls = _found(name)

        assert cls.model_config.get("frozen") is True
        with pytest.raises(ValidationError, match="no_such_parameter"):
            cls(no_such_parameter=1)

    def test_short_names_a_parameter(self, name: str) -> None:
        cls = _found(name)

        assert cls.short is None or cls.short in parameters(cls)

    def test_short_is_the_one_required_parameter(self, name: str) -> None:
        cls = _found(name)
        required = [parameter for parameter, needed in parameters(cls).items() if needed]

        assert cls.short is None or required in ([], [cls.short])

    def test_documented_parameters_are_the_real_ones(self, name: str) -> None:
        cls = _found(name)

        assert sorted(describe(cls).arguments) == sorted(parameters(cls))

    def test_docstring_says_what_it_does_and_what_becomes_of_nulls(self, name: str) -> None:
        said = describe(_found(name))

        assert said.summary.endswith(".")
        assert said.text
        assert name in SHAPES or "null" in f"{said.text} {said.arguments}".lower()
        assert said.examples or said.keyed

    def test_codes_exist_and_are_documented(self, name: str) -> None:
        cls = _found(name)
        documented = describe(cls).raises

        assert set(documented) <= set(CODES)
        if issubclass(cls, Operator):
            assert all(re.fullmatch("EV5[0-9]{2}", code) and code in CODES for code in cls.refusals)
            assert set(cls.refusals) == {code for code in documented if code.startswith("EV5")}

    def test_module_begins_with_its_word(self, name: str) -> None:
        module = __import__(_found(name).__module__, fromlist=["__doc__"])

        assert module.__doc__.startswith(f"{name}: ")
        assert _found(name).__name__ in module.__all__

    def test_works_without_a_context_of_its_own(self, name: str) -> None:
        """Group operators may be asked for one column like any other."""
        cls = _found(name)

        assert not issubclass(cls, GroupOperator) or cls.apply is GroupOperator.apply


class TestTheSuite:
    def test_no_samples_for_unknown_operators(self) -> None:
        assert set(SAMPLES) | SHAPES == set(known())

    def test_families_hold_no_unknown_operators(self) -> None:
        assert {name for names in FAMILIES.values() for name in names} == set(known())

    def test_values_are_distinct_and_not_empty(self) -> None:
        for of, values in VALUES.items():
            assert len(values) == 12, of
            assert of == "bool" or len(pa.array(values, TYPES[of]).unique()) == 12, of


_PAIR = re.compile(r"\s*->\s*")


def _examples(names: Iterable[str]) -> Iterable[Any]:
    for name in sorted(names):
        for number, line in enumerate(describe(_found(name)).examples, 1):
            yield pytest.param(name, line, id=f"{name}-{number}")


class TestExamples:
    """`<rule>: <json> -> <json>, ...` in docstrings; `-> refused EV520` where the event is refused."""

    @pytest.mark.parametrize(("name", "line"), list(_examples(set(known()) - SHAPES)))
    def test_docstring_example_holds(self, name: str, line: str, in_place: Callable[..., Operator], surroundings: Any) -> None:
        rule, pairs = _parsed(line)

        assert name in json.dumps(rule)
        for given, expected in pairs:
            assert _run(rule, given, expected, in_place, surroundings) == expected, given

    @pytest.mark.parametrize(("name", "line"), list(_examples(SHAPES)))
    def test_docstring_example_of_a_shape_holds(self, name: str, line: str) -> None:
        """The rule is that of the event's first field; the others are kept."""
        rule, pairs = _parsed(line)

        assert name in json.dumps(rule)
        for event, expected in pairs:
            assert _veiled(rule, event) == expected

    @pytest.mark.parametrize("line", ["mask", "mask: 1", "mask: 1 ->", "{mask: {}}: 1 -> 2 3 -> 4", "{mask: {}}: 1 = 2"])
    def test_a_line_that_is_no_example(self, line: str) -> None:
        with pytest.raises(AssertionError, match="no example"):
            _parsed(line)


def _column(sample: Sample, of: str, *, nulls: bool) -> pa.Array[Any]:
    values = list(sample.values.get(of, VALUES[of]))
    return pa.array([*values[:2], None, *values[2:9], None, None, *values[9:], None, *values[:3]] if nulls else values, TYPES[of])


def _written(operator: Operator, given: pa.DataType) -> pa.DataType | None:
    """The type of what `apply` writes: the promised one, or what stands in for it until a window closes."""
    return operator.stands_in or operator.returns(given)


def _accepts(in_place: Callable[..., Operator], name: str, sample: Sample, given: pa.DataType) -> bool:
    if _found(name)(**sample.given).returns(given) is None:
        return False
    try:
        settled = in_place(name, sample.given, given, **sample.where)
    except ValueError as error:
        if str(error)[:5] not in CODES:
            raise
        return False
    return settled.returns(given) is not None


def _bits(values: pa.Array[Any]) -> pa.Array[Any]:
    """Floats by their bits, so that NaN equals itself and -0 is not 0."""
    if pa.types.is_struct(values.type):
        return pa.StructArray.from_arrays(
            [_bits(values.field(i)) for i in range(values.type.num_fields)], names=[one.name for one in values.type], mask=values.is_null()
        )
    if pa.types.is_floating(values.type):
        return values.view(pa.int32() if values.type.bit_width == 32 else pa.int64())
    return values


def _assert_same(one: tuple[pa.Array[Any], dict[int, str]], other: tuple[pa.Array[Any], dict[int, str]]) -> None:
    assert one[0].type == other[0].type
    assert _bits(one[0]).equals(_bits(other[0])), f"{str(one[0])[:2000]} is not {str(other[0])[:2000]}"
    assert one[1] == other[1]


class Refusal(str):
    """What an example writes as `refused EV520`."""

    __slots__ = ()


def _veiled(rule: list[tuple[str, Any]], event: dict[str, Any]) -> Any:
    """An event as it leaves under a policy that has `rule` for its first field."""
    first, *others = event
    chain = [word if said is None else {word: said} for word, said in rule]
    fields = [{"name": name, "type": "string" if isinstance(value, str) else "long"} for name, value in event.items()]
    head = {"policy": "example", "version": 1, "for": {"recipient": "readers"}, "schema": "example.avsc", "domain": "docs"}
    policy = {**head, "event": {"id": "$position"}, "fields": {first: chain, **dict.fromkeys(others, "keep")}}
    schema = parse_avro({"type": "record", "name": "Example", "fields": fields}, "example.avsc")
    plan = compile_policy(parse_policy(json.dumps(policy), "example.yaml"), schema)
    given = pa.array([event], decoded_type(schema, plan.used))
    (veiled,) = plan.bind(throw_away_keys()).apply(given, origin="example", positions=pa.array([0])).veiled.to_pylist()
    return {name: value for name, value in veiled.items() if not name.startswith("$")}


def _parsed(line: str) -> tuple[Any, list[tuple[Any, Any]]]:
    """Rule and pairs of an example. The rule ends at the first colon behind which all is pairs."""
    for colon in re.finditer(": ", line):
        pairs = _pairs(line[colon.end() :])
        if pairs is not None:
            return _rule(line[: colon.start()]), pairs
    raise AssertionError(f"no example: {line}")


def _pairs(text: str) -> list[tuple[Any, Any]] | None:
    read = json.JSONDecoder(parse_float=Decimal).raw_decode
    found = []
    try:
        while True:
            given, at = read(text)
            arrow = _PAIR.match(text, at)
            if arrow is None:
                return None
            text = text[arrow.end() :]
            refused = re.match(r"refused (EV5\d\d)", text)
            expected, at = (Refusal(refused[1]), refused.end()) if refused else read(text)
            found.append((given, expected))
            text = text[at:]
            if not text.strip():
                return found
            if not text.startswith(", "):
                return None
            text = text[2:].lstrip()
    except ValueError:
        return None


def _rule(text: str) -> list[tuple[str, Any]]:
    """A rule's operators with their parameters."""
    given: Any = parse_document(f"rule: {text}" if text[:1] in "[{" or ":" not in text else f"rule: {{{text}}}", "example")["rule"]
    steps = []
    for step in given if isinstance(given, list) else [given]:
        (name, parameters_of) = next(iter(step.items())) if isinstance(step, dict) else (step, None)
        steps.append((name, _plain(parameters_of)))
    return steps


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _run(rule: list[tuple[str, Any]], given: Any, expected: Any, in_place: Callable[..., Operator], surroundings: Any) -> Any:
    """The result of an example, in the form that `expected` has."""
    for values in _columns(given, expected):
        refused: dict[int, str] = {}
        for name, said in rule:
            cls = _found(name)
            if cls(**_parameters(cls, said)).returns(values.type) is None:
                break
            operator = in_place(name, _parameters(cls, said), values.type)
            values, codes = surroundings(1).run(operator, values)
            refused = refused or codes
        else:
            return Refusal(refused[0]) if refused else _as_json(values[0])
    raise AssertionError("no type is accepted")


def _parameters(cls: Any, said: Any) -> dict[str, Any]:
    return said if isinstance(said, dict) else {} if said is None else {cls.short: said}


def _columns(given: Any, expected: Any) -> Iterable[pa.Array[Any]]:
    """The columns that may hold a value of JSON."""
    if given is None:
        like = "" if expected is None or isinstance(expected, Refusal) else expected
        for one in _columns(like, ""):
            yield pa.nulls(1, one.type)
        for of in (pa.int64(), pa.timestamp("us", "UTC")):
            yield pa.nulls(1, of)
    elif isinstance(given, Decimal):
        yield pa.array([float(given)])
        yield pa.array([given])
    elif isinstance(given, str):
        yield pa.array([given])
        instant = given.endswith("Z")
        try:
            moment = datetime.fromisoformat(given.removesuffix("Z"))
        except ValueError:
            return
        if "T" in given:
            yield pa.array([moment], pa.timestamp("us", "UTC" if instant else None))
        else:
            yield pa.array([moment.date()])
    else:
        yield pa.array([given])


def _as_json(value: Any) -> Any:
    plain = value.as_py() if isinstance(value, pa.Scalar) else value
    if isinstance(plain, dict):
        return {name: _as_json(one) for name, one in plain.items()}
    if isinstance(plain, datetime):
        return plain.replace(tzinfo=None).isoformat() + ("Z" if plain.tzinfo else "")
    if isinstance(plain, date):
        return plain.isoformat()
    return Decimal(repr(plain)) if isinstance(plain, float) else plain
