"""A folder of dead letters: written whole, read without trust, opened with the right keys only."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from eventveil.pipeline.dead_letters.open import open_letter
from eventveil.pipeline.dead_letters.store import Letter, LetterFolder, list_letters
from eventveil.schemas.errors import KeyringError, StorageError
from eventveil.transforms.batch import refused_batch
from eventveil.transforms.keys.custodian import CustodianKey
from eventveil.transforms.seal import Sealer

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
PRIVATE, OTHER = (X25519PrivateKey.from_private_bytes(bytes([first] * 32)) for first in (7, 9))
EVENTS = [b'{"email":"canary@example.org"}\n', b"\xff\x00 not even text", b""]


def letters_of(events: list[bytes], origin: str = "in/a.jsonl") -> list[bytes]:
    rows = len(events)
    batch = refused_batch(
        ["EV501"] * rows,
        [""] * rows,
        [""] * rows,
        pa.array(range(rows), pa.int64()),
        pa.nulls(rows, pa.int64()),
        pa.array(events, pa.binary()),
    )
    letters = Sealer(KEY, CustodianKey.of(PRIVATE)).seal(batch, origin=origin, policy="orders", digest="d1")
    return list(letters.column("letter").to_pylist())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = LetterFolder(str(tmp_path / "deep" / "refused"))
    store.prepare()
    store.publish("00ff", letters_of(EVENTS))
    return tmp_path / "deep" / "refused"


def changed(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Letter:
    """The first letter, changed in its file and read back."""
    path = folder / "letters-00ff.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[0] = json.dumps(change(json.loads(lines[0]))).encode() + b"\n"
    path.write_bytes(b"".join(lines))
    return next(iter(list_letters(folder)))


class TestFolder:
    def test_every_event_comes_back_byte_for_byte(self, folder: Path) -> None:
        letters = list(list_letters(folder))

        assert [1, 2, 3] == [letter.line for letter in letters]
        assert all(letter.is_authentic(KEY) and not letter.damaged for letter in letters)
        assert EVENTS == [open_letter(letter, PRIVATE, KEY) for letter in letters]
        assert EVENTS == [open_letter(letter, PRIVATE, None) for letter in letters]

    def test_listing_shows_no_value(self, folder: Path) -> None:
        told = repr(list(list_letters(folder)))

        assert "canary" not in told
        assert b"canary" not in b"".join(path.read_bytes() for path in folder.iterdir())
        assert base64.b64encode(b"canary@example")[:12] not in b"".join(path.read_bytes() for path in folder.iterdir())

    def test_a_part_is_replaced_by_a_second_run(self, folder: Path) -> None:
        store = LetterFolder(str(folder))
        assert 1 == store.publish("00ff", letters_of(EVENTS[:1]))
        assert 2 == store.publish("11ff", letters_of(EVENTS[:2]))

        assert ["letters-00ff.jsonl"] + ["letters-11ff.jsonl"] * 2 == [Path(letter.file).name for letter in list_letters(folder)]

    def test_no_letters_no_file(self, folder: Path) -> None:
        store = LetterFolder(str(folder))

        assert 0 == store.publish("22ff", [])
        assert 0 == store.publish("00ff", [None, None])
        assert [] == list(folder.iterdir())

    def test_one_file_and_a_uri_can_be_listed(self, folder: Path) -> None:
        assert 3 == len(list(list_letters(folder / "letters-00ff.jsonl")))
        assert 3 == len(list(list_letters(f"file://{folder}")))

    def test_strangers_in_the_folder_are_not_read(self, folder: Path) -> None:
        (folder / "notes.txt").write_text("x\ny\n")

        assert 3 == len(list(list_letters(folder)))

    def test_prepare_removes_our_left_overs_and_needs_to_write(self, folder: Path, tmp_path: Path) -> None:
        (folder / ".eventveil-0123456789abcdef.tmp").write_bytes(b"x")
        LetterFolder(str(folder)).prepare()
        assert ["letters-00ff.jsonl"] == [path.name for path in folder.iterdir()]

        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(StorageError, match="EV404"):
            LetterFolder(str(tmp_path / "file" / "x")).prepare()

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match="EV401"):
            list_letters(tmp_path / "nowhere")

    @pytest.mark.parametrize("name", ["", "../x", "x.y"])
    def test_a_part_has_a_plain_name(self, folder: Path, name: str) -> None:
        with pytest.raises(ValueError, match="name of a part"):
            LetterFolder(str(folder)).publish(name, [])


class TestTampering:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("code", "EV502"),
            ("path", "x"),
            ("rule", "x"),
            ("origin", "in/b.jsonl"),
            ("position", 7),
            ("window", "2014-09-04T00:00:00Z"),
            ("policy", "x"),
            ("digest", "d2"),
            ("custodian", CustodianKey.of(OTHER).id),
        ],
    )
    def test_of_any_field_of_the_header(self, folder: Path, field: str, value: object) -> None:
        letter = changed(folder, lambda found: {**found, "header": {**found["header"], field: value}})

        assert not letter.damaged
        assert not letter.is_authentic(KEY)
        with pytest.raises(KeyringError, match=r"letters-00ff.jsonl:1: EV308"):
            open_letter(letter, PRIVATE, KEY)
        with pytest.raises(KeyringError, match="EV307"):
            open_letter(letter, PRIVATE, None)

    @pytest.mark.parametrize("at", [0, 40, -1])
    def test_of_the_sealed_bytes(self, folder: Path, at: int) -> None:
        def flip(found: dict[str, Any]) -> dict[str, Any]:
            body = bytearray(base64.b64decode(found["sealed"]))
            body[at] ^= 1
            return {**found, "sealed": base64.b64encode(body).decode()}

        letter = changed(folder, flip)
        with pytest.raises(KeyringError, match="EV308"):
            open_letter(letter, PRIVATE, KEY)
        with pytest.raises(KeyringError, match="EV307"):
            open_letter(letter, PRIVATE, None)

    def test_of_the_mark(self, folder: Path) -> None:
        letter = changed(folder, lambda found: {**found, "mac": "00" * 32})

        with pytest.raises(KeyringError, match="EV308"):
            open_letter(letter, PRIVATE, KEY)

    def test_a_letter_put_under_the_header_of_another(self, folder: Path) -> None:
        other = json.loads(letters_of(EVENTS, "in/b.jsonl")[1])
        letter = changed(folder, lambda found: {**found, "sealed": other["sealed"], "mac": other["mac"]})

        with pytest.raises(KeyringError, match="EV308"):
            open_letter(letter, PRIVATE, KEY)
        with pytest.raises(KeyringError, match="EV307"):
            open_letter(letter, PRIVATE, None)

    def test_a_forged_letter_is_not_ours(self, folder: Path) -> None:
        """Anybody who has the public key can seal: only the mark tells."""
        batch = refused_batch(["EV501"], [""], [""], pa.array([0]), pa.nulls(1, pa.int64()), pa.array([b'{"forged":1}']))
        forged = Sealer(OTHER_KEY, CustodianKey.of(PRIVATE)).seal(batch, origin="in/a.jsonl", policy="orders", digest="d1")
        LetterFolder(str(folder)).publish("00ff", forged.column("letter").to_pylist())
        (letter,) = list_letters(folder)

        assert b'{"forged":1}' == open_letter(letter, PRIVATE, None)
        with pytest.raises(KeyringError, match="EV308"):
            open_letter(letter, PRIVATE, KEY)

    def test_the_wrong_private_key_is_told_by_name(self, folder: Path) -> None:
        letter = next(iter(list_letters(folder)))

        with pytest.raises(KeyringError, match=f"EV307 the letter is sealed to custodian '{CustodianKey.of(PRIVATE).id}'"):
            open_letter(letter, OTHER, KEY)


class TestDamage:
    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda found: None, id="null"),
            pytest.param(lambda found: [found], id="list"),
            pytest.param(lambda found: {}, id="empty"),
            pytest.param(lambda found: {**found, "more": 1}, id="more"),
            pytest.param(lambda found: {**found, "header": "x"}, id="header no object"),
            pytest.param(lambda found: {**found, "header": {**found["header"], "code": "EV000"}}, id="unknown code"),
            pytest.param(lambda found: {**found, "header": {**found["header"], "code": []}}, id="code no text"),
            pytest.param(lambda found: {**found, "header": {**found["header"], "position": "7"}}, id="position no number"),
            pytest.param(lambda found: {**found, "header": {**found["header"], "position": True}}, id="position a boolean"),
            pytest.param(lambda found: {**found, "header": {**found["header"], "format": 2}}, id="other version"),
            pytest.param(lambda found: {**found, "header": {**found["header"], "more": 1}}, id="more in the header"),
            pytest.param(lambda found: {**found, "header": {"code": "EV501"}}, id="less in the header"),
            pytest.param(lambda found: {**found, "sealed": "!!"}, id="sealed not base64"),
            pytest.param(lambda found: {**found, "sealed": 7}, id="sealed no text"),
            pytest.param(lambda found: {**found, "mac": "xx"}, id="mark not hexadecimal"),
            pytest.param(lambda found: {**found, "mac": ""}, id="no mark"),
        ],
    )
    def test_a_damaged_line_is_reported_and_its_neighbours_are_read(self, folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
        letter = changed(folder, change)
        whole = list(list_letters(folder))

        assert letter.damaged
        assert not letter.is_authentic(KEY)
        assert [True, False, False] == [one.damaged for one in whole]
        assert EVENTS[1:] == [open_letter(one, PRIVATE, KEY) for one in whole[1:]]
        with pytest.raises(KeyringError, match=r"letters-00ff.jsonl:1: EV307 the letter is damaged"):
            open_letter(letter, PRIVATE, KEY)

    @pytest.mark.parametrize(
        "line", [b"\n", b"{\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n", b'{"header":'], ids=["blank", "open", "no text", "deep", "cut"]
    )
    def test_whatever_stands_there(self, folder: Path, line: bytes) -> None:
        with open(folder / "letters-00ff.jsonl", "ab") as file:
            file.write(line)

        assert [False, False, False, True] == [letter.damaged for letter in list_letters(folder)]
