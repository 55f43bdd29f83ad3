"""Positions of messages, and the spool: what was changed, cut or moved does not open."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from eventveil.pipeline.checkpoint.seal import StateSeal
from eventveil.pipeline.sources._pubsub_client import _portions
from eventveil.pipeline.sources._pubsub_pulls import PULLED, position_of, raw_batch
from eventveil.pipeline.sources._spool import SpoolFolder, SpoolRange, read_spool
from eventveil.schemas.errors import StorageError
from eventveil.transforms.batch import kind_of, part_of
from eventveil.transforms.keys.keyring import load_keys
from eventveil.transforms.keys.providers.keyring_file import new_keyring

SUBSCRIPTION = "projects/shop/subscriptions/orders"
SERIES = "0123456789abcdef"
PLANTED = b"planted-7d20"


def pulled(first: int, count: int, value: bytes = PLANTED) -> pa.RecordBatch:
    rows = [
        {
            "value": value + b"%d" % number if number % 5 else None,
            "position": 10**12 + number,
            "key": b"k" if number % 2 else None,
            "headers": [{"name": "a", "value": PLANTED}] * (number % 3),
            "appended": 1_700_000_000_000_000 + number,
            "ack": f"ack-{number}",
        }
        for number in range(first, first + count)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=PULLED)


class Place:
    def __init__(self, home: Path) -> None:
        self.keys = str(home / "keyring.json")
        new_keyring(Path(self.keys))
        self.folder = SpoolFolder(str(home / "spool"), SUBSCRIPTION, StateSeal.of(load_keys(self.keys)))

    def range(self, file: int, **other: Any) -> SpoolRange:
        told = {"path": self.folder.path_of(file), "subscription": SUBSCRIPTION, "series": SERIES, "number": file, "keys": self.keys}
        return SpoolRange(**{**told, **other})


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


class TestPositions:
    @pytest.mark.parametrize(
        ("message_id", "position"), [("0", 0), ("17", 17), ("9223372036854775807", (1 << 63) - 1)], ids=["zero", "small", "largest"]
    )
    def test_of_decimal_ids_are_the_ids(self, message_id: str, position: int) -> None:
        assert position_of(message_id) == position

    @pytest.mark.parametrize(
        "message_id",
        ["9223372036854775808", "007", "", "a1", "-5", "\u0661", "1" * 5000],
        ids=["large", "zeros", "empty", "text", "sign", "arabic", "huge"],
    )
    def test_of_other_ids_are_63_bits_of_their_own(self, message_id: str) -> None:
        found = position_of(message_id)

        assert 1 << 32 < found < 1 << 63
        assert found == position_of(message_id)


class TestRawBatches:
    def test_have_what_is_wanted_and_nothing_of_the_service(self) -> None:
        batch = raw_batch(pulled(0, 4), frozenset({"time", "topic"}), "orders")

        assert batch.schema.names == ["value", "position", "time", "topic"]
        assert batch.column("topic").to_pylist() == ["orders"] * 4
        assert batch.column("time").cast(pa.int64()).to_pylist() == [1_700_000_000_000_000 + number for number in range(4)]


class TestASpool:
    def test_gives_back_what_was_written_as_one_part(self, place: Place) -> None:
        batches = [pulled(1000 * number, 1000) for number in range(40)]
        place.folder.write(SERIES, 3, batches)

        found = list(read_spool(pickle.loads(pickle.dumps(place.range(3))), frozenset({"headers", "key"})))

        names = ["value", "position", "headers", "key"]
        assert pa.Table.from_batches([one.replace_schema_metadata(None) for one in found]).equals(
            pa.Table.from_batches(batches).select(names)
        )
        parts = [part_of(batch) for batch in found]
        assert {(part.origin, part.start) for part in parts} == {(SUBSCRIPTION, 3)}
        assert [part.number for part in parts] == list(range(len(found)))
        assert [part.last for part in parts] == [False] * (len(found) - 1) + [True]
        assert {kind_of(batch) for batch in found} == {"messages"}
        assert place.folder.acks(SERIES, 3) == [f"ack-{number}" for number in range(40_000)]

    def test_is_read_in_batches_of_the_size_that_is_asked_for(self, place: Place) -> None:
        place.folder.write(SERIES, 0, [pulled(0, 1000, b"x" * 1000)])

        found = list(read_spool(place.range(0), batch_bytes=20_000))

        assert len(found) > 40
        assert sum(batch.num_rows for batch in found) == 1000
        assert max(batch.num_rows for batch in found) < 40
        assert [batch.num_rows for batch in read_spool(place.range(0), batch_bytes=1)] == [1] * 1000

    def test_shows_nothing(self, place: Place) -> None:
        place.folder.write(SERIES, 0, [pulled(0, 1000)])

        content = Path(place.folder.path_of(0)).read_bytes()
        assert PLANTED not in content
        assert b"ack-" not in content
        assert os.stat(place.folder.path_of(0)).st_mode & 0o777 == 0o600
        assert os.stat(place.folder.path).st_mode & 0o777 == 0o700

    @pytest.mark.parametrize(
        "other", [{"series": "f" * 16}, {"subscription": SUBSCRIPTION + "2"}, {"number": 1}], ids=lambda other: next(iter(other))
    )
    def test_opens_at_its_own_place_only(self, place: Place, other: dict[str, Any]) -> None:
        place.folder.write(SERIES, 0, [pulled(0, 10)])

        with pytest.raises(StorageError, match="EV411"):
            list(read_spool(place.range(0, **other)))

    def test_that_is_cut_or_changed_anywhere_does_not_open(self, place: Place) -> None:
        place.folder.write(SERIES, 0, [pulled(20_000 * number, 20_000) for number in range(3)])
        path = Path(place.folder.path_of(0))
        whole = path.read_bytes()
        first = 12 + int.from_bytes(whole[8:12], "big")
        for cut in (0, 5, 8, 10, 12, 50, first, first + 2, first + 4, len(whole) - 1):
            path.write_bytes(whole[:cut])
            with pytest.raises(StorageError, match="EV411"):
                list(read_spool(place.range(0)))
        for at in (0, 9, 30, first + 1, first + 30, len(whole) - 1):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises(StorageError, match="EV411"):
                list(read_spool(place.range(0)))

    def test_forgets_what_is_done(self, place: Place) -> None:
        for number in range(4):
            place.folder.write(SERIES, number, [pulled(0, 1)])
        (Path(place.folder.path) / "other").touch()

        place.folder.remove_before(2)

        assert place.folder.numbers() == [2, 3]
        assert (Path(place.folder.path) / "other").exists()


def test_acknowledgements_are_told_in_portions_that_a_request_may_have() -> None:
    ids = ["i" * 200] * 4_500

    found = list(_portions(ids))

    assert sum(map(len, found)) == 4_500
    assert max(map(len, found)) <= 2_000
    assert max(sum(map(len, portion)) for portion in found) < 500_000
