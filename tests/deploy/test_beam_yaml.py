"""The example for Beam YAML, run by Beam's own command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from eventveil.pipeline.dead_letters.store import list_letters
from eventveil.transforms.keys.custodian import new_custodian
from eventveil.transforms.keys.providers.keyring_file import new_keyring

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE, SHIPPING = ROOT / "examples" / "beam_yaml", ROOT / "examples" / "shipping_order"

if any(find_spec(name) is None for name in ("jinja2", "pandas", "docstring_parser", "quickjs", "clonevirtualenv")):
    if os.environ.get("CI") == "true":
        raise ImportError("the test of Beam YAML needs apache-beam[yaml]")
    pytest.skip("needs apache-beam[yaml]", allow_module_level=True)


def test_orders_become_anonymous(tmp_path: Path) -> None:
    for name in ("policy.yaml", "shipping_order.avsc"):
        (tmp_path / name).write_bytes((SHIPPING / name).read_bytes())
    lines = (SHIPPING / "orders.jsonl").read_bytes().splitlines()
    (tmp_path / "orders.jsonl").write_bytes(b"\n".join([*lines, b'{"tenant": "half of an order"']) + b"\n")
    new_keyring(tmp_path / "keyring.json")
    new_custodian(tmp_path / "custodian")
    names = {"folder": str(tmp_path), "out": str(tmp_path / "out")}
    names |= {"keys": str(tmp_path / "keyring.json"), "custodian": str(tmp_path / "custodian.pub")}
    flags = [
        "--runner=FnApiRunner",
        f"--yaml_pipeline_file={EXAMPLE / 'pipeline.yaml'}",
        f"--jinja_variables={json.dumps(names)}",
    ]
    path = os.pathsep.join([str(EXAMPLE), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "apache_beam.yaml.main", *flags],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for file in (tmp_path / "out").glob("events*") for line in file.read_text().splitlines()]
    letters = [letter for file in (tmp_path / "out").glob("refused*") for letter in list_letters(file)]

    assert len(lines) == len(events)
    assert {("date", "group")} == {tuple(event) for event in events}
    assert ["EV501"] == [letter.header["code"] for letter in letters]
    assert "half of an order" not in done.stdout + done.stderr + "".join(path.read_text() for path in (tmp_path / "out").iterdir())
