"""The handbook names only what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from eventveil.pipeline.report import journal, logs, reporter
from eventveil.pipeline.report.metrics import METRICS
from eventveil.schemas.errors import CODES

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs" / "operations.md").read_text("utf-8")


def test_every_metric_exists() -> None:
    assert set() == set(re.findall(r"\b(?:eventveil|process)_[a-z_]+\b", TEXT)) - set(METRICS)


def test_every_metric_that_tells_of_trouble_is_explained() -> None:
    told = {name for name in METRICS if name.startswith("eventveil_")} - {"eventveil_slices_total", "eventveil_silent_seconds"}

    assert set() == told - set(re.findall(r"\beventveil_[a-z_]+\b", TEXT))


def test_every_code_exists() -> None:
    assert set() == set(re.findall(r"\bEV[0-9]{3}\b", TEXT)) - set(CODES)


def test_the_list_of_log_events_is_complete() -> None:
    (listed,) = re.findall(r"\*\*Log events:\*\*(.*?)\. Growing counts", TEXT, re.DOTALL)
    sources = "".join(Path(str(module.__file__)).read_text("utf-8") for module in (journal, logs, reporter))
    told = set(re.findall(r'tell\(logging\.[A-Z]+, "([^"]+)"', sources)) | {"library"}

    assert told == set(re.findall(r"`([a-z ]+)`", listed)) - {"code", "fact", "remedy"}


@pytest.mark.parametrize("document", ["operations.md"])
def test_every_link_within_it_leads_to_a_heading(document: str) -> None:
    headings = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)}

    assert set() == set(re.findall(r"\]\(#([^)]+)\)", TEXT)) - headings


def test_every_block_of_yaml_can_be_read() -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    read = [YAML(typ="safe").load(block) for block in blocks]

    assert [dict, list, list] == [type(one) for one in read]
    assert all({"alert", "expr"} <= set(alert) for alert in read[2])
