"""What an engine does again is published once: however it is cut anew, and whoever dies in between."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest

from eventveil.pipeline._frames import Address, Frames, SealedFrames
from eventveil.pipeline.gathering import Gathering
from eventveil.pipeline.ledger import WindowLedger
from eventveil.schemas.durations import Duration
from eventveil.transforms.batch import ORDER
from eventveil.transforms.keys.providers.keyring_file import new_keyring
from eventveil.transforms.windows import WindowRule

HOUR = 3_600_000_000
WINDOW = Address("orders", 10 * HOUR, 0)
Rows = Sequence[tuple[int, str]]


class Killed(Exception):
    """In place of kill -9."""


class Sink:
    """Keeps panes as a folder would: what stands under a number stays, and the same again is fine."""

    def __init__(self) -> None:
        self.panes: dict[int, list[tuple[int, str]]] = {}
        self.dies_before = self.dies_behind = False

    def __call__(self, pane: int, batch: pa.RecordBatch) -> bool:
        if self.dies_before:
            raise Killed
        rows = [(order[0], text) for order, text in zip(batch[ORDER].to_pylist(), batch["text"].to_pylist())]
        if self.panes.setdefault(pane, rows) != rows:
            return False
        if self.dies_behind:
            raise Killed
        return True

    @property
    def rows(self) -> list[tuple[int, str]]:
        return sorted(row for rows in self.panes.values() for row in rows)


@pytest.fixture
def seals(tmp_path: Path) -> SealedFrames:
    new_keyring(tmp_path / "keyring.json")
    gathering = Gathering(WindowRule(Duration(1, "min"), "UTC"), 0, released=False)
    return Frames("analytics", gathering, str(tmp_path / "keyring.json")).open()


@pytest.fixture
def ledger(tmp_path: Path, seals: SealedFrames) -> WindowLedger:
    return WindowLedger(str(tmp_path / "ledger"), seals)


def batch(rows: Rows) -> pa.RecordBatch:
    ids = pa.array([bytes([number]) * 16 for number, _ in rows], pa.binary(16))
    return pa.RecordBatch.from_arrays([pa.array([text for _, text in rows], pa.string()), ids], ["text", ORDER])


ROWS = [(number, f"row {number}") for number in range(9)]


def test_the_same_rows_again_are_not_published(ledger: WindowLedger) -> None:
    sink = Sink()

    assert 0 == ledger.publish(WINDOW, 0, [batch(ROWS[:4]), batch(ROWS[4:5])], sink)
    assert 5 == ledger.publish(WINDOW, 0, [batch(ROWS[:5])], sink)
    assert {0: ROWS[:5]} == sink.panes


def test_cut_anew_each_row_is_published_once(ledger: WindowLedger) -> None:
    sink = Sink()
    ledger.publish(WINDOW, 0, [batch(ROWS[:3])], sink)
    ledger.publish(WINDOW, 4, [batch(ROWS[3:6])], sink)
    before = dict(sink.panes)

    assert (2, 2) == (ledger.publish(WINDOW, 0, [batch(ROWS[:2])], sink), ledger.publish(WINDOW, 2, [batch(ROWS[2:4])], sink))
    assert 2 == ledger.publish(WINDOW, 4, [batch(ROWS[4:])], sink)
    assert before == {pane: rows for pane, rows in sink.panes.items() if pane in before}
    assert ROWS == sink.rows


def test_any_cut_after_any_other(ledger: WindowLedger) -> None:
    seeded, sink = random.Random(11), Sink()
    for _ in range(8):
        rows = seeded.sample(ROWS, len(ROWS))
        cuts = [0, *sorted(seeded.sample(range(1, len(ROWS)), 3)), len(ROWS)]
        for pane, (start, end) in enumerate(pairwise(cuts)):
            assert ledger.publish(WINDOW, pane, [batch(rows[start:end])], sink) is not None
    assert ROWS == sink.rows


@pytest.mark.parametrize("where", ["dies_before", "dies_behind"])
def test_what_was_begun_is_completed_as_it_was_begun(tmp_path: Path, seals: SealedFrames, where: str) -> None:
    sink = Sink()
    setattr(sink, where, True)
    with pytest.raises(Killed):
        WindowLedger(str(tmp_path / "ledger"), seals).publish(WINDOW, 0, [batch(ROWS[:4])], sink)
    setattr(sink, where, False)

    # Done again with fewer rows, and then with the rest: the first pane is the one that was begun.
    again = WindowLedger(str(tmp_path / "ledger"), seals)
    assert 3 == again.publish(WINDOW, 0, [batch(ROWS[:3])], sink)
    assert 1 == again.publish(WINDOW, 1, [batch(ROWS[3:])], sink)
    assert {0: ROWS[:4], 1: ROWS[4:]} == sink.panes


def test_rows_of_one_event_that_differ_are_different_rows(ledger: WindowLedger) -> None:
    sink = Sink()
    ledger.publish(WINDOW, 0, [batch([(1, "a"), (1, "a"), (2, "a")])], sink)
    ledger.publish(WINDOW, 1, [batch([(1, "a"), (1, "b"), (2, "a")])], sink)

    assert [(1, "a"), (1, "a"), (1, "b"), (2, "a")] == sink.rows


def test_where_another_content_stands_nothing_is_noted(ledger: WindowLedger) -> None:
    sink = Sink()
    sink.panes[0] = [(7, "of somebody else")]

    assert ledger.publish(WINDOW, 0, [batch(ROWS)], sink) is None
    assert {0: [(7, "of somebody else")]} == sink.panes


def test_variants_windows_and_shards_are_apart(ledger: WindowLedger) -> None:
    for address in (WINDOW, Address("other", WINDOW.start_us, 0), Address("orders", WINDOW.start_us, 1), Address("orders", 11 * HOUR, 0)):
        assert 0 == ledger.publish(address, 0, [batch(ROWS)], Sink())


def test_windows_of_long_ago_are_forgotten(tmp_path: Path, seals: SealedFrames) -> None:
    ledger, sink = WindowLedger(str(tmp_path / "ledger"), seals), Sink()
    folder, long_ago = tmp_path / "ledger", time.time() - 3_700
    for hour in (7, 8, 9):
        ledger.publish(Address("orders", hour * HOUR, 0), 0, [batch(ROWS)], sink)
    for path in folder.iterdir():
        # The second is one that another worker has just published something of.
        os.utime(path, (long_ago, long_ago) if not path.name.startswith(f"{8 * HOUR}") else None)
    ledger.publish(Address("orders", 10 * HOUR, 0), 0, [batch(ROWS)], sink)

    assert sorted(f"{hour * HOUR}" for hour in (8, 9, 10)) == sorted(path.name.partition("-")[0] for path in folder.iterdir())


def test_nothing_stands_in_clear(tmp_path: Path, ledger: WindowLedger) -> None:
    sink = Sink()
    sink.dies_before = True
    with pytest.raises(Killed):
        ledger.publish(WINDOW, 0, [batch([(1, "abdullin@example.org")])], sink)
    found = [path.read_bytes() for path in (tmp_path / "ledger").rglob("*") if path.is_file()]

    assert 1 == len(found)
    assert b"abdullin" not in found[0]
