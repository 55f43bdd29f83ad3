"""`eventveil dead-letters`: what was refused and why, without showing it; opened, byte for byte, by who may."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from eventveil.pipeline.dead_letters.store import LetterFolder
from eventveil.transforms.batch import refused_batch
from eventveil.transforms.keys.custodian import load_public, new_custodian
from eventveil.transforms.keys.keyring import load_keys
from eventveil.transforms.keys.providers.keyring_file import new_keyring
from eventveil.transforms.seal import Sealer

Run = Callable[..., "subprocess.CompletedProcess[str]"]

REFUSED = [
    ("EV502", "tenant", b'{"tenant":1,"who":"CANARY"}\n'),
    ("EV502", "tenant", b'{"tenant":2,"who":"CANARY"}\r\n'),
    ("EV501", "", b"\xff\x00 CANARY not even text\n"),
    ("EV520", "status", b'{"no":"line end","who":"CANARY"}'),
]
COMMAND_THE_TERMINAL = "\x1b[31mred\x07 \x9b2J \u202etxt.exe [bold]loud[/bold]"


def letters(folder: Path, refused: list[tuple[str, str, bytes]], keyring: str = "keyring.json") -> list[bytes]:
    codes, paths, events = zip(*refused)
    rows = len(refused)
    rules = [f"fields.{path}" if path else "" for path in paths]
    columns = pa.array(range(rows), pa.int64()), pa.nulls(rows, pa.int64()), pa.array(events, pa.binary())
    sealer = Sealer(load_keys(str(folder / keyring)).letters_key(), load_public(folder / "custodian.pub"))
    sealed = sealer.seal(refused_batch(list(codes), list(paths), rules, *columns), origin="in/a.jsonl", policy="orders", digest="d1")
    return list(sealed.column("letter").to_pylist())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A keyring, a custodian, and four letters in `refused`."""
    new_keyring(tmp_path / "keyring.json")
    new_keyring(tmp_path / "other.json")
    new_custodian(tmp_path / "custodian")
    new_custodian(tmp_path / "stranger")
    store = LetterFolder(str(tmp_path / "refused"))
    store.prepare()
    store.publish("00ff", letters(tmp_path, REFUSED))
    return tmp_path


@pytest.fixture
def forged(folder: Path) -> Path:
    """Beside the four: one from another keyring, with a path that would command the terminal, and one cut short."""
    foreign = letters(folder, [("EV502", COMMAND_THE_TERMINAL, b"{}\n")], "other.json")
    LetterFolder(str(folder / "refused")).publish("11ff", [*foreign, foreign[0][:100] + b"\n"])
    return folder


