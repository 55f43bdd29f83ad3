"""`eventveil keys`: what it makes, for whose eyes, and that it never overwrites."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from eventveil.transforms.keys.custodian import CustodianKey, load_private, load_public
from eventveil.transforms.keys.keyring import load_keys

Run = Callable[..., "subprocess.CompletedProcess[str]"]


class TestNew:
    def test_makes_a_keyring_that_its_owner_alone_can_read(self, tmp_path: Path, eventveil: Run) -> None:
        done = eventveil("keys", "new", "keyring.json", cwd=tmp_path)
        path = tmp_path / "keyring.json"

        assert (0, "") == (done.returncode, done.stderr)
        assert f"keyring.json: keyring {load_keys(str(path)).id}, readable by you alone" == done.stdout.splitlines()[0]
        assert 0o600 == path.stat().st_mode & 0o777

    def test_shows_nothing_of_the_secret(self, tmp_path: Path, eventveil: Run) -> None:
        done = eventveil("keys", "new", "keyring.json", "--domain", "analytics", cwd=tmp_path)
        found = json.loads((tmp_path / "keyring.json").read_text())

        assert ["analytics"] == list(found["domains"])
        for secret in (found["root"], *map(str, found["domains"].values())):
            assert secret not in done.stdout + done.stderr

    @pytest.mark.parametrize(
        ("path", "code", "expected"),
        [
            pytest.param("keyring.json", 3, "keyring.json: EV304", id="there_already"),
            pytest.param("nowhere/keyring.json", 4, "EV404", id="no_folder"),
        ],
    )
    def test_never_overwrites_and_says_what_is_wrong(self, tmp_path: Path, eventveil: Run, path: str, code: int, expected: str) -> None:
        (tmp_path / "keyring.json").write_text("precious")

        done = eventveil("keys", "new", path, cwd=tmp_path)

        assert (code, "") == (done.returncode, done.stdout)
        assert expected in done.stderr
        assert {"keyring.json": "precious"} == {one.name: one.read_text() for one in tmp_path.iterdir()}


class TestCustodian:
    def test_makes_a_pair_of_which_one_half_is_private(self, tmp_path: Path, eventveil: Run) -> None:
        done = eventveil("keys", "custodian", "custodian", cwd=tmp_path)

        assert (0, "") == (done.returncode, done.stderr)
        assert CustodianKey.of(load_private(tmp_path / "custodian.key")) == load_public(tmp_path / "custodian.pub")
        assert 0o600 == (tmp_path / "custodian.key").stat().st_mode & 0o777
        assert re.search(r"^custodian\.key: for the custodian alone; move it off this machine$", done.stdout, re.MULTILINE)

    @pytest.mark.parametrize("taken", ["custodian.pub", "custodian.key"])
    def test_never_overwrites_either_half(self, tmp_path: Path, eventveil: Run, taken: str) -> None:
        (tmp_path / taken).write_text("precious")

        done = eventveil("keys", "custodian", "custodian", cwd=tmp_path)

        assert (3, "") == (done.returncode, done.stdout)
        assert f"{taken}: EV304" in done.stderr
        assert {taken: "precious"} == {one.name: one.read_text() for one in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("command", "pieces"),
    [
        pytest.param(["keys"], ["new", "custodian", "Nothing is ever overwritten"], id="keys"),
        pytest.param(["keys", "new"], ["eventveil keys new keyring.json --domain analytics", "--domain NAME"], id="new"),
        pytest.param(["keys", "custodian"], ["eventveil keys custodian custodian", "PREFIX.key belongs to somebody else"], id="custodian"),
    ],
)
def test_help_teaches(tmp_path: Path, eventveil: Run, command: list[str], pieces: list[str]) -> None:
    done = eventveil(*command, "--help", cwd=tmp_path)

    assert (0, "") == (done.returncode, done.stderr)
    for piece in pieces:
        assert piece in done.stdout
