"""Every block of the README is run, in one folder and in order.

A yaml or json block that begins with a comment `# name` is written to that file. In a console block lines after `$ ` are
commands, the others what they print; `...` stands for anything. A python block is a program. Blocks without a language are not run.
"""

from __future__ import annotations

import doctest
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SAME = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def blocks() -> list[tuple[str, str]]:
    return BLOCK.findall((ROOT / "README.md").read_text("utf-8"))


def commands(block: str) -> list[tuple[str, str]]:
    """Each command of a console block, with what it is said to print."""
    pieces = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    return [(command, printed) for command, _, printed in (piece.partition("\n") for piece in pieces)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's files, and the command line as `eventveil`."""
    path = tmp_path_factory.mktemp("readme")
    for name in ("shipping_order.avsc", "orders.jsonl"):
        shutil.copy(ROOT / "examples" / "shipping_order" / name, path)
    script = path / "bin" / "eventveil"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nfrom eventveil.pipeline.cli.main import main\nmain()\n")
    script.chmod(0o755)
    return path


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "NO_COLOR": "1",
        "TERM": "dumb",
        "COLUMNS": "200",
    }
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def test_the_readme_has_a_policy_commands_an_error_and_a_program() -> None:
    languages = {language for language, _ in blocks()}

    assert {"yaml", "console", "python"} <= languages
    assert any(re.search(r"^\S+:\d+: EV\d{3} ", text, re.MULTILINE) for _, text in blocks())


def test_every_block_does_what_it_shows(folder: Path) -> None:
    wrong = []
    for language, text in blocks():
        if language in {"yaml", "json"} and (named := re.match(r"# (\S+)\n", text)):
            (folder / named[1]).write_text(text, "utf-8")
        elif language == "python":
            done = run([sys.executable, "-c", text], folder)
            if done.returncode:
                wrong.append(f"{text}\n-> {done.returncode}\n{done.stdout}")
        elif language == "console":
            for command, printed in commands(text):
                done = run(["bash", "-c", command], folder)
                if done.returncode or not doctest.OutputChecker().check_output(printed, done.stdout, SAME):
                    wrong.append(f"$ {command}\n-> {done.returncode}\n{done.stdout}\nexpected\n{printed}")

    assert wrong == []
