"""The pool that starts Beam's Python workers where an engine asks for them (``--environment_type=EXTERNAL``).

Beam's own binds every interface, takes ``python`` from the PATH and prints what fails, values and all. This one listens on loopback
unless told otherwise, and its workers run on the interpreter that it runs on itself. Beam knows no password here: whoever reaches the
pool can run code as the user that it runs as.

A worker ends when the engine says so, when its connection to the engine is lost, and when the pool ends, however it ends.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NoReturn

import grpc  # type: ignore[import-untyped]
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc
from apache_beam.utils import thread_pool_executor

from eventveil.schemas.errors import EventveilError, StorageError

__all__ = ["run_pool", "work"]

_GRACE_S = 3.0
# Without the working folder on the path: what lies there is not what the pool itself would import.
_WORKER = (
    "import sys; sys.path = [place for place in sys.path if place]; "
    "from eventveil.pipeline.runners.worker_pool import work; work(sys.argv[1], sys.argv[2])"
)
_STEP = re.compile(r" \[while running '([\w/.(): -]{1,200})'\]\Z")


def run_pool(
    address: str = "127.0.0.1:0",
    *,
    insecure: bool = False,
    tell: Callable[[str], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
    ended: threading.Event | None = None,
) -> None:
    """Start workers for whoever asks, until SIGTERM, SIGINT or `ended`; then end them all.

    Args:
        address: ``host:port`` to listen on; port 0 takes a free one.
        insecure: allow an address that stands for every interface of the machine.
        tell: called once, with the ``host:port`` where the pool answers.
        warn: called with what whoever starts the pool must know.

    Raises:
        StorageError: EV419 it cannot listen there, or may not.
    """
    host, port, safe = _checked(address, insecure)
    if not safe:
        warn(f"whoever reaches {address} can run code on this machine: let nobody but the engine through to it")
    workers = _Workers()
    options = [
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.so_reuseport", 0),  # else two pools share a port, and each gets half of the calls
    ]
    server = grpc.server(thread_pool_executor.shared_unbounded_instance(), options=options)
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(workers, server)
    place = f"[{host}]" if ":" in host else host
    try:
        bound = server.add_insecure_port(f"{place}:{port}")
    except RuntimeError:
        bound = 0
    if not bound:
        raise StorageError.of("EV419", f"the worker pool cannot listen on {address}", "name a free port of this machine")
    over = ended or threading.Event()
    before = _on_signals(over)
    try:
        server.start()
        tell(f"{place}:{bound}")
        over.wait()
    finally:
        server.stop(0)
        workers.end()
        for number, handler in before:
            signal.signal(number, handler)


def _checked(address: str, insecure: bool) -> tuple[str, int, bool]:
    """Host, port, and whether only this machine can connect."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise StorageError.of("EV419", "the address of a worker pool is host:port", "name it as in 127.0.0.1:50000")
    try:
        # Nothing before the colon means every interface.
        found = [ipaddress.ip_address(each[4][0]) for each in socket.getaddrinfo(host or "0.0.0.0", None, type=socket.SOCK_STREAM)]  # noqa: S104
    except OSError:
        raise StorageError.of("EV419", f"{host} is no address of this machine", "name one, as 127.0.0.1:50000") from None
    if any(each.is_unspecified for each in found) and not insecure:
        raise StorageError.of(
            "EV419",
            f"{address} stands for every interface of this machine, and whoever reaches the pool can run code on it",
            "name the one interface that the engine uses, or say --insecure",
        )
    return host or "0.0.0.0", int(port), all(each.is_loopback for each in found)  # noqa: S104


def _on_signals(over: threading.Event) -> Sequence[tuple[int, Any]]:
    if threading.current_thread() is not threading.main_thread():
        return ()
    return [(number, signal.signal(number, lambda *_: over.set())) for number in (signal.SIGTERM, signal.SIGINT)]


