"""Carry that was changed, cut, exchanged or removed is never read as if it were whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eventveil.pipeline.checkpoint._disk import open_regular
from eventveil.pipeline.checkpoint._frames import read_frame, read_schema
from eventveil.pipeline.checkpoint.carry import read_carry
from eventveil.schemas.errors import StorageError

MINUTE = 60_000_000
ONE = "carry/research/0-1.carry"
TWO = "carry/research/60000000-1.carry"


def refused(action: Callable[[], object], code: str = "EV411") -> str:
    with pytest.raises(StorageError) as caught:
        action()
    (problem,) = caught.value.problems
    assert code == problem.code
    return problem.fact


def frames_of(loop: Any, window: int) -> list[tuple[int, int]]:
    """Where each frame begins and ends."""
    file, seal = loop.folder.carry("research", window), loop.seals.of(window)
    descriptor = open_regular(file.path)
    try:
        _, offset = read_schema(descriptor, file, seal)
        found = []
        while offset < file.length:
            frame = read_frame(descriptor, file, seal, offset)
            found.append((offset, frame.end))
            offset = frame.end
        return found
    finally:
        os.close(descriptor)


@pytest.fixture
def begun(loop: Any) -> Any:
    """Three slices, two windows; frames of the same size in both files, for the rows have."""
    for number in range(3):
        loop.do({0: [30 + 3 * number], MINUTE: [60 + 3 * number]})
    loop.do({0: [90]}, variant="marketing")
    return loop


class TestWhatIsRead:
    def test_every_byte_counts(self, begun: Any) -> None:
        path = begun.at / ONE
        sound = path.read_bytes()
        facts = set()
        for place in range(len(sound)):
            changed = bytearray(sound)
            changed[place] ^= 0x40
            path.write_bytes(changed)
            facts.add(refused(lambda: begun.rows(0)))
        path.write_bytes(sound)

        assert {
            "is no carry file",
            "is cut short, or was changed",
            "cannot be opened: it was changed, or is not of this window and checkpoint",
        } == facts
        assert [30, 33, 36] == begun.rows(0)

    def test_frames_exchanged(self, begun: Any) -> None:
        (_, (a, b), (c, d)) = frames_of(begun, 0)
        data = (begun.at / ONE).read_bytes()
        assert b - a == d - c
        (begun.at / ONE).write_bytes(data[:a] + data[c:d] + data[a:b])

        assert refused(lambda: begun.rows(0)).startswith("cannot be opened")

    def test_a_frame_twice_or_left_out(self, begun: Any) -> None:
        (_, (a, b), (c, d)) = frames_of(begun, 0)
        data = (begun.at / ONE).read_bytes()
        for changed in (data[:c] + data[a:b], data[:a] + data[c:d] + data[c:d]):
            (begun.at / ONE).write_bytes(changed)

            assert refused(lambda: begun.rows(0)).startswith("cannot be opened")

    @pytest.mark.parametrize("whole", [True, False], ids=["file", "frame"])
    def test_another_windows(self, begun: Any, whole: bool) -> None:
        a, b = frames_of(begun, 0)[1]
        mine, other = (begun.at / ONE).read_bytes(), (begun.at / TWO).read_bytes()
        (begun.at / ONE).write_bytes(other if whole else mine[:a] + other[a:b] + mine[b:])

        assert refused(lambda: begun.rows(0)).startswith("cannot be opened")

    def test_another_variants(self, begun: Any, batch: Any) -> None:
        carry = begun.begin()
        for variant in ("research", "marketing"):
            carry.append(variant, 5 * MINUTE, batch([7]))
        begun.finish()
        (begun.at / "carry/marketing/300000000-5.carry").write_bytes((begun.at / "carry/research/300000000-5.carry").read_bytes())

        assert refused(lambda: begun.rows(5 * MINUTE, "marketing")).startswith("cannot be opened")

    def test_of_a_checkpoint_that_was_set_aside(self, begun: Any) -> None:
        old = (begun.at / ONE).read_bytes()
        begun.again(from_now=True, stream=["another"])
        for number in range(3):
            begun.do({0: [30 + 3 * number]})
        assert len(old) == (begun.at / ONE).stat().st_size
        (begun.at / ONE).write_bytes(old)

        assert refused(lambda: begun.rows(0)).startswith("cannot be opened")

    def test_the_second_file_of_a_window_as_its_first(self, begun: Any) -> None:
        old = (begun.at / ONE).read_bytes()
        for number in range(3):
            begun.do({0: [30 + 3 * number]}, due=[0] if not number else [])
        assert len(old) == (begun.at / "carry/research/0-5.carry").stat().st_size
        (begun.at / "carry/research/0-5.carry").write_bytes(old)

        assert refused(lambda: begun.rows(0)).startswith("cannot be opened")

    @pytest.mark.parametrize(
        ("harm", "fact"),
        [
            pytest.param(lambda path: path.unlink(), "is missing", id="removed"),
            pytest.param(lambda path: (path.unlink(), path.mkdir()), "is no regular file", id="a_folder"),
            pytest.param(lambda path: (path.unlink(), os.mkfifo(path)), "is no regular file", id="a_pipe"),
            pytest.param(
                lambda path: (path.rename(path.parent.parent / "x"), path.symlink_to(path.parent.parent / "x")),
                "cannot be read: too many levels of symbolic links",
                id="a_link",
            ),
            pytest.param(lambda path: os.truncate(path, path.stat().st_size - 1), "is cut short, or was changed", id="cut_short"),
            pytest.param(lambda path: os.truncate(path, 0), "is cut short, or was changed", id="empty"),
        ],
    )
    def test_while_the_job_runs(self, begun: Any, harm: Callable[[Path], object], fact: str) -> None:
        harm(begun.at / ONE)

        assert fact == refused(lambda: begun.rows(0))

    def test_what_is_appended_by_others_stops_the_slice(self, begun: Any, batch: Any) -> None:
        carry = begun.begin()
        with (begun.at / ONE).open("ab") as file:
            file.write(b"x")
        carry.append("research", 0, batch([1]))

        assert "was changed while this job used it" == refused(lambda: begun.finish())

    def test_a_reader_that_does_not_read_to_the_end_leaves_nothing_open(self, begun: Any, opened: Callable[[], int]) -> None:
        before = opened()
        reader = read_carry(begun.folder.carry("research", 0), begun.seals.of(0))
        next(reader)
        during = opened()
        reader.close()

        assert (before + 1, before) == (during, opened())


class TestWhatIsFoundAtTheBeginning:
    @pytest.mark.parametrize(
        ("harm", "expected"),
        [
            pytest.param(lambda at: (at / ONE).unlink(), f"{ONE}: EV411 is missing", id="removed"),
            pytest.param(lambda at: shutil.rmtree(at / "carry"), "EV411 is missing", id="all_removed"),
            pytest.param(lambda at: os.truncate(at / ONE, 100), f"{ONE}: EV411 has 100 bytes, and the checkpoint says", id="cut_short"),
            pytest.param(lambda at: ((at / ONE).unlink(), (at / ONE).mkdir()), f"{ONE}: EV411 is no regular file", id="a_folder"),
            pytest.param(
                lambda at: (shutil.rmtree(at / "carry"), (at / "carry").write_text("x")),
                "/carry: EV411 is no folder",
                id="a_file_for_a_folder",
            ),
            pytest.param(lambda at: (at / ONE).open("ab").write(b"x" * 99), f"{ONE}: EV411 holds rows of a later slice", id="longer"),
            pytest.param(lambda at: (at / "checkpoint.json").unlink(), ": EV411 is carry without a checkpoint", id="no_checkpoint"),
            pytest.param(
                lambda at: (at / "carry/research/5-1.carry").write_text("of another program"),
                "/5-1.carry: EV411 is no carry file",
                id="foreign",
            ),
        ],
    )
    def test_a_damaged_folder_is_left_as_it_is(self, begun: Any, harm: Callable[[Path], object], expected: str) -> None:
        begun.folder.close()
        harm(begun.at)
        before = {name: (begun.at / name).read_bytes() for name in begun.files()}

        with pytest.raises(StorageError) as caught:
            begun.again()

        assert expected in str(caught.value)
        assert before == {name: (begun.at / name).read_bytes() for name in begun.files()}

    def test_a_link_in_place_of_a_file_is_not_followed(self, begun: Any, tmp_path: Path) -> None:
        begun.folder.close()
        precious = tmp_path / "precious"
        precious.write_bytes((begun.at / ONE).read_bytes() + b"mine" * 99)
        (begun.at / ONE).unlink()
        (begun.at / ONE).symlink_to(precious)
        size = precious.stat().st_size

        refused(lambda: begun.again())

        assert size == precious.stat().st_size

    def test_an_older_checkpoint_beside_newer_carry(self, begun: Any) -> None:
        older = (begun.at / "checkpoint.json").read_bytes()
        begun.do({0: [1]})
        (begun.at / "checkpoint.json").write_bytes(older)

        assert refused(lambda: begun.again()).startswith("holds rows of a later slice")

    @pytest.mark.parametrize("with_intent", [True, False])
    def test_an_older_checkpoint_with_its_intent_beside_newer_carry(self, begun: Any, with_intent: bool) -> None:
        older = (begun.at / "checkpoint.json").read_bytes()
        begun.begin()
        intent = (begun.at / "intent.json").read_bytes()
        begun.do({2 * MINUTE: [1]})
        begun.do({3 * MINUTE: [1]})
        (begun.at / "checkpoint.json").write_bytes(older)
        if with_intent:
            (begun.at / "intent.json").write_bytes(intent)

        assert refused(lambda: begun.again()).startswith("holds rows of a later slice")

    def test_an_older_checkpoint_of_windows_that_were_published(self, begun: Any) -> None:
        older = (begun.at / "checkpoint.json").read_bytes()
        begun.do({}, due=[0])
        (begun.at / "checkpoint.json").write_bytes(older)

        assert "is missing" == refused(lambda: begun.again())
