from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from math import exp, log
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from eventveil.transforms.context import Context, RowContext, SubKeys
from eventveil.transforms.noise.lattice import Lattice
from eventveil.transforms.noise.table import laplace
from eventveil.transforms.operators.noise import Noise
from eventveil.transforms.registry import Setting

KEY = bytes(range(32))
INT = pa.int64()


class Refusals:
    def __init__(self) -> None:
        self.codes: dict[int, str] = {}

    def refuse_rows(self, rows: np.ndarray, code: str, path: str, rule: str) -> None:
        for row in rows.tolist():
            self.codes.setdefault(row, code)


def noise(given: pa.DataType = INT, **parameters: Any) -> Noise:
    operator = Noise.model_validate({"per": "event", **parameters})
    settled = operator.settle(Setting("quantity", "UTC", False, None, given, True, lambda name: b""))
    assert isinstance(settled, Noise)
    return settled


def words(numbers: Sequence[int]) -> np.ndarray:
    return np.array([(number, ~number & 0xFFFF) for number in numbers], np.uint64)


def surroundings(
    rows: int,
    events: Sequence[int] | None = None,
    subjects: Sequence[int] | None = None,
    element: Sequence[int] | None = None,
    key: bytes = KEY,
) -> Context:
    """A context at the root, where event n has the id n and subject n unless said otherwise; each value in its own event."""
    ids = words(range(rows) if events is None else events)
    of = RowContext(rows, ids, words(range(rows) if subjects is None else subjects))
    elements = None if element is None else np.array(element, np.int64)
    return Context(of, Refusals(), "quantity", "fields.quantity", element=elements, sub_keys=SubKeys([key]))


def run(operator: Noise, values: pa.Array[Any], context: Context | None = None) -> list[Any]:
    result = operator.apply(values, context or surroundings(len(values)))
    result.validate(full=True)
    assert result.type == values.type
    return result.to_pylist()


