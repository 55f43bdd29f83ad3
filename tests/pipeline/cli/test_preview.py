"""`eventveil preview`: events before and after, with keys that are thrown away, on a screen that no event commands."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]

FIRST = {"ref": 1}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def told(done: subprocess.CompletedProcess[str]) -> list[dict]:
    return [json.loads(line) for line in done.stdout.splitlines()]


class TestOnTheScreen:
    def test_shows_before_and_after_side_by_side_and_writes_nothing(self, shop: Path, eventveil: Run) -> None:
        before = contents(shop)

        done = eventveil("preview", "policy.yaml", "--input", "orders.jsonl", "-n", "1", cwd=shop)
        lines = done.stdout.splitlines()

        assert (0, "") == (done.returncode, done.stderr)
        assert ["before", "after"] == lines[1].split()
        assert any('"tenant": "contsco-ebay"' in line and '"date": "2014-09-0' in line for line in lines)
        assert "the keys of this preview are thrown away: pseudonyms and noise will be others in a run" == lines[-1]
        assert before == contents(shop)

    @pytest.mark.parametrize("number", [1, 3])
    def test_shows_as_many_events_as_asked_for(self, shop: Path, eventveil: Run, number: int) -> None:
        done = eventveil("preview", "policy.yaml", "--input", "orders.jsonl", "-n", number, cwd=shop)

        assert number == done.stdout.count('"tenant"') == done.stdout.count('"date"')

    def test_tells_why_an_event_is_refused(self, shop: Path, eventveil: Run) -> None:
        (shop / "orders.jsonl").write_bytes(b'{"tenant": "a", "tenant": "b"}\n{"tenant": 1}\n')

        done = eventveil("preview", "policy.yaml", "--input", "orders.jsonl", cwd=shop)

        assert (0, "") == (done.returncode, done.stderr)
        assert "refused: EV507 the event can be read in two ways" in done.stdout
        assert "refused: EV502 a value has another type than the schema says" in done.stdout
        # laid out as it is, and not as a parser would have it
        assert 2 == done.stdout.count('"tenant": "')

    def test_no_event_commands_the_terminal(self, shop: Path, eventveil: Run) -> None:
        """Escapes, a C1 control, a right-to-left override and rich's markup: in a field that is kept, and in one that is not."""
        order = json.loads((shop / "orders.jsonl").read_bytes().splitlines()[0])
        order["tenant"] = order["shipping"]["carrier"] = "\x1b[31mred\x07 \x9b2J \u202etxt.exe [bold]loud[/bold]"
        raw = b'{"\x1b]0;owned\x07": 1\n'
        (shop / "orders.jsonl").write_bytes(
            json.dumps(order, ensure_ascii=False).encode() + b"\n" + json.dumps(order).encode() + b"\n" + raw
        )

        shown = eventveil("preview", "trusted.yaml", "--input", "orders.jsonl", cwd=shop)
        as_json = eventveil("preview", "trusted.yaml", "--input", "orders.jsonl", "--json", cwd=shop)

        assert [0, 0] == [shown.returncode, as_json.returncode]
        assert "[bold]loud[/bold]" in "".join(shown.stdout.split())
        for done in (shown, as_json):
            assert set() == {one for one in done.stdout if not (one.isprintable() or one == "\n")}
        assert order["shipping"]["carrier"] == told(as_json)[1]["after"]["shipping"]["carrier"]

    def test_an_empty_input_is_said_to_be_empty(self, shop: Path, eventveil: Run) -> None:
        (shop / "orders.jsonl").write_bytes(b"\n")

        done = eventveil("preview", "policy.yaml", "--input", "orders.jsonl", cwd=shop)

        assert (0, "the input holds no events\n", "") == (done.returncode, done.stdout, done.stderr)


