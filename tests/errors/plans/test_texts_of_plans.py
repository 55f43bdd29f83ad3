"""The exact texts of what compile says: about operators and their parameters, and where policy and event schema disagree.

Each broken policy ``EVnnn_what.policy.yaml`` is for the events of `event.avsc`, and stands beside its message, ``.txt``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from eventveil.schemas.errors import CODES, EventveilError
from eventveil.transforms.compile import load_plan

HERE = Path(__file__).parent
BROKEN = sorted(path.name for path in HERE.glob("*.policy.yaml"))
# said when a schema is read, or by who knows the output's format or several policies
ELSEWHERE = {"EV202", "EV219", "EV220"}


@pytest.mark.parametrize("name", BROKEN)
def test_the_text_is_exactly_this(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE)
    with pytest.raises(EventveilError) as caught:
        load_plan(name)

    assert (HERE / name.replace(".policy.yaml", ".txt")).read_text("utf-8") == f"{caught.value}\n"
    assert name[:5] in {problem.code for problem in caught.value.problems}
    assert 2 == caught.value.exit_code


def test_every_code_of_compile_has_a_text() -> None:
    shown = {name[:5] for name in BROKEN}

    assert {"EV101", "EV114", *(code for code in CODES if code.startswith("EV2"))} - ELSEWHERE <= shown


def test_no_text_is_left_without_its_policy() -> None:
    assert {name.removesuffix(".policy.yaml") for name in BROKEN} == {path.stem for path in HERE.glob("*.txt")}
