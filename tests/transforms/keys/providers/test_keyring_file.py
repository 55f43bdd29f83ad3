"""The keyring file: who may read it, what may stand in it, and that no other is ever replaced."""

from __future__ import annotations

import base64
import json
import os
import stat
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eventveil.schemas.errors import EventveilError, KeyringError, StorageError
from eventveil.transforms.keys.derive import HeldKeys
from eventveil.transforms.keys.providers.keyring_file import load_keyring, new_keyring

SECRET = base64.b64encode(b"canary: thirty-two bytes of root").decode()
GOOD = {"eventveil_keyring": 1, "root": SECRET}


def code_of(caught: pytest.ExceptionInfo[EventveilError]) -> str:
    (problem,) = caught.value.problems
    return problem.code


def written(path: Path, content: str | bytes | dict[str, Any], mode: int = 0o600) -> Path:
    text = json.dumps(content) if isinstance(content, dict) else content
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path


class TestNew:
    def test_what_was_made_is_what_is_read(self, tmp_path: Path) -> None:
        made = new_keyring(tmp_path / "keyring.json", ["research", "marketing"])
        read = load_keyring(tmp_path / "keyring.json")
        keys = [made.domain(domain).for_domain("noise") for domain in ("research", "marketing", "other")]

        assert made.id == read.id
        assert keys == [read.domain(domain).for_domain("noise") for domain in ("research", "marketing", "other")]
        assert ["keyring.json"] == os.listdir(tmp_path)

    def test_a_named_domain_has_its_own_root(self, tmp_path: Path) -> None:
        new_keyring(tmp_path / "keyring.json", ["research"])
        document = json.loads((tmp_path / "keyring.json").read_text())
        without = written(tmp_path / "without.json", {**document, "domains": {}})

        assert load_keyring(without).domain("research").for_domain("x") != load_keyring(tmp_path / "keyring.json").domain(
            "research"
        ).for_domain("x")

    def test_two_are_never_the_same(self, tmp_path: Path) -> None:
        assert new_keyring(tmp_path / "a.json").id != new_keyring(tmp_path / "b.json").id

    @pytest.fixture
    def umask(self) -> Iterator[None]:
        before = os.umask(0)
        yield
        os.umask(before)

    @pytest.mark.parametrize("mask", [0o000, 0o022, 0o777], ids=oct)
    def test_mode_is_0600_whatever_the_umask(self, tmp_path: Path, umask: None, mask: int) -> None:
        os.umask(mask)
        new_keyring(tmp_path / "keyring.json")

        assert 0o600 == stat.S_IMODE((tmp_path / "keyring.json").stat().st_mode)

    @pytest.mark.parametrize("kind", ["file", "folder", "dangling-link"])
    def test_never_replaces(self, tmp_path: Path, kind: str) -> None:
        path = tmp_path / "keyring.json"
        if kind == "file":
            path.write_text("precious")
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to(tmp_path / "elsewhere")

        with pytest.raises(KeyringError) as caught:
            new_keyring(path)

        assert "EV304" == code_of(caught)
        assert ["keyring.json"] == os.listdir(tmp_path)
        assert kind != "file" or path.read_text() == "precious"

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError) as caught:
            new_keyring(tmp_path / "no" / "keyring.json")

        assert "EV404" == code_of(caught)

    def test_the_file_is_complete_or_not_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)

        with pytest.raises(StorageError, match="No space left"):
            new_keyring(tmp_path / "keyring.json")

        assert [] == os.listdir(tmp_path)


class TestWhoMayRead:
    @pytest.mark.parametrize("mode", [0o600, 0o400], ids=oct)
    def test_the_owner_alone(self, tmp_path: Path, mode: int) -> None:
        assert HeldKeys(base64.b64decode(SECRET)).id == load_keyring(written(tmp_path / "k", GOOD, mode)).id

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o700, 0o644, 0o777, 0o4600], ids=oct)
    def test_wider_is_refused(self, tmp_path: Path, mode: int) -> None:
        with pytest.raises(KeyringError) as caught:
            load_keyring(written(tmp_path / "k", GOOD, mode))

        assert "EV302" == code_of(caught)

    def test_missing(self, tmp_path: Path) -> None:
        for path in (tmp_path / "k", tmp_path / "no" / "k", str(tmp_path / "k\0")):
            with pytest.raises(KeyringError) as caught:
                load_keyring(path)
            assert "EV301" == code_of(caught)

    @pytest.mark.parametrize("kind", ["link", "dangling-link", "folder", "pipe", "device"])
    def test_only_regular_files(self, tmp_path: Path, kind: str) -> None:
        path = tmp_path / "k"
        if kind == "link":
            path.symlink_to(written(tmp_path / "real", GOOD))
        elif kind == "dangling-link":
            path.symlink_to(tmp_path / "nothing")
        elif kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path, 0o600)
        else:
            path = Path("/dev/zero")

        with pytest.raises(KeyringError) as caught:
            load_keyring(path)

        assert "EV303" == code_of(caught)


MALFORMED: dict[str, Any] = {
    "empty": "",
    "no-json": "canary",
    "not-utf8": b'{"eventveil_keyring": 1, "root": "canary\xff"}',
    "a-list": '["canary"]',
    "nested": "[" * 100_000,
    "large": " " * (1 << 20) + json.dumps(GOOD),
    "other-document": {"root": SECRET},
    "version-2": {**GOOD, "eventveil_keyring": 2},
    "version-true": {**GOOD, "eventveil_keyring": True},
    "unknown-entry": {**GOOD, "canary": 1},
    "no-root": {"eventveil_keyring": 1},
    "root-a-number": {**GOOD, "root": 7},
    "root-short": {**GOOD, "root": SECRET[:40]},
    "root-unpadded": {**GOOD, "root": SECRET.rstrip("=")},
    "root-with-spaces": {**GOOD, "root": f" {SECRET}"},
    "domains-a-list": {**GOOD, "domains": ["canary"]},
    "domain-short": {**GOOD, "domains": {"a": "Y2FuYXJ5"}},
    "domain-null": {**GOOD, "domains": {"a": None}},
    "domain-unnamed": {**GOOD, "domains": {"": SECRET}},
    "a-key-twice": f'{{"eventveil_keyring": 1, "root": "{SECRET}", "root": "{SECRET}"}}',
}


class TestMalformed:
    @pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
    def test_is_refused_and_never_quoted(self, tmp_path: Path, content: Any) -> None:
        with pytest.raises(KeyringError) as caught:
            load_keyring(written(tmp_path / "k", content))

        shown = "".join(traceback.format_exception(caught.value))
        assert "EV303" == code_of(caught)
        assert "canary" not in shown and SECRET[:8] not in shown and "Y2Fu" not in shown

    def test_a_date_of_making_is_allowed(self, tmp_path: Path) -> None:
        load_keyring(written(tmp_path / "k", {**GOOD, "created": "2024-09-10"}))
