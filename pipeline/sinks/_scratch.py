"""Rows that are put aside because there are too many for the memory: sealed, in a file without a name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType
from typing import BinaryIO

import pyarrow as pa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from eventveil.pipeline.sinks.atomic import open_nameless, unwritable

__all__ = ["Scratch"]


class Scratch:
    """Takes batches by number and gives them back, each number's in the order in which they came. As a context: then all is gone.

    What lies on the disk is sealed under a key that is nowhere else: veiled rows have keys of order, which never leave.

    Args:
        folder: on whose disk there is room. The file is made when there is something to put aside.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._file: BinaryIO | None = None
        self._seal = AESGCM(AESGCM.generate_key(256))
        self._places: dict[int, list[tuple[int, int]]] = {}
        self._end = 0

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, number: int, batches: Sequence[pa.RecordBatch]) -> None:
        """Put batches aside. Raises StorageError EV404."""
        together = pa.Table.from_batches(batches).combine_chunks()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, together.schema) as writer:
            writer.write_table(together)
        try:
            if self._file is None:
                self._file = open_nameless(self._folder)
            # A place is written once: as a nonce it is never used again.
            sealed = self._seal.encrypt(self._end.to_bytes(12, "big"), memoryview(sink.getvalue()).cast("B"), None)
            self._file.write(sealed)
            self._file.flush()
        except OSError as error:
            raise unwritable(self._folder, error) from None
        self._places.setdefault(number, []).append((self._end, len(sealed)))
        self._end += len(sealed)

    def take(self, number: int) -> list[pa.RecordBatch]:
        """The batches that were put aside under this number. Raises StorageError EV404."""
        found: list[pa.RecordBatch] = []
        for place, length in self._places.pop(number, []):
            assert self._file is not None, "there are places in the file"
            try:
                sealed = os.pread(self._file.fileno(), length, place)
            except OSError as error:
                raise unwritable(self._folder, error) from None
            with pa.ipc.open_stream(self._seal.decrypt(place.to_bytes(12, "big"), sealed, None)) as reader:
                found += reader
        return found
