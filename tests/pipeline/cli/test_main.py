"""The command line as a whole: help, versions, exit codes, and readers that go away."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]

COMMANDS = ["check", "preview", "keys", "run", "dead-letters", "version", "worker-pool", "expansion-service"]


def test_help_lists_the_commands_as_they_are_used_and_every_exit_code(tmp_path: Path, eventveil: Run) -> None:
    done = eventveil("--help", cwd=tmp_path)
    _, _, commands = done.stdout.partition("Commands:\n")

    assert (0, "") == (done.returncode, done.stderr)
    assert "eventveil run --policy policy.yaml --input 'in/*.jsonl' --output out" in done.stdout
    assert COMMANDS == re.findall(r"^  ([a-z-]+) +\S", commands.partition("Exit codes:")[0], re.MULTILINE)
    assert ["0", "1", "2", "3", "4", "70", "130"] == re.findall(r"^    (\d+) +\S", commands.partition("Exit codes:")[2], re.MULTILINE)


@pytest.mark.parametrize("arguments", [[], ["keys"], ["dead-letters"]], ids=["alone", "keys", "dead_letters"])
def test_without_a_command_help_is_shown_as_an_error(tmp_path: Path, eventveil: Run, arguments: list[str]) -> None:
    done = eventveil(*arguments, cwd=tmp_path)

    assert 2 == done.returncode
    assert "Usage: eventveil " in done.stdout + done.stderr


def test_version_is_that_of_the_distribution(tmp_path: Path, eventveil: Run) -> None:
    try:
        expected = f"eventveil {metadata.version('eventveil')}\n"
    except metadata.PackageNotFoundError:
        expected = "eventveil, from sources that are not installed\n"

    done = eventveil("version", cwd=tmp_path)

    assert (0, expected, "") == (done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param(["chek"], "No such command 'chek'", id="command"),
        pytest.param(["check", "a", "b"], "Got unexpected extra argument", id="extra"),
        pytest.param(["dead-letters", "open", "refused"], "Missing option '--key'", id="missing_option"),
    ],
)
def test_wrong_arguments_exit_with_2_and_say_where_help_is(tmp_path: Path, eventveil: Run, arguments: list[str], expected: str) -> None:
    done = eventveil(*arguments, cwd=tmp_path)

    assert (2, "") == (done.returncode, done.stdout)
    assert expected in done.stderr
    assert "Try 'eventveil" in done.stderr


def test_a_reader_that_goes_away_is_no_defect(shop: Path, environment: dict[str, str]) -> None:
    """As in ``eventveil preview ... | head -1``."""
    code = "from eventveil.pipeline.cli.main import main; main()"
    command = [sys.executable, "-c", code, "preview", "policy.yaml", "--input", "orders.jsonl", "-n", "200", "--json"]
    process = subprocess.Popen(command, cwd=shop, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()

    assert (141, b"") == (process.wait(60), process.stderr.read())
