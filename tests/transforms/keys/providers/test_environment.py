"""Keys from an environment variable."""

from __future__ import annotations

import base64
import traceback

import pytest

from eventveil.schemas.errors import KeyringError
from eventveil.transforms.keys.derive import HeldKeys
from eventveil.transforms.keys.providers.environment import load_environment

ROOT = b"canary: thirty-two bytes of root"


def test_the_root_stands_in_it() -> None:
    text = base64.b64encode(ROOT).decode()

    assert HeldKeys(ROOT).id == load_environment("KEYS", {"KEYS": f" {text}\n"}).id


@pytest.mark.parametrize("environ", [{}, {"KEYS": ""}, {"KEYS": " \n"}], ids=["missing", "empty", "blank"])
def test_not_set(environ: dict[str, str]) -> None:
    with pytest.raises(KeyringError, match="EV305"):
        load_environment("KEYS", environ)


@pytest.mark.parametrize(
    "text",
    [
        "canary",
        ROOT.decode(),
        base64.b64encode(ROOT[:31]).decode(),
        base64.b64encode(ROOT).decode()[:-1],
        base64.b64encode(ROOT + b"x").decode(),
        "é" * 44,
    ],
    ids=["no-base64", "raw", "short", "unpadded", "long", "not-ascii"],
)
def test_malformed_is_never_quoted(text: str) -> None:
    with pytest.raises(KeyringError) as caught:
        load_environment("KEYS", {"KEYS": text})

    assert ["EV303"] == [problem.code for problem in caught.value.problems]
    assert text[:6] not in "".join(traceback.format_exception(caught.value))
