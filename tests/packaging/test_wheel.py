"""The wheel, built from the sdist as workers build it, without a network."""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("schemas", "transforms", "pipeline")


def files_below(folder: Path) -> set[str]:
    """Paths of the files that belong into the wheel: sources, the marker for type checkers, data."""
    return {
        str(path.relative_to(folder.parent))
        for path in folder.rglob("*")
        if path.suffix in {".py", ".json", ".csv"} or path.name == "py.typed"
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel made from it, out of a copy: a build writes into its tree."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in (*FOLDERS, "tests", "examples", "docs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(ROOT / name, copy)
    dist = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return dist


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    (path,) = built.glob("*.whl")
    return zipfile.ZipFile(path)


class TestTheWheel:
    def test_its_only_top_level_name_is_eventveil(self, wheel: zipfile.ZipFile) -> None:
        tops = {name.split("/")[0] for name in wheel.namelist()}

        assert {top for top in tops if not top.endswith(".dist-info")} == {"eventveil"}

    def test_every_source_file_is_in_it(self, wheel: zipfile.ZipFile) -> None:
        expected = {f"eventveil/{path}" for folder in FOLDERS for path in files_below(ROOT / folder)}

        actual = {name for name in wheel.namelist() if name.startswith("eventveil/")}

        assert expected == actual

    def test_eventveil_is_a_namespace_that_others_may_share(self, wheel: zipfile.ZipFile) -> None:
        assert "eventveil/__init__.py" not in wheel.namelist()

    @pytest.mark.parametrize("folder", FOLDERS)
    def test_each_folder_says_that_it_is_typed(self, wheel: zipfile.ZipFile, folder: str) -> None:
        assert f"eventveil/{folder}/py.typed" in wheel.namelist()

    def test_metadata_name_licence_versions_and_command(self, wheel: zipfile.ZipFile) -> None:
        (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
        metadata = email.message_from_bytes(wheel.read(name))
        points = wheel.read(name.replace("METADATA", "entry_points.txt")).decode()

        assert metadata["Name"] == "eventveil"
        assert (metadata["License-Expression"] or metadata["License"]) == "Apache-2.0"
        assert {"<3.14", ">=3.10"} == set(metadata["Requires-Python"].split(","))
        assert "eventveil = eventveil.pipeline.cli.main:main" in points
        assert any(entry.endswith("/LICENSE") for entry in wheel.namelist())

    def test_it_works_beside_a_folder_named_transforms(self, built: Path, tmp_path: Path) -> None:
        target = tmp_path / "installed"
        (path,) = built.glob("*.whl")
        zipfile.ZipFile(path).extractall(target)
        for folder in FOLDERS:
            (tmp_path / "elsewhere" / folder).mkdir(parents=True)
            (tmp_path / "elsewhere" / folder / "__init__.py").write_text("raise ImportError('the bare name was imported')\n")

        code = "import eventveil.schemas.errors, eventveil.transforms.registry as r; print(r.__file__)"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path / "elsewhere",
            env={**os.environ, "PYTHONPATH": str(target)},
            capture_output=True,
            text=True,
            check=False,
        )

        assert done.returncode == 0, done.stderr
        assert Path(done.stdout.strip()).is_relative_to(target)


class TestTheSdist:
    def test_holds_what_a_worker_needs_to_rebuild_and_no_tests(self, built: Path) -> None:
        (path,) = built.glob("*.tar.gz")
        with tarfile.open(path) as archive:
            tops = {name.split("/")[1] for name in archive.getnames() if "/" in name}

        assert {"schemas", "transforms", "pipeline", "setup.py", "pyproject.toml", "LICENSE", "README.md"} <= tops
        assert not {"tests", "examples", "docs", "bench", "deploy"} & tops


@pytest.mark.skipif("EVENTVEIL_TESTS_INSTALLED" not in os.environ, reason="only `make test` runs against an installed wheel")
@pytest.mark.parametrize("folder", FOLDERS)
def test_the_installed_package_is_tested_and_not_the_checkout(folder: str) -> None:
    spec = find_spec(f"eventveil.{folder}")

    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).is_relative_to(Path(sys.prefix))
