"""Measure a job over a file to Parquet on Flink, beside the same job on this machine alone.

    python bench/flink.py --events 1000000
    python bench/flink.py --events 200000 --rounds 1

Each runs over all events and over a quarter of them: what the difference takes is free of start-up, which on Flink is most of a small
job. Both take turns, and the least time of --rounds counts. Of a job on Flink the time is Flink's own, from when it has the job to its
end. Starts a Flink of its own. Two workers are measured where there are four cores: each is a process of Java and one of Python.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from run import HERE, WORK, orders
from stand import EVENTVEIL, LOCAL, new_keys

LOCALLY, ON_FLINK = "here", "on Flink"
ENOUGH_CORES = 4


@dataclass(frozen=True)
class Cluster:
    """host:port of Flink and of its pool of workers, and the folder of its jars; with Kafka, host:port of that and of Beam for Java."""

    master: str
    pool: str
    jars: str
    kafka: str = ""
    java: str = ""

    def as_json(self) -> dict[str, str]:
        """What a job says of it."""
        return {"master": self.master, "worker_pool": self.pool, "job_server": self.jars}


@contextmanager
def flink(home: Path, task_managers: int, with_kafka: bool = False) -> Iterator[Cluster]:
    """A Flink that runs within the block, and with it, if asked, a Kafka and what reads it from Java."""
    down = [LOCAL / "down", "--home", home, "--purge"]
    with_what = ["--with", "flink,java"] if with_kafka else ["--without", "kafka", "--with", "flink"]
    command = [LOCAL / "up", "--home", home, *with_what, "--task-managers", str(task_managers)]
    try:
        done = subprocess.run(
            [*command, "--while", str(os.getpid())],
            check=False,
            stdout=subprocess.PIPE,
            env={**os.environ, "EVENTVEIL_PYTHON": sys.executable},
        )
        if done.returncode:
            raise SystemExit(done.returncode)
        names = ["flink.address", "pool.address", "flink.jars", *(("kafka.address", "java.address") if with_kafka else ())]
        yield Cluster(*((home / name).read_text().strip().removeprefix("kafka://") for name in names))
    finally:
        subprocess.run(down, check=False)


def seconds(source: Path, workers: int, cluster: Cluster | None) -> float:
    """How long the job takes over a file, start-up included."""
    for name in ("out", "refused"):
        shutil.rmtree(WORK / name, ignore_errors=True)
    job = {
        "job": "bench",
        "input": {"uri": str(source)},
        "variants": [{"policy": str(HERE / "policy.yaml"), "output": {"uri": str(WORK / "out"), "format": "parquet"}}],
        "keys": str(WORK / "keyring.json"),
        "dead_letters": {"uri": str(WORK / "refused"), "custodian": str(WORK / "custodian.pub")},
        "workers": workers,
    }
    if cluster is not None:
        job |= {"runner": "flink", "flink": cluster.as_json()}
    path = WORK / "job.yaml"
    path.write_text(json.dumps(job))
    began = time.perf_counter()
    subprocess.run([*EVENTVEIL, "run", str(path), "--quiet"], check=True, stdout=subprocess.DEVNULL)
    took = time.perf_counter() - began
    return took if cluster is None else on_cluster(cluster)


def on_cluster(cluster: Cluster) -> float:
    """How long Flink's last job took."""
    with urllib.request.urlopen(f"http://{cluster.master}/jobs/overview", timeout=60) as answer:
        last = max(json.load(answer)["jobs"], key=lambda job: int(job["start-time"]))
    return float(last["duration"]) / 1000


def rates(whole: Path, quarter: Path, events: int, workers: int, rounds: int, cluster: Cluster) -> tuple[float, float]:
    """Events per second without start-up: here, and on Flink."""
    least: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, where in ((LOCALLY, None), (ON_FLINK, cluster)):
            found = [seconds(quarter, workers, where), seconds(whole, workers, where)]
            print(
                f"  {name}, {workers} worker{'s' * (workers > 1)}: {found[0]:.1f} s for a quarter, {found[1]:.1f} s for all",
                file=sys.stderr,
            )
            least[name] = [min(each) for each in zip(found, least.get(name, found))]
    more = events - events // 4
    for name, (short, long) in least.items():
        if long <= short:
            raise SystemExit(f"{name} all events took no longer than a quarter of them: take more events, or rounds")
    here, there = ((more / (least[name][1] - least[name][0])) for name in (LOCALLY, ON_FLINK))
    return here, there


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    new_keys(WORK)
    whole, quarter = orders("orders", "--events", str(options.events)), orders("quarter", "--events", str(options.events // 4))
    cores = len(os.sched_getaffinity(0))
    home = Path(tempfile.mkdtemp(prefix="eventveil-bench-"))
    try:
        with flink(home, 2 if cores >= ENOUGH_CORES else 1) as cluster:
            # The first job finds Java cold.
            seconds(orders("ten", "--events", "10"), 1, cluster)
            found = {
                workers: rates(whole, quarter, options.events, workers, options.rounds, cluster)
                for workers in (1, 2)
                if workers == 1 or cores >= ENOUGH_CORES
            }
    finally:
        shutil.rmtree(home, ignore_errors=True)
    print(f"{options.events:,} orders from a file to Parquet, start-up apart; {cores} cores, load {os.getloadavg()[1]:.1f}")
    print(f"{'parallelism':12}{'here, events/s':>16}{'on Flink, events/s':>20}{'x':>8}")
    for workers, (here, there) in found.items():
        print(f"{workers:<12}{here:>16,.0f}{there:>20,.0f}{there / here:>8.2f}")
    if 2 not in found:
        print(f"{2:<12}not measured: {cores} cores")


if __name__ == "__main__":
    main()
