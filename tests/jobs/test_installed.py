"""A wheel in an environment of its own runs a job from a folder that has packages called as our folders are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("schemas", "transforms", "pipeline")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that EVENTVEIL_WHEEL names; else one built here, out of a copy: a build writes into its tree."""
    if named := os.environ.get("EVENTVEIL_WHEEL"):
        return Path(named).resolve()
    copy = tmp_path_factory.mktemp("checkout")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    dist = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(dist), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the wheel; its libraries are those of the environment that runs the tests.

    They come behind its own packages on the path, and as a plain entry: .pth files there, which may point to a checkout, are
    not read.
    """
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    ours = Path(subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=True).stdout.strip())
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet", str(wheel)]
    subprocess.run(command, check=True, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    # Only now: with our libraries pip would also see our own eventveil, and install nothing.
    (ours / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    return python


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder of somebody's project: its packages have our folders' names, and fail when they are imported."""
    for name in FOLDERS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise ImportError('the {name} of the folder was imported')\n")
    for name in ("shipping_order.avsc", "trusted.yaml", "orders.jsonl"):
        shutil.copy(ROOT / "examples" / "shipping_order" / name, tmp_path)
    return tmp_path


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def test_the_installed_command_runs_a_job_beside_packages_of_the_same_names(python: Path, hostile: Path) -> None:
    def run(*arguments: str) -> str:
        done = subprocess.run(
            [python.parent / "eventveil", *arguments], cwd=hostile, env=environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert run("version").startswith("eventveil ")
    assert "shipping-order-trusted version 1" in run("check", "trusted.yaml")
    run("keys", "new", "keyring.json")
    run("keys", "custodian", "custodian")
    flags = ["--policy", "trusted.yaml", "--input", "orders.jsonl", "--output", "out", "--keys", "keyring.json"]
    run("run", *flags, "--dead-letters", "refused", "--custodian", "custodian.pub", "--workers", "2", "--summary", "summary.json")

    (policy,) = json.loads((hostile / "summary.json").read_text())["policies"]
    assert (200, 200) == (policy["in"], policy["out"])
    assert 200 == sum(path.read_bytes().count(b"\n") for path in (hostile / "out").glob("part-*.jsonl"))


def test_it_is_the_wheel_that_runs(python: Path, hostile: Path) -> None:
    code = "import eventveil.pipeline.graph, eventveil.schemas, eventveil.transforms.plan as plan; print(plan.__file__)"
    # Python's own -P would hide the folder; without it the folder comes first on the path.
    done = subprocess.run([python, "-c", code], cwd=hostile, env=environment(), capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(python.parents[1])
