"""The order of the article, under the two policies of examples/shipping_order: the exact bytes, and what holds under every key."""

from __future__ import annotations

import hashlib
import json
import runpy
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from eventveil.pipeline.testing import run_job
from eventveil.transforms.compile import load_plan
from eventveil.transforms.decode.json_events import JsonDecoder
from eventveil.transforms.encode.json_events import encode_json
from eventveil.transforms.keys.derive import HeldKeys

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "shipping_order"
GOLDEN = Path(__file__).parent / "golden"
PLAIN = runpy.run_path(str(GOLDEN / "article.py"))
ORDER = json.loads((EXAMPLE / "orders.jsonl").read_text("utf-8").splitlines()[0])
TIME = datetime.fromisoformat(ORDER["time"])
MINUTE = timedelta(minutes=1)
POLICIES = ["policy", "trusted"]


class TestGolden:
    @pytest.mark.parametrize("name", POLICIES)
    def test_the_job_writes_these_bytes_and_nothing_else(self, name: str) -> None:
        with run_job(EXAMPLE / f"{name}.yaml", [ORDER], keys=PLAIN["ROOT"]) as result:
            content = [path.read_bytes() for path in result.files]
            refused = result.refused

        assert [(GOLDEN / f"article_{name}.jsonl").read_bytes()] == content
        assert [] == refused

    @pytest.mark.parametrize("name", POLICIES)
    def test_plain_python_comes_to_the_same_bytes(self, name: str) -> None:
        assert PLAIN["ORDER"] == ORDER
        assert (GOLDEN / f"article_{name}.jsonl").read_text("utf-8") == PLAIN[name]()

    @pytest.mark.parametrize("format", ["avro", "parquet"])
    def test_other_formats_hold_the_same_event(self, format: str) -> None:
        expected = json.loads((GOLDEN / "article_policy.jsonl").read_text("utf-8"))

        with run_job(EXAMPLE / "policy.yaml", [ORDER], keys=PLAIN["ROOT"], format=format) as result:
            rows = json.loads(json.dumps(result.rows, default=datetime.isoformat))

        if format == "avro":
            # Local times in Avro are micros since 1970 of the wall clock.
            for row in rows:
                row["date"] = row["date"].removesuffix("+00:00")
        assert [expected] == rows


def test_nothing_of_the_order_is_left_for_research() -> None:
    output = (GOLDEN / "article_policy.jsonl").read_text("utf-8")
    texts = [*ORDER.values(), *ORDER["shipping"].values(), *(value for product in ORDER["products"] for value in product.values())]

    assert not [text for text in texts if isinstance(text, str) and text in output]
    assert not [name for name in [*ORDER, *ORDER["shipping"], *ORDER["products"][0]] if f'"{name}"' in output]


def under_keys(name: str, keys: int) -> list[dict[str, Any]]:
    """The order under many keys, without the job around it."""
    plan = load_plan(EXAMPLE / f"{name}.yaml")
    events = JsonDecoder(plan.schema, plan.used).decode(pa.array([json.dumps(ORDER).encode()])).events
    roots = (hashlib.sha256(b"article %d" % number).digest() for number in range(keys))
    outcomes = [plan.bind(HeldKeys(root)).apply(events) for root in roots]
    assert not [outcome for outcome in outcomes if len(outcome.refused_rows)]
    return [json.loads(encode_json(outcome.veiled.select(plan.output_schema.names))[0].as_py()) for outcome in outcomes]


@pytest.fixture(scope="module")
def for_research() -> list[dict[str, Any]]:
    return under_keys("policy", 2_000)


class TestUnderEveryKey:
    """2,000 keys, chosen by a hash: figures are the same on every run."""

    def test_the_shape_is_exactly_the_articles(self, for_research: list[dict[str, Any]]) -> None:
        events = for_research

        assert all(list(event) == ["date", "group"] for event in events)
        assert all([list(one) for one in event["group"]] == [["ref", "delta"]] * 2 for event in events)
        assert {(1, 2)} == {tuple(one["ref"] for one in event["group"]) for event in events}

    def test_the_date_is_shifted_by_ten_minutes_at_most_and_then_floored(self, for_research: list[dict[str, Any]]) -> None:
        dates = [datetime.fromisoformat(event["date"]) for event in for_research]
        earliest, latest = TIME - 11 * MINUTE, TIME + 10 * MINUTE
        found = Counter((date - TIME.replace(second=0)) // MINUTE for date in dates)

        assert all(earliest <= date <= latest and date.second == 0 for date in dates)
        # From 22:47 to 23:07: a minute at either end is cut by the seconds, every other holds a twentieth.
        assert set(range(-10, 11)) == set(found)
        assert all(60 <= found[minute] <= 145 for minute in range(-9, 10)), found

    def test_deltas_are_near_the_quantities_and_at_least_one(self, for_research: list[dict[str, Any]]) -> None:
        first, second = zip(*([one["delta"] for one in event["group"]] for event in for_research))

        assert all(type(delta) is int and delta >= 1 for delta in first + second)
        # Laplace noise of scale 1 is 0 for 46 % of the keys; of 1 or less nothing is left but 1, which 73 % are.
        assert 0.42 < sum(delta == 10 for delta in second) / 2_000 < 0.50
        assert 0.69 < sum(delta == 1 for delta in first) / 2_000 < 0.77
        assert 9.9 < sum(second) / 2_000 < 10.1

    def test_noise_of_the_two_lines_is_independent(self, for_research: list[dict[str, Any]]) -> None:
        pairs = Counter((event["group"][0]["delta"] > 1, event["group"][1]["delta"] == 10) for event in for_research)
        raised, same = sum(n for (up, _), n in pairs.items() if up) / 2_000, sum(n for (_, ten), n in pairs.items() if ten) / 2_000

        # Standard deviation of the share of pairs: below 0.0075.
        assert abs(pairs[True, True] / 2_000 - raised * same) < 0.025

    def test_only_pseudonyms_depend_on_the_key_for_the_trusted_recipient(self) -> None:
        events = under_keys("trusted", 50)
        pseudonyms = [(e["shipping"].pop("customer"), *(product.pop("product") for product in e["products"])) for e in events]

        assert len({text for three in pseudonyms for text in three}) == 150
        assert all(event == events[0] for event in events)
        assert events[0] == {
            "time": "2014-09-04T22:00:00",
            "status": "pending",
            "shipping": {"country": "Russia", "area": "45", "carrier": "usps"},
            "products": [
                {"family": "ks", "quantity": 1, "amount": 200, "currency": "EUR"},
                {"family": "ka", "quantity": 10, "amount": 10, "currency": "EUR"},
            ],
        }
