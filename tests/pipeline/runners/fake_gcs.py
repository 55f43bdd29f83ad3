"""A bucket of Google Cloud Storage on this machine: fake-gcs-server, built by Go into the cache when it is first needed."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

__all__ = ["CannotBuildError", "FakeGcs"]

_VERSION = "v1.56.1"


class CannotBuildError(Exception):
    """Go is missing, or the proxy of its modules cannot be reached."""


class FakeGcs:
    """A server for as long as it is entered; what is put into its buckets lies below `folder`, as files."""

    def __init__(self, folder: Path, *buckets: str) -> None:
        self.folder = folder
        self._buckets = buckets

    def __enter__(self) -> FakeGcs:
        for bucket in self._buckets:
            (self.folder / bucket).mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        listens = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-external-url", self.address]
        command = [_built(), *listens, "-public-host", f"127.0.0.1:{port}", "-backend", "filesystem", "-filesystem-root", str(self.folder)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def files(self, bucket: str) -> dict[str, Path]:
        """What lies in a bucket, by its name there; without what the server notes about it."""
        root = self.folder / bucket
        files = (path for path in root.rglob("*") if path.is_file() and not path.name.endswith((".metadata", ".attrs")))
        return {str(path.relative_to(root)): path for path in files}

    def _wait(self) -> None:
        until = time.monotonic() + 20
        while True:
            try:
                with urllib.request.urlopen(f"{self.address}/storage/v1/b", timeout=2) as answer:
                    json.load(answer)
                    return
            except (OSError, urllib.error.URLError):
                if time.monotonic() > until or self._process.poll() is not None:
                    raise
                time.sleep(0.05)


def _built() -> str:
    cache = Path(os.environ.get("EVENTVEIL_CACHE") or Path.home() / ".cache" / "eventveil")
    folder = cache / f"fake-gcs-server-{_VERSION}"
    program = folder / "fake-gcs-server"
    if not program.exists():
        go = shutil.which("go")
        if go is None:
            raise CannotBuildError("Go is not installed")
        folder.mkdir(parents=True, exist_ok=True)
        command = [go, "install", f"github.com/fsouza/fake-gcs-server@{_VERSION}"]
        done = subprocess.run(command, env={**os.environ, "GOBIN": str(folder)}, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotBuildError("Go could not build fake-gcs-server: " + done.stderr.strip().rpartition("\n")[2])
    return str(program)
