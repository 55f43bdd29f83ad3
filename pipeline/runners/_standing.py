"""How a job on a stream stands, whatever runs it: what makes it the same job, what it has counted, and when too much is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eventveil.pipeline.prepare import Live, ReadyJob
from eventveil.pipeline.report.pulse import PolicyCounts
from eventveil.pipeline.report.stop import RefusedGate
from eventveil.pipeline.sources.stream import EngineStream

__all__ = ["counts_of", "gate_of", "identity_of"]


def identity_of(job: ReadyJob, stream: EngineStream) -> dict[str, Any]:
    """What a checkpoint belongs to: another policy, keyring, stream or window does not go on from it."""
    variants = {
        variant.name: {
            "digest": variant.plan.digest,
            "domain": variant.plan.domain,
            "window": "" if variant.gathering is None else f"{variant.gathering.rule.duration} {variant.gathering.rule.zone}",
        }
        for variant in job.variants
    }
    return {"job": job.name, "keys": job.keys_id, "stream": stream.identity(), "variants": variants}


def gate_of(job: ReadyJob, live: Live) -> RefusedGate | None:
    """What stops the job when too much is refused; None: nothing does."""
    stop = live.stop_when
    letters = None if job.letters is None else job.letters.folder
    return None if stop is None else RefusedGate(stop.share, stop.over_us, letters=letters)


def counts_of(name: str, totals: Mapping[str, int]) -> PolicyCounts:
    """Of one policy, out of Beam's counters."""

    def of(what: str) -> dict[str, int]:
        start = f"{name}|{what}|"
        return {key.removeprefix(start): number for key, number in totals.items() if key.startswith(start)}

    plain = {what: totals.get(f"{name}|{what}", 0) for what in ("in", "out", "filtered", "published", "withheld", "conflict")}
    return PolicyCounts(
        policy=name,
        read=plain["in"],
        out=plain["out"],
        filtered=plain["filtered"],
        published=plain["published"],
        withheld=plain["withheld"] + plain["conflict"],
        refused=of("refused"),
        drift=of("drift"),
        windows=of("windows"),
    )