class TestNoise:
    def test_adds_the_documented_distribution(self) -> None:
        values = pa.array([1000] * 200_000)
        found = np.array(run(noise(laplace_scale=2), values)) - 1000
        ratio = exp(-1 / 2)

        assert abs(found.mean()) < 0.03
        assert found.var() == pytest.approx(2 * ratio / (1 - ratio) ** 2, rel=0.02)

    @pytest.mark.parametrize(
        ("kind", "values", "grid"),
        [
            (pa.int32(), [10] * 500, Fraction(1)),
            (pa.int64(), [-(2**60)] * 500, Fraction(1)),
            (pa.decimal128(9, 2), [Decimal("19.90")] * 500, Fraction(1, 100)),
            (pa.decimal128(38, 9), [Decimal("12345678901234567890.123456789")] * 500, Fraction(1, 10**9)),
        ],
        ids=["int32", "int64", "decimal", "wide decimal"],
    )
    def test_default_grid_is_the_finest_step(self, kind: pa.DataType, values: list[Any], grid: Fraction) -> None:
        found = [Fraction(value) - Fraction(values[0]) for value in run(noise(kind, laplace_scale=grid * 4), pa.array(values, kind))]

        assert all((difference / grid).denominator == 1 for difference in found)
        assert len(set(found)) > 20
        assert max(map(abs, found)) < 60 * grid

    def test_scale_is_in_the_leafs_units_whatever_the_grid(self) -> None:
        values = pa.array([1000] * 20_000)
        spread = [float(np.std(run(noise(laplace_scale=50, grid=grid), values))) for grid in (1, 5, 10)]

        assert spread == pytest.approx([50 * 2**0.5] * 3, rel=0.05)

    def test_gaussian_sigma_is_in_the_leafs_units(self) -> None:
        found = run(noise(pa.float64(), gaussian_sigma="2.5", grid=0.1), pa.array([3.0] * 20_000))

        assert float(np.std(found)) == pytest.approx(2.5, rel=0.03)

    def test_epsilon_gives_the_scale_of_its_sensitivity(self) -> None:
        clamps = {"min": 0, "max": 10}
        values = pa.array(list(range(11)) * 9)

        assert run(noise(epsilon=0.5, clamp_input=clamps), values) == run(noise(laplace_scale=20, clamp_input=clamps), values)
        assert run(noise(epsilon=0.5, sensitivity=20, clamp_input=clamps), values) == run(
            noise(laplace_scale=40, clamp_input=clamps), values
        )

    def test_input_is_clamped_before_and_output_after(self) -> None:
        values = pa.array([-(10**6), 5, 10**6] * 300)
        found = run(noise(laplace_scale=1, clamp_input={"min": 0, "max": 100}, clamp_output={"min": 2, "max": 99}), values)

        assert min(found) == 2 and max(found) == 99
        assert all(value < 50 for value in found[::3]) and all(value > 50 for value in found[2::3])

    def test_clamped_inputs_share_the_distribution_of_their_bound(self) -> None:
        found = run(noise(laplace_scale=1, clamp_input={"min": 0, "max": 100}), pa.array([-(10**6), 10**6] * 300))

        assert -44 <= min(found[::2]) < 0 < max(found[::2]) <= 44
        assert 56 <= min(found[1::2]) < 100 < max(found[1::2]) <= 144

    def test_output_bounds_move_inward_to_the_grid(self) -> None:
        found = run(noise(laplace_scale=20, grid=5, clamp_output={"min": 1, "max": 18}), pa.array([7] * 300))

        assert set(found) == {5, 10, 15}

    @pytest.mark.parametrize("edge", [2**63 - 1, -(2**63)])
    def test_saturates_at_the_edge_of_int64(self, edge: int) -> None:
        found = run(noise(laplace_scale=1000), pa.array([edge] * 2000))

        assert 800 < sum(value == edge for value in found) < 1200
        assert all(abs(value - edge) < 44_000 for value in found)

    def test_saturates_at_the_edge_of_int32_and_of_decimals(self) -> None:
        found = run(noise(pa.int32(), laplace_scale=1000), pa.array([2**31 - 1] * 500, pa.int32()))
        digits = run(noise(pa.decimal128(38, 0), laplace_scale=1000), pa.array([Decimal("9" * 38)] * 500))

        assert 150 < found.count(2**31 - 1) < 350
        assert 150 < digits.count(Decimal("9" * 38)) < 350


