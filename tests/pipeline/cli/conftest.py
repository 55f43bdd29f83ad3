"""The command line as a user has it: another process, its exit code and what it prints."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eventveil.transforms.keys.custodian import new_custodian
from eventveil.transforms.keys.providers.keyring_file import new_keyring

ROOT = Path(__file__).resolve().parents[3]
COMMAND = [sys.executable, "-c", "from eventveil.pipeline.cli.main import main; main()"]

Done = subprocess.CompletedProcess[str]
Eventveil = Callable[..., Done]


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Nothing of the tester's taste: no colours asked for or refused, no width."""
    taste = {"NO_COLOR", "FORCE_COLOR", "CLICOLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE"}
    return {**{name: value for name, value in os.environ.items() if name not in taste}, "TERM": "xterm-256color"}


@pytest.fixture(scope="session")
def eventveil(environment: dict[str, str]) -> Eventveil:
    """Run a command; without a terminal."""

    def run(*arguments: Any, cwd: Path, env: dict[str, str] | None = None) -> Done:
        return subprocess.run(
            [*COMMAND, *map(str, arguments)],
            cwd=cwd,
            env={**environment, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            check=False,
            timeout=120,
        )

    return run


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with the shipping orders and their policies, a keyring and a custodian's keys."""
    for name in ("shipping_order.avsc", "policy.yaml", "trusted.yaml", "orders.jsonl"):
        shutil.copy(ROOT / "examples" / "shipping_order" / name, tmp_path)
    new_keyring(tmp_path / "keyring.json")
    new_custodian(tmp_path / "custodian")
    return tmp_path
