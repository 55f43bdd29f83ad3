"""Two recipients of one read put their files together: how many orders can they join, by order and by content?

    python bench/linkage.py DATA.csv.gz            prints docs/linkage.md

Runs examples/online_retail/job.yaml over all real orders under a fixed key, so that every figure comes out the same again. What is
right is known from the key: each policy is applied once more, to the events in the order of the input, and rows are found again by what
they show.

Nothing is drawn: an attacker who is left with k candidates is counted as right with 1/k if the right one is among them.
"""

from __future__ import annotations

import argparse
import base64
import csv
import json
import logging
import math
import os
import runpy
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from eventveil.pipeline.prepare import prepare
from eventveil.pipeline.report.summary import PolicySummary, summarize
from eventveil.pipeline.runners.local import run
from eventveil.schemas.job import load_job
from eventveil.transforms.compile import load_plan
from eventveil.transforms.decode.json_events import JsonDecoder
from eventveil.transforms.encode.json_events import encode_json
from eventveil.transforms.keys.custodian import new_custodian
from eventveil.transforms.keys.derive import HeldKeys

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "online_retail"
ROOT = bytes(range(32))
PART_BYTES = 2_000_000
BAND = 0.999
MARKETING, LOGISTICS = "online-retail-marketing", "online-retail-logistics"

Int64s = npt.NDArray[np.int64]


# --- the job, and what is right


@dataclass(frozen=True)
class Output:
    """What one recipient got.

    Attributes:
        files: path below the output's folder -> the rows of the file, in their order, as lines of JSON.
        events: path -> for each row the number of its event in the input; -1 where another event shows the same.
        truth: for each event of the input the row that it became.
        summary: the counts of the job.
    """

    files: Mapping[str, list[bytes]]
    events: Mapping[str, Int64s]
    truth: Sequence[bytes]
    summary: PolicySummary

    def parts(self) -> dict[str, list[str]]:
        """Name of each output part -> its files, one per window or one in all."""
        found: dict[str, list[str]] = {}
        for path in sorted(self.files):
            found.setdefault(Path(path).stem, []).append(path)
        return found


def real_orders(data: Path) -> list[bytes]:
    """All orders of the Online Retail data, a line of JSON each."""
    make = runpy.run_path(str(EXAMPLE / "make_orders.py"))
    with make["open_text"](data) as file:
        return [json.dumps(event, ensure_ascii=False).encode() + b"\n" for event in make["invoices"](csv.DictReader(file))]