class TestDraws:
    OF = pa.array([50] * 200)

    def differs(self, one: list[int], other: list[int]) -> bool:
        """Whether most differ: equal noise by chance is rare at scale 100."""
        return sum(a == b for a, b in zip(one, other)) < len(one) // 10

    def test_a_replay_is_equal(self) -> None:
        operator = noise(laplace_scale="100.5", clamp_input={"min": -0.5})

        assert run(operator, self.OF) == run(operator, self.OF)
        assert run(operator, self.OF) == run(Noise.model_validate(operator.model_dump(mode="json")), self.OF)

    @pytest.mark.parametrize("size", [1, 7, 199])
    def test_batch_boundaries_do_not_matter(self, size: int) -> None:
        operator = noise(laplace_scale=100)
        cut = [
            run(operator, self.OF[n : n + size], surroundings(len(self.OF[n : n + size]), range(n, min(n + size, 200))))
            for n in range(0, 200, size)
        ]

        assert [value for part in cut for value in part] == run(operator, self.OF)

    def test_order_does_not_matter(self) -> None:
        operator = noise(laplace_scale=100)

        assert run(operator, self.OF, surroundings(200, range(199, -1, -1))) == run(operator, self.OF)[::-1]

    def test_another_key_event_or_element_is_another_draw(self) -> None:
        operator = noise(laplace_scale=100)
        first = run(operator, self.OF)

        assert self.differs(first, run(operator, self.OF, surroundings(200, key=bytes(32))))
        assert self.differs(first, run(operator, self.OF, surroundings(200, range(1000, 1200))))
        assert self.differs(first, run(operator, self.OF, surroundings(200, element=[1] * 200)))

    def test_a_correction_does_not_show_its_difference(self) -> None:
        operator = noise(laplace_scale=100)
        corrected = run(operator, pa.array([53] * 200))

        assert self.differs([value + 3 for value in run(operator, self.OF)], corrected)

    def test_per_subject_repeats_for_equal_values_of_one_subject(self) -> None:
        operator = noise(per="subject", laplace_scale=100)
        subjects = [n % 10 for n in range(200)]
        found = run(operator, self.OF, surroundings(200, subjects=subjects, element=[n % 3 for n in range(200)]))

        assert found == found[:10] * 20
        assert len(set(found[:10])) > 5
        assert operator.needs() == {"subject"}

    def test_per_event_needs_an_id_only(self) -> None:
        assert noise(laplace_scale=1).needs() == {"id"}

    def test_together_adds_the_same_to_different_values(self) -> None:
        operator = noise(laplace_scale=100, together="stay")
        before = run(operator, self.OF, surroundings(200, element=range(200)))
        after = run(operator, pa.array([80] * 200))

        assert [value + 30 for value in before] == after

    def test_rules_together_share_their_key_and_others_do_not(self) -> None:
        label = noise(laplace_scale=1, together="stay")
        apart = noise(laplace_scale=1)

        assert label.key_info("before.price", 0, pa.int64()) == label.key_info("after.price", 3, pa.int32())
        assert label.key_info("a", 0, pa.int64()) != noise(laplace_scale=2, together="stay").key_info("a", 0, pa.int64())
        assert label.key_info("a", 0, pa.int64()) != noise(laplace_scale=1, together="go").key_info("a", 0, pa.int64())
        assert apart.key_info("before.price", 0, pa.int64()) != apart.key_info("after.price", 0, pa.int64())
        assert apart.key_info("a", 0, pa.int64()) != apart.key_info("a", 1, pa.int64())

    def test_key_info_holds_every_parameter(self) -> None:
        full: dict[str, Any] = {"epsilon": 1, "sensitivity": 30, "grid": 2, "null": 0, "per": "event"}
        full |= {"clamp_input": {"min": 0, "max": 20}, "clamp_output": {"min": 2}}
        other: dict[str, Any] = {"epsilon": 2, "sensitivity": 31, "grid": 1, "null": 1, "per": "subject"}
        other |= {"clamp_input": {"min": 0, "max": 21}, "clamp_output": {"max": 2}}
        infos = {noise(**{**full, name: value}).key_info("a", 0, pa.int64()) for name, value in other.items()}

        assert len(infos | {noise(**full).key_info("a", 0, pa.int64())}) == len(other) + 1

    def test_one_meaning_has_one_key_info(self) -> None:
        assert (
            len({noise(laplace_scale=scale, grid=grid).key_info("a", 0, pa.int64()) for scale, grid in ((2, None), ("2.0", 1), (2.0, 1.0))})
            == 1
        )


