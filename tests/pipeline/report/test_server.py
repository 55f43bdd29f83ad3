"""The little HTTP server: over real sockets, with clients that mean well and with others."""

from __future__ import annotations

import errno
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress

import pytest

from eventveil.pipeline.report import server as module
from eventveil.pipeline.report.server import Address, Answer, MetricsServer
from eventveil.schemas.errors import PolicyError, StorageError

HAS_V6 = socket.has_ipv6 and socket.socket(socket.AF_INET6).connect_ex(("::1", 9)) != errno.EADDRNOTAVAIL
Start = Callable[..., MetricsServer]


@pytest.fixture
def start() -> Iterator[Start]:
    with ExitStack() as stack:

        def begin(address: str = "0", **answers: Callable[[], Answer]) -> MetricsServer:
            told = {f"/{name}": answer for name, answer in answers.items()} or {"/metrics": lambda: Answer(b"one 1\n")}
            return stack.enter_context(MetricsServer(Address.parse(address), told))

        yield begin


def none_left(before: set[threading.Thread]) -> None:
    """No thread but those of before, and before a client's patience of 5 s would have ended anyhow."""
    end = time.monotonic() + 3
    while left := set(threading.enumerate()) - before:
        assert time.monotonic() < end, left
        time.sleep(0.02)


def asked(
    server: MetricsServer, method: str = "GET", path: str = "/metrics", body: bytes | None = None
) -> tuple[int, dict[str, str], bytes]:
    with closing(http.client.HTTPConnection(server.address.host, server.address.port, timeout=10)) as connection:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()


def raw(server: MetricsServer, sent: bytes) -> bytes:
    with socket.create_connection((server.address.host, server.address.port), 10) as connection:
        connection.sendall(sent)
        answer = b""
        while got := connection.recv(4096):
            answer += got
        return answer


class TestAddress:
    @pytest.mark.parametrize(
        ("text", "host", "port"),
        [
            ("9464", "127.0.0.1", 9464),
            (":9464", "127.0.0.1", 9464),
            ("0", "127.0.0.1", 0),
            ("0.0.0.0:65535", "0.0.0.0", 65535),
            ("metrics.local:1", "metrics.local", 1),
            ("[::1]:9464", "::1", 9464),
            ("[::]:0", "::", 0),
            ("[fe80::1%eth0]:9464", "fe80::1%eth0", 9464),
        ],
    )
    def test_is_read(self, text: str, host: str, port: int) -> None:
        found = Address.parse(text)

        assert (host, port) == (found.host, found.port)
        assert found == Address.parse(str(found))

    @pytest.mark.parametrize(
        "text", ["", ":", "host", "host:", "::1:9464", "[::1]", "[::1]9464", "[1.2.3.4]:1", "[g]:1", "65536", "a:99999"]
    )
    @pytest.mark.parametrize("more", ["", "\n"])
    def test_anything_else_is_told_with_what_to_write(self, text: str, more: str) -> None:
        with pytest.raises(PolicyError) as caught:
            Address.parse(text + more)

        assert ("EV103", 2) == (caught.value.problems[0].code, caught.value.exit_code)

    @pytest.mark.parametrize("text", ["-1", "1.5", "http://localhost:1", "a b:1", "user@host:1", "٣:1", "1٣", "9464\n", "[::1]:9464\n"])
    def test_what_only_looks_like_one(self, text: str) -> None:
        with pytest.raises(PolicyError, match=r"EV103 --metrics .* is no address\n  write a port, as 9464, or host:port"):
            Address.parse(text)


