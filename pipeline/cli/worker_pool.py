"""eventveil worker-pool: start Beam's Python workers for an engine on this machine."""

from __future__ import annotations

import typer

from eventveil.pipeline.runners.worker_pool import run_pool

__all__ = ["start"]


def start(listen: str = "127.0.0.1:0", insecure: bool = False) -> int:
    """Run the pool in the foreground; prints where it answers, and what its address discloses."""
    run_pool(listen, insecure=insecure, tell=_tell, warn=_warn)
    return 0


def _tell(address: str) -> None:
    typer.echo(f"the worker pool answers at {address}: --environment_type=EXTERNAL --environment_config={address}")


def _warn(text: str) -> None:
    typer.echo(text, err=True)