class TestFloats:
    """Mironov 2012: which outputs are possible must not depend on the input."""

    def impossible(self, outputs: dict[float, set[float]]) -> float:
        """The fraction of outputs at input 0 that no draw gives at input 1, in whole: all words, not a sample."""
        return len(outputs[0.0] - outputs[1.0]) / len(outputs[0.0])

    @pytest.mark.parametrize("grid", [Fraction(1, 10), Fraction(1, 3), Fraction(1, 7), Fraction(1, 1024)], ids=str)
    def test_every_output_at_0_is_possible_at_1(self, grid: Fraction) -> None:
        lattice = Lattice.over(pa.float64(), grid)
        bound = laplace(1 / grid).bound
        # The last step of the support is cut off by 2^-63 of the probability; the table's distance accounts for it.
        reach = np.arange(-bound + int(1 / grid) + 1, bound - int(1 / grid))
        outputs = {}
        for value in (0.0, 1.0):
            steps = lattice.steps(pa.array([value] * (2 * bound + 1)), None, None, bound)
            every = lattice.values(lattice.add(steps, np.arange(-bound, bound + 1), lattice.first, lattice.last)).to_pylist()
            outputs[value] = set(every)
        common = lattice.values(reach).to_pylist()

        assert self.impossible({0.0: outputs[0.0] & set(common), 1.0: outputs[1.0]}) == 0.0

    def test_the_operators_outputs_at_0_are_possible_at_1(self) -> None:
        operator = noise(pa.float64(), laplace_scale=1, grid=0.1)
        at_0 = set(run(operator, pa.array([0.0] * 100_000)))
        lattice = Lattice.over(pa.float64(), Fraction(1, 10))
        possible = set(lattice.values(np.arange(-440, 440) + lattice.step(Fraction(1))).to_pylist())

        assert len(at_0) > 150
        assert self.impossible({0.0: at_0, 1.0: possible}) == 0.0

    def test_the_textbook_sampler_fails_this_check(self) -> None:
        """So the check can fail: x + scale * sign * log(u), with doubles as uniform numbers have them."""
        uniform = np.random.default_rng(1).integers(1, 2**53, 20_000) / 2**53
        possible_at_1 = 0
        for u in uniform.tolist():
            output = 0.0 + log(u)
            # The doubles around the only u that can give this output at input 1.
            wanted = exp(output - 1.0)
            around = [wanted + step * 2.0**-53 for step in range(-30, 31)]
            possible_at_1 += any(1.0 + log(round(one * 2**53) / 2**53) == output for one in around if one > 0)

        assert possible_at_1 / len(uniform) < 0.9

    def test_last_bits_of_the_input_do_not_leave(self) -> None:
        """Beside the draw, which depends on the value, nothing but the nearest step of the grid matters."""
        operator = noise(pa.float64(), laplace_scale=1, grid=0.01, together="a")  # the draw without the value
        values = [12.34, 12.340000000000002, 12.34 + 1e-7, 12.3449]

        assert len({tuple(run(operator, pa.array([value] * 50))) for value in values}) == 1

    @pytest.mark.parametrize("kind", [pa.float32(), pa.float64()], ids=str)
    def test_what_is_not_finite_is_refused(self, kind: pa.DataType) -> None:
        context = surroundings(4)
        found = run(noise(kind, laplace_scale=1, grid=1), pa.array([float("nan"), 1.0, float("inf"), -float("inf")], kind), context)

        assert context.refusals.codes == dict.fromkeys([0, 2, 3], "EV528")  # type: ignore[attr-defined]
        assert np.isfinite(found).all()


