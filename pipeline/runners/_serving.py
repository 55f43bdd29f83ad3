"""Servers of Beam's that know no password: on loopback unless told otherwise, in the foreground, until they are told to end."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable

import grpc  # type: ignore[import-untyped]
from apache_beam.utils import thread_pool_executor

from eventveil.pipeline.signals import answered
from eventveil.schemas.errors import StorageError

__all__ = ["serve"]


def serve(
    what: str,
    address: str,
    add: Callable[[grpc.Server], None],
    *,
    insecure: bool,
    tell: Callable[[str], None],
    warn: Callable[[str], None],
    ended: threading.Event | None = None,
) -> None:
    """Answer at an address, until SIGTERM, SIGINT or `ended`.

    Args:
        what: the server, in messages. add: adds what it does.
        address: ``host:port`` to listen on; port 0 takes a free one.
        insecure: allow an address that stands for every interface of the machine.
        tell: called once, with the ``host:port`` where it answers.
        warn: called with what whoever starts it must know.

    Raises:
        StorageError: EV419 it cannot listen there, or may not.
    """
    host, port, safe = _checked(what, address, insecure)
    if not safe:
        warn(f"whoever reaches {address} can run code on this machine: let nobody but the engine through to it")
    options = [
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.so_reuseport", 0),  # else two of them share a port, and each gets half of the calls
    ]
    server = grpc.server(thread_pool_executor.shared_unbounded_instance(), options=options)
    add(server)
    place = f"[{host}]" if ":" in host else host
    try:
        bound = server.add_insecure_port(f"{place}:{port}")
    except RuntimeError:
        bound = 0
    if not bound:
        raise StorageError.of("EV419", f"{what} cannot listen on {address}", "name a free port of this machine")
    over = ended or threading.Event()
    with answered(over.set):
        try:
            server.start()
            tell(f"{place}:{bound}")
            over.wait()
        finally:
            server.stop(0)


def _checked(what: str, address: str, insecure: bool) -> tuple[str, int, bool]:
    """Host, port, and whether only this machine can connect."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise StorageError.of("EV419", f"the address of {what} is host:port", "name it as in 127.0.0.1:50000")
    try:
        # Nothing before the colon means every interface.
        found = [ipaddress.ip_address(each[4][0]) for each in socket.getaddrinfo(host or "0.0.0.0", None, type=socket.SOCK_STREAM)]  # noqa: S104
    except OSError:
        raise StorageError.of("EV419", f"{host} is no address of this machine", "name one, as 127.0.0.1:50000") from None
    if any(each.is_unspecified for each in found) and not insecure:
        raise StorageError.of(
            "EV419",
            f"{address} stands for every interface of this machine, and whoever reaches {what} can run code on it",
            "name the one interface that the engine uses, or say --insecure",
        )
    return host or "0.0.0.0", int(port), all(each.is_loopback for each in found)  # noqa: S104
