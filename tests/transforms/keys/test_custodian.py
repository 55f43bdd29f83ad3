"""The custodian's key files: made once, read strictly, never quoted."""

from __future__ import annotations

import json
import os
import pickle
import stat
from pathlib import Path

import pytest

from eventveil.schemas.errors import KeyringError, StorageError
from eventveil.transforms.keys.custodian import CustodianKey, load_private, load_public, new_custodian


def mode_of(path: str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


class TestNew:
    def test_two_files_that_belong_together(self, tmp_path: Path) -> None:
        made = new_custodian(tmp_path / "custodian")

        assert (str(tmp_path / "custodian.pub"), str(tmp_path / "custodian.key")) == (made.public, made.private)
        assert (0o644, 0o600) == (mode_of(made.public), mode_of(made.private))
        assert load_public(made.public) == CustodianKey.of(load_private(made.private))
        assert made.id == load_public(made.public).id
        assert 16 == len(made.id)

    def test_modes_hold_under_any_umask(self, tmp_path: Path) -> None:
        before = os.umask(0o077)
        try:
            made = new_custodian(tmp_path / "custodian")
        finally:
            os.umask(before)

        assert (0o644, 0o600) == (mode_of(made.public), mode_of(made.private))

    def test_two_pairs_differ(self, tmp_path: Path) -> None:
        assert new_custodian(tmp_path / "a").id != new_custodian(tmp_path / "b").id

    @pytest.mark.parametrize("suffix", ["pub", "key"])
    def test_nothing_is_overwritten(self, tmp_path: Path, suffix: str) -> None:
        (tmp_path / f"c.{suffix}").write_text("mine")

        with pytest.raises(KeyringError, match="EV304"):
            new_custodian(tmp_path / "c")
        assert [f"c.{suffix}"] == os.listdir(tmp_path)
        assert "mine" == (tmp_path / f"c.{suffix}").read_text()

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match="EV404 no such file or directory"):
            new_custodian(tmp_path / "nowhere" / "c")


class TestLoad:
    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610])
    def test_a_private_key_that_others_may_touch(self, tmp_path: Path, mode: int) -> None:
        made = new_custodian(tmp_path / "c")
        os.chmod(made.private, mode)

        with pytest.raises(KeyringError, match="EV302"):
            load_private(made.private)

    def test_one_in_place_of_the_other(self, tmp_path: Path) -> None:
        made = new_custodian(tmp_path / "c")
        os.chmod(made.public, 0o600)

        with pytest.raises(KeyringError, match="EV306 holds a private key; the public one is needed"):
            load_public(made.private)
        with pytest.raises(KeyringError, match="EV306 holds the public key; the private one is needed"):
            load_private(made.public)

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda found: {**found, "version": 2}, id="version"),
            pytest.param(lambda found: {**found, "kind": "keyring"}, id="kind"),
            pytest.param(lambda found: {**found, "key": found["key"][:-8]}, id="short"),
            pytest.param(lambda found: {**found, "key": "!" + found["key"]}, id="not base64"),
            pytest.param(lambda found: {**found, "key": 7}, id="no text"),
            pytest.param(lambda found: [found], id="list"),
            pytest.param(lambda found: {}, id="empty"),
        ],
    )
    @pytest.mark.parametrize("load", [load_public, load_private])
    def test_a_malformed_file(self, tmp_path: Path, change: object, load: object) -> None:
        made = new_custodian(tmp_path / "c")
        path = made.public if load is load_public else made.private
        document = json.loads(Path(path).read_text())
        Path(path).write_text(json.dumps(change(document)))  # type: ignore[operator]

        with pytest.raises(KeyringError, match="EV306") as caught:
            load(path)  # type: ignore[operator]
        assert document["key"][:8] not in str(caught.value)

    def test_files_that_are_none(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        for path in (tmp_path, tmp_path / "pipe", tmp_path / "missing"):
            with pytest.raises(KeyringError, match="EV306"):
                load_public(path)

    def test_the_public_key_may_be_pickled(self, tmp_path: Path) -> None:
        key = load_public(new_custodian(tmp_path / "c").public)

        assert key == pickle.loads(pickle.dumps(key))
