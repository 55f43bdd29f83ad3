"""The plan alone: read, decode, apply, sort and write in a plain loop, without Beam; what the job adds is Beam's share.

python bench/plan.py orders.jsonl out/
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pyarrow as pa
from measure import measured, pin, report

from eventveil.pipeline.sinks.files import FolderSink
from eventveil.pipeline.sources.files import list_ranges, read_range
from eventveil.transforms.batch import part_of
from eventveil.transforms.compile import load_plan
from eventveil.transforms.decode.reading import Decoders, Reading
from eventveil.transforms.keys.derive import HeldKeys
from eventveil.transforms.keys.part_names import part_name

POLICY = Path(__file__).parent / "policy.yaml"


def run(source: Path, target: Path, policy: Path) -> dict[str, int]:
    plan = load_plan(policy)
    keys = HeldKeys(bytes(range(32)))
    veil, decoders = plan.bind(keys), Decoders(Reading(plan.schema, plan.used))
    name_key = keys.domain(plan.domain).for_domain("part")
    sink = FolderSink(str(target), "jsonl", {"policy": plan.name})
    sink.prepare()
    events = refused = 0
    for piece in list_ranges([str(source)]):
        batches: list[pa.RecordBatch] = []
        for raw in read_range(piece):
            part = part_of(raw)
            assert part is not None
            decoded = decoders.decode(raw)
            outcome = veil.apply(decoded.events, origin=part.origin, positions=raw.column("position"))
            batches.append(outcome.veiled)
            events += raw.num_rows
            refused += len(decoded.refused_rows) + len(outcome.refused_rows)
            if part.last:
                sink.publish(part_name(name_key, part), batches)
                batches = []
    return {"events": events, "refused": refused}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--policy", type=Path, default=POLICY)
    parser.add_argument("--core", type=int, help="keep to this core")
    arguments = parser.parse_args()
    pin(arguments.core)
    pa.set_cpu_count(1)
    shutil.rmtree(arguments.target, ignore_errors=True)
    with measured() as cost:
        counts = run(arguments.source, arguments.target, arguments.policy)
    report(cost, **counts)


if __name__ == "__main__":
    main()
