"""From root to text: what `pseudonymize` writes never changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from eventveil.transforms.context import Context, RowContext, SubKeys
from eventveil.transforms.keys.derive import HeldKeys
from eventveil.transforms.operators.pseudonymize import Pseudonymize


class _NoRefusals:
    def refuse_rows(self, rows: Any, code: str, path: str, rule: str) -> None:
        raise AssertionError("a pseudonym refuses nothing")


def test_golden(vectors: Callable[[str], Any]) -> None:
    given = vectors("pseudonyms")
    keys = HeldKeys(bytes.fromhex(given["root"])).domain(given["domain"])
    for case in given["cases"]:
        stable = {"stable": "domain"} if case["window"] is None else {}
        rule = Pseudonymize(**{"class": given["class"], "prefix": given["prefix"], "prf": case["prf"], "bits": case["bits"], **stable})
        info = rule.key_info("customer.email", 0, pa.string())
        if rule.key_scope() == "domain":
            key = keys.for_domain("pseudonym", *info)
        else:
            key = keys.for_window(*case["window"], "pseudonym", *info)
        context = Context(RowContext(1), _NoRefusals(), "customer.email", "fields.customer.email", sub_keys=SubKeys([key]))

        assert [case["text"]] == rule.apply(pa.array([case["value"]]), context).to_pylist(), case
