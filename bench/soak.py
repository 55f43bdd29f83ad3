"""A live job under a steady load: does anything grow, and is anything lost?

    make soak                                        # 30 minutes, 5,000 orders a second
    make soak ARGS='--minutes 3 --rate 2000'

A real Kafka, the orders of examples/shipping_order, made by its produce.py, each up to a second late; its policy; Parquet that is rolled
every 10 s. Every four seconds or so the job's own metrics, and the size of its checkpoint folder, go into soak.csv, and at the end
all of them into soak.svg, both in build/soak. Fails where memory, checkpoint or open files have grown by more than a tenth from the
second fifth of the run to the last (medians), where events are missing at the end, or the job is not caught up within a minute.
What waits for its window grows with the time a slice takes: on a machine that becomes busy meanwhile, so does the checkpoint.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from stand import ROOT, LiveJob, folder_bytes, kafka, make_topic, median, new_keys, quietly

EXAMPLE = ROOT / "examples" / "shipping_order"
COLUMNS = {
    "memory_mb": ("memory, MB", 0),
    "cpu_cores": ("CPU, cores", 2),
    "checkpoint_mb": ("checkpoint folder, MB", 1),
    "open_files": ("open files", 0),
    "lag": ("lag, events", 0),
    "events_per_s": ("events/s", 0),
}
"""What is plotted: its title, and how many digits its figures have."""
MUST_NOT_GROW = ("memory_mb", "checkpoint_mb", "open_files")
GROWTH = 1.10
ROLL_S = 10
# No part of a roll, nor near one: what waits grows until it is rolled, and samples that meet it at two ages, later by milliseconds each
# time, show a growth of half an hour that is none.
EVERY_S = 3.82
# As much of the topic as three or four minutes: the disk must not fill.
RETENTION = {"retention.bytes": str(256 << 20), "segment.bytes": str(32 << 20), "retention.ms": "-1"}
Sample = dict[str, float]


def watch(job: LiveJob, producer: subprocess.Popen[str], every_s: float, target: Path) -> list[Sample]:
    """A sample every few seconds, for as long as orders are produced."""
    samples: list[Sample] = []
    began = time.monotonic()
    with target.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["second", *COLUMNS, "open_windows", "slices", "delay_s"])
        writer.writeheader()
        before, before_at = job.figures(), began
        while producer.poll() is None and job.process.poll() is None:
            time.sleep(every_s)
            figures, now = job.figures(), time.monotonic()
            if not figures:
                continue
            passed = now - before_at
            sample = {
                "second": now - began,
                "memory_mb": figures["process_resident_memory_bytes"] / 1e6,
                "cpu_cores": (figures["process_cpu_seconds_total"] - before["process_cpu_seconds_total"]) / passed,
                "checkpoint_mb": folder_bytes(job.folder / "checkpoint") / 1e6,
                "open_files": figures["process_open_fds"],
                "lag": figures["eventveil_lag_events"],
                "events_per_s": (figures["eventveil_read_total"] - before["eventveil_read_total"]) / passed,
                "open_windows": figures["eventveil_open_windows"],
                "slices": figures["eventveil_slices_total"],
                "delay_s": figures.get("eventveil_event_time_delay_seconds", 0),
            }
            samples.append(sample)
            writer.writerow({name: round(value, 3) for name, value in sample.items()})
            file.flush()
            before, before_at = figures, now
    return samples


def fifth(samples: Sequence[Sample], number: int, name: str) -> float:
    """The median of a fifth of the run, 1 to 5."""
    size = len(samples) / 5
    return median([one[name] for one in samples[int((number - 1) * size) : max(int(number * size), 1)]])


def growths(samples: Sequence[Sample]) -> list[str]:
    found = []
    for name in MUST_NOT_GROW:
        early, late = fifth(samples, 2, name), fifth(samples, 5, name)
        if late > early * GROWTH:
            found.append(f"{COLUMNS[name][0]}: {early:.1f} in the second fifth, {late:.1f} in the last")
    return found


def table(samples: Sequence[Sample]) -> str:
    lines = ["| | second fifth | last fifth | highest |", "|---|---|---|---|"]
    for name, (title, digits) in COLUMNS.items():
        figures = fifth(samples, 2, name), fifth(samples, 5, name), max(one[name] for one in samples)
        lines.append(f"| {title} | " + " | ".join(f"{figure:,.{digits}f}" for figure in figures) + " |")
    return "\n".join(lines)


def plot(samples: Sequence[Sample], title: str) -> str:
    """Each of COLUMNS over time, from zero to its highest, as SVG."""
    width, height, left, top, gap_x, gap_y = 360, 110, 60, 60, 80, 60
    end = samples[-1]["second"]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * (width + gap_x)}" height="{3 * (height + gap_y) + 50}">',
        '<g font-family="sans-serif" font-size="12" fill="#333">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{left}" y="24" font-size="15">{title}</text>',
    ]
    for number, (name, (what, digits)) in enumerate(COLUMNS.items()):
        x, y = left + number % 2 * (width + gap_x), top + number // 2 * (height + gap_y)
        highest = max(one[name] for one in samples)
        scale = highest or 1.0
        points = " ".join(f"{x + one['second'] / end * width:.1f},{y + height - one[name] / scale * height:.1f}" for one in samples)
        parts += [
            f'<text x="{x}" y="{y - 8}" font-weight="bold">{what}</text>',
            f'<path d="M{x},{y} V{y + height} H{x + width}" fill="none" stroke="#999"/>',
            f'<text x="{x - 6}" y="{y + 10}" text-anchor="end">{highest:,.{digits}f}</text>',
            f'<text x="{x - 6}" y="{y + height}" text-anchor="end">0</text>',
            f'<text x="{x + width}" y="{y + height + 16}" text-anchor="end">{end / 60:.0f} min</text>',
            f'<polyline points="{points}" fill="none" stroke="#1f6fb4" stroke-width="1.2"/>',
        ]
    return "\n".join([*parts, "</g></svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, default=5000, help="orders a second")
    parser.add_argument("--every", type=float, default=EVERY_S, help="seconds between two samples (%(default)s)")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "soak")
    options = parser.parse_args()
    shutil.rmtree(options.work / "job", ignore_errors=True)
    options.work.mkdir(parents=True, exist_ok=True)
    work = options.work.resolve()
    new_keys(work)
    producer = None
    with kafka(work) as address:
        make_topic(address, "orders", config=RETENTION)
        source = f"kafka://{address}/orders?group=soak"
        with LiveJob(work / "job", EXAMPLE / "policy.yaml", source, work, "--format", "parquet", "--roll", f"{ROLL_S}s") as job:
            try:
                job.wait_until("looking at its topic", lambda figures: "eventveil_lag_events" in figures)
                arguments = ["--rate", options.rate, "--seconds", options.minutes * 60, "--late", 1]
                command = [sys.executable, EXAMPLE / "produce.py", f"kafka://{address}/orders", *arguments]
                producer = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
                samples = watch(job, producer, options.every, work / "soak.csv")
                said = producer.communicate()[1]
                if job.process.poll() is not None or producer.returncode:
                    log = (job.folder / "job.log").read_text(errors="replace")[-2000:]
                    raise SystemExit(f"the job ended, or the producer did: {said}{log}")
                written = int(said.split()[0])
                last = job.wait_until(
                    "all read, all windows published", lambda f: not f["eventveil_lag_events"] and not f["eventveil_open_windows"], 60
                )
                status = job.end()
                rows = job.rows()
            finally:
                quietly(producer)
    title = f"{options.rate:,.0f} events/s for {options.minutes:g} minutes: {written:,} written, {rows:,} published"
    (work / "soak.svg").write_text(plot(samples, title))
    refused = int(last.get("eventveil_events_total refused", 0))
    wrong = growths(samples)
    if rows + refused + int(last["eventveil_events_total filtered"]) != written:
        wrong.append(f"{written:,} events were written, {rows:,} published and {refused:,} refused")
    if status:
        wrong.append(f"the job ended with {status}")
    counted = f"{title}, {refused:,} refused, {int(last['eventveil_slices_total']):,} slices"
    print(counted, table(samples), f"soak.csv and soak.svg lie in {work}", sep="\n\n")
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
