"""The exact texts of what is said about a broken policy, job or event schema.

Each broken document ``EVnnn_what.policy.yaml``, ``.job.yaml`` or ``.avsc`` stands beside its message, ``.txt``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eventveil.schemas.errors import CODES, EventveilError
from eventveil.schemas.events.avro import load_avro
from eventveil.schemas.job import load_job
from eventveil.schemas.policy import load_policy

HERE = Path(__file__).parent
READERS: dict[str, Callable[[str], Any]] = {".policy.yaml": load_policy, ".job.yaml": load_job, ".avsc": load_avro}
BROKEN = sorted(
    path for pattern in ("EV1*", "EV201*", "EV202*") for path in HERE.glob(pattern) if any(path.name.endswith(suffix) for suffix in READERS)
)
# said by who knows operators, files beside the policy, or the command line
ELSEWHERE = {"EV101", "EV114", "EV119", "EV120"}


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.name)
def test_the_text_is_exactly_this(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE)
    name, suffix = next((path.name.removesuffix(suffix), suffix) for suffix in READERS if path.name.endswith(suffix))
    with pytest.raises(EventveilError) as caught:
        READERS[suffix](path.name)

    assert (HERE / f"{name}.txt").read_text("utf-8") == f"{caught.value}\n"
    assert name[:5] in {problem.code for problem in caught.value.problems}


def test_a_missing_document_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE)
    with pytest.raises(EventveilError) as caught:
        load_policy("EV115_missing.policy.yaml")

    assert "EV115_missing.policy.yaml: EV115 the document cannot be read: no such file or directory\n  correct the path" == str(
        caught.value
    )


def test_every_code_of_a_document_has_a_text() -> None:
    shown = {path.name[:5] for path in BROKEN} | {"EV115"}

    assert {code for code in CODES if code.startswith("EV1") or code in ("EV201", "EV202")} - ELSEWHERE == shown


def test_no_text_is_left_without_its_document() -> None:
    names = {path.name.split(".")[0] for path in BROKEN}

    assert names == {
        path.stem for pattern in ("EV1*.txt", "EV201*.txt", "EV202*.txt") for path in HERE.glob(pattern) if path.name[:5] not in ELSEWHERE
    }
