"""What goes wrong around a job, and what is left: a clear error, whole files, and a second run that completes as if nothing had been.

Every job here reads the same 46 MB of orders, one in a hundred malformed, into some fifty parts, so that there is a middle to be hit.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from eventveil.pipeline.dead_letters.open import open_letter
from eventveil.pipeline.dead_letters.store import list_letters
from eventveil.transforms.keys.custodian import load_private, new_custodian
from eventveil.transforms.keys.keyring import load_keys
from eventveil.transforms.keys.providers.keyring_file import new_keyring

BENCH = Path(__file__).resolve().parents[2] / "bench"
COMMAND = [sys.executable, "-c", "from eventveil.pipeline.cli.main import main; main()"]
LEFTOVER = ".eventveil-0123456789abcdef.tmp"
VALUES = ("example.org", "contsco", "sku-", "strasse", "Anna")

JOB = """
job: faults
input: {{uri: {input}, format: jsonl}}
variants: [{{policy: ../policy.yaml, output: {{uri: {output}}}}}]
keys: ../keyring.json
dead_letters: {{uri: {refused}, custodian: ../custodian.pub}}
part_bytes: 1000000
workers: {workers}
"""


@dataclass
class Place:
    """A job in a folder of its own, below the folder that holds what all jobs share."""

    folder: Path
    input: str = "../orders.jsonl"
    output: str = "out"
    refused: str = "refused"
    workers: int = 1

    @property
    def out(self) -> Path:
        return self.folder / self.output

    def start(self, preexec: Callable[[], Any] | None = None) -> subprocess.Popen[str]:
        self.folder.mkdir(exist_ok=True)
        text = JOB.format(input=self.input, output=self.output, refused=self.refused, workers=self.workers)
        (self.folder / "job.yaml").write_text(text)

        return subprocess.Popen(
            [*COMMAND, "run", "job.yaml", "--quiet"],
            cwd=self.folder,
            text=True,
            preexec_fn=preexec,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, preexec: Callable[[], Any] | None = None) -> tuple[int, str]:
        """Exit code, and what was said; no value of an event is ever among it."""
        return self.end(self.start(preexec))

    def end(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        out, err = process.communicate(timeout=120)

        assert "" == out
        assert [] == [value for value in VALUES if value in err]
        return process.returncode, err

    def wait_for_a_part(self, process: subprocess.Popen[str]) -> None:
        while process.poll() is None:
            if any(self.out.glob("part-*")):
                return
            time.sleep(0.002)
        raise AssertionError(f"ended before there was a part: {process.communicate()}")

    def parts(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.out.glob("[!.]*")} if self.out.is_dir() else {}

    def temporary(self) -> list[str]:
        return [path.name for path in self.folder.rglob(".eventveil-*")]

    def letters(self) -> list[tuple[str, int, bytes]]:
        """Code, position and opened event of each dead letter."""
        shared = self.folder.parent
        private, key = load_private(shared / "custodian.key"), load_keys(str(shared / "keyring.json")).letters_key()
        letters = list(list_letters(self.folder / self.refused))
        return sorted((letter.header["code"], letter.header["position"], open_letter(letter, private, key)) for letter in letters)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Orders, policy and keys for all jobs."""
    folder = tmp_path_factory.mktemp("faults")
    write = runpy.run_path(str(BENCH / "orders.py"))["write"]
    write(folder / "orders.jsonl", 100_000, seed=1, emails=200_000, products=10_000, hours=24.0, malformed=0.01, shuffled=False)
    for name in ("policy.yaml", "orders.avsc"):
        shutil.copy(BENCH / name, folder)
    new_keyring(folder / "keyring.json")
    new_custodian(folder / "custodian")
    return folder


@pytest.fixture(scope="module")
def undisturbed(shared: Path) -> Place:
    """The output as it should be."""
    place = Place(shared / "undisturbed")
    assert (0, "") == place.run()
    assert len(place.parts()) > 45
    assert len(place.letters()) > 500
    return place


@pytest.fixture
def place(shared: Path, undisturbed: Place, request: pytest.FixtureRequest) -> Iterator[Place]:
    """A new place; when a test has let its run be disturbed, a second one must complete what the undisturbed run gave."""
    place = Place(shared / f"place-{abs(hash(request.node.name))}")
    place.folder.mkdir()
    yield place
    shutil.rmtree(place.folder)


def is_whole(place: Place, undisturbed: Place) -> bool:
    """Whether every file under a final name is as the undisturbed run wrote it."""
    return place.parts().items() <= undisturbed.parts().items()


