"""Where keys come from, by what a user writes after ``--keys``."""

from __future__ import annotations

import os
import secrets

from eventveil.transforms.keys.derive import HeldKeys, Keys
from eventveil.transforms.keys.providers.environment import load_environment
from eventveil.transforms.keys.providers.keyring_file import load_keyring

__all__ = ["load_keys", "throw_away_keys"]

_ENVIRONMENT = "env:"


def load_keys(spec: str) -> Keys:
    """The keys that `spec` names: the path of a keyring file, or ``env:NAME`` for an environment variable.

    A file whose name begins with ``env:`` is written ``./env:...``. Raises KeyringError: EV301, EV302, EV303 or EV305.
    """
    if spec.startswith(_ENVIRONMENT):
        return load_environment(spec[len(_ENVIRONMENT) :], os.environ)
    return load_keyring(spec)


def throw_away_keys() -> Keys:
    """Random keys that nobody else has and nothing stores: for a preview, whose pseudonyms must not be those of a run."""
    return HeldKeys(secrets.token_bytes(32))
