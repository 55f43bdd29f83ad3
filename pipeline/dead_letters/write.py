"""Letters -> files, as a DoFn."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from eventveil.pipeline.assemble import AssembleParts
from eventveil.pipeline.dead_letters.store import LetterFolder
from eventveil.pipeline.report.meter import METER
from eventveil.transforms.batch import Part
from eventveil.transforms.keys.keyring import load_keys
from eventveil.transforms.keys.part_names import part_name

__all__ = ["WriteLetters"]


class WriteLetters(AssembleParts):
    """Sealed letters -> one file per part; without a folder they are counted and lost, as the user has allowed.

    Args:
        stage: tells the letters of decoding and of each policy apart within one folder.
    """

    def __init__(self, folder: LetterFolder | None, stage: str, keys: str) -> None:
        self._folder = folder
        self._stage = stage
        self._keys = keys

    def setup(self) -> None:
        # Not the key of the names itself: this refuses to be pickled.
        self._names = load_keys(self._keys).domain(f"dead letters of {self._stage}")

    def publish(self, part: Part, batches: list[pa.RecordBatch]) -> None:
        METER.add(refused=sum(batch.num_rows for batch in batches))
        if self._folder is not None:
            self._folder.publish(part_name(self._names.for_domain("part"), part), [lines for batch in batches for lines in _lines(batch)])


def _lines(batch: pa.RecordBatch) -> list[bytes]:
    """All letters of a batch in one piece: they may be many, and each ends its line."""
    letters: Any = batch.column("letter").drop_null()
    return [b"".join(letters.to_pylist())] if len(letters) else []
