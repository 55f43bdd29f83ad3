"""AnonymizeMessages, as a pipeline in another language gets it: single messages in, single events and letters out, of the same type."""

from __future__ import annotations

import shutil
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest

from eventveil.pipeline.dead_letters.open import open_letter
from eventveil.pipeline.dead_letters.store import list_letters
from eventveil.schemas.errors import PolicyError, SchemaError
from eventveil.transforms import Anonymize
from eventveil.transforms.beam.messages import AnonymizeMessages
from eventveil.transforms.encode.json_events import encode_json
from eventveil.transforms.keys.custodian import load_private, new_custodian
from eventveil.transforms.keys.keyring import load_keys
from eventveil.transforms.keys.providers.keyring_file import new_keyring

SHIPPING = Path(__file__).resolve().parents[3] / "examples" / "shipping_order"
ORDERS = (SHIPPING / "orders.jsonl").read_text("utf-8").splitlines()
CANARY = "kanarienvogel@example.org"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    new_keyring(tmp_path / "keyring.json")
    new_custodian(tmp_path / "custodian")
    for name in ("policy.yaml", "shipping_order.avsc"):
        shutil.copy(SHIPPING / name, tmp_path)
    return tmp_path


class Keep(beam.DoFn):
    def __init__(self, folder: Path, name: str, kind: type) -> None:
        self._path, self._kind = f"{folder}/{name}", kind

    def process(self, element: Any) -> None:
        assert type(element) is self._kind
        Path(f"{self._path}-{uuid.uuid4().hex}").write_bytes(element if self._kind is bytes else element.encode())


def transform(home: Path, **more: Any) -> AnonymizeMessages:
    given = {"custodian": str(home / "custodian.pub"), **more}
    return AnonymizeMessages(str(home / "policy.yaml"), str(home / "keyring.json"), **given)


def kept(home: Path, name: str) -> list[bytes]:
    return [path.read_bytes() for path in home.glob(f"{name}-*")]


def run(home: Path, messages: list[Any], kind: type, **more: Any) -> None:
    with beam.Pipeline("FnApiRunner") as root:
        found = root | beam.Create(messages).with_output_types(kind) | "Veil" >> transform(home, **more)
        for name, collection in found.items():
            assert kind is collection.element_type
            collection | f"Keep{name}" >> beam.ParDo(Keep(home, name, kind))


@pytest.mark.parametrize("kind", [bytes, str])
def test_events_are_those_of_anonymize_and_letters_open(home: Path, kind: type) -> None:
    bad = f'{{"order_id": "{CANARY}"'
    messages = [line.encode() if kind is bytes else line for line in [*ORDERS, bad]]
    run(home, messages, kind)

    with beam.Pipeline("FnApiRunner") as root:
        lines = root | beam.Create([line.encode() for line in ORDERS]).with_output_types(bytes)
        veiled, _ = lines | Anonymize(home / "policy.yaml", keys=str(home / "keyring.json"), custodian=home / "custodian.pub")
        events = veiled | beam.FlatMap(lambda batch: [line.rstrip(b"\n") for line in encode_json(batch).to_pylist()])
        events | beam.ParDo(Keep(home, "expected", bytes))
    assert Counter(kept(home, "expected")) == Counter(kept(home, "events"))
    assert len(ORDERS) == len(kept(home, "events"))
    (letter,) = kept(home, "refused")
    assert CANARY.encode() not in letter and b"\n" not in letter
    (home / "letters.jsonl").write_bytes(letter + b"\n")
    (sealed,) = list_letters(home / "letters.jsonl")
    key = load_keys(str(home / "keyring.json")).letters_key()
    assert bad.encode() == open_letter(sealed, load_private(home / "custodian.key"), key)


def test_where_loss_is_allowed_there_are_no_letters(home: Path) -> None:
    run(home, [b"null", ORDERS[0].encode()], bytes, custodian=None, allow_loss=True)

    assert (1, 0) == (len(kept(home, "events")), len(kept(home, "refused")))


def test_neither_bytes_nor_text(home: Path) -> None:
    with pytest.raises(PolicyError, match="EV120 AnonymizeMessages takes bytes or str"):
        beam.Pipeline() | beam.Create([1]) | transform(home)


def test_what_is_wrong_is_told_when_the_pipeline_is_built(home: Path) -> None:
    (home / "shipping_order.avsc").unlink()

    with pytest.raises((PolicyError, SchemaError)):
        transform(home)
