"""renumber within a window, over files: one job reads all, and its windows are decided on when everything was read."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from eventveil.pipeline.prepare import prepare
from eventveil.pipeline.runners.local import run
from eventveil.schemas.errors import EventveilError
from eventveil.schemas.job import load_job
from eventveil.transforms.keys.custodian import new_custodian
from eventveil.transforms.keys.providers.keyring_file import new_keyring

made = runpy.run_path(str(Path(__file__).with_name("renumbered.py")))
check, events, line, numbered, shuffled = (made[name] for name in ("check", "events", "line", "numbered", "shuffled"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made["write_policies"](tmp_path)
    new_keyring(tmp_path / "keyring.json")
    new_custodian(tmp_path / "custodian")
    return tmp_path


def ran(folder: Path, name: str, found: list[dict[str, Any]], variants: tuple[str, ...] = ("orders", "carts"), **entries: Any) -> Any:
    """The numbers that a job over these events gives."""
    (folder / f"{name}.jsonl").write_bytes(b"".join(line(one) + b"\n" for one in found))
    document = {
        "job": name,
        "input": {"uri": f"{name}.jsonl"},
        "variants": [{"policy": f"{one}.policy.yaml", "output": {"uri": f"{name}/{one}"}} for one in variants],
        "keys": "keyring.json",
        "dead_letters": {"uri": f"{name}/refused", "custodian": "custodian.pub"},
        **entries,
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(document))
    run(prepare(load_job(path)), entries.get("workers", 1))
    return published(folder / name, variants)


def published(at: Path, variants: tuple[str, ...] = ("orders", "carts")) -> Any:
    return numbered(
        {
            one: [json.loads(text) for path in sorted((at / one).rglob("part-*.jsonl")) for text in path.read_text().splitlines()]
            for one in variants
        }
    )


class TestNumbers:
    def test_are_one_to_n_and_the_same_in_all_types_of_event(self, folder: Path) -> None:
        found = events()

        check(ran(folder, "whole", found), found)

    def test_are_the_same_for_two_recipients_of_one_domain(self, folder: Path) -> None:
        found, variants = events(), ("orders", "research", "carts")

        check(ran(folder, "both", found, variants), found, variants)

    def test_do_not_depend_on_order_nor_on_how_files_are_cut(self, folder: Path) -> None:
        found = events()
        whole = ran(folder, "whole", found)

        assert whole == ran(folder, "mixed", shuffled(found, 1), part_bytes=7_000, batch_bytes=1_000, workers=2)

    def test_stand_only_for_who_is_there(self, folder: Path) -> None:
        few = [one for one in events() if one["n"] % 3 or made["person_of"](one) in (None, "person-1@example.org", "person-2@example.org")]

        check(ran(folder, "few", few), few)


class TestTooLarge:
    def test_a_window_is_withheld_and_the_others_are_not(self, folder: Path) -> None:
        found = events(people=(5, 200, 5))
        with pytest.raises(EventveilError) as caught:
            ran(folder, "large", found, max_window_bytes=1_024)
        rest = [one for one in found if made["window_of"](one) != 1]

        assert [("EV603", "carts"), ("EV603", "orders")] == [(one.code, one.fact.split(":")[0]) for one in caught.value.problems]
        check(published(folder / "large"), rest)

    def test_enough_room_is_enough(self, folder: Path) -> None:
        found = events(people=(5, 60, 5))

        check(ran(folder, "large", found, max_window_bytes=1_024), found)


class TestAgain:
    def test_over_the_same_files_it_is_the_same(self, folder: Path) -> None:
        found = events()
        first = ran(folder, "again", found)
        before = {path: path.read_bytes() for path in (folder / "again").rglob("part-*")}

        assert first == ran(folder, "again", shuffled(found, 2))
        assert before == {path: path.read_bytes() for path in (folder / "again").rglob("part-*")}

    def test_with_other_events_the_first_stands(self, folder: Path) -> None:
        found = events()
        first = ran(folder, "again", found)
        with pytest.raises(EventveilError, match="EV416"):
            ran(folder, "again", [*found, made["event"](10_000, 5.0, 77)])

        assert first == published(folder / "again")