class TestAsJson:
    def test_one_object_per_event_with_the_three_fates(self, shop: Path, eventveil: Run) -> None:
        text = (
            (shop / "policy.yaml").read_text().replace("  subject: shipping.to", "  only_if: {status: [pending]}\n  subject: shipping.to #")
        )
        (shop / "policy.yaml").write_text(text)
        lines = (shop / "orders.jsonl").read_bytes().splitlines(keepends=True)[:2]
        (shop / "orders.jsonl").write_bytes(b"".join([*lines, b"[1]\n"]))

        done = eventveil("preview", "policy.yaml", "--input", "orders.jsonl", "--json", cwd=shop)
        veiled, left_out, refused = told(done)

        assert (0, "") == (done.returncode, done.stderr)
        assert [["before", "after", "refused", "left_out"]] * 3 == [list(one) for one in (veiled, left_out, refused)]
        assert [line.decode().strip() for line in [*lines, b"[1]"]] == [one["before"] for one in (veiled, left_out, refused)]
        assert ["date", "group"] == list(veiled["after"])
        assert (None, None) == (veiled["refused"], veiled["left_out"])
        assert (None, None, "only_if") == (left_out["after"], left_out["refused"], left_out["left_out"])
        assert {"code": "EV501", "path": "", "meaning": "not one JSON object"} == refused["refused"]

    def test_keys_are_others_every_time(self, shop: Path, eventveil: Run) -> None:
        one, two = (told(eventveil("preview", "trusted.yaml", "--input", "orders.jsonl", "-n", "2", "--json", cwd=shop)) for _ in range(2))

        assert [event["before"] for event in one] == [event["before"] for event in two]
        assert one[0]["after"]["shipping"]["customer"] != two[0]["after"]["shipping"]["customer"]

    def test_an_event_of_another_type_is_refused_as_a_run_would(self, shop: Path, eventveil: Run) -> None:
        text = (
            (shop / "policy.yaml")
            .read_text()
            .replace("  subject: shipping.to", "  type: {field: status, is: pending}\n  subject: shipping.to #")
        )
        (shop / "policy.yaml").write_text(text)

        found = told(eventveil("preview", "policy.yaml", "--input", "orders.jsonl", "-n", "20", "--json", cwd=shop))
        pending = [json.loads(one["before"])["status"] == "pending" for one in found]

        assert {True, False} == set(pending)
        assert pending == [one["after"] is not None for one in found]
        assert {("EV509", "status")} == {(one["refused"]["code"], one["refused"]["path"]) for one in found if one["refused"]}

    def test_an_unknown_field_is_refused_where_the_policy_says_so(self, shop: Path, eventveil: Run) -> None:
        (shop / "policy.yaml").write_text((shop / "policy.yaml").read_text() + "unknown_fields: refuse\n")
        lines = (shop / "orders.jsonl").read_bytes().splitlines(keepends=True)[:3]
        (shop / "orders.jsonl").write_bytes(lines[0] + lines[1].replace(b'{"tenant"', b'{"new": 1, "tenant"', 1) + lines[2])

        found = told(eventveil("preview", "policy.yaml", "--input", "orders.jsonl", "--json", cwd=shop))

        assert [None, "EV508", None] == [one["refused"] and one["refused"]["code"] for one in found]


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "code", "expected"),
        [
            pytest.param(["policy.yaml"], 2, "Missing option '--input'", id="no_input"),
            pytest.param(["policy.yaml", "-i", "nowhere.jsonl"], 4, "EV401 nothing matches 'nowhere.jsonl'", id="missing_input"),
            pytest.param(["policy.yaml", "-i", "policy.yaml"], 4, "policy.yaml: EV406", id="unknown_format"),
            pytest.param(["policy.yaml", "-i", "orders.jsonl", "-n", "0"], 2, "Invalid value for '--number'", id="no_events"),
            pytest.param(["nowhere.yaml", "-i", "orders.jsonl"], 2, "nowhere.yaml: EV115", id="missing_policy"),
        ],
    )
    def test_have_the_exit_code_of_their_kind(self, shop: Path, eventveil: Run, arguments: list[str], code: int, expected: str) -> None:
        done = eventveil("preview", *arguments, cwd=shop)

        assert (code, "") == (done.returncode, done.stdout)
        assert expected in done.stderr


def test_needs_no_beam(shop: Path, environment: dict[str, str]) -> None:
    import sys

    code = "import sys; sys.modules['apache_beam'] = None; from eventveil.pipeline.cli.main import main; main()"
    command = [sys.executable, "-c", code, "preview", "policy.yaml", "--input", "orders.jsonl"]

    assert 0 == subprocess.run(command, cwd=shop, env=environment, capture_output=True, check=False).returncode


def test_help_teaches(shop: Path, eventveil: Run) -> None:
    done = eventveil("preview", "--help", cwd=shop)

    assert (0, "") == (done.returncode, done.stderr)
    for piece in ("eventveil preview policy.yaml --input orders.jsonl -n 2", "in clear", "thrown away", "--json"):
        assert piece in done.stdout
