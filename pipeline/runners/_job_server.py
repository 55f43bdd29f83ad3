"""Beam's job server for Flink: takes a pipeline from Python, and submits it to a cluster as a job.

Beam lets it listen on every interface, without a password, and no option changes that: it should live no longer than a submission takes.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eventveil.schemas.errors import StorageError, Unreachable

__all__ = ["job_server"]

_DRIVER = "org.apache.beam.runners.flink.FlinkJobServerDriver"
_SECONDS = 60.0
_OPENS = ("lang", "lang.invoke", "lang.reflect", "net", "nio", "text", "time", "util", "util.concurrent", "util.concurrent.atomic")
# Java does not notice that its parent was killed; a shell does, by the end of a pipe.
_WHILE_WE_LIVE = """\
exec 3<&0
"$@" </dev/null 3<&- &
child=$!
(cat <&3; kill "$child") >/dev/null 2>&1 &
watch=$!
exec 3<&-
wait "$child"
code=$?
kill "$watch" 2>/dev/null
exit "$code"
"""


@contextmanager
def job_server(master: str, named: str | None = None, flink_version: str = "1.19") -> Iterator[str]:
    """A job server for the block; yields its ``host:port``.

    Args:
        master: ``host:port`` of Flink's REST API.
        named: a jar, a folder of jars, or the ``host:port`` of a job server that runs. None: the jars that deploy/local/up has
            fetched, else Beam's own download for `flink_version`.

    Raises:
        Unreachable: EV418 the job server that was named does not answer.
        StorageError: EV419 no Java, no jars, or it does not start.
    """
    if named is not None and not os.path.exists(named):
        host, _, port = named.rpartition(":")
        if not host or "/" in host or not port.isdigit():
            raise StorageError.of("EV419", f"{named} is no jar, no folder, and no host:port of a job server", "name one of them")
        if not _answers(named, 10):
            raise Unreachable.of("EV418", "the job server does not answer", "check its address, and that it runs", file=named)
        yield named
        return
    classpath = _classpath(named, flink_version)
    folder = tempfile.mkdtemp(prefix="eventveil-job-server-")
    try:
        process, address = _start(master, classpath, Path(folder))
        try:
            yield address
        finally:
            _end(process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _classpath(named: str | None, flink_version: str) -> str:
    for place in [Path(named)] if named is not None else _fetched(flink_version):
        if place.is_file():
            return str(place)
        if any(place.glob("*.jar")):
            return f"{place}/*"
    if named is not None:
        raise StorageError.of("EV419", f"{named} holds no jars", "name the folder that holds Beam's runner for Flink")
    return _downloaded(flink_version)


def _fetched(flink_version: str) -> list[Path]:
    """What deploy/local/up keeps, the newest first."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eventveil"
    return sorted(Path(os.environ.get("EVENTVEIL_CACHE") or cache).glob(f"flink-{flink_version}-*"), key=_version, reverse=True)


def _version(place: Path) -> list[int]:
    return [int(part) for part in place.name.rpartition("-")[2].split(".") if part.isdigit()]


def _downloaded(flink_version: str) -> str:
    from apache_beam.options.pipeline_options import FlinkRunnerOptions, PipelineOptions
    from apache_beam.runners.portability.flink_runner import FlinkJarJobServer

    options = PipelineOptions(flags=[])
    options.view_as(FlinkRunnerOptions).flink_version = flink_version
    server: Any = FlinkJarJobServer(options)
    try:
        return str(server.local_jar(server.path_to_jar()))
    except Exception as error:  # noqa: BLE001 - Beam says what it likes; it has seen no event yet, but its texts are long
        fact = f"Beam's job server for Flink {flink_version} cannot be downloaded ({type(error).__name__})"
        raise StorageError.of("EV419", fact, "name its jar, a folder of jars, or the host:port of one that runs") from None


def _java() -> str:
    home = os.environ.get("JAVA_HOME")
    found = shutil.which(os.path.join(home, "bin", "java") if home else "java")
    if not found:
        where = "where JAVA_HOME says" if home else "on the PATH"
        raise StorageError.of(
            "EV419", f"there is no java {where}: Beam's job server needs it", "install Java 11 or newer, or name a job server that runs"
        )
    return found


def _start(master: str, classpath: str, folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    java = _java()
    log = folder / "log"
    for last in (False, False, True):
        address = f"127.0.0.1:{_free_port()}"
        command = [
            *("sh", "-c", _WHILE_WE_LIVE, "sh", java, "-XX:+UseSerialGC", "-Xmx512m"),
            *(f"--add-opens=java.base/java.{package}=ALL-UNNAMED" for package in _OPENS),
            *("-cp", classpath, _DRIVER, "--flink-master", master, "--artifacts-dir", str(folder / "artifacts")),
            # 0: a free one, which the job server tells its clients.
            *("--job-host", "127.0.0.1", "--job-port", address.rpartition(":")[2], "--artifact-port", "0", "--expansion-port", "0"),
        ]
        with log.open("wb") as said:
            # Ctrl-C is for us: it ends the job first.
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, stderr=said, start_new_session=True)  # noqa: S603
        try:
            deadline = time.monotonic() + _SECONDS
            while process.poll() is None and time.monotonic() < deadline:
                if _answers(address, 0.5):
                    return process, address
        except BaseException:
            _end(process)
            raise
        ended = process.poll() is not None
        _end(process)
        # Somebody took the port between our look and the server's.
        if last or not ended or b"Address already in use" not in log.read_bytes():
            break
    # It has been given no pipeline yet, so that its log cannot quote an event.
    end = log.read_text("utf-8", "replace").strip().splitlines()[-8:]
    why = "ended" if ended else f"did not answer within {_SECONDS:.0f} s"
    raise StorageError.of("EV419", f"Beam's job server {why}", "the end of its log:\n" + "\n".join(end))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(address: str, seconds: float) -> bool:
    import grpc  # type: ignore[import-untyped]

    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=seconds)
        except grpc.FutureTimeoutError:
            return False
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.stdin:
        process.stdin.close()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()
