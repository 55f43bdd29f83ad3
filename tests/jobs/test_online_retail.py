"""All real orders of an online shop under the policies of two recipients, in one read: what is in the outputs, and what joins them."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping
from datetime import date, datetime
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from eventveil.transforms.batch import Part
from eventveil.transforms.keys.derive import HeldKeys
from eventveil.transforms.keys.part_names import part_name

CHECKOUT = Path(__file__).resolve().parents[2]
EXAMPLE = CHECKOUT / "examples" / "online_retail"
Rows = list[tuple[dict[str, Any], dict[str, Any]]]


def load_linkage() -> ModuleType:
    spec = importlib.util.spec_from_file_location("linkage", CHECKOUT / "bench" / "linkage.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["linkage"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


linkage = load_linkage()
REGIONS = linkage.read_regions()


@pytest.fixture(scope="module")
def orders() -> list[bytes]:
    if "EVENTVEIL_DATA" not in os.environ:
        pytest.skip("EVENTVEIL_DATA does not name a folder of real records")
    found: list[bytes] = linkage.real_orders(Path(os.environ["EVENTVEIL_DATA"], "online_retail", "2010-12_to_2011-06.csv.gz"))
    return found


@pytest.fixture(scope="module")
def outputs(orders: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """The job file of the example, over all orders, in parts of 2 MB."""
    found: Mapping[str, Any] = linkage.both_outputs(orders, tmp_path_factory.mktemp("retail"))
    return found


@pytest.fixture(scope="module")
def marketing(orders: list[bytes], outputs: Mapping[str, Any]) -> Rows:
    """Each order beside what marketing got for it."""
    return list(zip(map(json.loads, orders), map(json.loads, outputs[linkage.MARKETING].truth)))


@pytest.fixture(scope="module")
def logistics(orders: list[bytes], outputs: Mapping[str, Any]) -> Rows:
    return list(zip(map(json.loads, orders), map(json.loads, outputs[linkage.LOGISTICS].truth)))


def day_of(order: dict[str, Any]) -> date:
    return datetime.fromisoformat(order["time"]).date()


def week_of(order: dict[str, Any]) -> tuple[int, int]:
    return day_of(order).isocalendar()[:2]


@pytest.mark.data
class TestEveryOrder:
    @pytest.mark.parametrize("policy", [linkage.MARKETING, linkage.LOGISTICS])
    def test_in_is_out_and_refused_and_filtered(self, orders: list[bytes], outputs: Mapping[str, Any], policy: str) -> None:
        summary = outputs[policy].summary

        assert (12_795, 12_795, {}, 0, {}) == (summary.into, summary.out, summary.refused, summary.filtered, summary.drift)
        assert summary.balanced
        assert 12_795 == len(orders)

    @pytest.mark.parametrize("policy", [linkage.MARKETING, linkage.LOGISTICS])
    def test_each_leaves_once(self, outputs: Mapping[str, Any], policy: str) -> None:
        output = outputs[policy]

        assert Counter(output.truth) == Counter(line for lines in output.files.values() for line in lines)

    def test_files_stand_in_the_folder_of_their_week(self, marketing: Rows, outputs: Mapping[str, Any]) -> None:
        output = outputs[linkage.MARKETING]

        for path, events in output.events.items():
            monday = date.fromisoformat(Path(path).parent.name.removeprefix("window="))
            assert 0 == monday.weekday()
            assert {monday.isocalendar()[:2]} == {week_of(marketing[event][0]) for event in events.tolist() if event >= 0}


@pytest.mark.data
class TestMarketing:
    def test_has_these_fields_and_no_other(self, marketing: Rows) -> None:
        assert {("time", "customer", "region", "lines")} == {tuple(event) for _, event in marketing}
        assert {("product", "family", "quantity", "price_band")} == {tuple(line) for _, event in marketing for line in event["lines"]}
        assert all(len(order["lines"]) == len(event["lines"]) for order, event in marketing)

    def test_times_are_floored_to_the_hour(self, marketing: Rows) -> None:
        assert [order["time"][:13] + ":00:00" for order, _ in marketing] == [event["time"] for _, event in marketing]

    def test_countries_are_regions(self, marketing: Rows) -> None:
        expected = [REGIONS.get(order["country"], "other") for order, _ in marketing]

        assert expected == [event["region"] for _, event in marketing]
        # One that is in no hierarchy: "Unspecified".
        assert {"Unspecified"} == {order["country"] for order, event in marketing if event["region"] == "other"}

    def test_families_are_the_first_two_characters_of_a_longer_code(self, marketing: Rows) -> None:
        codes = [line["stock_code"] for order, _ in marketing for line in order["lines"]]
        families = [line["family"] for _, event in marketing for line in event["lines"]]

        assert [code[:2] if len(code) > 2 else None for code in codes] == families
        assert None in families

    def test_prices_are_clamped_and_rounded_to_half_pounds(self, marketing: Rows) -> None:
        prices = [line["unit_price"] for order, _ in marketing for line in order["lines"]]
        # Python rounds halves to even, as the policy does.
        expected = [round(min(max(price, 0.0), 50.0) * 2) / 2 for price in prices]

        assert expected == [line["price_band"] for _, event in marketing for line in event["lines"]]
        assert max(prices) > 50

    def test_quantities_have_noise_of_scale_two_around_clamped_values(self, marketing: Rows) -> None:
        pairs = [(line["quantity"], out["quantity"]) for order, event in marketing for line, out in zip(order["lines"], event["lines"])]
        noise = np.array([out - min(max(given, -200), 200) for given, out in pairs])

        assert_laplace(noise, 2)
        assert max(abs(given) for given, _ in pairs) > 200


@pytest.mark.data
class TestLogistics:
    def test_has_these_fields_and_no_other(self, logistics: Rows) -> None:
        assert {("day", "customer", "country", "lines")} == {tuple(event) for _, event in logistics}
        assert {("item", "units")} == {tuple(line) for _, event in logistics for line in event["lines"]}

    def test_times_are_days(self, logistics: Rows) -> None:
        assert [order["time"][:10] + "T00:00:00" for order, _ in logistics] == [event["day"] for _, event in logistics]

    def test_countries_that_are_not_listed_are_other(self, logistics: Rows) -> None:
        pairs = {(order["country"], event["country"]) for order, event in logistics}

        assert 10 == sum(given == out for given, out in pairs)
        assert {"other"} == {out for given, out in pairs if given != out}
        assert ("Iceland", "other") in pairs and ("France", "France") in pairs

    def test_units_have_noise_of_scale_one_around_clamped_values(self, logistics: Rows) -> None:
        pairs = [(line["quantity"], out["units"]) for order, event in logistics for line, out in zip(order["lines"], event["lines"])]

        assert_laplace(np.array([out - min(max(given, -1000), 1000) for given, out in pairs]), 1)

    def test_equal_quantities_of_one_order_have_noise_of_their_own(self, logistics: Rows) -> None:
        same = other = 0
        for order, event in logistics:
            by_quantity = defaultdict(list)
            for line, out in zip(order["lines"], event["lines"]):
                by_quantity[line["quantity"]].append(out["units"])
            for units in by_quantity.values():
                same += sum(a == b for a, b in pairwise(units))
                other += sum(a != b for a, b in pairwise(units))
        ratio = math.exp(-1)
        chance = (1 - ratio) ** 2 * (1 + ratio**2) / (1 + ratio) ** 2 / (1 - ratio**2)

        # Two draws agree with the probability that the squares of the distribution add up to.
        assert abs(same / (same + other) - chance) < 0.01


def assert_laplace(noise: Any, scale: int) -> None:
    """Discrete Laplace noise: within its table, and each small value as often as it should be (5 deviations)."""
    n, ratio = len(noise), math.exp(-1 / scale)
    assert np.abs(noise).max() <= 45 * scale
    for value in range(-4, 5):
        chance = (1 - ratio) / (1 + ratio) * ratio ** abs(value)
        assert abs((noise == value).mean() - chance) < 5 * math.sqrt(chance * (1 - chance) / n), value


def pseudonyms(rows: Rows, window: Any) -> dict[tuple[Any, Any], set[str]]:
    """(Window, customer) -> the pseudonyms that stand for it."""
    found = defaultdict(set)
    for order, event in rows:
        if order["customer"] is not None:
            found[window(order), order["customer"]].add(event["customer"])
    return found


@pytest.mark.data
class TestCustomers:
    @pytest.mark.parametrize(("recipient", "window"), [("marketing", week_of), ("logistics", day_of)])
    def test_are_joinable_within_a_key_window_and_not_across(self, recipient: str, window: Any, request: pytest.FixtureRequest) -> None:
        rows: Rows = request.getfixturevalue(recipient)
        of = pseudonyms(rows, window)

        assert all(len(texts) == 1 for texts in of.values())
        # One for every window and customer: as many as there are pairs.
        assert len(of) == len(set().union(*of.values()))
        windows = Counter(customer for _, customer in of)
        assert sum(number > 1 for number in windows.values()) > 500
        assert all((order["customer"] is None) == (event["customer"] is None) for order, event in rows)

    @pytest.mark.parametrize(("recipient", "name"), [("marketing", "product"), ("logistics", "item")])
    def test_products_keep_theirs_in_the_whole_domain(self, recipient: str, name: str, request: pytest.FixtureRequest) -> None:
        of = defaultdict(set)
        for order, event in request.getfixturevalue(recipient):
            for line, out in zip(order["lines"], event["lines"]):
                of[line["stock_code"]].add(out[name])

        assert all(len(texts) == 1 for texts in of.values())
        assert len(of) == len(set().union(*of.values()))

    def test_no_pseudonym_is_known_to_both_recipients(self, marketing: Rows, logistics: Rows) -> None:
        ours, theirs = (
            {text for _, event in rows for text in (event["customer"], *(line[name] for line in event["lines"])) if text is not None}
            for rows, name in ((marketing, "product"), (logistics, "item"))
        )

        assert len(ours) > 5_000 and len(theirs) > 5_000
        assert not ours & theirs

    def test_nothing_that_names_anybody_is_left(self, orders: list[bytes], outputs: Mapping[str, Any]) -> None:
        events = list(map(json.loads, orders))
        names = {event["invoice"] for event in events} | {event["customer"] for event in events if event["customer"]}
        names |= {line["description"] for event in events for line in event["lines"] if line["description"]}
        texts = {
            text for policy in outputs.values() for lines in policy.files.values() for line in lines for text in _texts(json.loads(line))
        }

        assert not names & texts


def _texts(value: Any) -> set[str]:
    if isinstance(value, str):
        return {value}
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set().union(*map(_texts, inner))


@pytest.mark.data
class TestJoiningByOrderAndMetadata:
    """Whatever is compared, the figures lie in the 99.9 % band of independent orders.

    For each pair of orders: the rank correlation, standardized, and over all pairs divided by the root of their number (normal, |z| <
    3.291); the events with the same place in both (Poisson, 1 per pair), and neighbours in both (Poisson, 2 per pair). The key is fixed,
    and with it every figure.
    """

    def test_rows_of_one_part_in_both_outputs(self, outputs: Mapping[str, Any]) -> None:
        found = linkage.compare_orders(linkage.shared_orders(outputs[linkage.MARKETING], outputs[linkage.LOGISTICS]))

        assert found.groups > 30
        assert found.is_chance, found

    @pytest.mark.parametrize("policy", [linkage.MARKETING, linkage.LOGISTICS])
    def test_rows_of_a_file_and_the_input(self, outputs: Mapping[str, Any], policy: str) -> None:
        found = linkage.compare_orders(linkage.input_orders(outputs[policy]))

        assert found.is_chance, found

    def test_names_of_files(self, outputs: Mapping[str, Any]) -> None:
        names = [{Path(path).stem for path in outputs[policy].files} for policy in (linkage.MARKETING, linkage.LOGISTICS)]
        # Names depend on where the input lies: as many as chance can be told from, of an input that lies nowhere.
        keys = [HeldKeys(linkage.ROOT).domain(domain).for_domain("part") for domain in ("marketing", "logistics")]
        orders = [np.argsort([part_name(key, Part("/in.jsonl", 1_000 * number)) for number in range(1_000)]) for key in keys]

        assert [14, 14] == [len(some) for some in names]
        assert not names[0] & names[1]
        assert linkage.compare_orders([(orders[0], orders[1])]).is_chance
        assert all(linkage.compare_orders([(order, np.arange(1_000))]).is_chance for order in orders)

    def test_files_say_nothing_of_the_input(self, outputs: Mapping[str, Any]) -> None:
        paths = [path for policy in outputs.values() for path in policy.files]

        assert all(len(Path(path).stem) == len("part-") + 32 for path in paths)

    def test_the_comparison_sees_an_order_that_is_kept(self, orders: list[bytes], outputs: Mapping[str, Any]) -> None:
        # The test itself must be able to fail: rows as they came, and rows turned round.
        files = [np.sort(events[events >= 0]) for events in outputs[linkage.MARKETING].events.values()]

        assert not linkage.compare_orders([(events, events) for events in files]).is_chance
        assert not linkage.compare_orders([(events, events[::-1]) for events in files]).is_chance
        # Blocks of ten in another order: only neighbours tell.
        mixed = [
            np.concatenate([events[i : i + 10] for i in np.random.default_rng(1).permutation(range(0, len(events), 10))])
            for events in files
        ]
        assert not linkage.compare_orders(list(zip(files, mixed))).is_chance


class TestUnderOtherKeys:
    """The sample of the example, under twelve keys: each pair of outputs is compared, and all together."""

    def test_rows_of_both_outputs(self, tmp_path: Path) -> None:
        sample = (EXAMPLE / "sample.jsonl").read_bytes().splitlines(keepends=True)
        pairs, places = [], []
        for number in range(12):
            outputs = linkage.both_outputs(sample, tmp_path / str(number), root=bytes([number]) * 32, part_bytes=32 << 20)
            one = linkage.shared_orders(outputs[linkage.MARKETING], outputs[linkage.LOGISTICS])
            (theirs,) = linkage.input_orders(outputs[linkage.LOGISTICS])
            pairs += one
            places.append(theirs)

        together, to_input = linkage.compare_orders(pairs), linkage.compare_orders(places)

        assert together.groups > 200
        assert together.is_chance, together
        assert to_input.is_chance, to_input
        # Another key, another order. Which events look alike depends on the key, too.
        known = np.array(sorted(set.intersection(*(set(events.tolist()) for events, _ in places))))
        orders = [events[np.isin(events, known)] for events, _ in places]
        assert len(known) > 250
        assert linkage.compare_orders(list(pairwise(orders))).is_chance


class TestTheStatistics:
    @pytest.mark.parametrize(("mean", "band"), [(1, (0, 6)), (2, (0, 8)), (43, (23, 66))])
    def test_bands_hold_999_of_1000(self, mean: int, band: tuple[int, int]) -> None:
        low, high = band
        chances = [math.exp(-mean) * mean**k / math.factorial(k) for k in range(150)]

        assert band == linkage.poisson_band(mean)
        assert sum(chances[:low]) < 0.0005 <= sum(chances[: low + 1])
        assert sum(chances[high + 1 :]) <= 0.0005 < sum(chances[high:])

    def test_random_orders_are_chance_as_often_as_the_band_says(self) -> None:
        random = np.random.default_rng(7)
        found = [linkage.compare_orders([(random.permutation(50), random.permutation(50)) for _ in range(20)]) for _ in range(1_000)]

        assert sum(not one.is_chance for one in found) <= 10
        assert abs(np.std([one.z for one in found]) - 1) < 0.1
        assert abs(np.mean([one.same_place for one in found]) - 20) < 1
        assert abs(np.mean([one.neighbours for one in found]) - 40) < 2

    def test_figures_of_a_small_case(self) -> None:
        found = linkage.compare_orders([(np.array([7, 3, 9, 5]), np.array([3, 7, 9, 5]))])

        # Places 0 1 2 3 against 1 0 2 3: rho = 1 - 6 * 2 / 60.
        assert (1, 2, 2) == (found.groups, found.same_place, found.neighbours)
        assert found.z == pytest.approx(0.8 * math.sqrt(3))


@pytest.mark.data
class TestJoiningByContent:
    def test_docs_say_what_the_script_prints(self, orders: list[bytes], outputs: Mapping[str, Any]) -> None:
        assert (CHECKOUT / "docs" / "linkage.md").read_text("utf-8") == linkage.page(orders, outputs)

    def test_is_far_from_chance_and_each_clue_helps(self, outputs: Mapping[str, Any]) -> None:
        shares = linkage.content_matches(outputs[linkage.MARKETING], outputs[linkage.LOGISTICS], REGIONS)

        assert sorted(shares) == shares
        assert 100 / 12_795 < shares[0] < 0.05
        assert 0.5 < shares[-1] < 1
