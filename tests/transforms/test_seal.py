"""Refused events become letters that only the custodian opens, and that nobody else can have written."""

from __future__ import annotations

import json
import pickle
from base64 import b64decode
from pathlib import Path

import pyarrow as pa
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from eventveil.transforms.batch import LETTERS, refused_batch
from eventveil.transforms.keys.custodian import CustodianKey
from eventveil.transforms.keys.keyring import load_keys
from eventveil.transforms.keys.providers.keyring_file import new_keyring
from eventveil.transforms.seal import Sealer, Sealing, canonical_header, letter_mac, unseal

KEY = b"k" * 32
PRIVATE = X25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = CustodianKey.of(PRIVATE)
CANARY = b'{"email":"canary@example.org"}\n'


def refused(*values: bytes, window: int | None = 1_409_788_800_000_000) -> pa.RecordBatch:
    rows = len(values)
    positions, windows = pa.array(range(100, 100 + rows), pa.int64()), pa.array([window] * rows, pa.int64())
    return refused_batch(
        ["EV502"] * rows, ["customer.email"] * rows, ["fields.x[0]"] * rows, positions, windows, pa.array(values, pa.binary())
    )


def sealed(*values: bytes, custodian: CustodianKey | None = PUBLIC, window: int | None = 1_409_788_800_000_000) -> list[bytes | None]:
    batch = Sealer(KEY, custodian).seal(refused(*values, window=window), origin="in/a.jsonl", policy="orders", digest="d1")
    assert LETTERS == batch.schema
    return list(batch.column("letter").to_pylist())


class TestSealer:
    def test_the_header_is_readable_and_holds_no_value(self) -> None:
        (line,) = sealed(CANARY)
        letter = json.loads(line or b"")

        assert {
            "code": "EV502",
            "path": "customer.email",
            "rule": "fields.x[0]",
            "origin": "in/a.jsonl",
            "position": 100,
            "window": "2014-09-04T00:00:00Z",
            "policy": "orders",
            "digest": "d1",
            "custodian": PUBLIC.id,
            "format": 1,
        } == letter["header"]
        assert b"canary" not in (line or b"")
        assert (line or b"").endswith(b"}\n")

    @pytest.mark.parametrize(
        "value", [b"", b"x", CANARY, bytes(range(256)) * 40, b"{}\0\0"], ids=["empty", "short", "usual", "long", "zeros behind"]
    )
    def test_the_custodian_gets_every_byte_back(self, value: bytes) -> None:
        (line,) = sealed(value)
        letter = json.loads(line or b"")
        header = canonical_header(letter["header"])
        body = b64decode(letter["sealed"])

        assert value == unseal(header, body, PRIVATE)
        assert letter_mac(KEY, header, body).hex() == letter["mac"]

    def test_the_size_shows_up_to_a_power_of_two_only(self) -> None:
        sizes = [len(json.loads(line or b"")["sealed"]) for line in sealed(b"", b"x" * 252, b"x" * 253, b"x" * 508, b"x" * 509)]

        assert sizes[0] == sizes[1] < sizes[2] == sizes[3] < sizes[4]

    def test_two_letters_of_one_event_have_nothing_in_common(self) -> None:
        first, second = (json.loads(line or b"")["sealed"] for line in sealed(CANARY, CANARY))

        assert first[:40] != second[:40]

    def test_a_changed_header_opens_nothing(self) -> None:
        (line,) = sealed(CANARY)
        letter = json.loads(line or b"")
        body = b64decode(letter["sealed"])

        with pytest.raises(ValueError, match="cannot be opened"):
            unseal(canonical_header({**letter["header"], "position": 101}), body, PRIVATE)

    @pytest.mark.parametrize("window", [None, 2**62, -(2**62)], ids=["none", "too late", "too early"])
    def test_a_window_without_a_name(self, window: int | None) -> None:
        (line,) = sealed(CANARY, window=window)

        assert json.loads(line or b"")["header"]["window"] is None

    def test_without_a_custodian_events_are_lost_but_counted(self) -> None:
        assert [None, None] == sealed(CANARY, CANARY, custodian=None)

    def test_no_rows_no_letters(self) -> None:
        assert [] == sealed()

    def test_sliced_batches(self) -> None:
        batch = refused(b"a", b"b", b"c").slice(1, 1)
        letters = Sealer(KEY, PUBLIC).seal(batch, origin="", policy="", digest="")
        letter = json.loads(letters.column("letter")[0].as_py())

        assert 101 == letter["header"]["position"]
        assert b"b" == unseal(canonical_header(letter["header"]), b64decode(letter["sealed"]), PRIVATE)


class TestKeysAreNotPickled:
    def test_a_sealer_refuses(self) -> None:
        with pytest.raises(TypeError, match="never pickled"):
            pickle.dumps(Sealer(KEY, PUBLIC))
        assert "6b6b" not in repr(Sealer(KEY, PUBLIC))

    def test_sealing_travels_without_a_secret(self, tmp_path: Path) -> None:
        new_keyring(tmp_path / "keyring.json")
        sealing = Sealing(str(tmp_path / "keyring.json"), PUBLIC)
        secret = load_keys(sealing.keys).letters_key()

        travelled = pickle.dumps(sealing)
        letters = pickle.loads(travelled).sealer().seal(refused(CANARY), origin="", policy="", digest="")
        letter = json.loads(letters.column("letter")[0].as_py())

        assert secret[:8] not in travelled
        assert letter["mac"] == letter_mac(secret, canonical_header(letter["header"]), b64decode(letter["sealed"])).hex()
