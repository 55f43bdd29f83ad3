"""Keys from an environment variable: the base64 of a root of 32 bytes.

For places that hand secrets to a process that way. Other processes of the same user, and core dumps, may show it: a keyring file is better.
"""

from __future__ import annotations

from collections.abc import Mapping

from eventveil.schemas.errors import KeyringError
from eventveil.transforms.keys.derive import HeldKeys, Keys
from eventveil.transforms.keys.providers.keyring_file import read_root

__all__ = ["load_environment"]


def load_environment(variable: str, environ: Mapping[str, str]) -> Keys:
    """The keys whose root stands in `variable`; white space around it does not count.

    Raises KeyringError: EV305 where it is not set or empty, EV303 where it is malformed. No message quotes it.
    """
    text = environ.get(variable, "").strip()
    if not text:
        raise KeyringError.of("EV305", f"the environment variable {variable} is not set", "set it to the base64 of 32 random bytes")
    root = read_root(text)
    if root is None:
        raise KeyringError.of(
            "EV303",
            f"the environment variable {variable} is not the base64 of 32 bytes",
            "restore it from a backup; keys are never repaired",
        )
    return HeldKeys(root)