class _Workers(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
    """The processes that were asked for, by the connection that asked and its name for them.

    The name alone is not enough: each TaskManager of Flink calls its first worker 1-1. One that is asked to stop over another connection
    ends when its own to the engine does.
    """

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        self._over = False

    def StartWorker(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        try:
            self._start((context.peer(), request.worker_id), request.control_endpoint.url)
        except Exception as error:  # noqa: BLE001 - the engine is told, and asks again
            return beam_fn_api_pb2.StartWorkerResponse(error=f"the worker cannot be started: {type(error).__name__}")
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        with self._lock:
            process = self._running.pop((context.peer(), request.worker_id), None)
        if process:
            _end([process])
        return beam_fn_api_pb2.StopWorkerResponse()

    def _start(self, asked: tuple[str, str], control: str) -> None:
        with self._lock:
            if self._over:
                raise RuntimeError
            former = self._running.pop(asked, None)
            # It reads from this pipe, and sees its end when the pool is gone, even by kill -9.
            process = subprocess.Popen([sys.executable, "-c", _WORKER, control, asked[1]], stdin=subprocess.PIPE)  # noqa: S603
            self._running[asked] = process
        threading.Thread(target=self._reap, args=(asked, process), daemon=True).start()
        if former:
            _end([former])

    def _reap(self, asked: tuple[str, str], process: subprocess.Popen[bytes]) -> None:
        process.wait()
        assert process.stdin is not None
        process.stdin.close()
        with self._lock:
            if self._running.get(asked) is process:
                del self._running[asked]

    def end(self) -> None:
        with self._lock:
            self._over = True
            left = list(self._running.values())
            self._running.clear()
        _end(left)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """TERM, and KILL for those that have not ended in time."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _GRACE_S
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def work(control: str, name: str) -> NoReturn:
    """Be a worker, until the engine at `control` has no more to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the pool
    threading.excepthook = _thread_failed  # else it prints texts
    threading.Thread(target=_end_with_pool, daemon=True).start()
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)

    from apache_beam.runners.worker import sdk_worker

    # Before anything is unpickled: the coder of a batch must be known to a worker that was started anew.
    import eventveil.transforms.beam.coder  # noqa: F401

    vars(sdk_worker)["print"] = _say_nothing
    vars(sdk_worker)["traceback"] = _TRACEBACK
    code = 1
    try:
        # The state cache measures each entry by a walk through all loaded modules.
        sdk_worker.SdkHarness(control, worker_id=name, state_cache_size=0, data_buffer_time_limit_ms=0).run()
        code = 0
    except Exception as error:  # noqa: BLE001 - the engine is gone: who it was, and what it said, is of no use here
        sys.stderr.write(f"worker {name}: {type(error).__name__}, it ends\n")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Threads that are in the middle of a bundle would keep it alive for an engine that has given it up.
        os._exit(code)


def _end_with_pool() -> None:
    while os.read(0, 1024):
        pass
    os._exit(1)


def _told(error: BaseException | None, *_: Any, **__: Any) -> list[str]:
    """Where it failed, and the errors by their classes; texts only of our own errors, which hold no values."""
    lines: list[str] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        lines += [f"  {frame.filename}:{frame.lineno} {frame.name}\n" for frame in traceback.extract_tb(error.__traceback__)]
        lines.append(f"{_line(error)}\n")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return lines


# In place of `traceback` in Beam's worker, whose texts go to the engine, into its logs and onto its pages.
_TRACEBACK = SimpleNamespace(
    **{**vars(traceback), "format_exception": _told, "format_exc": lambda *_, **__: "".join(_told(sys.exc_info()[1])).rstrip()}
)


def _line(error: BaseException) -> str:
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    if isinstance(error, EventveilError):
        return f"{kind}: {error}"
    step = _STEP.search(str(error)) if type(error).__str__ in (BaseException.__str__, OSError.__str__) else None
    return f"{kind}: text withheld" + (f" [while running '{step[1]}']" if step else "")


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    sys.stderr.write(f"a thread of the worker failed: {failed.exc_type.__name__}\n")


def _say_nothing(*_: Any, **__: Any) -> None:
    """In place of `print` in Beam's worker."""
