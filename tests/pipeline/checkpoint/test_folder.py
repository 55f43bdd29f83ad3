"""The folder that remembers: whose it is, who holds it, and how far its job has come."""

from __future__ import annotations

import json
import os
import pickle
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eventveil.pipeline.checkpoint.folder import CheckpointFolder
from eventveil.pipeline.checkpoint.seal import StateSeal, WindowSeals
from eventveil.schemas.errors import StorageError
from eventveil.transforms.keys.derive import HeldKeys

Open = Callable[..., CheckpointFolder]
IDENTITY: dict[str, Any] = {
    "job": "orders",
    "stream": {"kind": "kafka", "topics": ["orders"]},
    "variants": {"research": {"digest": "d1", "domain": "research"}},
}
STATE = {"positions": {"orders/0": 17_018_217}}


def slice_of(folder: CheckpointFolder, number: int, **more: Any) -> None:
    folder.write_intent({"slice": number, "after": STATE})
    folder.commit({"slice": number, "state": STATE, "carry": {}, **more})


def refused(code: str, action: Callable[[], object]) -> str:
    with pytest.raises(StorageError) as caught:
        action()
    (problem,) = caught.value.problems
    assert code == problem.code
    return problem.fact


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestOneSlice:
    def test_nothing_is_there_at_first(self, at: Path, new_folder: Open) -> None:
        folder = new_folder(at)

        assert (None, None) == (folder.open(IDENTITY), folder.intent())

    def test_an_intent_stands_until_its_slice_is_committed(self, at: Path, new_folder: Open) -> None:
        folder = new_folder(at)
        folder.open(IDENTITY)
        folder.write_intent({"slice": 1, "after": STATE, "watermark": None})
        folder.close()

        again = new_folder(at)

        assert (None, {"slice": 1, "after": STATE, "watermark": None}) == (again.open(IDENTITY), again.intent())

        again.commit({"slice": 1, "state": STATE, "carry": {}})
        again.close()
        last = new_folder(at)

        assert ({"slice": 1, "state": STATE, "carry": {}}, None) == (last.open(IDENTITY), last.intent())
        assert ["checkpoint.json", "lock"] == names(at)

    def test_a_folder_may_be_opened_again_after_it_was_closed(self, at: Path, new_folder: Open) -> None:
        folder = new_folder(at)
        folder.open(IDENTITY)
        slice_of(folder, 1)
        folder.close()
        found = folder.open(IDENTITY)

        assert found is not None and found["slice"] == 1

    @pytest.mark.parametrize(
        "wrong",
        [
            pytest.param(lambda folder: folder.write_intent({"slice": 3}), id="a_slice_left_out"),
            pytest.param(lambda folder: folder.commit({"slice": 1, "carry": {}}), id="a_slice_twice"),
            pytest.param(
                lambda folder: (folder.write_intent({"slice": 2}), folder.write_intent({"slice": 2})), id="an_intent_over_an_intent"
            ),
            pytest.param(lambda folder: folder.commit({"slice": 2, "carry": {"research": {"0": [10, 1, 1]}}}), id="carry_nobody_wrote"),
            pytest.param(lambda folder: folder.open(IDENTITY), id="opened_twice"),
        ],
    )
    def test_what_no_loop_may_do_is_refused(self, at: Path, new_folder: Open, wrong: Callable[[CheckpointFolder], object]) -> None:
        folder = new_folder(at)
        folder.open(IDENTITY)
        slice_of(folder, 1)

        with pytest.raises(ValueError, match=r"slice|folder|carry|intent"):
            wrong(folder)

    def test_others_may_not_look_in(self, at: Path, new_folder: Open, seals: WindowSeals) -> None:
        old = os.umask(0)
        try:
            folder = new_folder(at)
            folder.open(IDENTITY)
            folder.write_intent({"slice": 1})
        finally:
            os.umask(old)

        assert 0o700 == stat.S_IMODE(at.stat().st_mode)
        assert {0o600} == {stat.S_IMODE(path.stat().st_mode) for path in at.iterdir()}

    def test_keys_are_never_pickled(self, at: Path, new_folder: Open, keys: HeldKeys, seals: WindowSeals) -> None:
        folder = new_folder(at)
        folder.open(IDENTITY)

        for one in (folder, folder.writer({"research": seals}), StateSeal.of(keys), seals):
            with pytest.raises(TypeError, match="never pickled"):
                pickle.dumps(one)


