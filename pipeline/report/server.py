"""A small HTTP server for metrics and health. Whoever reaches it may be anybody: it reads no body, waits for nobody, repeats nothing."""

from __future__ import annotations

import io
import ipaddress
import json
import re
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Any

from eventveil.schemas.document import shorten
from eventveil.schemas.errors import PolicyError, Problem, StorageError

__all__ = ["Address", "Answer", "MetricsServer"]

_LOOPBACK = "127.0.0.1"
_CONNECTIONS = 16
_PATIENCE_S = 5.0
_LARGEST_REQUEST = 16 << 10
_DRAINED = 64 << 10


@dataclass(frozen=True)
class Address:
    """Where to listen. Port 0: one that is free."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """From ``9464`` or ``:9464`` (this machine alone), ``host:9464``, ``[::1]:9464``. Raises PolicyError (EV103)."""
        found = re.fullmatch(r"(?:(?:\[([0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?)\]|([A-Za-z0-9._-]*)):)?([0-9]{1,5})", text, re.ASCII)
        if found is None or int(found[3]) > 65535 or (found[1] and not _is_v6(found[1])):
            remedy = "write a port, as 9464, or host:port, as 0.0.0.0:9464 or [::1]:9464"
            raise PolicyError(Problem("", 0, "EV103", f"--metrics {shorten(text)} is no address", remedy))
        return cls(found[1] or found[2] or _LOOPBACK, int(found[3]))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _is_v6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False


@dataclass(frozen=True)
class Answer:
    """What is said at a path."""

    body: bytes
    type: str = "text/plain; charset=utf-8"
    status: int = HTTPStatus.OK

    @classmethod
    def json(cls, document: dict[str, Any], status: int = HTTPStatus.OK) -> Answer:
        return cls(json.dumps(document).encode() + b"\n", "application/json", status)


class MetricsServer:
    """While it is entered, answers GET and HEAD at the paths of `answers`.

    Attributes:
        address: where it listens, with the port that it got. is_open: whether other machines can reach it.
    """

    def __init__(self, address: Address, answers: dict[str, Callable[[], Answer]]) -> None:
        """Listens from here on, and answers once entered. Raises StorageError (EV417)."""
        try:
            (family, _, _, _, where), *_ = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            self._server = _Server(family, where, answers)
        except (OSError, UnicodeError) as error:
            fact = f"metrics cannot be told at {address}: {getattr(error, 'strerror', None) or 'there is no such host'}"
            raise StorageError.of("EV417", fact, "name another with --metrics: a free port of this machine") from None
        bound = self._server.socket.getsockname()
        self.address = Address(str(bound[0]), int(bound[1]))
        self.is_open = not ipaddress.ip_address(self.address.host.partition("%")[0]).is_loopback
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), name="metrics", daemon=True)

    def __enter__(self) -> MetricsServer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self.close()

    def close(self) -> None:
        """Stop listening, where it was never entered."""
        self._server.server_close()


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    # Not http.server's: it looks its own name up when it is made, which can take half a minute.
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 32

    def __init__(self, family: int, where: Any, answers: dict[str, Callable[[], Answer]]) -> None:
        self.address_family = family
        self.answers = answers
        self._free = threading.BoundedSemaphore(_CONNECTIONS)
        super().__init__(where, _Request)

    def get_request(self) -> tuple[Any, Any]:
        try:
            return super().get_request()
        except OSError:
            time.sleep(0.2)  # no file is left to open: it would be asked again at once, for ever
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started, and none will give its place back
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left, or a request that no library understands: nothing of it is told."""


class _Request(BaseHTTPRequestHandler):
    server: _Server
    server_version = "eventveil"
    sys_version = ""

    def handle(self) -> None:
        """One request: its head within five seconds as a whole, however slowly it drips; whatever follows is not read."""
        head, ends = b"", time.monotonic() + _PATIENCE_S
        while b"\r\n\r\n" not in head and b"\n\n" not in head:
            left = ends - time.monotonic()
            if left <= 0 or len(head) > _LARGEST_REQUEST:
                return
            self.connection.settimeout(left)
            got = self.connection.recv(4096)
            if not got:
                return
            head += got
        self.rfile = io.BytesIO(head)
        self.connection.settimeout(_PATIENCE_S)
        self.handle_one_request()
        self.wfile.flush()
        if self.command not in ("GET", "HEAD"):
            self._drain()

    def do_GET(self) -> None:
        answer = self.server.answers.get(self.path.partition("?")[0])
        if answer is None:
            self.send_error(HTTPStatus.NOT_FOUND)
        else:
            self._send(answer())

    do_HEAD = do_GET  # noqa: N815

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """In our words: the library's quote the request."""
        if code == HTTPStatus.NOT_IMPLEMENTED:  # its word for a method that it does not find here
            code = HTTPStatus.METHOD_NOT_ALLOWED
        known = " ".join(self.server.answers)
        body = f"not found; known: {known}\n" if code == HTTPStatus.NOT_FOUND else f"{HTTPStatus(code).phrase.lower()}\n"
        self._send(Answer(body.encode(), status=code))

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Connection", "close")
        if answer.status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def _drain(self) -> None:
        """Let a client finish its body for a second: what is left unread when we close would take our answer with it."""
        self.connection.shutdown(socket.SHUT_WR)
        ends, rest = time.monotonic() + 1, _DRAINED
        while rest > 0 and (left := ends - time.monotonic()) > 0:
            self.connection.settimeout(left)
            got = self.connection.recv(8192)
            if not got:
                return
            rest -= len(got)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: whoever asks does not write our log."""
