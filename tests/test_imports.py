"""Who may import whom: schemas <- transforms <- pipeline, and Beam only where it runs. Read from the sources, not from a run."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("schemas", "transforms", "pipeline")
ABOVE = {"schemas": {"transforms", "pipeline"}, "transforms": {"pipeline"}, "pipeline": set()}
SOURCES = sorted(path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
MODULES = [".".join(("eventveil", *path.with_suffix("").parts)).removesuffix(".__init__") for path in SOURCES]


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Every module that a source names in an import statement, wherever it stands; relative ones made absolute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module or ""
            # `from eventveil import pipeline` names a module too.
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in ("import_module", "__import__"):
            yield from (one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str))


def imports_of(path: Path) -> set[str]:
    package = ".".join(("eventveil", *path.parent.parts))
    return set(imported(ast.parse((ROOT / path).read_text("utf-8")), package))


def is_below(module: str, *tops: str) -> bool:
    return any(module == top or module.startswith(f"{top}.") for top in tops)


class TestTheReading:
    @pytest.mark.parametrize(
        ("source", "expected"),
        [
            pytest.param("import eventveil.pipeline.graph", {"eventveil.pipeline.graph"}, id="plain"),
            pytest.param("from eventveil import pipeline", {"eventveil", "eventveil.pipeline"}, id="from_the_namespace"),
            pytest.param("def f():\n    from ..pipeline import x", {"eventveil.pipeline", "eventveil.pipeline.x"}, id="relative_and_late"),
            pytest.param("import_module('apache_beam.io')", {"apache_beam.io"}, id="by_call"),
        ],
    )
    def test_sees_every_form_of_import(self, source: str, expected: set[str]) -> None:
        assert expected == set(imported(ast.parse(source), "eventveil.schemas"))

    def test_there_is_something_to_read(self) -> None:
        assert {"schemas", "transforms", "pipeline"} == {path.parts[0] for path in SOURCES}
        assert len(SOURCES) > 90


@pytest.mark.parametrize("path", SOURCES, ids=str)
class TestEverySource:
    def test_imports_from_below_only(self, path: Path) -> None:
        above = [f"eventveil.{folder}" for folder in ABOVE[path.parts[0]]]

        assert set() == {name for name in imports_of(path) if is_below(name, *above)}

    def test_never_imports_the_bare_folders(self, path: Path) -> None:
        assert set() == {name for name in imports_of(path) if is_below(name, *FOLDERS)}

    def test_imports_beam_only_where_it_runs(self, path: Path) -> None:
        beam = {name for name in imports_of(path) if is_below(name, "apache_beam")}

        assert not beam or path.is_relative_to("transforms/beam") or path.is_relative_to("pipeline")


def test_no_module_is_named_like_a_librarys() -> None:
    """From a folder of ours, or one on the path, it would be imported in the library's place: a `proto.py` broke Beam."""
    # `keyring` comes with Beam's part for Google Cloud, for pip alone.
    libraries = {*sys.stdlib_module_names, *packages_distributions()} - {"eventveil", "keyring"}
    names = {path.stem for path in SOURCES} | {path.parent.name for path in SOURCES}

    assert set() == names & libraries - set(FOLDERS)


CORE = [
    name
    for name in MODULES
    if is_below(name, "eventveil.schemas", "eventveil.transforms") and not is_below(name, "eventveil.transforms.beam")
]

_WITHOUT_BEAM = """
import importlib, sys
sys.modules["apache_beam"] = None  # any import of it fails
for name in {names!r}:
    importlib.import_module(name)
from eventveil.transforms.registry import find, known
for name in known():
    assert find(name) is not None, name
from eventveil.transforms.compile import load_plan
from eventveil.transforms.keys.keyring import throw_away_keys
load_plan({policy!r}).bind(throw_away_keys())
try:
    from eventveil.transforms import Anonymize
except ImportError:
    print("core works, Anonymize does not")
"""


def test_all_but_the_job_works_without_beam() -> None:
    policy = str(ROOT / "examples" / "online_retail" / "marketing.yaml")
    code = _WITHOUT_BEAM.format(
        names=[*CORE, "eventveil.pipeline.cli.main", "eventveil.pipeline.cli.check", "eventveil.pipeline.cli.preview"], policy=policy
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert ("core works, Anonymize does not\n", "") == (done.stdout, done.stderr)
