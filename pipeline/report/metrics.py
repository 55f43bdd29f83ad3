"""A job as Prometheus reads it: the text exposition format, version 0.0.4.

Written here and not with prometheus_client: all figures stand in one pulse, so there is nothing to register; some lines less a dependency.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from eventveil.pipeline.report.health import Verdict
from eventveil.pipeline.report.pulse import Pulse

__all__ = ["CONTENT_TYPE", "METRICS", "exposition"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

METRICS = {
    "eventveil_build_info": ("gauge", "1, with the version that runs."),
    "eventveil_events_total": (
        "counter",
        "Events since the checkpoint began. read = out + filtered + refused; published and withheld are of those that wait for a window.",
    ),
    "eventveil_refused_total": ("counter", "Events refused since the checkpoint began, by code."),
    "eventveil_drift_total": ("counter", "Events with fields that the schema does not know, by their deepest known parent."),
    "eventveil_windows_total": ("counter", "Windows (or panes of one) published, withheld (EV603) or in conflict (EV416)."),
    "eventveil_read_total": ("counter", "Events read from the source since the checkpoint began, whatever the number of policies."),
    "eventveil_slices_total": ("counter", "Slices finished since the checkpoint began."),
    "eventveil_lag_events": ("gauge", "Events that the source has and the checkpoint does not; absent where unknown."),
    "eventveil_open_windows": ("gauge", "Windows that gather events."),
    "eventveil_carry_bytes": ("gauge", "Bytes gathered for open windows, sealed, on disk."),
    "eventveil_watermark_timestamp_seconds": ("gauge", "How far the stream has come in event time; absent where not known yet."),
    "eventveil_event_time_delay_seconds": ("gauge", "By how much event time is behind the clock; absent where not known yet."),
    "eventveil_last_slice_seconds": ("gauge", "How long the last slice took."),
    "eventveil_silent_seconds": ("gauge", "Since the job last made progress, found nothing new, or tried again to reach what is away."),
    "eventveil_waiting_seconds": ("gauge", "For how long source, sink or registry have been away; 0 where they are there."),
    "eventveil_state": ("gauge", "1 for the state that the job is in."),
    "process_start_time_seconds": ("gauge", "When the process started."),
    "process_cpu_seconds_total": ("counter", "CPU time used."),
    "process_resident_memory_bytes": ("gauge", "Memory in use."),
    "process_open_fds": ("gauge", "Open files and connections."),
    "process_max_fds": ("gauge", "The most of them that are allowed."),
}
"""Every metric: its type, and what it means."""

_STATES = ("starting", "running", "idle", "waiting", "draining", "stopped", "stuck", "failed")


class _Sample(NamedTuple):
    name: str
    labels: Mapping[str, str]
    value: float


def exposition(pulse: Pulse, verdict: Verdict, now: int, process: Mapping[str, float]) -> bytes:
    """The metrics of a moment.

    Args:
        now: the clock, microseconds since 1970. process: figures by metric name.
    """
    samples = [*_samples(pulse, verdict, now), *(_Sample(name, {}, value) for name, value in process.items())]
    lines = []
    for name, (kind, meaning) in METRICS.items():
        own = [f"{name}{_labels(one.labels)} {_number(one.value)}" for one in samples if one.name == name]
        lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}", *own] if own else []
    # A label can hold what UTF-8 cannot: a name that the file system gave us.
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")


def _samples(pulse: Pulse, verdict: Verdict, now: int) -> Iterable[_Sample]:
    job = {"job": pulse.job}
    yield _Sample("eventveil_build_info", {**job, "version": _version()}, 1)
    for one in pulse.policies:
        of = {**job, "policy": one.policy}
        for outcome, number in one.outcomes().items():
            yield _Sample("eventveil_events_total", {**of, "outcome": outcome}, number)
        for code, number in sorted(one.refused.items()):
            yield _Sample("eventveil_refused_total", {**of, "code": code}, number)
        for path, number in sorted(one.drift.items()):
            yield _Sample("eventveil_drift_total", {**of, "path": path}, number)
        for outcome in ("published", "withheld", "conflict"):
            yield _Sample("eventveil_windows_total", {**of, "outcome": outcome}, one.windows.get(outcome, 0))
    yield _Sample("eventveil_read_total", job, pulse.read)
    yield _Sample("eventveil_slices_total", job, pulse.slice)
    if pulse.lag is not None:
        yield _Sample("eventveil_lag_events", job, pulse.lag)
    yield _Sample("eventveil_open_windows", job, pulse.open_windows)
    yield _Sample("eventveil_carry_bytes", job, pulse.carry_bytes)
    delay = pulse.delay_s(now)
    if pulse.watermark is not None and delay is not None:
        # Whole seconds: how far it has come is the time of some event.
        yield _Sample("eventveil_watermark_timestamp_seconds", job, pulse.watermark // 1_000_000)
        yield _Sample("eventveil_event_time_delay_seconds", job, int(delay))
    yield _Sample("eventveil_last_slice_seconds", job, pulse.slice_s)
    yield _Sample("eventveil_silent_seconds", job, verdict.silent_s)
    yield _Sample("eventveil_waiting_seconds", job, verdict.waiting_s)
    for state in _STATES:
        yield _Sample("eventveil_state", {**job, "state": state}, int(state == verdict.state))


def _labels(labels: Mapping[str, str]) -> str:
    inside = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{{{inside}}}" if inside else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else repr(float(value))


def _version() -> str:
    try:
        return version("eventveil")
    except PackageNotFoundError:
        return "unknown"