class TestWhoseItIs:
    @pytest.mark.parametrize(
        ("changed", "expected"),
        [
            pytest.param({"job": "payments"}, "job differs", id="job"),
            pytest.param({"stream": {"kind": "kafka", "topics": ["payments"]}}, "stream.topics differs", id="topics"),
            pytest.param(
                {"stream": {"kind": "files", "folder": "s3cret"}}, "stream.folder, stream.kind, stream.topics differ", id="stream"
            ),
            pytest.param(
                {"variants": {"research": {"digest": "d2", "domain": "research"}}}, "variants.research.digest differs", id="policy"
            ),
            pytest.param(
                {"variants": {**IDENTITY["variants"], "marketing": {"digest": "d1"}}}, "variants.marketing differs", id="a_variant_more"
            ),
            pytest.param({"variants": {f"v{n}": {} for n in range(20)}}, "variants.v14 and 13 more differ", id="many"),
        ],
    )
    def test_another_identity_is_told_by_the_names_of_its_entries(
        self, at: Path, new_folder: Open, changed: dict[str, Any], expected: str
    ) -> None:
        folder = new_folder(at)
        folder.open(IDENTITY)
        slice_of(folder, 1)
        folder.close()
        before = (at / "checkpoint.json").read_bytes()

        fact = refused("EV409", lambda: new_folder(at).open({**IDENTITY, **changed}))

        assert fact.endswith(expected)
        assert "d2" not in fact and "s3cret" not in fact
        assert before == (at / "checkpoint.json").read_bytes()

    def test_another_keyring_is_told_from_damage(self, at: Path, new_folder: Open) -> None:
        folder = new_folder(at)
        folder.open(IDENTITY)
        slice_of(folder, 1)
        folder.close()

        fact = refused("EV409", lambda: new_folder(at, HeldKeys(bytes(32))).open(IDENTITY))

        assert fact.endswith(": keyring differs")

    def test_an_intent_alone_belongs_to_its_job_too(self, at: Path, new_folder: Open) -> None:
        folder = new_folder(at)
        folder.open(IDENTITY)
        folder.write_intent({"slice": 1})
        folder.close()

        refused("EV409", lambda: new_folder(at).open({**IDENTITY, "stream": {}}))

    @pytest.mark.parametrize("other", ["notes.txt", "data", "set-aside-x", "checkpoint.json.bak"])
    def test_a_folder_of_something_else_is_refused_and_left_as_it_is(self, at: Path, new_folder: Open, other: str) -> None:
        at.mkdir(parents=True)
        (at / other).mkdir() if other == "data" else (at / other).write_text("mine")

        fact = refused("EV405", lambda: new_folder(at).open(IDENTITY))

        assert f"holds '{other}', which is no part of a checkpoint" == fact
        assert [other] == names(at)

    def test_a_foreign_file_among_carry_is_refused_and_left_as_it_is(self, at: Path, new_folder: Open) -> None:
        folder = new_folder(at)
        folder.open(IDENTITY)
        slice_of(folder, 1)
        folder.close()
        (at / "carry" / "research").mkdir(parents=True)
        (at / "carry" / "research" / "0-1.carry.bak").write_text("mine")

        refused("EV405", lambda: new_folder(at).open(IDENTITY))

        assert "mine" == (at / "carry" / "research" / "0-1.carry.bak").read_text()

    def test_a_file_in_place_of_the_folder(self, at: Path, new_folder: Open) -> None:
        at.parent.mkdir()
        at.write_text("mine")

        refused("EV404", lambda: new_folder(at).open(IDENTITY))

        assert "mine" == at.read_text()

    def test_temporary_files_of_a_killed_run_are_removed_and_hidden_ones_of_others_are_not(self, at: Path, new_folder: Open) -> None:
        at.mkdir(parents=True)
        (at / ".eventveil-0123456789abcdef.tmp").write_text("half")
        (at / ".directory").write_text("mine")

        new_folder(at).open(IDENTITY)

        assert [".directory", "lock"] == names(at)


_HOLDER = """
import sys, time
from eventveil.pipeline.checkpoint.folder import CheckpointFolder
from eventveil.pipeline.checkpoint.seal import StateSeal
from eventveil.transforms.keys.derive import HeldKeys
folder = CheckpointFolder(sys.argv[1], StateSeal.of(HeldKeys(bytes(range(32)))))
folder.open({"job": "orders"})
print("held", flush=True)
time.sleep(60)
"""


