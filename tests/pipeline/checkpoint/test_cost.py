"""A slice costs what it appends: neither the length of its windows nor the number of slices before it.

Measured in a process of its own: what other tests left behind, threads, descriptors, a heap, is not what is measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

_BEGIN = """
    import json, os, resource, sys, time
    from pathlib import Path

    sys.path.insert(0, {here!r})
    from conftest import Loop, batch_of

    os.fsync = lambda _: None  # the disk takes its time, and is not what is measured
    loop = Loop(Path({at!r})).again()
"""


def measured(at: Path, script: str) -> dict[str, Any]:
    begin = textwrap.dedent(_BEGIN).format(here=str(Path(__file__).parent), at=str(at))
    command = [sys.executable, "-c", begin + textwrap.dedent(script)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=300, check=True)
    return json.loads(done.stdout)


def test_the_thousandth_slice_costs_what_the_tenth_did(at: Path) -> None:
    script = """
    rows = batch_of(range(2_000))
    took, descriptors = [], []
    for _ in range(1_000):
        began = time.process_time()
        loop.do([(0, rows), (60_000_000, rows.slice(0, 1))])
        took.append(time.process_time() - began)
        descriptors.append(len(os.listdir("/dev/fd")))
    counted = loop.folder.carry("research", 0).rows
    opened = []
    for _ in range(3):
        began = time.process_time()
        loop.again()
        opened.append(time.process_time() - began)
    found = {"early": min(took[5:55]), "late": min(took[-50:]), "opened": min(opened), "rows": counted}
    print(json.dumps({**found, "descriptors": sorted(set(descriptors))}))
    """

    found = measured(at, script)

    assert 1 == len(found["descriptors"])
    assert 2 * found["early"] + 0.001 > found["late"]
    assert 2_000_000 == found["rows"]
    assert 0.1 > found["opened"], "opening reads no carry"


def test_memory_stays_flat_over_slices(at: Path) -> None:
    script = """
    rows = batch_of(range(20_000))
    for _ in range(20):
        loop.do([(0, rows)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(100):
        loop.do([(0, rows)])
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"length": loop.folder.carry("research", 0).length, "more": more}))
    """

    found = measured(at, script)

    assert 100_000_000 < found["length"]
    assert 30_000_000 > found["more"]