class TestTrueEpsilon:
    """Against the definition: the largest log ratio of output probabilities over all pairs of inputs."""

    def largest_ratio(self, operator: Noise, kind: pa.DataType, inputs: pa.Array[Any]) -> float:
        lattice = Lattice.over(kind, operator.grid)
        assert operator.clamp_input is not None
        steps = lattice.steps(inputs, *lattice.bounded(operator.clamp_input.min, operator.clamp_input.max), 0)
        table = operator._table(lattice)
        assert table.width == 1
        # Words per step around the middle, where rounding to 2^-63 does not show.
        words = np.diff(np.array([int(threshold) for threshold in table.thresholds], object))
        chance = {table.low + 1 + i: float(number) for i, number in enumerate(words)}
        pairs = [(int(steps.min()), int(steps.max()))]
        reach = int(3 * operator._size(lattice)) + 1
        return max(abs(log(chance[x - a] / chance[x - b])) for a, b in pairs for x in range(a - reach, b + reach))

    @pytest.mark.parametrize(
        ("kind", "given"),
        [
            (pa.float64(), {"epsilon": 1, "grid": 0.3, "clamp_input": {"min": 0, "max": 1}}),
            (pa.float64(), {"epsilon": 1, "grid": 0.7, "clamp_input": {"min": 0, "max": 1}}),
            (pa.float64(), {"epsilon": 0.5, "grid": 0.25, "clamp_input": {"min": 0, "max": 1}}),
            (pa.float64(), {"epsilon": 1, "grid": 0.3, "sensitivity": 2, "clamp_input": {"min": -0.5, "max": 0.5}}),
            (pa.int64(), {"epsilon": 1, "grid": 2, "clamp_input": {"min": 1, "max": 3}}),
            (pa.int64(), {"epsilon": 1, "grid": 7, "clamp_input": {"min": 0, "max": 100}}),
            (pa.int64(), {"epsilon": 1, "grid": 10, "clamp_input": {"min": 5, "max": 15}}),
            (pa.decimal128(9, 2), {"epsilon": 2, "grid": "0.3", "clamp_input": {"min": "0.15", "max": "1.00"}}),
        ],
        ids=["0.3 in 1", "0.7 in 1", "divides", "wider sensitivity", "both bounds are ties", "7 in 100", "ties, one step wide", "decimal"],
    )
    def test_is_the_largest_ratio_and_at_most_what_was_asked_for(self, kind: pa.DataType, given: dict[str, Any]) -> None:
        operator = noise(kind, **given)
        low, high = Fraction(str(given["clamp_input"]["min"])), Fraction(str(given["clamp_input"]["max"]))
        if pa.types.is_integer(kind):
            inputs = pa.array(range(int(low) - 3, int(high) + 4))
        elif pa.types.is_decimal(kind):
            inputs = pa.array([Decimal(n) / 100 for n in range(300)]).cast(kind)
        else:
            inputs = pa.array(np.linspace(float(low) - 1, float(high) + 1, 2001))
        spent = operator.true_epsilon(kind)

        assert spent is not None
        assert float(spent) == pytest.approx(self.largest_ratio(operator, kind, inputs), rel=1e-6)
        assert spent <= Fraction(str(given["epsilon"]))

    def test_exact_values(self) -> None:
        spent = [
            noise(pa.float64(), epsilon=1, grid=grid, clamp_input={"min": 0, "max": 1}).true_epsilon(pa.float64())
            for grid in (0.3, 0.7, 0.5)
        ]

        assert spent == [Fraction(3, 4), Fraction(1, 2), Fraction(1)]

    def test_dividing_before_rounding_up_would_spend_more(self) -> None:
        """1 and 3 are ties on a grid of 2 and lie two steps apart once rounded, not 2 / 2 = 1."""
        operator = noise(epsilon=1, grid=2, clamp_input={"min": 1, "max": 3})
        lattice = Lattice.over(pa.int64(), Fraction(2))

        assert lattice.step(Fraction(3)) - lattice.step(Fraction(1)) == 2
        assert operator._size(lattice) == 2
        assert operator.true_epsilon(pa.int64()) == 1

    def test_is_known_for_a_scale_with_clamps_and_for_nothing_else(self) -> None:
        clamps = {"min": 0, "max": 10}

        assert noise(laplace_scale=5, clamp_input=clamps).true_epsilon(pa.int64()) == 2
        assert noise(laplace_scale=5).true_epsilon(pa.int64()) is None
        assert noise(laplace_scale=5, clamp_input={"min": 0}).true_epsilon(pa.int64()) is None
        assert noise(gaussian_sigma=5, clamp_input=clamps).true_epsilon(pa.int64()) is None

    def test_delta_is_the_tables_distance_times_one_plus_e_to_epsilon(self) -> None:
        operator = noise(epsilon=1, clamp_input={"min": 0, "max": 10})

        assert operator.true_delta(pa.int64()) == pytest.approx(laplace(Fraction(10)).total_variation * (1 + exp(1)), rel=1e-12, abs=0)


