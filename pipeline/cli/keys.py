"""eventveil keys: make keyrings and custodians' key pairs."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from eventveil.transforms.keys.custodian import new_custodian
from eventveil.transforms.keys.keyring import load_keys
from eventveil.transforms.keys.providers.keyring_file import new_keyring

__all__ = ["new_custodian_pair", "new_keys"]


def new_keys(path: str, domains: Sequence[str]) -> int:
    """Make a keyring and say what to do with it."""
    new_keyring(path, domains)
    typer.echo(f"{path}: keyring {load_keys(path).id}, readable by you alone")
    typer.echo("  keep a copy where the events are safe: without it no window's pseudonyms can be made again")
    typer.echo("  who holds it can test guesses against pseudonyms and take the noise off: treat it like the events")
    return 0


def new_custodian_pair(prefix: str) -> int:
    """Make a key pair and say who gets which half."""
    new_custodian(prefix)
    typer.echo(f"{prefix}.pub: for the pipeline; refused events are sealed to it")
    typer.echo(f"{prefix}.key: for the custodian alone; move it off this machine")
    return 0