class TestListening:
    def test_a_free_port_is_taken_for_0_and_told(self, start: Start) -> None:
        one, two = start("0"), start("0")

        assert 0 < one.address.port != two.address.port > 0
        assert ("127.0.0.1", False) == (one.address.host, one.is_open)

    def test_a_port_that_is_in_use(self, start: Start) -> None:
        taken = start("0").address

        with pytest.raises(StorageError) as caught:
            MetricsServer(taken, {})

        expected = (
            f"EV417 metrics cannot be told at {taken}: Address already in use\n  name another with --metrics: a free port of this machine"
        )
        assert (expected, 4) == (str(caught.value), caught.value.exit_code)

    @pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid", "a" * 70 + ".invalid", "a..b"])
    def test_a_host_that_is_not_this_machine(self, host: str) -> None:
        with pytest.raises(StorageError, match=rf"EV417 metrics cannot be told at {host}:0: "):
            MetricsServer(Address(host, 0), {})

    def test_a_port_is_free_again_at_once(self, start: Start) -> None:
        with MetricsServer(Address("127.0.0.1", 0), {"/metrics": lambda: Answer(b"")}) as server:
            asked(server)
        with MetricsServer(server.address, {"/metrics": lambda: Answer(b"again")}) as server:
            assert b"again" == asked(server)[2]

    def test_other_machines_are_let_in_only_when_told(self, start: Start) -> None:
        server = start("0.0.0.0:0")

        assert server.is_open

    @pytest.mark.skipif(not HAS_V6, reason="this machine has no IPv6")
    def test_ipv6(self, start: Start) -> None:
        server = start("[::1]:0")

        assert (False, b"one 1\n") == (server.is_open, asked(server)[2])
        assert str(server.address).startswith("[::1]:")
        assert start("[::]:0").is_open

    def test_ends_with_the_job_and_leaves_no_thread(self) -> None:
        before = set(threading.enumerate())
        with MetricsServer(Address("127.0.0.1", 0), {"/metrics": lambda: Answer(b"")}) as server:
            asked(server)

        none_left(before)
        with pytest.raises(ConnectionRefusedError):
            asked(server)