class TestNulls:
    def test_a_null_is_refused(self) -> None:
        context = surroundings(3)
        found = run(noise(laplace_scale=1), pa.array([1, None, 3]), context)

        assert context.refusals.codes == {1: "EV526"}  # type: ignore[attr-defined]
        assert None not in found

    @pytest.mark.parametrize(
        ("kind", "number"),
        [
            (pa.int64(), 7),
            (pa.int32(), -7),
            (pa.decimal128(9, 2), "7.25"),
            (pa.float64(), 7.25),
            (pa.decimal128(38, 9), 12345678901234567890),
        ],
        ids=str,
    )
    def test_a_null_becomes_the_number_before_the_noise(self, kind: pa.DataType, number: Any) -> None:
        operator = noise(
            kind, laplace_scale="0.0000001" if kind == pa.decimal128(38, 9) else 3, grid=1 if kind == pa.float64() else None, null=number
        )
        nulls = pa.nulls(50, kind)
        same = pa.array([Decimal(str(number))] * 50).cast(kind)
        context = surroundings(50)

        assert run(operator, nulls, context) == run(operator, same)
        assert context.refusals.codes == {}  # type: ignore[attr-defined]

    def test_the_result_is_never_null(self) -> None:
        assert not noise(laplace_scale=1).nullable(True)

    @pytest.mark.parametrize("kind", [pa.int64(), pa.int32(), pa.decimal128(5, 1)], ids=str)
    @pytest.mark.parametrize("number", ["0.25", "99999999999999999999"])
    def test_a_number_that_the_type_cannot_hold_is_no_policy(self, kind: pa.DataType, number: str) -> None:
        with pytest.raises(ValueError, match=r"^EV217 null: "):
            noise(kind, laplace_scale=1, null=number)

    def test_nor_one_that_a_float_cannot_hold(self) -> None:
        with pytest.raises(ValueError, match=r"^EV217 "):
            noise(pa.float32(), laplace_scale=1, grid=1, null="1" + "0" * 39)


class TestParameters:
    @pytest.mark.parametrize(
        ("given", "fact"),
        [
            ({}, "EV104 exactly one of"),
            ({"laplace_scale": 1, "gaussian_sigma": 1}, "EV103 exactly one of"),
            ({"laplace_scale": 0}, "EV103 laplace_scale is more than 0"),
            ({"laplace_scale": -1}, "EV103 laplace_scale is more than 0"),
            ({"gaussian_sigma": True}, "EV103 a number is needed"),
            ({"laplace_scale": 1, "sensitivity": 1}, "EV103 sensitivity goes with epsilon"),
            ({"epsilon": 1}, "EV104 epsilon needs clamp_input"),
            ({"epsilon": 1, "clamp_input": {"min": 0}}, "EV104 epsilon needs clamp_input"),
            ({"epsilon": 1, "sensitivity": 9, "clamp_input": {"min": 0, "max": 10}}, "EV103 sensitivity is less than 10"),
            ({"epsilon": 1, "clamp_input": {"min": 3, "max": 3}}, "EV103 clamp_input leaves one value only"),
            ({"laplace_scale": 1, "clamp_input": {"min": 4, "max": 3}}, "EV103 min is more than max"),
            ({"laplace_scale": 1, "clamp_output": {}}, "EV104 min, max or both"),
            ({"laplace_scale": 1, "null": "none"}, "EV103 a number is needed"),
            ({"laplace_scale": 1, "grid": 0}, "EV103 grid is more than 0"),
        ],
        ids=lambda given: given if isinstance(given, str) else None,
    )
    def test_wrong_ones(self, given: dict[str, Any], fact: str) -> None:
        with pytest.raises(ValidationError, match=fact):
            Noise.model_validate({"per": "event", **given})

    def test_per_is_required(self) -> None:
        with pytest.raises(ValidationError, match="per"):
            Noise.model_validate({"laplace_scale": 1})

    @pytest.mark.parametrize(
        ("kind", "given", "fact"),
        [
            (pa.float64(), {"laplace_scale": 1}, "EV217 a float has no finest step"),
            (pa.int64(), {"laplace_scale": 1, "grid": 0.5}, "EV217 grid 0.5 is no multiple of 1"),
            (
                pa.int64(),
                {"laplace_scale": 2_000_000},
                "EV217 the Laplace scale is more than 1,000,000 steps of the grid: give a coarser grid, at least 2 times",
            ),
            (pa.int64(), {"laplace_scale": 1, "grid": 100}, "EV217 the Laplace scale is less than a fortieth"),
            (pa.int64(), {"gaussian_sigma": 1, "grid": 100}, "EV217 sigma is less than a fortieth"),
            (pa.int64(), {"laplace_scale": 10, "grid": 10, "clamp_output": {"min": 1, "max": 9}}, "EV217 no multiple of the grid"),
            (pa.int32(), {"laplace_scale": 10, "clamp_input": {"min": 1e10}}, "EV217 no value of int32"),
        ],
        ids=["no grid", "half a step", "too wide", "too narrow", "narrow Gaussian", "no output", "no input"],
    )
    def test_that_do_not_fit_the_field(self, kind: pa.DataType, given: dict[str, Any], fact: str) -> None:
        with pytest.raises(ValueError, match=rf"^{fact}"):
            noise(kind, **given)

    @pytest.mark.parametrize("kind", [pa.string(), pa.bool_(), pa.date32(), pa.timestamp("us"), pa.binary()], ids=str)
    def test_only_numbers_are_accepted(self, kind: pa.DataType) -> None:
        assert Noise.model_validate({"laplace_scale": 1, "per": "event"}).returns(kind) is None