class TestOneAtATime:
    def test_another_process_is_refused_until_the_first_dies(self, at: Path, new_folder: Open) -> None:
        link = at.parent.parent / "link"
        at.mkdir(parents=True)
        link.symlink_to(at)
        holder = subprocess.Popen([sys.executable, "-c", textwrap.dedent(_HOLDER), str(at)], stdout=subprocess.PIPE)
        try:
            assert holder.stdout is not None and b"held\n" == holder.stdout.readline()
            for path in (at, link):
                fact = refused("EV410", lambda path=path: new_folder(path).open({"job": "orders"}))
                assert f"process {holder.pid} uses this checkpoint" == fact
        finally:
            holder.send_signal(signal.SIGKILL)
            holder.wait()

        assert new_folder(link).open({"job": "orders"}) is None

    def test_the_same_process_is_refused_until_it_closes(self, at: Path, new_folder: Open) -> None:
        first, second = new_folder(at), new_folder(at)
        first.open(IDENTITY)
        refused("EV410", lambda: second.open(IDENTITY))
        first.close()
        first.close()

        assert second.open(IDENTITY) is None

    def test_a_folder_that_is_refused_is_free_again(self, at: Path, new_folder: Open) -> None:
        first = new_folder(at)
        first.open(IDENTITY)
        slice_of(first, 1)
        first.close()
        refused("EV409", lambda: new_folder(at).open({"job": "other"}))

        assert new_folder(at).open(IDENTITY) is not None

    def test_what_stands_in_the_lock_of_another_is_not_shown(self, at: Path, new_folder: Open) -> None:
        new_folder(at).open(IDENTITY)
        (at / "lock").write_text("a name")

        assert "another process uses this checkpoint" == refused("EV410", lambda: new_folder(at).open(IDENTITY))


class TestBeginningAnew:
    def begun(self, at: Path, new_folder: Open) -> None:
        folder = new_folder(at)
        folder.open(IDENTITY)
        slice_of(folder, 1)
        folder.write_intent({"slice": 2})
        folder.close()

    def test_an_older_checkpoint_is_kept_whole(self, at: Path, new_folder: Open) -> None:
        self.begun(at, new_folder)
        kept = {name: (at / name).read_bytes() for name in ("checkpoint.json", "intent.json")}
        for number in (1, 2):
            folder = new_folder(at)

            assert (None, None) == (folder.open({"job": f"other {number}"}, from_now=True), folder.intent())

            slice_of(folder, 1)
            folder.close()

        assert ["checkpoint.json", "lock", "set-aside-1", "set-aside-2"] == names(at)
        assert kept == {name: (at / "set-aside-1" / name).read_bytes() for name in kept}
        assert ["checkpoint.json"] == names(at / "set-aside-2")

    def test_a_checkpoint_of_the_same_identity_is_continued(self, at: Path, new_folder: Open) -> None:
        self.begun(at, new_folder)
        folder = new_folder(at)

        assert (folder.open(IDENTITY, from_now=True) or {})["slice"] == 1
        assert {"slice": 2} == folder.intent()

        folder.set_aside()
        folder.write_intent({"slice": 7})

        assert ["intent.json", "lock", "set-aside-1"] == names(at)

    def test_nothing_is_no_reason_to_set_aside(self, at: Path, new_folder: Open) -> None:
        folder = new_folder(at)
        folder.open(IDENTITY, from_now=True)
        folder.set_aside()

        assert ["lock"] == names(at)

    def test_damage_is_no_other_identity(self, at: Path, new_folder: Open) -> None:
        self.begun(at, new_folder)
        (at / "checkpoint.json").write_text("{}")

        refused("EV411", lambda: new_folder(at).open({"job": "other"}, from_now=True))

    @pytest.mark.parametrize("moved", [[], ["carry"], ["carry", "intent.json"], ["carry", "intent.json", "checkpoint.json"]], ids=len)
    def test_one_that_was_cut_short_is_finished_by_whoever_comes_next(self, at: Path, new_folder: Open, moved: list[str]) -> None:
        self.begun(at, new_folder)
        (at / "carry").mkdir()
        (at / "set-aside").mkdir()
        for name in moved:
            (at / name).rename(at / "set-aside" / name)

        assert new_folder(at).open(IDENTITY) is None
        assert ["lock", "set-aside-1"] == names(at)
        assert ["carry", "checkpoint.json", "intent.json"] == names(at / "set-aside-1")


def document(at: Path, name: str = "checkpoint.json", **changed: Any) -> None:
    found = json.loads((at / name).read_text())
    (at / name).write_text(json.dumps({**found, **changed}))


