"""eventveil run --runner dataflow: hand the job over, and say where it can be seen."""

from __future__ import annotations

import typer

from eventveil.pipeline.prepare import Live, ReadyJob
from eventveil.pipeline.sources.stream import State

__all__ = ["submit_to_dataflow"]


def submit_to_dataflow(ready: ReadyJob, *, quiet: bool) -> int:
    """Submit a job, or write its template. What becomes of it is told by Google's console and commands; returns the exit code."""
    from eventveil.pipeline.engine import build_on_engine
    from eventveil.pipeline.runners.dataflow import dataflow_options, labels_of, submit

    doc = ready.dataflow
    assert doc is not None, "a job for Dataflow says where it is"
    given = dict(label.partition("=")[::2] for label in doc.labels)
    options = dataflow_options(
        ready.name,
        doc.project,
        doc.region,
        temp_location=doc.temp_location,
        labels={**given, **labels_of([variant.plan for variant in ready.variants])},
        template=doc.template,
        wheel=doc.wheel,
        # Every transform keeps its name for as long as its policy does.
        update_from={} if doc.update else None,
        extra=doc.options,
    )
    submitted = submit(lambda root: build_on_engine(root, ready, _begin(ready.live)), options)
    if not quiet:
        typer.echo(submitted.address)
    return 0


def _begin(live: Live | None) -> State:
    """Where a stream begins. Of Pub/Sub Dataflow knows, and whoever submits the job need not be allowed to ask."""
    if live is None or live.stream.identity().get("kind") == "pubsub":
        return {}
    return live.stream.begin(live.from_latest)
