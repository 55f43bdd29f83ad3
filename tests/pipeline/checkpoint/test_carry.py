"""Carry: rows of open windows, appended by several threads, kept sealed, read back in one order."""

from __future__ import annotations

import base64
import os
import pickle
import random
import resource
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from eventveil.pipeline.checkpoint._disk import open_regular
from eventveil.pipeline.checkpoint._frames import Frame, read_frame, read_schema
from eventveil.pipeline.checkpoint.carry import CarryFile, read_carry
from eventveil.schemas.errors import StorageError
from eventveil.transforms.batch import Part
from eventveil.transforms.keys.derive import HeldKeys

MINUTE = 60_000_000
Batch = Callable[..., pa.RecordBatch]


def frames_of(loop: Any, window: int) -> list[Frame]:
    file, seal = loop.folder.carry("research", window), loop.seals.of(window)
    descriptor = open_regular(file.path)
    try:
        _, offset = read_schema(descriptor, file, seal)
        found: list[Frame] = []
        while offset < file.length:
            found.append(read_frame(descriptor, file, seal, offset))
            offset = found[-1].end
        return found
    finally:
        os.close(descriptor)


class TestSlices:
    def test_rows_stay_until_their_window_is_due(self, loop: Any) -> None:
        loop.do({0: [1, 2], MINUTE: [3]})
        listed = loop.do({MINUTE: [4], -MINUTE: [5]})

        assert ([1, 2], [3, 4], [5]) == (loop.rows(0), loop.rows(MINUTE), loop.rows(-MINUTE))
        assert {"research": {"-60000000": [1, 2], "0": [2, 1], "60000000": [2, 1]}} == {
            name: {window: found[1:] for window, found in windows.items()} for name, windows in listed.items()
        }

        loop.do({}, due=[0])

        assert ([], [3, 4]) == (loop.rows(0), loop.rows(MINUTE))
        assert ["carry/research/-60000000-2.carry", "carry/research/60000000-1.carry", "checkpoint.json"] == loop.files()

    def test_rows_are_the_same_after_a_restart(self, loop: Any) -> None:
        loop.do({0: range(100)})
        loop.again()
        loop.do({0: range(100, 200)})

        assert list(range(200)) == loop.again().rows(0)

    def test_late_rows_of_a_window_that_is_published_wait_for_its_next_pane(self, loop: Any) -> None:
        loop.do({0: [1, 2]})
        published = loop.folder.carry("research", 0)
        carry = loop.begin(due=[0])
        carry.append("research", 0, _row(3))

        assert [1, 2] == [n for batch in read_carry(published, loop.seals.of(0)) for n in batch.column("n").to_pylist()]

        loop.finish()

        assert [3] == loop.rows(0)
        assert ["carry/research/0-2.carry", "checkpoint.json"] == loop.files()

        loop.again().do({0: [4]}, due=[0])
        loop.do({}, due=[0])

        assert ["checkpoint.json"] == loop.files()

    def test_windows_of_two_variants_are_apart(self, loop: Any) -> None:
        loop.do({0: [1]})
        loop.do({0: [2]}, variant="marketing")
        loop.do({}, due=[0], variant="marketing")

        assert ([1], []) == (loop.rows(0), loop.rows(0, "marketing"))

    def test_what_an_unfinished_slice_appended_is_cut_off(self, loop: Any) -> None:
        loop.do({0: [1]})
        before = loop.files()
        carry = loop.begin(due=[0])
        for window, row in ((0, 2), (MINUTE, 3)):
            carry.append("research", window, _row(row))
        loop.writer.flush_all()
        # Died here.
        loop.again()

        assert ([1], [], [*before, "intent.json"]) == (loop.rows(0), loop.rows(MINUTE), loop.files())

        loop.do({MINUTE: [4], 0: [5]})

        assert ([1, 5], [4]) == (loop.rows(0), loop.rows(MINUTE))

    def test_a_slice_may_be_tried_again_without_a_restart(self, loop: Any) -> None:
        loop.do({0: [1]})
        first = loop.begin()
        for window, row in ((0, 2), (MINUTE, 3)):
            first.append("research", window, _row(row))
        loop.writer.flush_all()
        first.append("research", 0, _row(4))
        second = loop.begin()

        with pytest.raises(ValueError, match="over"):
            first.append("research", 0, _row(5))

        second.append("research", 0, _row(6))
        loop.finish()

        assert ([1, 6], []) == (loop.rows(0), loop.rows(MINUTE))
        with pytest.raises(ValueError, match="over"):
            second.append("research", 0, _row(7))

    def test_nothing_is_appended_without_an_intent(self, loop: Any) -> None:
        with pytest.raises(ValueError, match="intent"):
            loop.writer.begin_slice(1)

    def test_a_checkpoint_that_loses_rows_is_refused(self, loop: Any) -> None:
        carry = loop.begin()
        carry.append("research", 0, _row(1))
        with pytest.raises(ValueError, match="flush_all"):
            loop.folder.commit({"slice": 1, "carry": {}})
        listed = loop.writer.flush_all()
        with pytest.raises(ValueError, match="lost"):
            loop.folder.commit({"slice": 1, "carry": {}})
        length, rows, begun = listed["research"]["0"]
        with pytest.raises(ValueError, match="another carry"):
            loop.folder.commit({"slice": 1, "carry": {"research": {"0": [length - 1, rows, begun]}}})
        loop.folder.commit({"slice": 1, "carry": listed})

        assert [1] == loop.rows(0)

    def test_a_window_that_is_withheld_is_kept(self, loop: Any) -> None:
        loop.do({0: [1], MINUTE: [2]})
        file = loop.folder.carry("research", 0)
        loop.do({0: [3]}, due=[0, MINUTE], withheld=[0])

        assert ["carry/research/0-2.carry", "checkpoint.json", "withheld/research/0-1.carry"] == loop.files()

        loop.again()

        assert [3] == loop.rows(0)

        kept = CarryFile(**{**vars(file), "path": str(loop.at / "withheld" / "research" / "0-1.carry")})

        assert [1] == [n for batch in read_carry(kept, loop.seals.of(0)) for n in batch.column("n").to_pylist()]

    def test_a_variant_that_is_not_gathered_is_no_variant(self, loop: Any) -> None:
        with pytest.raises(ValueError, match="nobody"):
            loop.begin().append("nobody", 0, _row(1))

    def test_no_rows_no_file(self, loop: Any, batch: Batch) -> None:
        assert {} == loop.do([(0, batch([]))])
        assert [] == loop.rows(0)
        assert ["checkpoint.json"] == loop.files()

    def test_columns_may_not_change_below_a_checkpoint(self, loop: Any, batch: Batch) -> None:
        loop.do({0: [1]})
        carry = loop.again().begin()
        carry.append("research", 0, batch([2]).select(["n", "name"]))

        with pytest.raises(StorageError, match="EV409 the columns of 'research' are no longer those of the checkpoint"):
            loop.writer.flush_all()

    def test_what_is_handed_to_workers_holds_no_key(self, loop: Any, keys: HeldKeys) -> None:
        carry = loop.begin()
        carry.append("research", 0, _row(1))
        loop.finish()
        sent = pickle.dumps([carry, loop.folder.carry("research", 0)])

        assert [carry, loop.folder.carry("research", 0)] == pickle.loads(sent)
        assert not any(form in sent for form in _forms_of_keys(keys))
        with pytest.raises(TypeError, match="never pickled"):
            pickle.dumps(loop.writer)

    def test_others_may_not_look_in(self, loop: Any) -> None:
        loop.do({0: [1]})
        paths = list((loop.at / "carry").rglob("*"))

        assert {0o700} == {stat.S_IMODE(path.stat().st_mode) for path in [loop.at / "carry", *paths] if path.is_dir()}
        assert {0o600} == {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_file()}