class TestWarnings:
    def said(self, given: pa.DataType = INT, **parameters: Any) -> str:
        operator = noise(given, **parameters)
        return "\n".join(operator.warnings(Setting("quantity", "UTC", False, None, given, False, lambda name: b"")))

    @pytest.mark.parametrize(
        "parameters", [{"laplace_scale": 1}, {"laplace_scale": 30, "grid": 10}, {"gaussian_sigma": 4}], ids=["laplace", "grid", "gaussian"]
    )
    def test_the_bias_of_clamping_the_output_is_what_it_is(self, parameters: dict[str, Any]) -> None:
        operator = noise(**parameters, clamp_output={"min": 10})
        measured = float(np.mean(run(operator, pa.array([10] * 100_000)))) - 10
        stated = operator._bias(Lattice.over(pa.int64(), operator.grid)) * (operator.grid or 1)

        assert float(stated) == pytest.approx(measured, rel=0.03)

    def test_clamp_output(self) -> None:
        said = self.said(laplace_scale=1, clamp_output={"min": 1})

        assert "clamp_output raises values of 1 by 0.4255 on average, and shows every value that is less as at least 1" in said

    def test_true_epsilon(self) -> None:
        said = self.said(pa.float64(), epsilon=1, grid=0.3, clamp_input={"min": 0, "max": 1})

        assert "spends epsilon 0.75 and delta " in said
        assert "1 was asked for, the rest is lost to the grid" in said
        assert "was asked for" not in self.said(epsilon=1, clamp_input={"min": 0, "max": 1})

    def test_gaussian_noise_is_told_in_zcdp(self) -> None:
        assert "spends 0.5-zCDP with every draw" in self.said(gaussian_sigma=10, clamp_input={"min": 0, "max": 10})
        assert "zCDP" not in self.said(gaussian_sigma=10)

    def test_per_event_averages_out_and_per_subject_does_not(self) -> None:
        assert "averaging discloses it" in self.said(laplace_scale=1)
        assert "averaging discloses it" not in self.said(laplace_scale=1, per="subject")

    def test_an_open_input_and_a_shared_draw(self) -> None:
        assert "no clamp on both sides" in self.said(laplace_scale=1)
        assert "no clamp on both sides" not in self.said(laplace_scale=1, clamp_input={"min": 0, "max": 9})
        assert "exact difference" in self.said(laplace_scale=1, together="a")
        assert "exact difference" not in self.said(laplace_scale=1)
