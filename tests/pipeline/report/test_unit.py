"""The unit of systemd: what systemd itself says of it, and that it restarts where a restart can help."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from eventveil.schemas.errors import EventveilError, KeyringError, LimitError, PolicyError, SchemaError, StorageError

UNIT = Path(__file__).resolve().parents[3] / "deploy" / "local" / "eventveil.service"
ANALYZE = shutil.which("systemd-analyze")


def settings() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text("utf-8").splitlines():
        if line and not line.startswith(("#", "[")):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a command that exists on the tester's machine."""
    text, number = re.subn(r"^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text("utf-8"), flags=re.MULTILINE)
    assert 1 == number
    copy = tmp_path / UNIT.name
    copy.write_text(text, "utf-8")
    return copy


@pytest.mark.skipif(ANALYZE is None, reason="this machine has no systemd")
class TestSystemd:
    def test_finds_nothing_wrong(self, unit: Path) -> None:
        done = subprocess.run([str(ANALYZE), "verify", "--man=no", unit], capture_output=True, text=True, check=False, timeout=60)

        # It exits with 0 over an entry that it does not know, and says so.
        assert (0, "") == (done.returncode, "".join(line for line in done.stderr.splitlines() if unit.name in line))

    def test_calls_it_well_hardened(self, unit: Path) -> None:
        command = [str(ANALYZE), "security", "--offline=yes", "--threshold=20", unit]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        if "unrecognized option" in done.stderr:
            pytest.skip("this systemd cannot judge a file")

        assert 0 == done.returncode, done.stdout


class TestItself:
    def test_each_setting_stands_once(self) -> None:
        assert [] == [name for name, values in settings().items() if len(values) > 1]

    def test_restarts_where_a_restart_can_help(self) -> None:
        (codes,) = settings()["RestartPreventExitStatus"]

        assert {LimitError.exit_code, PolicyError.exit_code, SchemaError.exit_code, KeyringError.exit_code} == set(map(int, codes.split()))
        assert not {StorageError.exit_code, EventveilError.exit_code} & set(map(int, codes.split()))
        assert (["on-failure"], ["SIGTERM"], ["130"]) == tuple(settings()[name] for name in ("Restart", "KillSignal", "SuccessExitStatus"))

    def test_holds_no_secret_and_keeps_memory_off_the_disk(self) -> None:
        found = settings()

        assert not {"Environment", "EnvironmentFile", "SetCredential"} & set(found)
        assert (["0"], ["0"]) == (found["LimitCORE"], found["MemorySwapMax"])
        assert (["yes"], ["strict"], [""]) == tuple(found[name] for name in ("NoNewPrivileges", "ProtectSystem", "CapabilityBoundingSet"))
