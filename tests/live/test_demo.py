"""The live demo, as a newcomer runs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "shipping_order"

pytestmark = pytest.mark.slow


@pytest.fixture
def surroundings(tmp_path: Path, shared_broker: object) -> dict[str, str]:
    """With the code under test as `eventveil`; and a Kafka can be started here, or this is skipped."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tools / "eventveil").write_text(f"#!{sys.executable}\nfrom eventveil.pipeline.cli.main import main\nmain()\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    return {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "DEMO_WORK": str(tmp_path / "demo"), "DEMO_SECONDS": "8"}


def start(surroundings: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [EXAMPLE / "demo-live"],
        env=surroundings,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # Its own group, as in a terminal: Ctrl-C is for all that it runs.
        start_new_session=True,
    )


def left_running(folder: Path) -> list[str]:
    """Command lines that name a folder or run in it, and go on: the pause of a watcher that was ended lasts a second by itself."""
    for _ in range(30):
        if not (found := running(folder)):
            break
        time.sleep(0.1)
    return found


def running(folder: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(folder) in command or Path(os.readlink(process / "cwd")).is_relative_to(folder):
                found.append(command)
        except OSError:
            continue
    return found


def test_windows_appear_while_orders_arrive(surroundings: dict[str, str], tmp_path: Path) -> None:
    with start(surroundings) as demo:
        said, _ = demo.communicate(timeout=150)

    assert demo.returncode == 0, said
    (windows, rows) = re.findall(r"(\d+) windows, ([\d,]+) rows", said)[0]
    assert int(windows) >= 1
    assert 0 < int(rows.replace(",", "")) <= 401
    live = said.split("4. ")[1].split("5. SIGTERM")[0]
    assert re.search(r"\d\d:\d\d:\d\d  \d{4}-\d\d-\d\dT\d\d:\d\d:\d[05]Z +[\d,]+ rows", live)
    assert '"state": "stopped"' in said
    assert '"customer"' in said
    for name in ("Abdullin", "Horvat", "Kowalski"):
        assert name not in said.split("6. What the recipient has")[1].split("7. ")[0]
    assert left_running(tmp_path / "demo") == []


def test_ctrl_c_leaves_nothing_running(surroundings: dict[str, str], tmp_path: Path) -> None:
    with start(surroundings) as demo:
        assert demo.stdout is not None
        for text in demo.stdout:
            if text.startswith("4. "):
                break
        time.sleep(3)
        assert running(tmp_path / "demo") != []
        os.killpg(demo.pid, signal.SIGINT)
        demo.stdout.read()

        assert demo.wait(60) == 130
    assert left_running(tmp_path / "demo") == []
