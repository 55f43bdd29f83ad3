"""The expansion service, asked as a pipeline in another language asks it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.portability.api import beam_runner_api_pb2 as api
from apache_beam.transforms.external import ExternalTransform, ImplicitSchemaPayloadBuilder
from apache_beam.transforms.fully_qualified_named_transform import PYTHON_FULLY_QUALIFIED_NAMED_TRANSFORM_URN

from eventveil.pipeline.runners.expansion_service import TRANSFORM, run_expansion_service
from eventveil.schemas.errors import StorageError

SHIPPING = Path(__file__).resolve().parents[3] / "examples" / "shipping_order"
POOL = "127.0.0.1:50007"


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    """host:port."""
    told: queue.Queue[str] = queue.Queue()
    ended = threading.Event()
    thread = threading.Thread(target=run_expansion_service, kwargs={"worker_pool": POOL, "tell": told.put, "ended": ended})
    thread.start()
    try:
        yield told.get(timeout=60)
    finally:
        ended.set()
        thread.join(30)


def expanded(service: str, name: str, **given: object) -> api.Pipeline:
    payload = ImplicitSchemaPayloadBuilder({"constructor": name, "kwargs": beam.Row(**given)})
    root = beam.Pipeline()
    root | beam.Create([b"{}"]).with_output_types(bytes) | ExternalTransform(PYTHON_FULLY_QUALIFIED_NAMED_TRANSFORM_URN, payload, service)
    return root.to_runner_api()


def test_our_transform_with_the_workers_that_will_run_it(service: str) -> None:
    graph = expanded(service, TRANSFORM, policy=str(SHIPPING / "policy.yaml"), keys="/keys/on/the/worker.json", allow_loss=True)

    environments = {one.urn: one.payload for one in graph.components.environments.values()}
    assert POOL.encode() in environments["beam:env:external:v1"]
    assert any("Anonymize" in one.unique_name for one in graph.components.transforms.values())


@pytest.mark.parametrize("name", ["subprocess.Popen", "apache_beam.Create", "eventveil.transforms.Anonymize"])
def test_nothing_else(service: str, name: str) -> None:
    with pytest.raises(RuntimeError, match="not allowed by filter"):
        expanded(service, name, policy="x")


def test_what_is_wrong_is_told(service: str) -> None:
    with pytest.raises(RuntimeError, match="EV119"):
        expanded(service, TRANSFORM, policy=str(SHIPPING / "policy.yaml"), keys="k")


def test_not_on_every_interface() -> None:
    with pytest.raises(StorageError, match=r"EV419 0\.0\.0\.0:0 stands for every interface"):
        run_expansion_service("0.0.0.0:0")