def completes(place: Place, undisturbed: Place) -> None:
    """A second run gives exactly what an undisturbed one gives, and leaves nothing else."""
    assert (0, "") == place.run()
    assert [] == place.temporary()
    assert undisturbed.parts() == place.parts()
    assert undisturbed.letters() == place.letters()


class TestTheDisk:
    @pytest.mark.parametrize("in_the_middle", [True, False], ids=["in_the_middle", "from_the_start"])
    def test_full_is_told_by_its_name(self, place: Place, undisturbed: Place, in_the_middle: bool) -> None:
        most_bytes = max(map(len, undisturbed.parts().values())) - 1 if in_the_middle else 0

        def limit() -> None:
            # Python ignores SIGXFSZ: a write beyond the limit fails, as one to a full disk does.
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

        code, said = place.run(limit)

        assert 4 == code
        assert said.startswith(("out/part-", "out/_eventveil", "refused/letters-"))
        assert said.endswith(": EV404 the disk is full, or a limit on the size of files is reached\n  make room and run again\n")
        assert 1 == said.count("EV")
        assert is_whole(place, undisturbed)
        assert [] == place.temporary()
        assert len(place.parts()) < len(undisturbed.parts())
        if in_the_middle:
            completes(place, undisturbed)

    @pytest.mark.parametrize("what", ["output", "refused"])
    def test_an_output_below_a_file_is_found_before_anything_is_read(self, place: Place, what: str) -> None:
        (place.folder / "file").write_text("not a folder")
        setattr(place, what, "file/deep/folder")

        code, said = place.run()

        assert 4 == code
        assert said.endswith("/file: EV404 a file stands where a folder is needed\n  name another folder\n")
        assert {} == {name: content for name, content in place.parts().items() if name.startswith("part-")}

    def test_an_output_folder_that_vanishes_ends_the_run_and_is_not_made_anew(self, place: Place) -> None:
        process = place.start()
        place.wait_for_a_part(process)
        os.rename(place.out, place.folder / "moved")
        code, said = place.end(process)

        assert (4, "out: EV404 the folder was removed during the run\n  run again\n") == (code, said)
        assert not place.out.exists()


