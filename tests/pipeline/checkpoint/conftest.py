"""A job's keys, veiled rows, and what a loop does with them; folders are closed when a test ends."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from eventveil.pipeline.checkpoint.carry import CarryWriter, SliceCarry, read_carry
from eventveil.pipeline.checkpoint.folder import CheckpointFolder
from eventveil.pipeline.checkpoint.seal import StateSeal, WindowSeals
from eventveil.schemas.durations import Duration
from eventveil.transforms.batch import Part, with_part
from eventveil.transforms.keys.derive import HeldKeys
from eventveil.transforms.windows import WindowRule

Open = Callable[..., CheckpointFolder]
Rows = Sequence[int]
VARIANT = "research"
ROOT = bytes(range(32))


def seals_of(keys: HeldKeys) -> WindowSeals:
    return WindowSeals(keys.domain("research"), WindowRule(Duration.parse("1min")))


def opened_below(folder: Path) -> int:
    """How many descriptors of this process are files below a folder: what other tests left open does not count."""
    files = {(found.st_dev, found.st_ino) for found in (path.stat() for path in folder.rglob("*"))}
    opened = 0
    for name in os.listdir("/dev/fd"):
        with suppress(OSError):  # that of the listing itself
            found = os.fstat(int(name))
            opened += (found.st_dev, found.st_ino) in files
    return opened


def batch_of(rows: Rows, part: Part | None = None) -> pa.RecordBatch:
    columns: dict[str, Any] = {
        "n": pa.array(rows, pa.int64()),
        "name": pa.array([f"name {row}" for row in rows], pa.string()),
        "tags": pa.array([["a"] * (row % 3) or None for row in rows], pa.list_(pa.string())),
        "$order": pa.array([row.to_bytes(16, "big") for row in rows], pa.binary(16)),
    }
    batch = pa.RecordBatch.from_pydict(columns)
    return batch if part is None else with_part(batch, part)


class Loop:
    """A job's loop over its checkpoint. Closed and opened again with `again`."""

    def __init__(self, at: Path, keys: HeldKeys | None = None) -> None:
        self.at = at
        self.keys = keys or HeldKeys(ROOT)
        self.seals = seals_of(self.keys)
        self.folder = CheckpointFolder(str(at), StateSeal.of(self.keys))
        self.writer: CarryWriter | None = None
        self.slice = 0

    def again(self, from_now: bool = False, **identity: Any) -> Loop:
        self.folder.close()
        self.folder = CheckpointFolder(str(self.at), StateSeal.of(self.keys))
        found = self.folder.open({"job": "orders", **identity}, from_now)
        self.slice = found["slice"] if found else 0
        self.writer = self.folder.writer(dict.fromkeys((VARIANT, "marketing"), self.seals))
        return self

    def begin(self, due: Collection[int] = (), variant: str = VARIANT) -> SliceCarry:
        """Up to where rows are appended. An intent that stands is done again."""
        if self.folder.intent() is None:
            self.folder.write_intent({"slice": self.slice + 1})
        assert self.writer is not None
        return self.writer.begin_slice(self.slice + 1, [(variant, window) for window in due])

    def finish(self, withheld: Collection[int] = (), variant: str = VARIANT) -> dict[str, dict[str, list[int]]]:
        assert self.writer is not None
        listed = self.writer.flush_all()
        self.writer.sync()
        self.folder.commit({"slice": self.slice + 1, "carry": listed}, [(variant, window) for window in withheld])
        self.slice += 1
        return listed

    def do(
        self,
        appended: Mapping[int, Rows] | Iterable[tuple[int, pa.RecordBatch]],
        due: Collection[int] = (),
        withheld: Collection[int] = (),
        variant: str = VARIANT,
    ) -> dict[str, dict[str, list[int]]]:
        """A slice; rows by window, in a batch each."""
        carry = self.begin(due, variant)
        for window, rows in appended.items() if isinstance(appended, Mapping) else appended:
            carry.append(variant, window, rows if isinstance(rows, pa.RecordBatch) else batch_of(rows))
        return self.finish(withheld, variant)

    def rows(self, window: int, variant: str = VARIANT) -> list[int]:
        """What the checkpoint holds for a window, in order."""
        return [n for batch in read_carry(self.folder.carry(variant, window), self.seals.of(window)) for n in batch.column("n").to_pylist()]

    def files(self) -> list[str]:
        """All files of the folder but the lock."""
        return sorted(str(path.relative_to(self.at)) for path in self.at.rglob("*") if path.is_file() and path.name != "lock")


@pytest.fixture
def keys() -> HeldKeys:
    return HeldKeys(ROOT)


@pytest.fixture
def seals(keys: HeldKeys) -> WindowSeals:
    return seals_of(keys)


@pytest.fixture
def at(tmp_path: Path) -> Path:
    """Where the checkpoint of the test's job stands."""
    return tmp_path / "state" / "orders"


@pytest.fixture
def batch() -> Callable[..., pa.RecordBatch]:
    return batch_of


@pytest.fixture
def opened(at: Path) -> Callable[[], int]:
    """How many files of the checkpoint are open at the moment."""
    return lambda: opened_below(at)


@pytest.fixture
def loop(at: Path) -> Iterator[Loop]:
    made = Loop(at).again()
    yield made
    made.folder.close()


@pytest.fixture
def new_folder(keys: HeldKeys) -> Iterator[Open]:
    made: list[CheckpointFolder] = []

    def make(path: Path, of: HeldKeys = keys) -> CheckpointFolder:
        made.append(CheckpointFolder(str(path), StateSeal.of(of)))
        return made[-1]

    yield make
    for folder in made:
        folder.close()