def _row(n: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(
        {
            "n": pa.array([n], pa.int64()),
            "name": pa.array([f"name {n}"]),
            "tags": pa.array([["a"] * (n % 3) or None], pa.list_(pa.string())),
            "$order": pa.array([n.to_bytes(16, "big")], pa.binary(16)),
        }
    )


class TestOrder:
    def test_the_threads_that_appended_leave_no_trace(self, loop: Any, batch: Batch) -> None:
        parts = [(f"orders/{lane}", start) for lane in range(4) for start in (0, 5_000, 70)]
        rows_of: dict[tuple[str, int], list[pa.RecordBatch]] = {}
        expected: list[int] = []
        count = 0
        for origin, start in sorted(parts):
            rows_of[origin, start] = []
            for number in range(12):
                rows = range(count, count + 700 * (number % 4))
                count = rows.stop
                expected += rows
                rows_of[origin, start].append(batch(rows, Part(origin, start, number, number == 11)))
        seen = []
        for attempt in range(3):
            carry = loop.begin(due=[0])
            random.seed(attempt)
            work = random.sample(sorted(rows_of), len(rows_of))
            lock = threading.Lock()

            def append(carry: Any = carry, work: Any = work, lock: Any = lock) -> None:
                while True:
                    with lock:
                        if not work:
                            return
                        part = work.pop()
                    for one in rows_of[part]:
                        carry.append("research", 0, one)

            threads = [threading.Thread(target=append) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            loop.finish()
            seen.append(loop.rows(0))

        assert [expected] * 3 == seen

    def test_numbers_decide_even_where_batches_overtake_each_other(self, loop: Any, batch: Batch) -> None:
        order = list(range(40))
        random.seed(3)
        random.shuffle(order)

        loop.do([(0, batch([number], Part("orders/0", 0, number))) for number in order])

        assert list(range(40)) == loop.rows(0)

    def test_slices_come_one_after_the_other(self, loop: Any, batch: Batch) -> None:
        for number in range(5):
            loop.do([(0, batch([number], Part(f"orders/{9 - number}", 0)))])

        assert list(range(5)) == loop.rows(0)

    def test_large_parts_that_came_mixed(self, loop: Any) -> None:
        """Frames of one part alone and a shared one for what is left over of each; all are read in order."""
        noise = np.random.default_rng(1)
        size = 150_000
        batches = {}
        for part in range(3):
            for number in range(11):
                n = np.arange(6) + part * 1_000 + number * 10
                batches[part, number] = pa.RecordBatch.from_pydict(
                    {"n": pa.array(n, pa.int64()), "blob": pa.array([noise.bytes(size // 6) for _ in n])}
                )
        mixed = [key for number in range(11) for key in ((2, number), (0, number), (1, number))]
        from eventveil.transforms.batch import with_part

        loop.do([(0, with_part(batches[key], Part(f"p/{key[0]}", 0, key[1]))) for key in mixed])
        expected = [n for key in sorted(batches) for n in batches[key].column("n").to_pylist()]

        assert expected == loop.rows(0)
        found = list(read_carry(loop.folder.carry("research", 0), loop.seals.of(0)))
        assert [blob for key in sorted(batches) for blob in batches[key].column("blob").to_pylist()] == [
            blob for batch in found for blob in batch.column("blob").to_pylist()
        ]
        assert max(batch.nbytes for batch in found) < 3 << 20
        assert max(frame.body_size for frame in frames_of(loop, 0)) < 1_300_000

    def test_a_batch_that_is_larger_than_a_frame(self, loop: Any) -> None:
        rows = pa.RecordBatch.from_pydict({"n": pa.array(range(30)), "blob": pa.array([bytes([n]) * (1 << 20) for n in range(30)])})
        loop.do([(0, rows)])

        found = list(read_carry(loop.folder.carry("research", 0), loop.seals.of(0)))

        assert rows.to_pylist() == [row for batch in found for row in batch.to_pylist()]
        assert max(batch.num_rows for batch in found) < 9

    def test_small_frames_come_back_together(self, loop: Any) -> None:
        for number in range(30):
            loop.do({0: [number]})

        assert [30] == [batch.num_rows for batch in read_carry(loop.folder.carry("research", 0), loop.seals.of(0))]


class TestRows:
    def test_every_type_comes_back(self, loop: Any) -> None:
        rows = [
            {"i": 1, "f": 0.5, "b": True, "t": "é", "y": b"\x00", "l": [1, None], "r": {"a": "x", "b": [{"c": "d"}]}, "m": [("k", 1)]},
            dict.fromkeys(("i", "f", "b", "t", "y", "l", "r", "m")),
        ]
        record = pa.struct([("a", pa.string()), ("b", pa.list_(pa.struct([("c", pa.string())])))])
        schema = pa.schema(
            [
                *(("i", pa.int64()), ("f", pa.float64()), ("b", pa.bool_()), ("t", pa.string()), ("y", pa.binary())),
                *(("l", pa.list_(pa.int64())), ("r", record), ("m", pa.map_(pa.string(), pa.int64()))),
            ]
        )
        batch = pa.RecordBatch.from_pylist(rows, schema=schema)
        loop.do([(0, batch), (0, batch.slice(1)), (0, batch.slice(0, 1))])

        (found,) = read_carry(loop.folder.carry("research", 0), loop.seals.of(0))

        assert [*rows, rows[1], rows[0]] == found.to_pylist()
        assert schema == found.schema

    def test_dictionaries_and_plain_columns_mix(self, loop: Any) -> None:
        columns = [pa.array(["x", "y"]).dictionary_encode(), pa.array(["z", None]), pa.array(["z", "x"]).dictionary_encode()]
        loop.do([(0, pa.RecordBatch.from_pydict({"n": column})) for column in columns])

        assert ["x", "y", "z", None, "z", "x"] == loop.rows(0)

    def test_no_row_keeps_its_neighbours_alive(self, loop: Any) -> None:
        """A thousand windows of one row each, cut from large batches: what waits is what is shown."""
        whole = pa.RecordBatch.from_pydict({"n": pa.array(range(1_000)), "blob": pa.array([b"x" * 2_000] * 1_000)})
        carry = loop.begin()
        for row in range(1_000):
            carry.append("research", row * MINUTE, whole.slice(row, 1))
        waiting = [batch for one in loop.writer._waiting.values() for batches in one.batches.values() for _, batch in batches]

        assert len(waiting) == 1_000
        assert 3_000_000 > sum(batch.get_total_buffer_size() for batch in waiting)

        loop.finish()

        assert [999] == loop.rows(999 * MINUTE)


def _forms_of_keys(keys: HeldKeys) -> list[bytes]:
    domain = keys.domain("research")
    found = [
        bytes(range(32)),
        keys.letters_key(),
        keys.domain("checkpoint").for_domain("state"),
        domain.for_window(0, "1min", "UTC", "state"),
    ]
    runs = [key[first : first + 8] for key in found for first in range(len(key) - 8)]
    return [form for run in runs for form in (run, run.hex().encode(), base64.b64encode(run)[:10])]


class TestCanary:
    def test_no_value_and_no_key_stands_in_the_folder(self, loop: Any, keys: HeldKeys) -> None:
        position, micros = 918_273_645_546, 1_757_000_123_456_789
        hidden = pa.array(["shown", "hidden-cnry-1", "other"]).dictionary_encode().filter(pa.array([True, False, True]))
        behind_null = pa.Array.from_buffers(
            pa.string(), 2, [pa.py_buffer(b"\x01"), pa.py_buffer(np.array([0, 5, 18], np.int32)), pa.py_buffer(b"planehidden-cnry-2")]
        )
        batch = pa.RecordBatch.from_pydict(
            {"n": pa.array([position, 1]), "name": pa.array(["Zoë cnry-3", "cnry-4@example.org"]), "d": hidden, "b": behind_null}
        )
        from eventveil.transforms.batch import Clock, with_clock, with_part

        marked = with_clock(with_part(batch, Part("topic-cnry-5/0", position)), Clock(micros, micros))
        identity = {"stream": {"topics": ["topic-cnry-5"]}, "settings": ["cnry-6"]}
        loop.again(**identity)
        state = {"positions": {"topic-cnry-5/0": position}}
        for _ in range(2):
            loop.folder.write_intent({"slice": loop.slice + 1, "after": state, "watermark": micros})
            carry = loop.writer.begin_slice(loop.slice + 1)
            carry.append("research", 0, marked)
            carry.append("research", MINUTE, marked.slice(1))
            listed = loop.writer.flush_all()
            loop.folder.commit(
                {"slice": loop.slice + 1, "carry": listed, "state": state, "watermark": {"value": micros}, "totals": {"a": 4}}
            )
            loop.slice += 1
        # An unfinished slice too, and one that was set aside.
        loop.folder.write_intent({"slice": 3, "after": state, "watermark": micros})
        loop.writer.begin_slice(3).append("research", 0, marked)
        loop.writer.flush_all()
        content = {path.name: path.read_bytes() for path in loop.at.rglob("*") if path.is_file()}

        assert {"lock", "checkpoint.json", "intent.json", "0-1.carry", "60000000-1.carry"} == set(content)
        secrets = [b"cnry", "Zoë".encode(), b"positions", b"watermark", b"totals", b"research", b"name", b"shown"]
        for number in (position, micros):
            secrets += [
                str(number).encode(),
                number.to_bytes(8, "little"),
                number.to_bytes(8, "big"),
                base64.b64encode(str(number).encode())[:12],
            ]
        for name, data in content.items():
            for secret in [*secrets, *_forms_of_keys(keys)]:
                assert secret not in data, (name, secret)
            if name.endswith("json"):
                body = base64.b64decode(data.split(b'"sealed": "')[1].split(b'"')[0])
                assert not any(secret in body for secret in secrets)

    def test_under_the_seal_stands_only_what_is_shown(self, loop: Any) -> None:
        hidden = pa.array(["shown", "hidden", "other"]).dictionary_encode().filter(pa.array([True, False, True]))
        masked = pa.Array.from_buffers(
            pa.string(), 2, [pa.py_buffer(b"\x01"), pa.py_buffer(np.array([0, 5, 11], np.int32)), pa.py_buffer(b"plainhidden")]
        )
        padded = pa.array(["hidden" * 30, "a", "b", "hidden" * 30]).slice(1, 2)
        loop.do([(0, pa.RecordBatch.from_pydict({"n": hidden, "m": masked, "p": padded}))])
        file, seal = loop.folder.carry("research", 0), loop.seals.of(0)
        (frame,) = frames_of(loop, 0)
        sealed = Path(file.path).read_bytes()[frame.end - frame.body_size : frame.end]
        body = seal.open(sealed, file.info("body", frame.offset, frame.slice, frame.head_size, frame.body_size))

        assert b"shown" in body and b"plain" in body
        assert b"hidden" not in body


_FULL = """
import resource, sys
sys.path.insert(0, {here!r})
from pathlib import Path
from conftest import Loop, batch_of
from eventveil.schemas.errors import StorageError

loop = Loop(Path({at!r})).again()
listed = loop.do({{0: range(1000)}})
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
carry = loop.begin()
try:
    for first in range(1000, 60_000, 1000):
        carry.append("research", 0, batch_of(range(first, first + 1000)))
    loop.finish()
except StorageError as error:
    print(error.problems[0].code, error.problems[0].fact)
for what in (loop.finish, lambda: loop.folder.commit({{"slice": 2, "carry": listed}})):
    try:
        what()
    except StorageError as error:
        print(error.problems[0].code, "again")
{then}
"""


def run_child(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120, check=False)
    assert (0, "") == (done.returncode, done.stderr)
    return done.stdout


class TestFullDisk:
    EXPECTED = "EV404 the disk is full, or a limit on the size of files is reached\nEV404 again\nEV404 again\n"

    def test_the_slice_is_done_again_when_there_is_room(self, at: Path, loop: Any) -> None:
        loop.folder.close()
        then = """
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        loop.do({0: range(1000, 5000)})
        """

        said = run_child(_FULL.format(here=str(Path(__file__).parent), at=str(at), then=textwrap.dedent(then)))

        assert self.EXPECTED == said
        assert list(range(5_000)) == loop.again().rows(0)

    def test_a_restart_finds_what_was_committed(self, at: Path, loop: Any) -> None:
        loop.folder.close()

        said = run_child(_FULL.format(here=str(Path(__file__).parent), at=str(at), then=""))
        loop.again()

        assert self.EXPECTED == said
        assert (list(range(1_000)), {"slice": 2}) == (loop.rows(0), loop.folder.intent())

        loop.do({0: [1_000]})

        assert list(range(1_001)) == loop.rows(0)

    def test_a_disk_that_is_full_before_the_checkpoint(self, at: Path, loop: Any) -> None:
        loop.folder.close()
        script = """
        import resource, sys
        sys.path.insert(0, {here!r})
        from pathlib import Path
        from conftest import Loop, batch_of
        from eventveil.schemas.errors import StorageError

        loop = Loop(Path({at!r})).again()
        loop.do({{0: range(10)}})
        loop.folder.write_intent({{"slice": 2}})
        carry = loop.begin()
        carry.append("research", 0, batch_of([10]))
        listed = loop.writer.flush_all()
        for limit in (100, resource.RLIM_INFINITY):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                loop.folder.commit({{"slice": 2, "carry": listed}})
            except StorageError as error:
                print(error.problems[0].code, *sorted(path.name for path in loop.at.iterdir()))
        """

        said = run_child(script.format(here=str(Path(__file__).parent), at=str(at)))

        assert "EV404 carry checkpoint.json intent.json lock\n" == said
        assert list(range(11)) == loop.again().rows(0)


class TestMemory:
    def test_one_frame_at_a_time_is_read(self, at: Path, loop: Any) -> None:
        rows = pa.RecordBatch.from_pydict({"n": pa.array(range(1_000)), "blob": pa.array([os.urandom(1_000) for _ in range(1_000)])})
        for _ in range(4):
            loop.do([(0, rows)] * 20)
        loop.folder.close()
        script = f"""
        import resource, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from conftest import Loop
        from eventveil.pipeline.checkpoint.carry import read_carry
        loop = Loop(Path({str(at)!r})).again()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        total = sum(batch.num_rows for batch in read_carry(loop.folder.carry("research", 0), loop.seals.of(0)))
        print(total, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024))
        """

        total, more = map(int, run_child(script).split())

        assert 80_000 == total
        assert 20 << 20 > more, "the file has 80 MB"

    def test_what_waits_is_bounded_over_all_windows(self, loop: Any, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("eventveil.pipeline.checkpoint.carry._MOST_WAITING", 50_000)
        carry = loop.begin()
        most = 0
        for number in range(200):
            rows = range(100 * number, 100 * number + 100)
            carry.append("research", number % 20 * MINUTE, batch(rows, Part("orders/0", number % 3, number)))
            most = max(most, sum(sum(waiting.sizes.values()) for waiting in loop.writer._waiting.values()))
        loop.finish()

        assert 25_000 < most <= 50_000
        assert sorted(range(20_000)) == sorted(n for window in range(20) for n in loop.rows(window * MINUTE))

    def test_many_windows_take_no_descriptors(self, loop: Any, opened: Callable[[], int]) -> None:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        before = opened()
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/dev/fd"))) + 40, limit[1]))
        try:
            loop.do({window * MINUTE: [window] for window in range(300)})
            during = opened()
            found = [loop.rows(window * MINUTE) for window in range(300)]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)

        assert before >= during
        assert [[window] for window in range(300)] == found
