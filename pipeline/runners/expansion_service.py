"""What pipelines in other languages ask for `AnonymizeMessages`: Beam's expansion service, on loopback, giving that transform alone.

Beam's own listens on every interface. Its protocol knows no password, takes transforms as pickles and hands out files: whoever reaches
it can run code as the user that it runs as.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import grpc  # type: ignore[import-untyped]
from apache_beam.internal import pickler
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_artifact_api_pb2_grpc, beam_expansion_api_pb2_grpc
from apache_beam.runners.portability.artifact_service import ArtifactRetrievalService, BeamFilesystemHandler
from apache_beam.runners.portability.expansion_service import ExpansionServiceServicer
from apache_beam.transforms.fully_qualified_named_transform import FullyQualifiedNamedTransform

from eventveil.pipeline.runners._serving import serve

__all__ = ["TRANSFORM", "run_expansion_service"]

TRANSFORM = "eventveil.transforms.beam.messages.AnonymizeMessages"


def run_expansion_service(
    address: str = "127.0.0.1:0",
    worker_pool: str = "127.0.0.1:50000",
    *,
    insecure: bool = False,
    tell: Callable[[str], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
    ended: threading.Event | None = None,
) -> None:
    """Expand `AnonymizeMessages` for whoever asks, until SIGTERM, SIGINT or `ended`.

    Args:
        worker_pool: ``host:port`` at which the engine, when the pipeline runs, finds workers that have eventveil.
        address, insecure, tell, warn, ended: as for `serve`.

    Raises:
        StorageError: EV419 it cannot listen there, or may not.
    """
    # As in every job of ours: workers read one kind of pickle alone.
    pickler.set_library("cloudpickle")
    options = PipelineOptions(["--environment_type=EXTERNAL", f"--environment_config={worker_pool}", "--pickle_library=cloudpickle"])

    def add(server: grpc.Server) -> None:
        beam_expansion_api_pb2_grpc.add_ExpansionServiceServicer_to_server(ExpansionServiceServicer(options), server)
        files = ArtifactRetrievalService(BeamFilesystemHandler(None).file_reader)
        beam_artifact_api_pb2_grpc.add_ArtifactRetrievalServiceServicer_to_server(files, server)

    with FullyQualifiedNamedTransform.with_filter(TRANSFORM):
        serve("the expansion service", address, add, insecure=insecure, tell=tell, warn=warn, ended=ended)