class TestDamage:
    @pytest.mark.parametrize(
        ("harm", "expected"),
        [
            pytest.param(lambda at: (at / "checkpoint.json").write_text(""), "is no checkpoint, or not a whole one", id="empty"),
            pytest.param(lambda at: (at / "checkpoint.json").write_text("[" * 99_999), "is no checkpoint, or not a whole one", id="deep"),
            pytest.param(lambda at: (at / "checkpoint.json").write_bytes(b"\xff\x00"), "is no checkpoint, or not a whole one", id="bytes"),
            pytest.param(lambda at: os.truncate(at / "checkpoint.json", 99), "is no checkpoint, or not a whole one", id="cut_short"),
            pytest.param(lambda at: document(at, slice="1"), "is no checkpoint, or not a whole one", id="type"),
            pytest.param(lambda at: document(at, more=1), "is no checkpoint, or not a whole one", id="an_entry_more"),
            pytest.param(lambda at: document(at, slice=2), "cannot be opened: it was changed", id="slice"),
            pytest.param(lambda at: document(at, sealed="AAAA"), "cannot be opened: it was changed", id="sealed"),
            pytest.param(lambda at: document(at, sealed="no base64"), "cannot be opened: it was changed", id="no_base64"),
            pytest.param(lambda at: document(at, format=2), "has format 2, and this version of eventveil knows 1", id="format"),
            pytest.param(
                lambda at: ((at / "checkpoint.json").unlink(), (at / "checkpoint.json").mkdir()), "is no regular file", id="a_folder"
            ),
            pytest.param(
                lambda at: ((at / "checkpoint.json").unlink(), os.mkfifo(at / "checkpoint.json")), "is no regular file", id="a_pipe"
            ),
            pytest.param(
                lambda at: ((at / "checkpoint.json").rename(at / ".x"), (at / "checkpoint.json").symlink_to(at / ".x")),
                "cannot be read: too many levels of symbolic links",
                id="a_link",
            ),
            pytest.param(
                lambda at: (at / "intent.json").write_bytes((at / "checkpoint.json").read_bytes()),
                "is no intent, or not a whole one",
                id="checkpoint_as_intent",
            ),
            pytest.param(
                lambda at: (
                    (at / "intent.json").write_bytes((at / "checkpoint.json").read_bytes()),
                    document(at, "intent.json", kind="intent"),
                ),
                "cannot be opened: it was changed",
                id="checkpoint_renamed_to_intent",
            ),
        ],
    )
    def test_nothing_is_guessed(self, at: Path, new_folder: Open, harm: Callable[[Path], object], expected: str) -> None:
        folder = new_folder(at)
        folder.open(IDENTITY)
        slice_of(folder, 1)
        folder.close()
        harm(at)

        assert expected == refused("EV411", lambda: new_folder(at).open(IDENTITY))

    def test_an_older_checkpoint_beside_a_newer_intent(self, at: Path, new_folder: Open) -> None:
        folder = new_folder(at)
        folder.open(IDENTITY)
        slice_of(folder, 1)
        older = (at / "checkpoint.json").read_bytes()
        slice_of(folder, 2)
        folder.write_intent({"slice": 3})
        folder.close()
        (at / "checkpoint.json").write_bytes(older)

        fact = refused("EV411", lambda: new_folder(at).open(IDENTITY))

        assert "is of slice 1, and slice 3 has begun: an older checkpoint was put back" == fact

    def test_the_intent_of_a_checkpoint_that_was_set_aside(self, at: Path, new_folder: Open) -> None:
        folder = new_folder(at)
        folder.open(IDENTITY)
        folder.write_intent({"slice": 1})
        intent = (at / "intent.json").read_bytes()
        folder.set_aside()
        slice_of(folder, 1)
        folder.close()
        (at / "intent.json").write_bytes(intent)

        assert "is of another checkpoint" == refused("EV411", lambda: new_folder(at).open(IDENTITY))

    def test_the_intent_of_a_slice_that_is_committed_says_nothing(self, at: Path, new_folder: Open) -> None:
        folder = new_folder(at)
        folder.open(IDENTITY)
        folder.write_intent({"slice": 1})
        intent = (at / "intent.json").read_bytes()
        folder.commit({"slice": 1, "carry": {}})
        folder.close()
        (at / "intent.json").write_bytes(intent)
        again = new_folder(at)

        assert ({"slice": 1, "carry": {}}, None) == (again.open(IDENTITY), again.intent())
        assert not (at / "intent.json").exists()
