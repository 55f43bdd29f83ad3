"""Measure how fast a job on Flink reads Kafka: by our own source, and by Beam's KafkaIO.

    python bench/kafka_on_flink.py --events 200000

Both read the same topic of four partitions into Parquet, at parallelism 1, and take turns. The rate is that of the events between the
first and the last count that Flink tells, so that start-up is left out; it tells one a second. The best of --rounds counts. Starts a
Kafka, a Flink and Beam's expansion service of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from flink import Cluster, flink
from live import fill
from run import HERE, WORK, orders
from stand import EVENTVEIL, new_keys

from eventveil.pipeline.runners._flink_rest import FlinkRest
from eventveil.schemas.errors import EventveilError

SOURCES = {"kafka": "our own source", "kafka+java": "Beam's KafkaIO"}
LONGEST_S = 900.0


def rate(scheme: str, cluster: Cluster, events: int, turn: int) -> float:
    """Events per second of one job."""
    folder = WORK / "on-flink"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    job = {
        "job": "bench",
        "input": {
            # A group of its own: KafkaIO would begin where another one has come to.
            "uri": f"{scheme}://{cluster.kafka}/orders?group=bench-{scheme.replace('+', '-')}-{turn}",
            **({"expansion_service": cluster.java} if scheme == "kafka+java" else {}),
        },
        "variants": [{"policy": str(HERE / "policy.yaml"), "output": {"uri": str(folder / "out"), "format": "parquet"}}],
        "keys": str(WORK / "keyring.json"),
        "dead_letters": {"uri": str(folder / "refused"), "custodian": str(WORK / "custodian.pub")},
        "checkpoint": str(folder / "checkpoint"),
        "roll": "1h",
        "runner": "flink",
        "flink": cluster.as_json(),
    }
    (folder / "job.yaml").write_text(json.dumps(job))
    log = folder / "job.log"
    with log.open("wb") as sink:
        process = subprocess.Popen([*EVENTVEIL, "run", str(folder / "job.yaml"), "--log-json"], stdout=sink, stderr=sink)
    try:
        found = counted(FlinkRest(cluster.master), process, events)
        process.send_signal(signal.SIGTERM)
        process.wait(180)
    except TimeoutError:
        raise SystemExit(f"the job over {SOURCES[scheme]} did not come to its end\n{log.read_text()[-2000:]}") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    (began, first), (ended, last) = found[0], found[-1]
    if len(found) < 3:
        raise SystemExit(f"{SOURCES[scheme]} read all {last:,} events at once: take more events")
    return (last - first) / (ended - began)


def counted(rest: FlinkRest, process: subprocess.Popen[bytes], events: int) -> list[tuple[float, int]]:
    """(Seconds, events taken in until then), from the first events to the last. Raises TimeoutError."""
    seen: list[tuple[float, int]] = []
    deadline = time.monotonic() + LONGEST_S
    while not seen or seen[-1][1] < events:
        if process.poll() is not None or time.monotonic() > deadline:
            raise TimeoutError
        read = 0
        try:
            for job in rest.jobs():
                if job.state == "RUNNING":
                    read = max((number for name, number in rest.metrics(job.id).items() if name.endswith("|in")), default=0)
        except EventveilError:
            pass  # it is just beginning
        if read > (seen[-1][1] if seen else 0):
            seen.append((time.monotonic(), read))
        time.sleep(0.1)
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    new_keys(WORK)
    source = orders("orders", "--events", str(options.events))
    home = Path(tempfile.mkdtemp(prefix="eventveil-bench-"))
    best = dict.fromkeys(SOURCES, 0.0)
    try:
        with flink(home, 1, with_kafka=True) as cluster:
            fill(cluster.kafka, "orders", source)
            for turn in range(options.rounds):
                for scheme, name in SOURCES.items():
                    found = rate(scheme, cluster, options.events, turn)
                    print(f"  {name}: {found:,.0f} events/s", file=sys.stderr)
                    best[scheme] = max(best[scheme], found)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    print(f"{options.events:,} orders from Kafka to Parquet on Flink, parallelism 1, start-up apart; load {os.getloadavg()[1]:.1f}")
    for scheme, one in best.items():
        print(f"{SOURCES[scheme]:<16}{one:>12,.0f} events/s{one / best['kafka']:>8.2f}")


if __name__ == "__main__":
    main()
