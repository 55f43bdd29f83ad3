"""eventveil expansion-service: give Anonymize to pipelines in Java, and in other languages."""

from __future__ import annotations

import typer

from eventveil.pipeline.runners.expansion_service import TRANSFORM, run_expansion_service

__all__ = ["start"]


def start(listen: str = "127.0.0.1:0", worker_pool: str = "127.0.0.1:50000", insecure: bool = False) -> int:
    """Run the service in the foreground; prints where it answers, and what its address discloses."""
    run_expansion_service(listen, worker_pool, insecure=insecure, tell=_tell, warn=_warn)
    return 0


def _tell(address: str) -> None:
    typer.echo(f"the expansion service answers at {address}: ask it for {TRANSFORM}")


def _warn(text: str) -> None:
    typer.echo(text, err=True)
