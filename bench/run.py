"""Measure the job beside the limit, the bare plan and a plain loop, all in one run.

    make bench                                     # one million orders
    make bench ARGS='--events 200000 --rounds 1'   # a quick look
    make bench ARGS=--no-live                      # without the live job, which live.py measures where there is Java and Maven
    make bench ARGS=--no-engines                   # without Flink and Pub/Sub, which flink.py and pubsub.py measure there
    make bench ARGS=--full                         # also: 1 % malformed, shuffled over 1,440 windows, 0.1 and 10 million, 2 workers, 5 GB

Everything runs on one core (--full: the workers on two), the measurements take turns, and the least of --rounds counts. The cost of
a job is that of its process less that of the same job over a file of ten orders: start-up apart.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WORK = HERE.parent / "build" / "bench"
Cost = dict[str, Any]


def orders(name: str, *arguments: str) -> Path:
    """Write orders, unless the same were written before."""
    path, made = WORK / f"{name}.jsonl", WORK / f"{name}.args"
    if not (path.exists() and made.exists() and made.read_text() == repr(arguments)):
        print(f"writing {path.name} ...", file=sys.stderr)
        subprocess.run([sys.executable, HERE / "orders.py", path, *arguments], check=True, stdout=subprocess.DEVNULL)
        made.write_text(repr(arguments))
    return path


def script(name: str, *arguments: object, core: int) -> Cost:
    command = [sys.executable, HERE / name, *map(str, arguments), "--core", str(core)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: Cost = json.loads(done.stdout)
    return found


def process(command: list[str], cores: set[int]) -> Cost:
    """CPU, wall time and peak memory of a process, start-up included."""
    began = time.perf_counter()
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # a child inherits it
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    os.sched_setaffinity(0, own)
    _, status, used = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed with status {status}")
    return {"cpu_s": used.ru_utime + used.ru_stime, "wall_s": time.perf_counter() - began, "peak_mb": used.ru_maxrss / 1024}


def job_on(source: Path, *, format: str = "jsonl", policy: str = "policy.yaml", cores: set[int], workers: int = 1, key: Path) -> Cost:
    """The job over a file, start-up included."""
    out = WORK / "out"
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(WORK / "refused", ignore_errors=True)
    flags = ["--policy", HERE / policy, "--input", source, "--output", out, "--format", format, "--keys", key, "--quiet"]
    flags += ["--dead-letters", WORK / "refused", "--custodian", WORK / "custodian.pub", "--workers", workers]
    command = [sys.executable, "-c", "from eventveil.pipeline.cli.main import main; main()", "run", *map(str, flags)]
    return process(command, cores)


def job(source: Path, **how: Any) -> Cost:
    """The job over a file, less the same job over ten orders."""
    start, whole = job_on(orders("ten", "--events", "10"), **how), job_on(source, **how)
    return {"cpu_s": whole["cpu_s"] - start["cpu_s"], "wall_s": whole["wall_s"] - start["wall_s"], "peak_mb": whole["peak_mb"]}


def least(found: list[Cost]) -> Cost:
    return min(found, key=lambda cost: float(cost["cpu_s"]))


def show(rows: dict[str, Cost], events: int, base: str) -> None:
    print(f"{'':34}{'events/s':>10}{'CPU-s/million':>15}{'x ' + base:>10}{'peak MB':>9}")
    for name, cost in rows.items():
        count = cost.get("count", events)
        per_million = cost["cpu_s"] / count * 1e6
        unit = rows[base]["cpu_s"] / rows[base].get("count", events) * 1e6
        print(f"{name:34}{count / cost['wall_s']:>10,.0f}{per_million:>15.2f}{per_million / unit:>10.2f}{cost['peak_mb']:>9.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--full", action="store_true")
    there = shutil.which("java") is not None and shutil.which("mvn") is not None
    parser.add_argument("--live", action=argparse.BooleanOptionalAction, default=there, help="measure the live job too (live.py)")
    parser.add_argument("--engines", action=argparse.BooleanOptionalAction, default=there, help="measure Flink and Pub/Sub too")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    key = WORK / "keyring.json"
    for made, command in ((key, ["keys", "new", str(key)]), (WORK / "custodian.pub", ["keys", "custodian", str(WORK / "custodian")])):
        if not made.exists():
            subprocess.run([sys.executable, "-c", "from eventveil.pipeline.cli.main import main; main()", *command], check=True)
    n, core, one = str(options.events), options.core, {options.core}
    source = orders("orders", "--events", n)
    found: dict[str, list[Cost]] = {}
    for _ in range(options.rounds):
        for name, measure in {
            "limit: decode alone": lambda: script("limit.py", source, core=core),
            "loop: orjson + HMAC, memo": lambda: script("loop.py", source, WORK / "loop.jsonl", core=core),
            "loop: orjson + HMAC, no memo": lambda: script("loop.py", source, WORK / "loop.jsonl", "--no-memo", core=core),
            "plan: without Beam": lambda: script("plan.py", source, WORK / "plan", core=core),
            "job: JSONL to JSONL": lambda: job(source, cores=one, key=key),
            "job: JSONL to Parquet": lambda: job(source, format="parquet", cores=one, key=key),
        }.items():
            found.setdefault(name, []).append(measure())
            print(f"  {name}: {found[name][-1]['cpu_s']:.2f} CPU-s", file=sys.stderr)
    if options.full:
        malformed = orders("malformed", "--events", n, "--malformed", "0.01")
        ordered, shuffled = orders("ordered", "--events", n), orders("shuffled", "--events", n, "--shuffled")
        small, large = orders("small", "--events", str(options.events // 10)), orders("large", "--events", str(options.events * 10))
        for _ in range(options.rounds):
            for name, measure in {
                "job: 1 % malformed": lambda: job(malformed, cores=one, key=key),
                "job: windows of 1min, in order": lambda: job(ordered, policy="policy-minutes.yaml", cores=one, key=key),
                "job: windows of 1min, shuffled": lambda: job(shuffled, policy="policy-minutes.yaml", cores=one, key=key),
                "job: a tenth of the events": lambda: {**job(small, cores=one, key=key), "count": options.events // 10},
            }.items():
                found.setdefault(name, []).append(measure())
                print(f"  {name}: {found[name][-1]['cpu_s']:.2f} CPU-s", file=sys.stderr)
        found["job: ten times the events"] = [{**job(large, cores=one, key=key), "count": options.events * 10}]
        both = set(sorted(os.sched_getaffinity(0))[:2])
        if len(both) == 2:
            for workers in (1, 2):
                name = f"job: {workers} worker{'s' * (workers > 1)} on 2 cores"
                found[name] = [job(source, cores=both, workers=workers, key=key) for _ in range(options.rounds)]
    rows = {name: least(costs) for name, costs in found.items()}
    size = source.stat().st_size
    what = "200,000 e-mails, 10,000 products, 2.5 products an order"
    print(f"{options.events:,} orders of {size / options.events:.0f} bytes, {what}; Python {sys.version.split()[0]}")
    show(rows, options.events, "limit: decode alone")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    if options.live:
        arguments = ["--events", n, "--rounds", str(options.rounds), "--core", str(core)]
        subprocess.run([sys.executable, HERE / "live.py", *arguments], check=True)
    else:
        print("the live job was not measured: it needs a Kafka, and that Java and Maven")
    if options.engines:
        subprocess.run([sys.executable, HERE / "flink.py", "--events", n, "--rounds", str(options.rounds)], check=True)
        # As many orders as it says itself: fewer are read between two counts, and KafkaIO does not get through many more.
        subprocess.run([sys.executable, HERE / "kafka_on_flink.py", "--rounds", str(options.rounds)], check=True)
        subprocess.run(
            [sys.executable, HERE / "pubsub.py", "--messages", str(options.events // 10), "--rounds", str(options.rounds)], check=True
        )
    else:
        print("Flink and Pub/Sub were not measured: they need Java and Maven")


if __name__ == "__main__":
    main()
