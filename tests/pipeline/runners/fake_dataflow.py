"""Dataflow's REST API (v1b3), as far as Beam's own runner asks it: it takes jobs, refuses the second of one name, and replaces one.

Nothing is run. What was asked for is kept, to be looked at.
"""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["FakeDataflow"]

_JOBS = re.compile(r"/v1b3/projects/([^/?]+)/locations/([^/?]+)/jobs(?:/([^/?]+))?(?:\?|$)")


class FakeDataflow:
    """A server on a free port of this machine, for as long as it is entered.

    Attributes:
        jobs: those that were taken, by id, as they were sent and with what the service adds.
        fails_with: an HTTP status that new jobs are refused with; None: they are taken.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.fails_with: int | None = None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": self}))

    @property
    def flags(self) -> list[str]:
        """What a job has to be told to come here."""
        # Beam asks by REST only where the address says localhost.
        return [f"--dataflow_endpoint=http://localhost:{self._server.server_port}", "--no_auth"]

    @property
    def last(self) -> dict[str, Any]:
        return list(self.jobs.values())[-1]

    def __enter__(self) -> FakeDataflow:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def create(self, project: str, location: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.fails_with is not None:
            return self.fails_with, _error(self.fails_with, "secret-of-the-service")
        missing = [name for name in ("name", "type", "environment") if name not in body]
        replaced = self.jobs.get(body["replaceJobId"]) if "replaceJobId" in body else None
        if missing or ("replaceJobId" in body and replaced is None):
            return 400, _error(400, f"missing: {missing}, or unknown: the job to replace")
        active = [job for job in self.jobs.values() if job["name"] == body["name"] and job["currentState"] == "JOB_STATE_RUNNING"]
        if active and active != [replaced]:
            return 409, _error(409, "there is already an active job of this name")
        if replaced is not None:
            replaced["currentState"] = "JOB_STATE_UPDATED"
        at = "2026-01-01T00:00:00Z"
        number = f"2026-01-01_00_00_00-{len(self.jobs) + 1:019d}"
        state = {"id": number, "projectId": project, "location": location, "currentState": "JOB_STATE_RUNNING"}
        self.jobs[number] = {**body, **state, "createTime": at, "currentStateTime": at}
        return 200, self.jobs[number]


class _Handler(BaseHTTPRequestHandler):
    fake: FakeDataflow

    def do_POST(self) -> None:
        found = _JOBS.match(self.path)
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        self._answer(*((404, _error(404, "no such method")) if found is None else self.fake.create(found[1], found[2], body)))

    def do_GET(self) -> None:
        found = _JOBS.match(self.path)
        if found is None:
            self._answer(404, _error(404, "no such method"))
        elif found[3] is None:
            shown = ("id", "name", "currentState", "type")
            self._answer(200, {"jobs": [{name: job[name] for name in shown} for job in self.fake.jobs.values()]})
        elif found[3] in self.fake.jobs:
            self._answer(200, self.fake.jobs[found[3]])
        else:
            self._answer(404, _error(404, "no such job"))

    def log_message(self, *_: object) -> None:
        """Silent."""

    def _answer(self, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _error(status: int, message: str) -> dict[str, Any]:
    return {"error": {"code": status, "message": message}}
