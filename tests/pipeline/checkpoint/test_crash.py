"""Killed anywhere: the folder is found as it was before the slice, with its intent, or as it is after it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

MINUTE = 60_000_000


@pytest.mark.parametrize(("life", "least"), [("slice", 60), ("first", 40), ("anew", 20)])
def test_killed_at_every_system_call(tmp_path: Path, life: str, least: int) -> None:
    script = Path(__file__).parent / "killed.py"

    done = subprocess.run([sys.executable, str(script), str(tmp_path), life], capture_output=True, text=True, timeout=300, check=False)

    assert ("", 0) == (done.stderr, done.returncode)
    assert least <= int(done.stdout)


class TestStatesByHand:
    """What stands after each step of a commit, and what a loss of power may leave, where a kill cannot."""

    def commit(self, loop: Any) -> dict[str, bytes]:
        """Slice 2, which publishes one window, withholds one and begins one. The files of before, by name."""
        loop.do({0: [1], MINUTE: [2], 2 * MINUTE: [3]})
        loop.folder.write_intent({"slice": 2})
        before = {name: (loop.at / name).read_bytes() for name in loop.files()}
        loop.do({3 * MINUTE: [4]}, due=[0, MINUTE], withheld=[MINUTE])
        return before

    def final(self, loop: Any) -> None:
        loop.again()
        files = ["carry/research/120000000-1.carry", "carry/research/180000000-2.carry", "checkpoint.json"]

        assert ([], [], [3], [4]) == tuple(loop.rows(minute * MINUTE) for minute in range(4))
        assert loop.folder.intent() is None
        assert [*files, "withheld/research/60000000-1.carry"] == loop.files()

    @pytest.mark.parametrize("with_intent", [True, False], ids=["intent", "no_intent"])
    @pytest.mark.parametrize("published", [True, False], ids=["published", "removed"])
    @pytest.mark.parametrize("withheld", [True, False], ids=["not_withheld", "withheld"])
    def test_after_the_checkpoint_was_replaced(self, loop: Any, with_intent: bool, published: bool, withheld: bool) -> None:
        before = self.commit(loop)
        loop.folder.close()
        if with_intent:
            (loop.at / "intent.json").write_bytes(before["intent.json"])
        if published:
            (loop.at / "carry/research/0-1.carry").write_bytes(before["carry/research/0-1.carry"])
        if withheld:
            (loop.at / "withheld/research/60000000-1.carry").rename(loop.at / "carry/research/60000000-1.carry")

        self.final(loop)

    @pytest.mark.parametrize(
        "left", [b"", b"EVCA", b"EVCARRY1\0\0", b"EVCARRY1\0\0\4\0half", bytes(5_000)], ids=["0", "4", "10", "16", "zeros"]
    )
    def test_a_new_file_that_was_never_synced(self, loop: Any, left: bytes) -> None:
        loop.do({0: [1]})
        loop.begin()
        loop.folder.close()
        (loop.at / "carry/research/60000000-2.carry").write_bytes(left)
        loop.again()

        assert ["carry/research/0-1.carry", "checkpoint.json", "intent.json"] == loop.files()

    @pytest.mark.parametrize("tail", [b"\0", bytes(20_000), b"\0\0\0\x30\0\0\1\0\0\0\0\0\0\0\0\2half"], ids=["1", "zeros", "half"])
    def test_a_tail_that_was_never_synced(self, loop: Any, tail: bytes) -> None:
        loop.do({0: [1]})
        loop.begin()
        loop.folder.close()
        with (loop.at / "carry/research/0-1.carry").open("ab") as file:
            file.write(tail)
        loop.again().do({0: [2]})

        assert [1, 2] == loop.rows(0)

    def test_carry_is_on_the_disk_before_the_checkpoint_lists_it(self, loop: Any, batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        loop.do({MINUTE: [1]})
        done: list[object] = []
        fsync, replace = os.fsync, os.replace
        monkeypatch.setattr(os, "fsync", lambda descriptor: (done.append(os.fstat(descriptor).st_ino), fsync(descriptor)))
        monkeypatch.setattr(os, "replace", lambda old, new: (done.append(Path(new).name), replace(old, new)))
        carry = loop.begin()
        for window in (0, MINUTE):
            carry.append("marketing", window, batch([1]))
            carry.append("research", window, batch([1]))
        # commit() itself waits for the disk, whether sync() was called or not.
        loop.folder.commit({"slice": 2, "carry": loop.writer.flush_all()})
        before = done[: done.index("checkpoint.json")]
        inodes = {path.stat().st_ino for path in (loop.at / "carry").rglob("*")}

        assert {"intent.json", (loop.at / "carry").stat().st_ino, *inodes} <= set(before)

    def test_threads_of_an_attempt_that_failed_append_nothing_to_the_next(self, loop: Any) -> None:
        stale = loop.begin()
        fresh = loop.begin()
        row = pa.RecordBatch.from_pydict({"n": [1]})
        fresh.append("research", 0, row)

        with pytest.raises(ValueError, match="over"):
            stale.append("research", 0, row)

        loop.finish()

        assert [1] == loop.rows(0)
