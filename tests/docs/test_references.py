"""The generated references: up to date, complete, and the published schemas accept what the code accepts."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from eventveil.schemas.document import load_document
from eventveil.schemas.errors import CODES
from eventveil.transforms.language import built_in, describe

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
POLICIES = sorted(path for path in (ROOT / "examples").rglob("*.yaml") if path.name != "job.yaml" and path.parent.name != "beam_yaml")
JOBS = sorted((ROOT / "examples").rglob("job.yaml"))


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestCheck:
    def test_committed_references_are_up_to_date(self) -> None:
        done = subprocess.run([sys.executable, DOCS / "generate.py", "--check"], capture_output=True, text=True, check=False)

        assert (done.returncode, done.stderr) == (0, "")

    @pytest.mark.parametrize("name", ["operators.md", "errors.md", "policy.schema.json", "job.schema.json"])
    def test_a_stale_or_missing_file_fails(
        self, generate: ModuleType, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert generate.main([], tmp_path) == 0
        assert generate.main(["--check"], tmp_path) == 0
        capsys.readouterr()
        (tmp_path / name).write_text((tmp_path / name).read_text("utf-8") + " ", "utf-8")

        assert generate.main(["--check"], tmp_path) == 1
        assert capsys.readouterr().err == f"docs/{name} is stale: run `make docs`\n"
        (tmp_path / name).unlink()
        assert generate.main(["--check"], tmp_path) == 1

    def test_check_writes_nothing(self, generate: ModuleType, tmp_path: Path) -> None:
        generate.main(["--check"], tmp_path)

        assert list(tmp_path.iterdir()) == []

    def test_other_arguments(self, generate: ModuleType, tmp_path: Path) -> None:
        assert generate.main(["--chekc"], tmp_path) == 2


class TestOperators:
    text = property(lambda self: (DOCS / "operators.md").read_text("utf-8"))

    @pytest.mark.parametrize("name", sorted(built_in()))
    def test_each_has_one_section(self, name: str) -> None:
        sections = re.findall(rf"^### {name}$(.*?)(?=^##|\Z)", self.text, re.MULTILINE | re.DOTALL)

        assert len(sections) == 1
        for parameter in describe(built_in()[name]).arguments:
            assert f"| `{parameter}`" in sections[0]

    def test_every_link_to_a_code_has_its_anchor(self) -> None:
        codes = set(re.findall(r"\(errors\.md#(ev[0-9]{3})\)", self.text))

        assert codes
        assert {code.upper() for code in codes} <= set(
            re.findall(r"^### (EV[0-9]{3})$", (DOCS / "errors.md").read_text("utf-8"), re.MULTILINE)
        )

    def test_tables_have_four_columns(self) -> None:
        rows = [row for row in self.text.split("\n") if row.startswith("|")]

        assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5}


class TestErrors:
    def test_each_code_once_in_order(self) -> None:
        headings = re.findall(r"^### (EV[0-9]{3})$", (DOCS / "errors.md").read_text("utf-8"), re.MULTILINE)

        assert headings == sorted(CODES)


class TestPolicySchema:
    schema = property(lambda self: json.loads((DOCS / "policy.schema.json").read_text("utf-8")))

    @pytest.mark.parametrize("path", POLICIES, ids=lambda path: f"{path.parent.name}/{path.name}")
    def test_accepts_the_examples(self, path: Path) -> None:
        assert _wrong(self.schema, self.schema, load_document(path)) == []

    @pytest.mark.parametrize(
        "rule",
        [
            "drop",
            {"mask": {"keep_last": 4}},
            ["keep", {"rename": "x"}],
            {"into": {"a": "keep", "b": {"into": {"c": "keep"}}}},
            {"floor": "1min"},
            {"round": 0.05},
            {"round": {"to": "0.05"}},
            {"replace": {"with": "x"}},
            {"replace": "x"},
            {"replace": False},
            {"noise": {"laplace_scale": 1, "per": "event", "null": 0, "clamp_output": {"min": 1}}},
        ],
        ids=json.dumps,
    )
    def test_accepts_rules(self, rule: Any) -> None:
        assert _wrong(self.schema, {"$ref": "#/$defs/rule"}, rule) == []

    @pytest.mark.parametrize(
        "rule",
        [
            "maks",
            "truncate",
            None,
            [],
            {},
            {"mask": None},
            {"maks": {}},
            {"mask": {"keep_lsat": 4}},
            {"mask": {"keep_last": 9}},
            {"mask": {"length": "short"}},
            {"keep": {}, "rename": "x"},
            {"floor": "1m"},
            {"truncate": {"keep_first": "2"}},
            {"into": {"a": "maks"}},
            {"into": {}},
            {"allow": []},
            {"generalize": {"hierarchy": "x.csv"}},
            {"keep": {"because": None}},
        ],
        ids=json.dumps,
    )
    def test_refuses_rules(self, rule: Any) -> None:
        assert _wrong(self.schema, {"$ref": "#/$defs/rule"}, rule) != []

    def test_every_operator_says_what_it_does(self) -> None:
        for name in built_in():
            assert self.schema["$defs"][name]["description"], name

    def test_every_reference_leads_somewhere(self) -> None:
        text = json.dumps(self.schema)

        assert set(re.findall(r'"#/\$defs/([^"]+)"', text)) <= set(self.schema["$defs"])


class TestJobSchema:
    schema = property(lambda self: json.loads((DOCS / "job.schema.json").read_text("utf-8")))

    @pytest.mark.parametrize("path", JOBS, ids=lambda path: path.parent.name)
    def test_accepts_the_examples(self, path: Path) -> None:
        assert _wrong(self.schema, self.schema, load_document(path)) == []


_TYPES: dict[str, Any] = {
    "string": str,
    "array": list,
    "object": dict,
    "boolean": bool,
    "null": type(None),
    "integer": int,
    "number": (int, float),
}
_KNOWN = {
    "$schema",
    "$defs",
    "$ref",
    "title",
    "description",
    "default",
    "anyOf",
    "oneOf",
    "enum",
    "const",
    "type",
    "properties",
    "required",
}
_KNOWN |= {"additionalProperties", "minProperties", "maxProperties", "items", "minItems", "maxItems", "minLength", "maxLength", "pattern"}
_KNOWN |= {
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "multipleOf",
    "patternProperties",
    "propertyNames",
    "uniqueItems",
    "format",
    "examples",
}


def _wrong(document: dict[str, Any], schema: Any, value: Any, at: str = "$") -> list[str]:
    """What is wrong with a value, by as much of JSON Schema 2020-12 as ours use. An unknown keyword is an error of this test."""
    if isinstance(schema, bool):
        return [] if schema else [f"{at}: nothing is allowed"]
    assert set(schema) <= _KNOWN, set(schema) - _KNOWN
    found: list[str] = []
    if "$ref" in schema:
        found += _wrong(document, document["$defs"][schema["$ref"].removeprefix("#/$defs/")], value, at)
    for word, fits in (("anyOf", lambda hits: hits >= 1), ("oneOf", lambda hits: hits == 1)):
        if word in schema and not fits(sum(not _wrong(document, one, value, at) for one in schema[word])):
            found.append(f"{at}: {word}")
    if "enum" in schema and not any(type(one) is type(value) and one == value for one in schema["enum"]):
        found.append(f"{at}: not one of {schema['enum']}")
    if "const" in schema and schema["const"] != value:
        found.append(f"{at}: not {schema['const']}")
    if "type" in schema:
        kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        if not any(isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool)) for kind in kinds):
            return [*found, f"{at}: no {kinds}"]
    if isinstance(value, str):
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
            found.append(f"{at}: length")
        if not re.search(schema.get("pattern", ""), value):
            found.append(f"{at}: pattern")
    if isinstance(value, int | float) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        found.append(f"{at}: range")
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            found.append(f"{at}: number of items")
        found += [one for i, item in enumerate(value) for one in _wrong(document, schema.get("items", True), item, f"{at}[{i}]")]
    if isinstance(value, dict):
        if not schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", len(value)):
            found.append(f"{at}: number of entries")
        found += [f"{at}: {name} is missing" for name in schema.get("required", ()) if name not in value]
        for name, entry in value.items():
            own = schema.get("properties", {}).get(name, schema.get("additionalProperties", True))
            found += _wrong(document, own, entry, f"{at}.{name}")
    return found
