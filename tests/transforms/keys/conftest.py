"""Golden vectors, and the same rules written independently."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

VECTORS = Path(__file__).parents[2] / "vectors"


@pytest.fixture(scope="session")
def vectors() -> Callable[[str], Any]:
    def load(name: str) -> Any:
        found = json.loads((VECTORS / f"{name}.json").read_text())
        assert found["provenance"]
        return found

    return load


@pytest.fixture(scope="session")
def plain() -> ModuleType:
    """tests/vectors/plain.py: keys, canonical values and pseudonyms without eventveil."""
    spec = importlib.util.spec_from_file_location("plain", VECTORS / "plain.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
