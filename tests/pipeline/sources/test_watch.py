"""Watched folders as a stream: which files a slice takes, which wait, and what stops the job. Without Beam."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from eventveil.pipeline.sources import watch
from eventveil.pipeline.sources.files import read_range
from eventveil.pipeline.sources.watch import WatchedFolders
from eventveil.schemas.errors import EventveilError

MUCH = 1 << 30

Taken = list[tuple[str, int, int | None]]


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def put(path: Path, size: int = 10, age_s: float = 60) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"0" * (size - 1) + b"\n")
    return dated(path, age_s)


def dated(path: Path, age_s: float) -> Path:
    before = time.time() - age_s
    os.utime(path, (before, before))
    return path


def watching(*patterns: object, **changed: Any) -> WatchedFolders:
    return WatchedFolders([str(one) for one in patterns], **{"format": None, "part_bytes": 100, "compression": None, **changed})


def names(stream: WatchedFolders, before: dict[str, Any], after: dict[str, Any]) -> Taken:
    return [(Path(piece.path).name, piece.start, piece.end) for piece in stream.ranges(before, after)]


def taken(stream: WatchedFolders, before: dict[str, Any], most_bytes: int = MUCH) -> tuple[dict[str, Any], Taken]:
    after = stream.next(before, most_bytes)
    assert after is not None
    return after, names(stream, before, after)


def code(stream: WatchedFolders, state: dict[str, Any], most_bytes: int = MUCH) -> str:
    with pytest.raises(EventveilError) as caught:
        stream.next(state, most_bytes)
    return caught.value.problems[0].code


class TestNext:
    def test_takes_what_is_there_in_the_order_of_paths(self, inbox: Path) -> None:
        for name in ("b.jsonl", "a.jsonl", "c/a.jsonl"):
            put(inbox / name)
        stream = watching(inbox)
        state, found = taken(stream, stream.begin(False))

        assert [("a.jsonl", 0, 10), ("b.jsonl", 0, 10), ("a.jsonl", 0, 10)] == found
        assert (None, 0, frozenset({"files"})) == (stream.next(state, MUCH), stream.lag(state), stream.is_caught_up(state))

    def test_takes_what_has_come_since(self, inbox: Path) -> None:
        put(inbox / "b.jsonl")
        stream = watching(inbox)
        state, _ = taken(stream, stream.begin(False))
        put(inbox / "a.jsonl")

        assert [("a.jsonl", 0, 10)] == taken(stream, state)[1]

    def test_a_pattern_may_match_nothing_yet(self, inbox: Path) -> None:
        stream = watching(inbox / "*.jsonl", inbox / "later")
        state = stream.begin(False)
        assert stream.next(state, MUCH) is None
        put(inbox / "a.jsonl")
        put(inbox / "later/b.jsonl")
        put(inbox / "_later/c.jsonl")

        assert ["a.jsonl", "b.jsonl"] == [name for name, *_ in taken(stream, state)[1]]

    def test_a_file_that_two_patterns_or_links_lead_to_is_read_once(self, inbox: Path) -> None:
        put(inbox / "a.jsonl")
        (inbox / "b.jsonl").symlink_to(inbox / "a.jsonl")
        stream = watching(inbox, inbox / "*.jsonl")
        state, found = taken(stream, stream.begin(False))

        assert 1 == len(found)
        assert stream.next(state, MUCH) is None

    def test_a_large_file_is_taken_over_several_slices(self, inbox: Path) -> None:
        put(inbox / "a.jsonl", 450)
        put(inbox / "b.jsonl", 20)
        stream = watching(inbox)
        state, slices = stream.begin(False), []
        while (after := stream.next(state, 200)) is not None:
            slices.append((names(stream, state, after), stream.lag(after)))
            state = after

        assert [
            ([("a.jsonl", 0, 100), ("a.jsonl", 100, 200)], 2),
            ([("a.jsonl", 200, 300), ("a.jsonl", 300, 400)], 2),
            ([("a.jsonl", 400, 450), ("b.jsonl", 0, 20)], 0),
        ] == slices

    def test_a_slice_takes_something_however_small_it_is(self, inbox: Path) -> None:
        put(inbox / "a.jsonl", 450)

        assert [("a.jsonl", 0, 100)] == taken(stream := watching(inbox), stream.begin(False), 1)[1]

    def test_a_file_without_events_is_read_too(self, inbox: Path) -> None:
        (inbox / "a.jsonl").touch()
        dated(inbox / "a.jsonl", 60)
        stream = watching(inbox)
        state, found = taken(stream, stream.begin(False))

        assert ([("a.jsonl", 0, 0)], frozenset({"files"})) == (found, stream.is_caught_up(state))


class TestAtRest:
    def test_a_fresh_file_waits(self, inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = put(inbox / "a.jsonl", age_s=0)
        stream = watching(inbox)
        state = stream.begin(False)
        # Two looks right after each other tell nothing.
        assert (None, None) == (stream.next(state, MUCH), stream.next(state, MUCH))
        assert (1, frozenset()) == (stream.lag(state), stream.is_caught_up(state))
        dated(path, 3)

        assert [("a.jsonl", 0, 10)] == taken(stream, state)[1]

    def test_one_that_grows_waits_on(self, inbox: Path) -> None:
        stream = watching(inbox)
        state = stream.begin(False)
        for size in range(10, 15):
            put(inbox / "a.jsonl", size, age_s=0)
            assert stream.next(state, MUCH) is None

    def test_one_from_a_clock_ahead_of_ours_waits_by_ours(self, inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(watch, "_AT_REST_NS", 300_000_000)
        put(inbox / "a.jsonl", age_s=-3_600)
        stream = watching(inbox)
        state = stream.begin(False)
        assert stream.next(state, MUCH) is None
        time.sleep(0.15)
        put(inbox / "a.jsonl", 11, age_s=-3_600)  # it has grown: the wait begins anew
        assert stream.next(state, MUCH) is None
        time.sleep(0.2)
        assert stream.next(state, MUCH) is None
        time.sleep(0.15)

        assert [("a.jsonl", 0, 11)] == taken(stream, state)[1]

    def test_from_now_skips_what_is_at_rest(self, inbox: Path) -> None:
        put(inbox / "a.jsonl")
        fresh = put(inbox / "b.jsonl", age_s=0)
        stream = watching(inbox)
        state = stream.begin(True)
        dated(fresh, 60)

        assert [("b.jsonl", 0, 10)] == taken(stream, state)[1]


class TestChanges:
    @pytest.mark.parametrize("change", ["grown", "cut", "touched"])
    def test_a_file_that_was_read_stays_as_it_is(self, inbox: Path, change: str) -> None:
        path = put(inbox / "a.jsonl")
        stream = watching(inbox)
        state, _ = taken(stream, stream.begin(False))
        status = path.stat()
        if change == "touched":
            dated(path, 30)
        else:
            path.write_bytes(b"0" * (11 if change == "grown" else 9))
            os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))

        assert "EV402" == code(stream, state)

        path.unlink()
        assert stream.next(state, MUCH) is None

    def test_a_file_that_was_read_and_removed_is_forgotten(self, inbox: Path) -> None:
        path = put(inbox / "a.jsonl")
        put(inbox / "b.jsonl")
        stream = watching(inbox)
        state, _ = taken(stream, stream.begin(False))
        path.unlink()
        assert stream.next(state, MUCH) is None
        put(inbox / "c.jsonl")
        state, _ = taken(stream, state)

        assert ["b.jsonl", "c.jsonl"] == [Path(path).name for path in state["files"]]

    def test_one_that_was_removed_in_the_middle_is_missed(self, inbox: Path) -> None:
        path = put(inbox / "a.jsonl", 450)
        stream = watching(inbox)
        state, _ = taken(stream, stream.begin(False), 200)
        path.unlink()

        assert "EV412" == code(stream, state)

    @pytest.mark.parametrize("change", ["removed", "changed"])
    def test_what_a_slice_was_to_read_must_be_there(self, inbox: Path, change: str) -> None:
        path = put(inbox / "a.jsonl")
        stream = watching(inbox)
        before = stream.begin(False)
        after, _ = taken(stream, before)
        path.unlink() if change == "removed" else put(path, 11)
        with pytest.raises(EventveilError, match=f"EV412 was {change} before it was read"):
            stream.ranges(before, after)

    def test_what_changes_while_it_is_read_stops_the_job(self, inbox: Path) -> None:
        path = put(inbox / "a.jsonl")
        stream = watching(inbox)
        before = stream.begin(False)
        after, _ = taken(stream, before)
        ranges = stream.ranges(before, after)
        put(path, 11)

        with pytest.raises(EventveilError, match="EV402"):
            list(read_range(ranges[0]))

    def test_the_same_ranges_again_after_a_restart(self, inbox: Path) -> None:
        put(inbox / "a.jsonl", 450)
        stream = watching(inbox)
        before = stream.begin(False)
        after, _ = taken(stream, before, 200)
        put(inbox / "0.jsonl")

        assert stream.ranges(before, after) == watching(inbox).ranges(before, after)


class TestIdentity:
    def test_is_what_is_watched_and_how_it_is_cut(self, inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(inbox.parent)

        assert watching("in").identity() == watching(inbox).identity()
        assert watching(inbox).identity() != watching(inbox, part_bytes=99).identity()
        assert watching(inbox).identity() != watching(inbox.parent).identity()


class TestCost:
    def test_a_look_at_many_files_is_cheap_and_grows_no_faster_than_they_do(self, inbox: Path) -> None:
        def look(number: int) -> float:
            for n in range(number):
                path = inbox / f"{n % 10}" / f"{n}.jsonl"
                if not path.exists():
                    put(path)
            stream = watching(inbox)
            state, _ = taken(stream, stream.begin(False))
            took = []
            for _ in range(5):
                began = time.process_time()
                assert stream.next(state, MUCH) is None
                took.append(time.process_time() - began)
            return min(took)

        few, many = look(300), look(3_000)

        assert many < 0.25
        assert many < 20 * few