class TestAnswers:
    def test_get_and_head_say_the_same(self, start: Start) -> None:
        server = start()
        status, headers, body = asked(server)

        assert (200, b"one 1\n", "6", "close") == (status, body, headers["content-length"], headers["connection"])
        assert {"no-store", "nosniff"} <= set(headers.values())
        without_body = asked(server, "HEAD")
        assert (200, b"", "6") == (without_body[0], without_body[2], without_body[1]["content-length"])
        assert raw(server, b"HEAD /metrics HTTP/1.1\r\n\r\n").endswith(b"\r\n\r\n")

    def test_a_query_is_overlooked(self, start: Start) -> None:
        assert 200 == asked(start(), path="/metrics?name[]=x")[0]

    def test_status_and_type_are_those_of_the_answer(self, start: Start) -> None:
        status, headers, body = asked(start(healthz=lambda: Answer.json({"ok": False}, 503)), path="/healthz")

        assert (503, "application/json", b'{"ok": false}\n') == (status, headers["content-type"], body)

    def test_another_path(self, start: Start) -> None:
        server = start(metrics=lambda: Answer(b""), healthz=lambda: Answer(b""))

        for path in ("/", "/metrics/", "/etc/passwd", "/%6detrics"):
            assert (404, b"not found; known: /metrics /healthz\n") == asked(server, path=path)[::2]

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"])
    def test_another_method(self, start: Start, method: str) -> None:
        status, headers, body = asked(start(), method)

        assert (405, "GET, HEAD", b"method not allowed\n") == (status, headers["allow"], body)

    def test_a_body_is_not_taken_and_who_sends_it_slowly_is_still_answered(self, start: Start) -> None:
        server = start()
        with socket.create_connection((server.address.host, server.address.port), 10) as connection:
            connection.sendall(b"POST /metrics HTTP/1.1\r\nContent-Length: 30000\r\n\r\n")
            for _ in range(10):
                time.sleep(0.03)
                connection.sendall(b"x" * 3_000)

            assert connection.recv(4096).startswith(b"HTTP/1.0 405 ")

    def test_an_answer_that_fails_ends_one_request(self, start: Start, capfd: pytest.CaptureFixture[str]) -> None:
        server = start(bad=lambda: Answer(b"%d" % (1 // 0)), good=lambda: Answer(b"fine"))

        with pytest.raises(http.client.RemoteDisconnected):
            asked(server, path="/bad")
        assert b"fine" == asked(server, path="/good")[2]
        assert ("", "") == capfd.readouterr()


class TestHostileClients:
    @pytest.mark.parametrize(
        "sent",
        [
            b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
            b"GET\r\n\r\n",
            b"GET /metrics HTTP/9.9\r\n\r\n",
            b"GET /metrics HTTP/1.1 secret\r\n\r\n",
            b"\r\n\r\n",
            b"GET /secret\x00\xff HTTP/1.1\r\nHost: secret\r\nsecret\r\n\r\n",
            b"POST /metrics HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\nsecret",
            b"POST /metrics HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFF\r\nsecret",
            b"GET /metrics HTTP/1.1\r\nExpect: 100-continue\r\n\r\n",
            b"GET /metrics HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n",
        ],
        ids=["tls", "no_path", "version", "words", "nothing", "bytes", "length", "chunked", "expect", "headers"],
    )
    def test_get_no_word_of_theirs_back_and_hurt_nobody(self, start: Start, sent: bytes, capfd: pytest.CaptureFixture[str]) -> None:
        server = start()

        with socket.create_connection((server.address.host, server.address.port), 10) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while got := connection.recv(4096):
                answer += got

        assert b"secret" not in answer
        assert 200 == asked(server)[0]
        assert ("", "") == capfd.readouterr()

    def test_an_endless_head_is_cut_off(self, start: Start) -> None:
        server, sent, began = start(), 0, time.monotonic()
        with socket.create_connection((server.address.host, server.address.port), 10) as connection, suppress(ConnectionError):
            while sent < 64 << 20:
                sent += connection.send(b"a" * 65536)

        assert sent < 64 << 20
        assert time.monotonic() - began < 3

    def test_a_head_that_drips_is_given_up_after_a_while_as_a_whole(self, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_PATIENCE_S", 0.5)
        server = start()
        began = time.monotonic()
        with socket.create_connection((server.address.host, server.address.port), 10) as connection, suppress(ConnectionError):
            for _ in range(50):
                connection.sendall(b"a")
                time.sleep(0.1)

        assert time.monotonic() - began < 3

    def test_who_reads_nothing_is_given_up_too(self, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_PATIENCE_S", 0.5)
        server, before = start(metrics=lambda: Answer(b"x" * (64 << 20))), set(threading.enumerate())
        with socket.create_connection((server.address.host, server.address.port), 10) as connection:
            connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert connection.recv(1)
            none_left(before)

    def test_many_at_once_take_a_bounded_number_of_threads_and_go_by(self, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_PATIENCE_S", 1.0)
        server, before, most = start(), set(threading.enumerate()), 0
        with ExitStack() as stack:
            for _ in range(100):
                stack.enter_context(socket.create_connection((server.address.host, server.address.port), 10))
            end = time.monotonic() + 1.5
            while time.monotonic() < end:
                most = max(most, len(set(threading.enumerate()) - before))
                time.sleep(0.02)

            assert 200 == asked(server)[0]
        assert 0 < most <= 16

    def test_who_leaves_at_once_hurts_nobody(self, start: Start, capfd: pytest.CaptureFixture[str]) -> None:
        server = start()
        for _ in range(50):
            with socket.create_connection((server.address.host, server.address.port), 10) as connection:
                connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

        assert 200 == asked(server)[0]
        assert ("", "") == capfd.readouterr()

    def test_an_old_client_gets_the_body_alone(self, start: Start) -> None:
        assert b"one 1\n" == raw(start(), b"GET /metrics\r\n\r\n")
