"""What the documents point to exists, and what the project's files must not say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(path for top in ("docs", "examples", "bench", "deploy") for path in (ROOT / top).rglob("*.md"))])
LINK = re.compile(r"\]\((?!https?://|mailto:|#)([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file(document: Path) -> None:
    dead = [link for link in LINK.findall(document.read_text("utf-8")) if not (document.parent / link).exists()]

    assert [] == dead


def test_the_changelog_names_the_version_that_is_built() -> None:
    found = re.search(r'version="([^"]+)"', (ROOT / "setup.py").read_text("utf-8"))

    assert found is not None
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert f"## [{found[1]}]" in changelog or "## [Unreleased]" in changelog


def test_every_target_of_the_makefile_explains_itself() -> None:
    text = (ROOT / "Makefile").read_text("utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.+)$", text, flags=re.MULTILINE)

    explained = set(re.findall(r"^([a-z-]+):.*## ", text, flags=re.MULTILINE))

    assert set(phony.split()) == explained
