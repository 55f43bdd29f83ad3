"""Measure the job on a stream: Kafka to Parquet beside the same events from a file, what it costs when idle, how late windows come.

    python bench/live.py                                       # part of make bench, where there is Java
    python bench/live.py --events 200000 --rounds 1 --skip latency

Starts a Kafka of its own. As in run.py, everything that is compared runs on one core (the broker anywhere), the measurements take turns,
the least CPU and the least time of --rounds count, and start-up is taken off: the least that the same job costs over ten orders.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from datetime import datetime
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
from orders import chunk
from run import HERE, WORK, Cost, job_on, orders, process, script
from stand import EVENTVEIL, ROOT, LiveJob, kafka, make_topic, median, new_keys

EXAMPLE = ROOT / "examples" / "shipping_order"
PARTITIONS = 4
IDLE_S = 20.0
LATENCY_S = 40.0
RATE = 5_000
ROLL_S = 2
NO_KAFKAIO = "Beam's own KafkaIO: see kafka_on_flink.py; the runners of one machine start its Java in Docker alone"
LOOP, FILE, LIVE = "loop: from Kafka to JSONL, memo", "job: from a file to Parquet", "job: from Kafka to Parquet"
MEASUREMENTS = ("throughput", "idle", "latency")


def fill(address: str, topic: str, source: Path) -> None:
    """A topic with the lines of a file, dealt out to its partitions in turn."""
    from confluent_kafka import Producer

    make_topic(address, topic, PARTITIONS)
    producer = Producer({"bootstrap.servers": address, "linger.ms": 50, "log_level": 3, "queue.buffering.max.messages": 1_000_000})
    with source.open("rb", buffering=1 << 20) as lines:
        for number, line in enumerate(lines):
            while True:
                try:
                    producer.produce(topic, line[:-1], partition=number % PARTITIONS)
                    break
                except BufferError:
                    producer.poll(0.1)
    if producer.flush(60):
        raise SystemExit("the broker did not take all orders")


def catch_up(address: str, topic: str, cores: set[int]) -> Cost:
    """The job over a topic, start-up included."""
    for name in ("out", "refused", "checkpoint"):
        shutil.rmtree(WORK / name, ignore_errors=True)
    flags = ["--policy", HERE / "policy.yaml", "--input", f"kafka://{address}/{topic}?group=bench", "--output", WORK / "out"]
    # Windows of an hour, as the policy's; what lies in the last one waits in the checkpoint.
    flags += ["--format", "parquet", "--roll", "1h", "--checkpoint", WORK / "checkpoint", "--until-caught-up", "--quiet"]
    flags += ["--keys", WORK / "keyring.json", "--dead-letters", WORK / "refused", "--custodian", WORK / "custodian.pub"]
    return process([*EVENTVEIL, "run", *map(str, flags)], cores)


def least_of(costs: list[Cost]) -> Cost:
    """The least of each figure: what other work on the machine adds is never less than nothing."""
    return {what: min(cost[what] for cost in costs) for what in ("cpu_s", "wall_s", "peak_mb")}


def throughput(address: str, events: int, rounds: int, core: int) -> None:
    source, ten = orders("orders", "--events", str(events)), orders("ten", "--events", "10")
    fill(address, "ten", ten)
    fill(address, "orders", source)
    file = {"format": "parquet", "cores": {core}, "key": WORK / "keyring.json"}
    wholes: dict[str, list[Cost]] = {}
    starts: dict[str, list[Cost]] = {}
    for _ in range(rounds):
        for name, measure in {
            LOOP: lambda: script("loop.py", f"kafka://{address}/orders", WORK / "loop.jsonl", core=core),
            FILE: lambda: job_on(source, **file),
            LIVE: lambda: catch_up(address, "orders", {core}),
        }.items():
            wholes.setdefault(name, []).append(measure())
            print(f"  {name}: {wholes[name][-1]['cpu_s']:.2f} CPU-s, {wholes[name][-1]['wall_s']:.2f} s", file=sys.stderr)
        starts.setdefault(FILE, []).append(job_on(ten, **file))
        starts.setdefault(LIVE, []).append(catch_up(address, "ten", {core}))
    rows = {name: least_of(costs) for name, costs in wholes.items()}
    for name, costs in starts.items():
        start = least_of(costs)
        rows[name].update({what: rows[name][what] - start[what] for what in ("cpu_s", "wall_s")})
    base = rows[FILE]
    print(f"\n{'':34}{'events/s':>10}{'CPU-s/million':>15}{'x events/s':>12}{'x CPU':>8}{'peak MB':>9}")
    for name, cost in rows.items():
        ratios = f"{base['wall_s'] / cost['wall_s']:>12.2f}{cost['cpu_s'] / base['cpu_s']:>8.2f}"
        print(f"{name:34}{events / cost['wall_s']:>10,.0f}{cost['cpu_s'] / events * 1e6:>15.2f}{ratios}{cost['peak_mb']:>9.0f}")
    print(NO_KAFKAIO)


def idle(address: str) -> None:
    """CPU of a job that has nothing to do."""
    make_topic(address, "silent", PARTITIONS)
    subprocess.run([sys.executable, EXAMPLE / "produce.py", f"kafka://{address}/silent", "--count", "10"], check=True)
    with LiveJob(WORK / "idle", EXAMPLE / "policy.yaml", f"kafka://{address}/silent?group=idle", WORK, "--roll", "2s") as live:
        live.wait_until("nothing to do", lambda figures: figures["eventveil_read_total"] == 10 and not figures["eventveil_open_windows"])
        before, began = live.cpu_s(), time.monotonic()
        time.sleep(IDLE_S)
        share = (live.cpu_s() - before) / (time.monotonic() - began)
        live.end()
    print(f"idle: {share:.1%} of a core over {IDLE_S:.0f} s")


def latency(address: str) -> None:
    """From the end of a window to the moment at which all of its files have their names."""
    make_topic(address, "timely", PARTITIONS)
    flags = ["--format", "parquet", "--roll", f"{ROLL_S}s"]
    with LiveJob(WORK / "latency", HERE / "policy.yaml", f"kafka://{address}/timely?group=latency", WORK, *flags) as live:
        live.wait_until("looking at its topic", lambda figures: "eventveil_lag_events" in figures)
        producer = get_context("spawn").Process(target=produce_now, args=(address, "timely"), daemon=True)
        producer.start()
        seen = first_seen(live, producer)
        live.end()
    delays: dict[str, list[float]] = {}
    for unit in live.units():
        end = datetime.fromisoformat(unit["window"].replace("Z", "+00:00")).timestamp() + ROLL_S
        if all(file["name"] in seen for file in unit["files"]):
            delays.setdefault(unit["window"], []).append(max(seen[file["name"]] for file in unit["files"]) - end)
    told = [min(each) for each in delays.values()]
    again = sum(len(each) - 1 for each in delays.values())
    print(
        f"windows of {ROLL_S} s at {RATE:,} events/s: {len(told)} published, {median(told):.2f} s after their end (median), "
        f"{max(told):.2f} s at most; {again} once more, with events that came late"
    )


def produce_now(address: str, topic: str) -> None:
    """RATE orders a second for LATENCY_S seconds, each with the time at which it is written: where the machine is busy, more at once."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": address, "linger.ms": 5})
    began, number = time.time(), 0
    while (passed := time.time() - began) < LATENCY_S:
        size = int(passed * RATE) - number
        now = np.full(size, round(time.time() * 1000), "datetime64[ms]")
        for line in chunk(1, number, now, 200_000, 10_000):
            producer.produce(topic, line[:-1], partition=number % PARTITIONS)
            number += 1
        producer.poll(0.02)
    producer.flush(60)


def first_seen(live: LiveJob, producer: BaseProcess) -> dict[str, float]:
    """When each file was first seen under its name, to 20 ms."""
    seen: dict[str, float] = {}
    while producer.is_alive():
        now = time.time()
        for name in os.listdir(live.folder / "out") if (live.folder / "out").is_dir() else ():
            if name.startswith("part-"):
                seen.setdefault(name, now)
        time.sleep(0.02)
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--skip", choices=MEASUREMENTS, action="append", default=[])
    options = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    new_keys(WORK)
    with kafka(WORK) as address:
        if "throughput" not in options.skip:
            throughput(address, options.events, options.rounds, options.core)
        if "idle" not in options.skip:
            idle(address)
        if "latency" not in options.skip:
            latency(address)


if __name__ == "__main__":
    main()