def cells(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [" ".join(line.split()) for line in done.stdout.splitlines() if line.strip()]


class TestList:
    def test_counts_by_code_and_place_and_shows_no_event(self, folder: Path, eventveil: Run) -> None:
        done = eventveil("dead-letters", "list", "refused", "--keys", "keyring.json", cwd=folder)

        assert (0, "") == (done.returncode, done.stderr)
        assert [
            "events code field rule meaning",
            "1 EV501 not one JSON object",
            "2 EV502 tenant fields.tenant a value has another type than the schema says",
            "1 EV520 status fields.status the value is not on the list of allowed values",
            "4 refused events",
        ] == [line for line in cells(done) if "──" not in line]
        assert "CANARY" not in done.stdout

    def test_without_the_keyring_says_that_nothing_is_verified(self, folder: Path, eventveil: Run) -> None:
        done = eventveil("dead-letters", "list", "refused", cwd=folder)

        assert (0, "4 refused events; not verified: give --keys to tell forged letters") == (done.returncode, cells(done)[-1])

    def test_can_be_narrowed_to_a_code(self, folder: Path, eventveil: Run) -> None:
        done = eventveil("dead-letters", "list", "refused", "--code", "EV502", "--keys", "keyring.json", cwd=folder)

        assert (0, "2 refused events") == (done.returncode, cells(done)[-1])

    def test_a_code_that_does_not_exist_is_no_empty_list(self, folder: Path, eventveil: Run) -> None:
        done = eventveil("dead-letters", "list", "refused", "--code", "EV599", cwd=folder)

        assert (2, "") == (done.returncode, done.stdout)
        assert done.stderr.startswith("EV120 there is no code 'EV599'\n  did you mean ")

    def test_as_json_has_a_letter_a_line_with_its_place(self, folder: Path, eventveil: Run) -> None:
        done = eventveil("dead-letters", "list", "refused", "--json", "--code", "EV520", "--keys", "keyring.json", cwd=folder)
        (letter,) = map(json.loads, done.stdout.splitlines())

        assert (0, "") == (done.returncode, done.stderr)
        assert ("refused/letters-00ff.jsonl", 4, "EV520", "status", "fields.status") == tuple(
            letter[name] for name in ("file", "line", "code", "path", "rule")
        )
        assert ("in/a.jsonl", 3, "orders", False, True) == tuple(
            letter[name] for name in ("origin", "position", "policy", "damaged", "authentic")
        )

    def test_forged_and_damaged_letters_are_counted_apart_and_fail(self, forged: Path, eventveil: Run) -> None:
        done = eventveil("dead-letters", "list", "refused", "--keys", "keyring.json", cwd=forged)

        assert 1 == done.returncode
        assert [
            "4 refused events",
            "1 damaged: cut short, or no letter of ours",
            "1 not written with this keyring: changed, forged, or of another keyring",
        ] == cells(done)[-3:]

    def test_as_json_tells_forged_and_damaged_ones(self, forged: Path, eventveil: Run) -> None:
        done = eventveil("dead-letters", "list", "refused", "--keys", "keyring.json", "--json", cwd=forged)

        assert 1 == done.returncode
        assert [(True, False)] * 4 + [(False, False), (False, True)] == [
            (one["authentic"], one["damaged"]) for one in map(json.loads, done.stdout.splitlines())
        ]

    @pytest.mark.parametrize("how", [[], ["--json"]], ids=["table", "json"])
    def test_a_forged_letter_commands_no_terminal(self, forged: Path, eventveil: Run, how: list[str]) -> None:
        done = eventveil("dead-letters", "list", "refused", *how, cwd=forged)

        assert "red" in done.stdout
        assert set() == {one for one in done.stdout if not (one.isprintable() or one == "\n")}

    def test_an_empty_folder_holds_none(self, folder: Path, eventveil: Run) -> None:
        (folder / "empty").mkdir()

        done = eventveil("dead-letters", "list", "empty", cwd=folder)

        assert (0, "0 refused events\n", "") == (done.returncode, done.stdout, done.stderr)

    def test_a_missing_folder_is_an_error(self, folder: Path, eventveil: Run) -> None:
        done = eventveil("dead-letters", "list", "nowhere", cwd=folder)

        assert (4, "nowhere: EV401 no folder of dead letters: no such file or directory\n  correct the path\n") == (
            done.returncode,
            done.stderr,
        )


class TestOpen:
    def test_gives_the_exact_bytes_one_event_a_line(self, folder: Path, environment: dict[str, str]) -> None:
        command = [sys.executable, "-c", "from eventveil.pipeline.cli.main import main; main()"]
        arguments = ["dead-letters", "open", "refused", "--key", "custodian.key", "--keys", "keyring.json"]
        done = subprocess.run([*command, *arguments], cwd=folder, env=environment, capture_output=True, check=False)

        assert (0, b"") == (done.returncode, done.stderr)
        assert b"".join(event for _, _, event in REFUSED) + b"\n" == done.stdout

    def test_into_a_file_that_its_owner_alone_can_read(self, folder: Path, eventveil: Run) -> None:
        done = eventveil("dead-letters", "open", "refused", "--key", "custodian.key", "--code", "EV502", "--output", "opened", cwd=folder)

        assert (0, "", "") == (done.returncode, done.stdout, done.stderr)
        assert REFUSED[0][2] + REFUSED[1][2] == (folder / "opened").read_bytes()
        assert 0o600 == (folder / "opened").stat().st_mode & 0o777

    def test_never_overwrites(self, folder: Path, eventveil: Run) -> None:
        (folder / "opened").write_text("precious")

        done = eventveil("dead-letters", "open", "refused", "--key", "custodian.key", "--output", "opened", cwd=folder)

        assert (4, "opened: EV404 file exists\n  name a new file: none is overwritten\n") == (done.returncode, done.stderr)
        assert "precious" == (folder / "opened").read_text()

    def test_with_another_custodians_key_nothing_is_shown(self, folder: Path, eventveil: Run) -> None:
        done = eventveil("dead-letters", "open", "refused", "--key", "stranger.key", cwd=folder)

        assert (3, "") == (done.returncode, done.stdout)
        assert 4 == done.stderr.count("EV307 the letter is sealed to custodian ")
        assert done.stderr.endswith("4 letters could not be opened\n")

    @pytest.mark.parametrize(
        ("key", "expected"),
        [
            pytest.param("custodian.pub", "custodian.pub: EV306", id="public"),
            pytest.param("keyring.json", "keyring.json: EV306", id="keyring"),
            pytest.param("nowhere.key", "nowhere.key: EV306", id="missing"),
        ],
    )
    def test_what_is_no_private_key_is_named(self, folder: Path, eventveil: Run, key: str, expected: str) -> None:
        done = eventveil("dead-letters", "open", "refused", "--key", key, cwd=folder)

        assert (3, "") == (done.returncode, done.stdout)
        assert expected in done.stderr

    def test_leaves_out_what_the_run_did_not_write_and_opens_the_others(self, forged: Path, eventveil: Run) -> None:
        done = eventveil("dead-letters", "open", "refused", "--key", "custodian.key", "--keys", "keyring.json", "-o", "opened", cwd=forged)

        assert 3 == done.returncode
        assert "letters-11ff.jsonl:1: EV308" in done.stderr and "letters-11ff.jsonl:2: EV307 the letter is damaged" in done.stderr
        assert done.stderr.endswith("2 letters could not be opened\n")
        assert b"".join(event for _, _, event in REFUSED) + b"\n" == (forged / "opened").read_bytes()

    def test_no_event_commands_the_terminal(self, folder: Path, environment: dict[str, str]) -> None:
        event = f'{{"a":"{COMMAND_THE_TERMINAL}"}}\n'.encode()
        LetterFolder(str(folder / "hostile")).prepare()
        LetterFolder(str(folder / "hostile")).publish("00ff", letters(folder, [("EV502", "a", event)]))
        ours, theirs = pty.openpty()
        command = [sys.executable, "-c", "from eventveil.pipeline.cli.main import main; main()"]
        process = subprocess.Popen(
            [*command, "dead-letters", "open", "hostile", "--key", "custodian.key"], cwd=folder, env=environment, stdout=theirs
        )
        os.close(theirs)
        seen = read_to_its_end(ours)

        assert 0 == process.wait(60)
        assert "red\N{REPLACEMENT CHARACTER} " in seen
        assert set() == {one for one in seen if not (one.isprintable() or one in "\r\n")}


def read_to_its_end(terminal: int) -> str:
    """All that is written to a terminal; one read may bring a part only."""
    pieces = []
    try:
        while piece := os.read(terminal, 65536):
            pieces.append(piece)
    except OSError:
        pass  # how Linux tells that nobody writes any more
    os.close(terminal)
    return b"".join(pieces).decode()


@pytest.mark.parametrize(
    ("command", "pieces"),
    [
        pytest.param(["dead-letters"], ["list", "open"], id="dead_letters"),
        pytest.param(
            ["dead-letters", "list"], ["eventveil dead-letters list refused --keys keyring.json", "Exit code 1", "forged"], id="list"
        ),
        pytest.param(
            ["dead-letters", "open"], ["eventveil dead-letters open refused --key custodian.key", "in clear", "Exit code 3"], id="open"
        ),
    ],
)
def test_help_teaches(tmp_path: Path, eventveil: Run, command: list[str], pieces: list[str]) -> None:
    done = eventveil(*command, "--help", cwd=tmp_path)

    assert (0, "") == (done.returncode, done.stderr)
    for piece in pieces:
        assert piece in " ".join(done.stdout.split())
