"""Show the windows of an output folder: as they appear, or all of them as a table.

    python windows.py out --until PID     one line per window, until the process PID has ended
    python windows.py out                 the table, and one row

A window is there when its manifest and all the files that it names are.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any


def windows(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """What is published, in order of time."""
    for manifest in sorted(folder.glob("_eventveil-*-p*.json")):
        unit = json.loads(manifest.read_text("utf-8"))
        if all((folder / file["name"]).exists() for file in unit["files"]):
            yield manifest, unit


def rows_of(unit: dict[str, Any]) -> int:
    return sum(file["rows"] for file in unit["files"])


def line(unit: dict[str, Any]) -> str:
    again = f", pane {unit['pane']}" if unit["pane"] else ""
    return f"{unit['window']}  {rows_of(unit):6,} rows  {sum(file['bytes'] for file in unit['files']) / 1e3:6.1f} kB{again}"


def is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def follow(folder: Path, process: int) -> None:
    shown: set[Path] = set()
    going_on = True
    while going_on:
        going_on = is_there(process)
        for manifest, unit in windows(folder):
            if manifest not in shown:
                shown.add(manifest)
                print(f"  {datetime.fromtimestamp(manifest.stat().st_mtime).astimezone():%H:%M:%S}  {line(unit)}", flush=True)
        time.sleep(0.2)


def plain(value: Any) -> Any:
    return float(value) if isinstance(value, Decimal) else str(value)


def table(folder: Path) -> None:
    import pyarrow.parquet as pq

    found = list(windows(folder))
    for _, unit in found:
        print(f"  {line(unit)}")
    print(f"  {len(found)} windows, {sum(rows_of(unit) for _, unit in found):,} rows")
    names = [file["name"] for _, unit in found for file in unit["files"]]
    if names:
        print("\none of these rows:\n")
        print(json.dumps(pq.read_table(folder / names[0]).slice(0, 1).to_pylist()[0], indent=2, ensure_ascii=False, default=plain))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--until", type=int, metavar="PID")
    given = parser.parse_args()
    if given.until is None:
        table(given.folder)
    else:
        follow(given.folder, given.until)


if __name__ == "__main__":
    main()
