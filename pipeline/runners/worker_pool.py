"""The pool that starts Beam's Python workers where an engine asks for them (``--environment_type=EXTERNAL``).

Beam's own binds every interface, takes ``python`` from the PATH and prints what fails, values and all. This one listens on loopback
unless told otherwise, and its workers run on the interpreter that it runs on itself. Beam knows no password here: whoever reaches the
pool can run code as the user that it runs as.

A worker ends when the engine says so, when its connection to the engine is lost, when whoever asked for it gives up before it is there,
and when the pool ends, however it ends.
"""

from __future__ import annotations

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
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, NoReturn

import grpc  # type: ignore[import-untyped]
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc

from eventveil.pipeline.runners._serving import serve
from eventveil.schemas.errors import EventveilError

__all__ = ["run_pool", "work"]

_GRACE_S = 3.0
_LOOK_S = 0.2
_POOL = 0  # a worker's line to its pool stands where standard input does
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
        address, insecure, tell, warn, ended: as for `serve`.

    Raises:
        StorageError: EV419 it cannot listen there, or may not.
    """
    workers = _Workers()

    def add(server: grpc.Server) -> None:
        beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(workers, server)

    try:
        serve("the worker pool", address, add, insecure=insecure, tell=tell, warn=warn, ended=ended)
    finally:
        workers.end()


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
        asked = (context.peer(), request.worker_id)
        try:
            process, line = self._start(asked, request.control_endpoint.url)
        except Exception as error:  # noqa: BLE001 - the engine is told, and asks again
            return beam_fn_api_pb2.StartWorkerResponse(error=f"the worker cannot be started: {type(error).__name__}")
        connected = _connected(line, context)
        if not connected:
            _end([process])
        threading.Thread(target=self._reap, args=(asked, process, line), daemon=True).start()
        if not connected:
            return beam_fn_api_pb2.StartWorkerResponse(error=f"the worker ended with {process.returncode} before it reached the engine")
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        with self._lock:
            process = self._running.pop((context.peer(), request.worker_id), None)
        if process:
            _end([process])
        return beam_fn_api_pb2.StopWorkerResponse()

    def _start(self, asked: tuple[str, str], control: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
        with self._lock:
            if self._over:
                raise RuntimeError
            former = self._running.pop(asked, None)
            line, its = socket.socketpair()
            with its:
                # It says on this line that it is connected, and sees its end when the pool is gone, even by kill -9.
                process = subprocess.Popen([sys.executable, "-c", _WORKER, control, asked[1]], stdin=its.fileno())  # noqa: S603
            self._running[asked] = process
        if former:
            _end([former])
        return process, line

    def _reap(self, asked: tuple[str, str], process: subprocess.Popen[bytes], line: socket.socket) -> None:
        process.wait()
        line.close()
        with self._lock:
            if self._running.get(asked) is process:
                del self._running[asked]

    def end(self) -> None:
        with self._lock:
            self._over = True
            left = list(self._running.values())
            self._running.clear()
        _end(left)


def _connected(line: socket.socket, context: Any) -> bool:
    """Wait until a worker is; it is not when it has ended, or when nobody waits for it any more.

    An engine whose attempt is cancelled meanwhile does not say so: it would leave the worker connected to a server that nobody uses.
    """
    line.settimeout(_LOOK_S)
    while context.is_active():
        with suppress(TimeoutError):
            return bool(line.recv(1)) and bool(context.is_active())
    return False


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
        harness = sdk_worker.SdkHarness(control, worker_id=name, state_cache_size=0, data_buffer_time_limit_ms=0)
        os.write(_POOL, b".")
        harness.run()
        code = 0
    except Exception as error:  # noqa: BLE001 - the engine is gone: who it was, and what it said, is of no use here
        sys.stderr.write(f"worker {name}: {type(error).__name__}, it ends\n")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Threads that are in the middle of a bundle would keep it alive for an engine that has given it up.
        os._exit(code)


def _end_with_pool() -> None:
    # An error when the pool has not read what stands in the line.
    with suppress(OSError):
        while os.read(_POOL, 1024):
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