class TestTheInput:
    def test_cut_short_while_it_is_read_is_noticed(self, shared: Path, place: Place, undisturbed: Place) -> None:
        orders = shared / "orders.jsonl"
        size = orders.stat().st_size
        with orders.open("rb") as file:
            file.seek(size // 2)
            rest = file.read()

        process = place.start()
        place.wait_for_a_part(process)
        os.truncate(orders, size // 2)
        code, said = place.end(process)
        with orders.open("ab") as file:
            file.write(rest)

        assert 4 == code
        assert said == "../orders.jsonl: EV402 the file was changed or replaced during the run\n  run again on files that are complete\n"
        assert is_whole(place, undisturbed)
        completes(place, undisturbed)

    def test_gone_while_it_is_read_is_noticed(self, shared: Path, place: Place, undisturbed: Place) -> None:
        process = place.start()
        place.wait_for_a_part(process)
        (shared / "orders.jsonl").rename(shared / "moved.jsonl")
        code, said = place.end(process)
        (shared / "moved.jsonl").rename(shared / "orders.jsonl")

        assert 4 == code
        assert said == "../orders.jsonl: EV402 no such file or directory\n  check that the file exists and may be read\n"
        assert is_whole(place, undisturbed)

    def test_damaged_gzip_is_noticed_and_what_it_spoiled_is_replaced(self, shared: Path, place: Place) -> None:
        with (shared / "orders.jsonl").open("rb") as file:
            plain = file.read(8_000_000)
        sound = gzip.compress(plain[: plain.rindex(b"\n") + 1], 1)
        middle = len(sound) // 2
        path = place.folder / "orders.jsonl.gz"
        place.input = "orders.jsonl.gz"

        path.write_bytes(sound[:middle])
        truncated = place.run()
        path.write_bytes(sound[:middle] + bytes(byte ^ 0xFF for byte in sound[middle : middle + 64]) + sound[middle + 64 :])
        code, said = place.run()
        before = place.parts()
        path.write_bytes(sound)
        second, _ = place.run()
        completed = place.parts()
        place.output, place.refused = "whole", "whole-refused"
        third, _ = place.run()
        expected = place.parts()

        fact = "orders.jsonl.gz: EV403 the gzip data ends in the middle: the file is truncated"
        assert (4, f"{fact}\n  restore the file; nothing behind the damage was read\n") == truncated
        assert (4, 0, 0) == (code, second, third)
        assert re.fullmatch(
            r"orders\.jsonl\.gz: EV403 the gzip data is damaged before byte [0-9]+\n  restore the file and run again.*\n", said
        )
        assert 1 < len(before) < len(expected)
        assert set(before) < set(expected)
        assert expected == completed


class TestTheKeys:
    @pytest.mark.parametrize(
        ("content", "mode", "expected"),
        [
            pytest.param("{", 0o600, "keyring.json: EV303 ", id="malformed"),
            pytest.param(
                json.dumps({"eventveil_keyring": 1, "root": "AAAA", "domains": {}}), 0o600, "keyring.json: EV303 ", id="short_root"
            ),
            pytest.param(None, 0o644, "keyring.json: EV302 ", id="too_wide"),
            pytest.param("", 0o600, "keyring.json: EV303 ", id="empty"),
        ],
    )
    def test_a_keyring_that_cannot_be_used_ends_the_run_before_anything_is_written(
        self, shared: Path, tmp_path: Path, content: str | None, mode: int, expected: str
    ) -> None:
        place = self.elsewhere(shared, tmp_path)
        if content is not None:
            (tmp_path / "keyring.json").write_text(content)
        (tmp_path / "keyring.json").chmod(mode)

        code, said = place.run()

        assert (3, True) == (code, expected in said)
        assert not place.out.exists()

    def test_a_missing_keyring_is_named(self, shared: Path, tmp_path: Path) -> None:
        place = self.elsewhere(shared, tmp_path)
        (tmp_path / "keyring.json").unlink()

        code, said = place.run()

        assert (3, True) == (code, "keyring.json: EV301 " in said)
        assert "eventveil keys new" in said
        assert not place.out.exists()

    @pytest.mark.parametrize("wrong", ["custodian.key", "keyring.json", "orders.avsc", "nowhere"])
    def test_a_custodians_key_that_is_none_ends_the_run(self, shared: Path, tmp_path: Path, wrong: str) -> None:
        place = self.elsewhere(shared, tmp_path)
        secret = (tmp_path / "custodian.key").read_text()
        (tmp_path / "custodian.pub").unlink()
        if wrong != "nowhere":
            (tmp_path / "custodian.pub").write_bytes((tmp_path / wrong).read_bytes())

        code, said = place.run()

        assert (3, True) == (code, "custodian.pub: EV306 " in said)
        assert json.loads(secret)["key"] not in said
        assert not place.out.exists()

    @staticmethod
    def elsewhere(shared: Path, folder: Path) -> Place:
        for name in ("policy.yaml", "orders.avsc", "keyring.json", "custodian.pub", "custodian.key"):
            shutil.copy2(shared / name, folder)
        (folder / "orders.jsonl").write_bytes(b"")
        return Place(folder / "place")


class TestTheProcess:
    def test_killed_in_the_middle_leaves_whole_files_and_a_second_run_completes(self, place: Place, undisturbed: Place) -> None:
        process = place.start()
        place.wait_for_a_part(process)
        process.kill()
        code, said = place.end(process)
        # What a kill leaves when it comes while a file is written.
        for folder in (place.out, place.folder / place.refused):
            (folder / LEFTOVER).write_bytes(b'{"half')

        assert (-signal.SIGKILL, "") == (code, said)
        assert 1 < len(place.parts()) < len(undisturbed.parts())
        assert is_whole(place, undisturbed)
        completes(place, undisturbed)

    @pytest.mark.parametrize("workers", [1, 2])
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
    def test_interrupted_in_the_middle_says_so_and_a_second_run_completes(
        self, place: Place, undisturbed: Place, number: signal.Signals, workers: int
    ) -> None:
        place.workers = workers
        process = place.start()
        place.wait_for_a_part(process)
        process.send_signal(number)
        code, said = place.end(process)

        assert (130, "interrupted: every file that was written is whole; run again to complete\n") == (code, said)
        # Other threads may come to their end in the second that they are given.
        assert workers > 1 or len(place.parts()) < len(undisturbed.parts())
        assert is_whole(place, undisturbed)
        if (number, workers) == (signal.SIGTERM, 2):
            completes(place, undisturbed)

    @pytest.mark.parametrize("after_s", [0.6, 1.5])
    def test_interrupted_at_any_time_exits_with_130(self, place: Place, undisturbed: Place, after_s: float) -> None:
        process = place.start()
        time.sleep(after_s)
        process.send_signal(signal.SIGTERM)
        code, said = place.end(process)

        assert (130, "interrupted: every file that was written is whole; run again to complete\n") == (code, said)
        assert is_whole(place, undisturbed)
