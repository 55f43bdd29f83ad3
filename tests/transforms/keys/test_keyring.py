"""What may stand after --keys."""

from __future__ import annotations

import base64
import pickle
from pathlib import Path

import pytest

from eventveil.schemas.errors import KeyringError
from eventveil.transforms.keys.keyring import load_keys, throw_away_keys
from eventveil.transforms.keys.providers.keyring_file import new_keyring


def test_a_path(tmp_path: Path) -> None:
    made = new_keyring(tmp_path / "keyring.json")

    assert made.id == load_keys(str(tmp_path / "keyring.json")).id


def test_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTVEIL_ROOT", base64.b64encode(bytes(32)).decode())

    assert 16 == len(load_keys("env:EVENTVEIL_ROOT").id)
    with pytest.raises(KeyringError, match="EV305 the environment variable EVENTVEIL_OTHER is not set"):
        load_keys("env:EVENTVEIL_OTHER")


def test_throw_away_keys_are_never_the_same() -> None:
    one, other = throw_away_keys(), throw_away_keys()

    assert one.id != other.id
    assert one.domain("a").for_domain("noise") != other.domain("a").for_domain("noise")
    with pytest.raises(TypeError):
        pickle.dumps(one)
