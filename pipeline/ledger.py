"""What was published of a roll of files, noted where an engine may do it again.

An engine that has failed reads on from its last checkpoint, and puts windows together that were published already: with other rows, as
which of them come too late for a pane depends on how the reading went. So each row that is published is noted, and none is published
twice; and what is about to be published is noted before, so that it is completed as it was begun, whoever dies in between.

    <folder>/<window>-<keyed digest>/000000.rows    the rows of a pane that is being published, sealed
                                     000000.ids     16 bytes for each row of one that was, sealed
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from eventveil.pipeline._frames import Address, SealedFrames
from eventveil.pipeline.checkpoint._disk import make_private_folder
from eventveil.pipeline.sinks.atomic import create_file, remove_file, unwritable
from eventveil.pipeline.sinks.publish import INTERNAL
from eventveil.transforms.batch import ORDER
from eventveil.transforms.columns import Column
from eventveil.transforms.encode.compact import compact_batch
from eventveil.transforms.encode.json_events import encode_json
from eventveil.transforms.keys.prf import macs

__all__ = ["WindowLedger"]

_KEPT_US = 3_600_000_000
Ids = npt.NDArray[np.void]
Put = Callable[[int, pa.RecordBatch], bool]
"""Publishes a pane, by its number; False where another content stands. The same pane again changes nothing."""


class WindowLedger:
    """The panes of one variant's windows. For one process; others may do the same at the same time.

    A window is remembered for an hour after something was last published of it, and until one that begins an hour later is; a row that
    comes after that, and that the engine repeats, may be published twice.

    Args:
        folder: that all workers see.
    """

    def __init__(self, folder: str, frames: SealedFrames) -> None:
        self._folder = folder
        self._frames = frames
        self._pruned: int | None = None

    def publish(self, address: Address, pane: int, batches: Sequence[pa.RecordBatch], put: Put) -> int | None:
        """Publish what is new among the rows, as this pane or the next that is free; returns how many rows were not, None for a conflict.

        Raises:
            StorageError: EV404 the folder cannot be used.
        """
        self._prune(address)
        place = os.path.join(self._folder, f"{address.start_us}-{self._frames.shard_key(address).hex()}")
        make_private_folder(self._folder)
        make_private_folder(place)
        rows = _one(batches)
        ids = self._ids(rows)
        while True:
            known, taken = self._settled(place, address, put)
            if known is None:
                return None
            fresh = ~np.isin(ids, known)
            if not fresh.any():
                return len(ids)
            while pane in taken:
                pane += 1
            mask: Column = pa.array(fresh)
            # Hidden bytes of rows that were left out must not be kept.
            new = rows if fresh.all() else compact_batch(rows.filter(mask))
            if create_file(_path(place, pane, "rows"), [self._frames.seal("rows", address, new)]):
                break
            # Another attempt was quicker: what it has begun is completed first.
        return len(ids) - int(fresh.sum()) if self._complete(place, pane, address, new, put) else None

    def _settled(self, place: str, address: Address, put: Put) -> tuple[Ids | None, set[int]]:
        """What was published, after completing what was begun; and the panes that are taken."""
        known: list[Ids] = [np.empty(0, "V16")]
        panes = sorted({int(name.partition(".")[0]) for name in _names(place) if name.partition(".")[0].isdigit()})
        for pane in panes:
            done = _read(_path(place, pane, "ids"))
            if done is None:
                begun = _read(_path(place, pane, "rows"))
                if begun is not None and not self._complete(place, pane, address, self._frames.unseal(begun).batch, put):
                    return None, set(panes)
                done = _read(_path(place, pane, "ids"))
            if done is not None:
                known.append(_bytes_of(self._frames.unseal(done).batch.column("id")))
        return np.concatenate(known), set(panes)

    def _complete(self, place: str, pane: int, address: Address, rows: pa.RecordBatch, put: Put) -> bool:
        if not put(pane, rows):
            return False
        data: Column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), rows.num_rows, [None, pa.py_buffer(self._ids(rows).tobytes())])
        create_file(_path(place, pane, "ids"), [self._frames.seal("ids", address, pa.RecordBatch.from_arrays([data], ["id"]))])
        remove_file(_path(place, pane, "rows"))
        return True

    def _ids(self, rows: pa.RecordBatch) -> Ids:
        """Of each row: what event it is of, and all that it shows."""
        visible = rows.select([name for name in rows.schema.names if name not in INTERNAL])
        # The release id has one length: behind it there is no doubt where the row begins.
        parts: list[Column] = [rows.column(ORDER).cast(pa.binary()), encode_json(visible).cast(pa.binary())]
        both: Column = pc.binary_join_element_wise(*parts, pa.scalar(b"", pa.binary()))
        return np.ascontiguousarray(macs("aes-cmac", [self._frames.ledger_key], None, both, 16)).view("V16").reshape(-1)

    def _prune(self, address: Address) -> None:
        """Forget windows that are long over; looked for once in a while."""
        if self._pruned is not None and address.start_us - self._pruned < _KEPT_US // 60:
            return
        self._pruned = address.start_us
        for name in _names(self._folder):
            start, _, digest = name.partition("-") if not name.startswith("-") else ("", "", "")
            if start.isdigit() and digest and int(start) < address.start_us - _KEPT_US:
                path = os.path.join(self._folder, name)
                # Another worker may be at work on it: of a backlog, windows of many hours are published at once.
                if _age_s(path) > _KEPT_US / 1e6:
                    shutil.rmtree(path, ignore_errors=True)


def _age_s(path: str) -> float:
    """Since a file was made or removed in a folder; 0 for one that is gone."""
    try:
        return time.time() - os.stat(path).st_mtime
    except OSError:
        return 0.0


def _path(place: str, pane: int, what: str) -> str:
    return os.path.join(place, f"{pane:06d}.{what}")


def _names(place: str) -> list[str]:
    try:
        return os.listdir(place)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unwritable(place, error) from None


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unwritable(path, error) from None


def _one(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    (whole,) = pa.Table.from_batches([batch.replace_schema_metadata(None) for batch in batches]).combine_chunks().to_batches()
    return whole


def _bytes_of(column: Column) -> Ids:
    return np.frombuffer(column.buffers()[1], "V16", len(column), 16 * column.offset)