def both_outputs(orders: Sequence[bytes], folder: Path, root: bytes = ROOT, part_bytes: int = PART_BYTES) -> dict[str, Output]:
    """Run the example's job file, over these orders and in this folder; by the policy's name what each recipient got."""
    home = folder / "online_retail"
    shutil.copytree(EXAMPLE, home, ignore=shutil.ignore_patterns("out", "keyring.json", "custodian*"))
    (home / "sample.jsonl").write_bytes(b"".join(orders))
    with (home / "job.yaml").open("a") as file:
        file.write(f"part_bytes: {part_bytes}\n")
    with open(os.open(home / "keyring.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump({"eventveil_keyring": 1, "root": base64.b64encode(root).decode(), "domains": {}}, file)
    new_custodian(home / "custodian")
    job = prepare(load_job(home / "job.yaml"))
    described = [(variant.name, variant.plan.version, variant.plan.digest) for variant in job.variants]
    summaries = {one.policy: one for one in summarize(job.name, 0.0, job.keys_id, described, run(job)).policies}
    return {one.name: _output(Path(one.sink.folder), one.plan.name, home, orders, root, summaries[one.name]) for one in job.variants}


def _output(folder: Path, policy: str, home: Path, orders: Sequence[bytes], root: bytes, summary: PolicySummary) -> Output:
    plan = load_plan(home / f"{policy.removeprefix('online-retail-')}.yaml")
    decoded = JsonDecoder(plan.schema, plan.used).decode(pa.array(orders, pa.large_binary()))
    outcome = plan.bind(HeldKeys(root)).apply(decoded.events)
    assert decoded.rows is None and not len(outcome.refused_rows) and not outcome.filtered, "the data were to be all sound"
    truth: list[bytes] = encode_json(outcome.veiled.select(plan.output_schema.names)).to_pylist()
    number: dict[bytes, int] = {}
    for event, line in enumerate(truth):
        number[line] = -1 if line in number else event
    files = {str(path.relative_to(folder)): _lines(path, plan.output_schema) for path in sorted(folder.rglob("part-*"))}
    events = {path: np.array([number[line] for line in lines], np.int64) for path, lines in files.items()}
    return Output(files, events, truth, summary)


def _lines(path: Path, schema: pa.Schema) -> list[bytes]:
    if path.suffix == ".jsonl":
        return path.read_bytes().splitlines(keepends=True)
    # Rows as they stand, in the form of the other output's.
    with pq.ParquetFile(path) as file:
        batches = file.read().select(schema.names).to_batches()
    return [line for batch in batches for line in encode_json(batch).to_pylist()]


# --- joining by order and metadata


@dataclass(frozen=True)
class Orders:
    """Two orders of the same things, compared; of independent ones each figure is chance.

    Attributes:
        groups: how many pairs of orders were compared.
        z: rank correlation, standardized: normal around 0 with deviation 1.
        same_place: things with the same place in both: Poisson around 1 per pair of orders.
        neighbours: neighbours in both: Poisson around 2 per pair of orders.
    """

    groups: int
    z: float
    same_place: int
    neighbours: int

    def band(self, per_group: float) -> tuple[int, int]:
        """The least and the most that chance gives in BAND of all cases, for a figure with `per_group` expected."""
        return poisson_band(per_group * self.groups)

    @property
    def is_chance(self) -> bool:
        places, neighbours = self.band(1), self.band(2)
        return abs(self.z) < 3.291 and places[0] <= self.same_place <= places[1] and neighbours[0] <= self.neighbours <= neighbours[1]


def poisson_band(mean: float) -> tuple[int, int]:
    """The narrowest (low, high) with at most (1 - BAND) / 2 below low and as much above high."""
    tail = (1 - BAND) / 2
    low, high, below, weight = 0, 0, 0.0, math.exp(-mean)
    while below + weight < 1 - tail:
        below += weight
        high += 1
        if below < tail:
            low = high
        weight *= mean / high
    return low, high


def compare_orders(pairs: Iterable[tuple[Int64s, Int64s]]) -> Orders:
    """Compare orders of the same things pair by pair.

    Args:
        pairs: two orders of the same numbers, each number once. Orders of less than three say nothing and are left out.
    """
    groups, total, places, neighbours = 0, 0.0, 0, 0
    for left, right in pairs:
        n = len(left)
        if n < 3:
            continue
        assert sorted(left) == sorted(right)
        # For each thing, as the left has them, its place in the right.
        sorter = np.argsort(right)
        where = sorter[np.searchsorted(right, left, sorter=sorter)]
        rho = 1 - 6 * float(((where - np.arange(n)) ** 2).sum()) / (n * (n * n - 1))
        groups, total = groups + 1, total + rho * math.sqrt(n - 1)
        places += int((where == np.arange(n)).sum())
        neighbours += int((np.abs(np.diff(where)) == 1).sum())
    return Orders(groups, total / math.sqrt(max(groups, 1)), places, neighbours)


def shared_orders(left: Output, right: Output) -> list[tuple[Int64s, Int64s]]:
    """For each file of the left output: the events of its rows, and the order in which they stand in one file of the right output."""
    pairs = []
    for theirs in right.events.values():
        place = {event: number for number, event in enumerate(theirs.tolist()) if event >= 0}
        for ours in left.events.values():
            both = [event for event in ours.tolist() if event in place]
            pairs.append((np.array(both, np.int64), np.array(sorted(both, key=place.__getitem__), np.int64)))
    return pairs


def input_orders(output: Output) -> list[tuple[Int64s, Int64s]]:
    """For each file the events of its rows, and the same in the order of the input."""
    found = [events[events >= 0] for events in output.events.values()]
    return [(events, np.sort(events)) for events in found]


# --- joining by content

CLUES = (
    "the day",
    "the number of lines",
    "whether there is a customer",
    "country and region",
    "which lines are of one product",
    "quantities",
)


def content_matches(left: Output, right: Output, regions: Mapping[str, str]) -> list[float]:
    """The share of orders that are joined rightly, by the first of CLUES, by the first two, and so on."""
    ours, theirs = ([json.loads(line) for line in output.truth] for output in (left, right))
    keys = [(_marketing_clues(event), _logistics_clues(other, regions)) for event, other in zip(ours, theirs)]
    found = []
    for known in range(1, len(CLUES)):
        groups: dict[Any, list[int]] = {}
        for number, (_, clues) in enumerate(keys):
            groups.setdefault(clues[:known], []).append(number)
        found.append(_expected(groups, [clues[:known] for clues, _ in keys]))
    quantities = [np.array([line["units"] for line in event["lines"]], float) for event in theirs]
    right_ones = 0.0
    for number, (clues, _) in enumerate(keys):
        candidates = [one for key in _possible(clues[: len(CLUES) - 1]) for one in groups.get(key, ())]
        seen = np.array([line["quantity"] for line in ours[number]["lines"]], float)
        # Marketing's are clamped to 200; noise is told apart by its likelihood, which falls with the distance.
        away = np.array([np.abs(np.clip(quantities[one], -200, 200) - seen).sum() for one in candidates])
        best = np.flatnonzero(away == away.min()) if len(away) else np.zeros(0, int)
        right_ones += sum(candidates[place] == number for place in best.tolist()) / max(len(best), 1)
    return [*found, right_ones / len(keys)]


def _expected(groups: Mapping[Any, list[int]], clues: Sequence[tuple[Any, ...]]) -> float:
    total = 0.0
    for number, key in enumerate(clues):
        sizes = [groups.get(one, ()) for one in _possible(key)]
        total += any(number in group for group in map(set, sizes)) / max(sum(map(len, sizes)), 1)
    return total / len(clues)


def _possible(clues: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """The clues of the other output that go with these: a country that was not listed may lie in any region."""
    if len(clues) < 4:
        return [clues]
    return [clues, (*clues[:3], "other", *clues[4:])]


def _marketing_clues(event: dict[str, Any]) -> tuple[Any, ...]:
    lines = event["lines"]
    return event["time"][:10], len(lines), event["customer"] is None, event["region"], _pattern([line["product"] for line in lines])


def _logistics_clues(event: dict[str, Any], regions: Mapping[str, str]) -> tuple[Any, ...]:
    lines = event["lines"]
    return (
        event["day"][:10],
        len(lines),
        event["customer"] is None,
        regions.get(event["country"], "other"),
        _pattern([line["item"] for line in lines]),
    )


def _pattern(names: Sequence[str]) -> tuple[int, ...]:
    """Equal names by equal numbers."""
    return tuple(map({name: number for number, name in reversed(list(enumerate(names)))}.__getitem__, names))


def read_regions() -> dict[str, str]:
    return dict(line.split(";")[:2] for line in (EXAMPLE / "regions.csv").read_text("utf-8").splitlines())


# --- the page


PAGE = """\
<!-- printed by: python bench/linkage.py DATA.csv.gz -->

# Joining two outputs of one read

What two recipients find out who put their files together. The two policies of [examples/online_retail](../examples/online_retail/)
were run in one job over all {orders} real orders ({first} to {last}; Online Retail, UCI Machine Learning Repository,
[attribution](../examples/online_retail/ATTRIBUTION.md)). Identifiers join nothing: the domains differ, and no pseudonym stands in
both. What is left are order and metadata, and content.

The figures come from a fixed key, and come out the same again with

    python bench/linkage.py online_retail/2010-12_to_2011-06.csv.gz

[A test](../tests/jobs/test_online_retail.py) holds the job to the first table, and this page to the script.

## By order and metadata: chance

Rows are compared inside an output part: the events that stand in one file of marketing and in one file of logistics, in the order
of either. Under chance the standardized rank correlation lies within 3.29 on either side of 0 in 99.9 % of all cases, and the
counts within the bands in brackets.

| compared | pairs of orders | rank correlation | same place | neighbours in both |
|---|---|---|---|---|
{rows}

Names of files are keyed per domain, and join nothing either. Whole parts are another matter: a part of the input (at most 32 MB) is
one file for each recipient, or one per window, and has as many rows in one output as in the other. By these numbers alone {joined}
of {parts} parts were joined; the times at which files are written may tell as much. That joins crowds, not rows: nothing inside a
part follows from it.

## By content: far from chance

Each order of marketing was looked for among all orders of logistics, with what both show. Where several fit equally well, one is
guessed.

| known | orders joined rightly |
|---|---|
{clues}

Two recipients who talk to each other join most of what they have, without any identifier: by the day, the length and the noisy
quantities of an order. Keys, domains and order do not help against that. Coarser values do: weeks instead of days, lists cut or
dropped, quantities in bins. Where recipients may talk to each other, write one policy for all of them. `eventveil check` says what
each field discloses; it does not know who talks to whom.
"""


def page(orders: Sequence[bytes], outputs: Mapping[str, Output]) -> str:
    """docs/linkage.md."""
    marketing, logistics = outputs[MARKETING], outputs[LOGISTICS]
    compared = {
        "rows of marketing, and of logistics": compare_orders(shared_orders(marketing, logistics)),
        "rows of marketing, and of the input": compare_orders(input_orders(marketing)),
        "rows of logistics, and of the input": compare_orders(input_orders(logistics)),
    }
    shares = [1 / len(orders), *content_matches(marketing, logistics, read_regions())]
    clues = ["nothing: chance", CLUES[0], *(f"and {clue}" for clue in CLUES[1:])]
    days = [json.loads(line)["time"][:10] for line in orders]
    joined, parts = _parts_by_size(marketing, logistics)
    return PAGE.format(
        orders=f"{len(orders):,}",
        first=min(days),
        last=max(days),
        rows="\n".join(_row(what, found) for what, found in compared.items()),
        joined=joined,
        parts=parts,
        clues="\n".join(f"| {clue} | {100 * share:.2g} % |" for clue, share in zip(clues, shares)),
    )


def _row(what: str, found: Orders) -> str:
    counts = [
        f"{number} ({low} to {high})" for number, (low, high) in ((found.same_place, found.band(1)), (found.neighbours, found.band(2)))
    ]
    return f"| {what} | {found.groups} | {found.z:+.2f} | {' | '.join(counts)} |"


def _parts_by_size(left: Output, right: Output) -> tuple[int, int]:
    """How many parts are joined rightly by their numbers of rows, and how many there are."""
    counts = []
    for output in (left, right):
        found = []
        for files in output.parts().values():
            first = min(event for file in files for event in output.events[file].tolist() if event >= 0)
            found.append((sum(len(output.files[file]) for file in files), first))
        counts.append(found)
    ours, theirs = counts
    sizes = [size for size, _ in theirs]
    order = {first: number for side in counts for number, first in enumerate(sorted(first for _, first in side))}
    right_of = {size: order[first] for size, first in theirs}
    return sum(sizes.count(size) == 1 and right_of.get(size) == order[first] for size, first in ours), len(ours)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the Online Retail data: CSV, plain or .gz")
    logging.getLogger().setLevel(logging.ERROR)
    orders = real_orders(parser.parse_args().data)
    with tempfile.TemporaryDirectory() as folder:
        print(page(orders, both_outputs(orders, Path(folder))), end="")


if __name__ == "__main__":
    main()
