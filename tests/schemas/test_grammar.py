"""The published JSON Schemas agree with the grammars that they are made from."""

from __future__ import annotations

import re
from typing import Any, Literal

import pytest
from pydantic import Field, ValidationError

from eventveil.schemas.document import Mapping, parse_document
from eventveil.schemas.errors import PolicyError
from eventveil.schemas.grammar import Form, explain
from eventveil.schemas.job import job_json_schema, parse_job
from eventveil.schemas.policy import parse_policy, policy_json_schema

_TYPES: dict[str, Any] = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}


def accepts(schema: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:
    """As much of JSON Schema as ours use; an unknown word fails, so that it cannot be passed over."""
    for word, wanted in schema.items():
        if word in ("$schema", "$defs", "title", "description", "default"):
            continue
        if word == "$ref":
            fits = accepts(root["$defs"][wanted.removeprefix("#/$defs/")], value, root)
        elif word == "type":
            names = wanted if isinstance(wanted, list) else [wanted]
            fits = any(isinstance(value, _TYPES[name]) and (isinstance(value, bool) <= (name == "boolean")) for name in names)
        elif word in ("oneOf", "anyOf"):
            found = sum(accepts(branch, value, root) for branch in wanted)
            fits = found == 1 if word == "oneOf" else found > 0
        elif word == "enum":
            fits = value in wanted
        elif word == "const":
            fits = value == wanted
        elif word == "pattern":
            fits = not isinstance(value, str) or re.search(wanted, value) is not None
        elif word in ("minimum", "maximum"):
            fits = not isinstance(value, int) or (value >= wanted if word == "minimum" else value <= wanted)
        elif word in ("minItems", "minProperties"):
            fits = not isinstance(value, (list, dict)) or len(value) >= wanted
        elif word == "items":
            fits = not isinstance(value, list) or all(accepts(wanted, item, root) for item in value)
        elif word == "properties":
            fits = not isinstance(value, dict) or all(accepts(wanted[key], entry, root) for key, entry in value.items() if key in wanted)
        elif word == "patternProperties":
            named = [(wanted[mark], entry) for mark in wanted for key, entry in _entries(value) if re.search(mark, key)]
            fits = all(accepts(one, entry, root) for one, entry in named)
        elif word == "required":
            fits = not isinstance(value, dict) or set(wanted) <= set(value)
        elif word == "additionalProperties":
            marks = schema.get("patternProperties", {})
            known = {key for key, _ in _entries(value) if any(re.search(mark, key) for mark in marks)} | set(schema.get("properties", {}))
            rest = [entry for key, entry in _entries(value) if key not in known]
            fits = not rest if wanted is False else all(accepts(wanted, entry, root) for entry in rest)
        else:
            raise AssertionError(word)
        if not fits:
            return False
    return True


def _entries(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


POLICY = "policy: p\nversion: 1\nschema: s.avsc\ndomain: d\nfields: {a: drop}\n"
LIVE = "job: j\nvariants: [{policy: p, output: {uri: o}}]\ncheckpoint: c\n"
JOB = "job: j\ninput: {uri: a}\nvariants: [{policy: p, output: {uri: o}}]\n"

POLICIES = [
    "",
    "for: {recipient: r, retention: 2y}\n",
    "for: {recipent: r}\n",
    "for: {retention: 2m}\n",
    "event: {time: t}\nwindow: 1d\n",
    "event: {time: [t, u], id: $position, subject: [a]}\n",
    "event: {time: {field: t, unit: ms, zone: UTC}}\n",
    "event: {time: {field: [t], unit: sec}}\n",
    "event: {subject: {first_of: [a], missing: refuse}}\n",
    "event: {subject: {first_of: a}}\n",
    "event: {type: {field: t, is: x}}\n",
    "event: {type: {field: t}}\n",
    "event: {type: {header: t, is: x}}\n",
    "event: {type: {topic: true, is: x}}\n",
    "event: {type: {topic: t, is: x}}\n",
    "event: {time: $time, id: [$key, $headers.id], subject: $key, only_if: {$topic: [a]}}\n",
    "event: {only_if: {a: [true, 1, x]}}\n",
    "event: {only_if: {a: true}}\n",
    "event: {only_if: {}}\n",
    "event: {time: t, max_ahead: 5}\n",
    "event: {time: t}\nwindow: {keys: 1mo, release: 1d, zone: UTC, life: derived}\n",
    "event: {time: t}\nwindow: {keys: 1mo, life: ratchet}\n",
    "allowed_lateness: 1h\n",
    "allowed_lateness: 1m\n",
    "order: keep\nunknown_fields: refuse\n",
    "order: true\n",
    "release: {}\n",
    "tombstones: drop\n",
    "tombstones: pass_key\n",
]
JOBS = [
    "",
    "workers: 64\nmax_refused: 0.5%\nallow_loss: true\n",
    "workers: 65\n",
    "max_refused: 5\n",
    "max_refused: -5\n",
    "max_refused: 0.05\n",
    "keys: env:X\nsummary: s\ndead_letters: {uri: d, custodian: c}\n",
    "dead_letters: {uri: d}\n",
    "runner: flink\nflink: {master: 'localhost:8081'}\n",
    "metrics: 127.0.0.1:9464\nmax_window_bytes: 1000\n",
    "part_bytes: 1000000000\n",
    "max_event_bytes: 1000\n",
]


STREAMS = [
    "input: {uri: 'kafka://b/t'}\n",
    "input: {uri: 'kafka://b/t', format: json, envelope: debezium, sasl.username: x, client: {linger.ms: 5}}\n",
    "input: {uri: 'kafka://b/t', format: json, envelope: maxwell}\n",
    "input: {uri: 'kafka://b/t', registry: {url: 'http://r', ssl.ca.location: x}}\n",
    "input: {uri: 'kafka://b/t', registry: {uri: 'http://r'}}\n",
    "input: {uri: 'kafka://b/t', sasl.username: [x]}\n",
    "input: {uri: 'kafka://b/t', client: {sasl.username: {}}}\n",
    "input: {uri: 'kafka://b/t', username: x}\n",
    "input: {uri: 'kafka://b/t'}\nroll: 1min\nslice: 1s\nidle_after: 1h\nstop_when_refused: 5%/10min\n",
    "input: {uri: 'kafka://b/t'}\nroll: 1mo\n",
    "input: {uri: 'kafka://b/t'}\nstop_when_refused: never\n",
    "input: {uri: 'kafka://b/t'}\nstop_when_refused: 5%\n",
    "input: {uri: a}\nwatch: true\n",
    "input: {uri: a}\nwatch: 1s\n",
]


class TestPublished:
    @pytest.mark.parametrize("text", POLICIES)
    def test_the_policy_schema_accepts_what_the_grammar_accepts(self, text: str) -> None:
        schema = policy_json_schema({"type": "string"})
        document = parse_document(POLICY + text, "p.yaml")
        try:
            parse_policy(POLICY + text, "p.yaml")
            expected = True
        except PolicyError:
            expected = False

        assert expected == accepts(schema, document, schema)

    @pytest.mark.parametrize("text", [*(JOB + text for text in JOBS), *(LIVE + text for text in STREAMS)])
    def test_the_job_schema_accepts_what_the_grammar_accepts(self, text: str) -> None:
        schema = job_json_schema()
        document = parse_document(text, "job.yaml")
        try:
            parse_job(text, "job.yaml", {})
            expected = True
        except PolicyError:
            expected = False

        assert expected == accepts(schema, document, schema)

    @pytest.mark.parametrize("text", ["workers: ${W}\n", "allow_loss: ${W}\n", "max_refused: ${W}\n"])
    def test_a_variable_may_stand_where_a_number_belongs(self, text: str) -> None:
        schema = job_json_schema()

        assert accepts(schema, parse_document(JOB + text, "job.yaml"), schema)

    @pytest.mark.parametrize("schema", [policy_json_schema(), job_json_schema()], ids=["policy", "job"])
    def test_every_entry_is_described(self, schema: dict[str, Any]) -> None:
        forms = [schema, *(form for form in schema["$defs"].values() if "properties" in form)]

        assert [] == [name for form in forms for name, entry in form["properties"].items() if not entry.get("description")]


class _Inner(Form):
    size: int = Field(ge=1, le=9)
    either: int | bool | None = None
    kind: Literal["one", "two"] = "one"


class _Outer(Form):
    inner: _Inner
    more: list[_Inner] = []


def explained(document: Any, **where: Any) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        _Outer.model_validate(document)
    return sorted(str(problem).splitlines()[0] for problem in explain(caught.value, _Outer, document, "p.yaml", **where))


class TestExplain:
    def test_branches_of_a_union_are_joined(self) -> None:
        assert ["p.yaml:1: EV103 inner.either must be a whole number or true or false, not 'x'"] == explained(
            parse_document("inner: {size: 1, either: x}", "p.yaml")
        )

    def test_items_of_a_list_say_which(self) -> None:
        document = parse_document("inner: {size: 1}\nmore:\n- {size: 1}\n- {siez: 1}\n", "p.yaml")

        assert ["p.yaml:4: EV102 unknown entry 'siez' in more[1]", "p.yaml:4: EV104 more[1].size is missing"] == explained(document)

    def test_a_document_without_positions_stands_where_the_caller_says(self) -> None:
        document = {"inner": {"size": 10, "kind": "three"}}

        assert [
            "p.yaml:7: EV103 fields.a.into.inner.kind cannot be 'three'",
            "p.yaml:7: EV103 fields.a.into.inner.size must be at most 9, not 10",
        ] == explained(document, at="fields.a.into", line=7)

    def test_what_has_been_said_is_skipped(self) -> None:
        document = Mapping({"inner": {"size": 10, "kind": "three"}})

        assert ["p.yaml: EV103 inner.kind cannot be 'three'"] == explained(document, skip={"inner.size"})
