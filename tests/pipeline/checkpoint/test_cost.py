"""A slice costs what it appends: neither the length of its windows nor the number of slices before it."""

from __future__ import annotations

import os
import resource
import sys
import time
from typing import Any

import pytest


def test_the_thousandth_slice_costs_what_the_tenth_did(loop: Any, batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # The disk takes its time, and is not what is measured.
    monkeypatch.setattr(os, "fsync", lambda _: None)
    rows = batch(range(2_000))
    took = []
    descriptors = []
    for _ in range(1_000):
        # Of this process, and the least of fifty: what else the machine does is not measured.
        began = time.process_time()
        loop.do([(0, rows), (60_000_000, rows.slice(0, 1))])
        took.append(time.process_time() - began)
        descriptors.append(len(os.listdir("/dev/fd")))
    early, late = min(took[5:55]), min(took[-50:])

    assert 1 == len(set(descriptors))
    assert 2 * early + 0.001 > late
    assert 2_000_000 == loop.folder.carry("research", 0).rows

    began = time.process_time()
    loop.again()

    assert 0.1 > time.process_time() - began, "opening reads no carry"


def test_memory_stays_flat_over_slices(loop: Any, batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    rows = batch(range(20_000))
    for _ in range(20):
        loop.do([(0, rows)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(100):
        loop.do([(0, rows)])

    assert 100_000_000 < loop.folder.carry("research", 0).length
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    assert 30_000_000 > more
