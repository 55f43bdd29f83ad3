"""The coder of record batches: nothing is lost on the way, nothing is added, and every worker knows it."""

from __future__ import annotations

import base64
import pickle
import subprocess
import sys
from decimal import Decimal
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest

from eventveil.schemas.errors import EventveilError
from eventveil.transforms.batch import Part, part_of, with_part
from eventveil.transforms.beam.coder import RecordBatchCoder

CODER = RecordBatchCoder()
ITEM = pa.struct([("x", pa.int64()), ("tags", pa.list_(pa.string()))])
BATCHES: dict[str, pa.RecordBatch] = {
    "scalars": pa.RecordBatch.from_pydict(
        {
            "text": ["a", None, "ü"],
            "bytes": [b"\x00\xff", b"", None],
            "wide": pa.array([b"x", b"y", None], pa.large_binary()),
            "small": pa.array([1, -1, None], pa.int8()),
            "float": [1.5, float("inf"), None],
            "flag": [True, False, None],
            "decimal": [Decimal("1.50"), None, Decimal(0)],
            "instant": pa.array([0, 1, None], pa.timestamp("us", "UTC")),
            "date": pa.array([0, 1, None], pa.date32()),
            "fixed": pa.array([b"ab", None, b"cd"], pa.binary(2)),
        }
    ),
    "nested": pa.RecordBatch.from_pydict({"items": pa.array([[{"x": 1, "tags": ["a", None]}, None], None, []], pa.list_(ITEM))}),
    "dictionary": pa.RecordBatch.from_pydict({"kind": pa.array(["a", "b", "a"]).dictionary_encode()}),
    "no rows": pa.RecordBatch.from_pydict({"text": pa.array([], pa.string())}),
    "no columns": pa.RecordBatch.from_arrays([], schema=pa.schema([])),
    "not null": pa.RecordBatch.from_arrays([pa.array([1])], schema=pa.schema([pa.field("n", pa.int64(), nullable=False)])),
}


@pytest.mark.parametrize("batch", BATCHES.values(), ids=list(BATCHES))
def test_a_batch_comes_back_as_it_was(batch: pa.RecordBatch) -> None:
    marked = with_part(batch, Part("in.jsonl", 70, 3, last=False))

    again = CODER.decode(CODER.encode(marked))

    again.validate(full=True)
    assert marked.equals(again, check_metadata=True)
    assert Part("in.jsonl", 70, 3, last=False) == part_of(again)


def test_a_slice_does_not_take_the_rest_with_it() -> None:
    names = [f"canary {number}" for number in range(100)]
    whole = pa.RecordBatch.from_pydict({"text": names, "items": [[{"x": name}] for name in names]})

    encoded = CODER.encode(whole.slice(7, 2))

    assert whole.slice(7, 2).equals(CODER.decode(encoded))
    assert len(encoded) < len(CODER.encode(whole)) / 4
    assert b"canary 99" not in encoded


def test_numbers_stand_where_numpy_wants_them() -> None:
    again = CODER.decode(CODER.encode(pa.RecordBatch.from_pydict({"n": np.arange(100), "f": np.arange(100.0)})))

    assert all(column.to_numpy().flags.aligned for column in again.columns)


def test_the_format_is_a_version_byte_and_an_arrow_stream() -> None:
    encoded = CODER.encode(BATCHES["scalars"])

    assert b"\x01" == encoded[:1]
    assert BATCHES["scalars"].equals(pa.ipc.open_stream(encoded[1:]).read_next_batch())


@pytest.mark.parametrize("encoded", [b"", b"\x02canary", b"\x00"], ids=["empty", "next version", "zero"])
def test_another_version_is_refused_without_quoting_it(encoded: bytes) -> None:
    with pytest.raises(EventveilError, match="EV901") as caught:
        CODER.decode(encoded)

    assert "canary" not in str(caught.value)


class TestBeamKnowsIt:
    def test_it_is_the_coder_of_batches(self) -> None:
        assert CODER == beam.coders.registry.get_coder(pa.RecordBatch)
        assert pa.RecordBatch is CODER.to_type_hint()

    def test_it_is_never_the_coder_of_a_key(self) -> None:
        assert not CODER.is_deterministic()
        with pytest.raises(ValueError, match="deterministic"):
            CODER.as_deterministic_coder("GroupByKey")

    def test_any_two_are_equal_and_hash_alike(self) -> None:
        assert {CODER} == {RecordBatchCoder(), pickle.loads(pickle.dumps(CODER))}
        assert beam.coders.BytesCoder() != CODER

    def test_a_worker_that_was_restarted_knows_it_from_the_job_alone(self) -> None:
        # By the proto, as a runner hands it over: the worker has imported nothing of ours.
        context: Any = beam.runners.pipeline_context.PipelineContext()
        spec = context.coders.get_proto_from_id(context.coders.get_id(CODER)).spec
        batch = base64.b64encode(CODER.encode(BATCHES["nested"])).decode()
        payload = base64.b64encode(spec.payload).decode()
        program = f"""
import base64, sys
from apache_beam.coders import Coder
from apache_beam.portability.api import beam_runner_api_pb2 as api
from apache_beam.runners.pipeline_context import PipelineContext
assert not [name for name in sys.modules if name.startswith("eventveil")]
components = api.Components()
components.coders["c"].spec.urn = {spec.urn!r}
components.coders["c"].spec.payload = base64.b64decode({payload!r})
coder = PipelineContext(components).coders.get_by_id("c")
print(coder.decode(base64.b64decode({batch!r})).to_pylist())
"""

        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

        assert str(BATCHES["nested"].to_pylist()) == done.stdout.strip(), done.stderr


def test_a_size_is_told_without_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(RecordBatchCoder, "encode")
    batch = BATCHES["scalars"]

    # Of a slice what it has, not what its buffers hold.
    assert batch.nbytes == CODER.estimate_size(batch)
    assert CODER.estimate_size(batch.slice(1, 1)) < batch.nbytes
