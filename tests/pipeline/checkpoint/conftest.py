"""A job's keys, and checkpoint folders that are closed when a test ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from eventveil.pipeline.checkpoint.folder import CheckpointFolder
from eventveil.pipeline.checkpoint.seal import StateSeal, WindowSeals
from eventveil.schemas.durations import Duration
from eventveil.transforms.keys.derive import HeldKeys
from eventveil.transforms.windows import WindowRule

Open = Callable[..., CheckpointFolder]


@pytest.fixture
def keys() -> HeldKeys:
    return HeldKeys(bytes(range(32)))


@pytest.fixture
def seals(keys: HeldKeys) -> WindowSeals:
    return WindowSeals(keys.domain("research"), WindowRule(Duration.parse("1min")))


@pytest.fixture
def at(tmp_path: Path) -> Path:
    """Where the checkpoint of the test's job stands."""
    return tmp_path / "state" / "orders"


@pytest.fixture
def new_folder(keys: HeldKeys) -> Iterator[Open]:
    made: list[CheckpointFolder] = []

    def make(path: Path, of: HeldKeys = keys) -> CheckpointFolder:
        made.append(CheckpointFolder(str(path), StateSeal.of(of)))
        return made[-1]

    yield make
    for folder in made:
        folder.close()
