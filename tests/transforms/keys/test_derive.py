"""Derivation: the standard, the chain, and that nothing shows a key."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from eventveil.transforms.keys.derive import DERIVATION_VERSION, DomainKeys, HeldKeys, expand, hkdf, lengths

ROOT = b"canary: thirty-two bytes of root"


class TestTheStandard:
    def test_rfc_5869(self, vectors: Callable[[str], Any], plain: ModuleType) -> None:
        for case in vectors("hkdf")["cases"]:
            ikm, salt, info, prk, okm = (bytes.fromhex(case[name]) for name in ("ikm", "salt", "info", "prk", "okm"))

            assert prk == plain.hkdf_extract(salt, ikm)
            assert okm == plain.hkdf_expand(prk, info, len(okm))
            assert okm[:32] == expand(prk, info)
            if not salt:
                assert okm[:32] == hkdf(ikm, info)

    @pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 500])
    def test_expand_as_the_library_does(self, size: int) -> None:
        assert HKDFExpand(hashes.SHA256(), 32, bytes(size)).derive(ROOT) == expand(ROOT, bytes(size))


class TestLengths:
    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (("ab", "c"), ("a", "bc")),
            (("ab",), ("a", "b")),
            (("a", ""), ("a",)),
            (("1",), (1,)),
            (("a",), (b"a",)),
            ((0,), (bytes(8),)),
            ((-1,), (255,)),
            (("s\0\0\0\1a",), ("a",)),
        ],
        ids=["moved", "joined", "empty-part", "number", "bytes", "number-as-bytes", "sign", "imitated"],
    )
    def test_no_two_lists_look_the_same(self, one: Any, other: Any) -> None:
        assert lengths(*one) != lengths(*other)

    def test_form(self) -> None:
        assert b"s\0\0\0\2ab" + b"i\0\0\0\x08\0\0\0\0\0\0\1\0" + b"b\0\0\0\1\xff" == lengths("ab", 256, b"\xff")


class TestTheChain:
    def test_golden(self, vectors: Callable[[str], Any], plain: ModuleType) -> None:
        given = vectors("derivation")
        root, own = bytes.fromhex(given["root"]), {name: bytes.fromhex(secret) for name, secret in given["domains"].items()}
        keys = HeldKeys(root, own)

        assert given["derivation_version"] == DERIVATION_VERSION
        assert given["id"] == keys.id == plain.fingerprint(root)
        assert given["letters_key"] == keys.letters_key().hex() == plain.letters_key(root).hex()
        for case in given["cases"]:
            domain, window = keys.domain(case["domain"]), case["window"]
            if window is None:
                derived = domain.for_domain(case["purpose"], *case["info"])
            else:
                derived = domain.for_window(*window, case["purpose"], *case["info"])
            independent = plain.sub_key(own.get(case["domain"], root), case["domain"], window, case["purpose"], *case["info"])

            assert case["key"] == derived.hex() == independent.hex()

    def test_every_component_counts(self) -> None:
        def derive(root: bytes, domain: str, start: int | None, size: str, zone: str, purpose: str, *info: str) -> bytes:
            keys = HeldKeys(root).domain(domain)
            return keys.for_domain(purpose, *info) if start is None else keys.for_window(start, size, zone, purpose, *info)

        found = [
            derive(ROOT, "a", 0, "1d", "UTC", "noise", "x"),
            derive(bytes(32), "a", 0, "1d", "UTC", "noise", "x"),
            derive(ROOT, "b", 0, "1d", "UTC", "noise", "x"),
            derive(ROOT, "a", 1, "1d", "UTC", "noise", "x"),
            derive(ROOT, "a", None, "1d", "UTC", "noise", "x"),
            derive(ROOT, "a", 0, "1w", "UTC", "noise", "x"),
            derive(ROOT, "a", 0, "1d", "Europe/London", "noise", "x"),
            derive(ROOT, "a", 0, "1d", "UTC", "pseudonym", "x"),
            derive(ROOT, "a", 0, "1d", "UTC", "noise", "y"),
            derive(ROOT, "a", 0, "1d", "UTC", "noise", "x", ""),
            derive(ROOT, "a", 0, "1d", "UTC", "noise"),
        ]

        assert all(len(key) == 32 for key in found)
        assert len(found) == len(set(found))

    def test_a_domain_with_its_own_root_ignores_the_other(self) -> None:
        own = {"a": bytes(range(32))}

        assert HeldKeys(ROOT, own).domain("a").for_domain("noise") == HeldKeys(bytes(32), own).domain("a").for_domain("noise")
        assert HeldKeys(ROOT, own).domain("b").for_domain("noise") == HeldKeys(ROOT).domain("b").for_domain("noise")

    @pytest.mark.parametrize("size", [0, 16, 31, 33])
    def test_a_root_of_another_size_is_refused(self, size: int) -> None:
        with pytest.raises(ValueError, match="32 bytes"):
            HeldKeys(bytes(size))
        with pytest.raises(ValueError, match="32 bytes"):
            HeldKeys(ROOT, {"a": bytes(size)})


class TestCallsToTheProvider:
    def test_one_per_window_and_one_for_the_domain(self) -> None:
        calls: list[bytes] = []

        def provider(context: bytes) -> bytes:
            calls.append(context)
            return hkdf(ROOT, context)

        keys = DomainKeys(provider, "a")
        for start, purpose, info in itertools.product(range(10), ("noise", "pseudonym"), "xyz"):
            keys.for_window(start, "1d", "UTC", purpose, info)
            keys.for_domain(purpose, info)

        assert 11 == len(calls) == len(set(calls))

    def test_windows_kept_are_bounded(self) -> None:
        calls: list[bytes] = []

        def provider(context: bytes) -> bytes:
            calls.append(context)
            return bytes(32)

        keys = DomainKeys(provider, "a")
        for start in (*range(4097), 0):
            keys.for_window(start, "1min", "UTC", "noise")

        assert 4098 == len(calls)


class TestNothingShowsAKey:
    @pytest.mark.parametrize("of", [HeldKeys(ROOT, {"a": ROOT}), HeldKeys(ROOT).domain("a")], ids=["keys", "domain"])
    def test_repr_and_pickle(self, of: Any) -> None:
        of.letters_key() if isinstance(of, HeldKeys) else of.for_window(0, "1d", "UTC", "noise")

        assert "canary" not in repr(of) + str(of) + f"{of}"
        for refuses in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError):
                refuses(of)
