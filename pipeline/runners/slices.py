"""slices: a stream on one machine, as a durable loop of bounded passes over the graph.

What one slice does is decided, and noted in an intent, before it reads anything: up to where it reads, how far event time had come, and
what the clock said. So a slice that was killed at any moment is done again as it was, and gives the same bytes under the same names.
Windows that are due are published out of what earlier slices gathered, next to reading, so neither waits for the other.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from eventveil.pipeline.checkpoint.carry import CarryWriter
from eventveil.pipeline.checkpoint.folder import CheckpointFolder
from eventveil.pipeline.checkpoint.seal import StateSeal, WindowSeals
from eventveil.pipeline.gate import Due, Fate, take_fates
from eventveil.pipeline.graph import Work
from eventveil.pipeline.prepare import Live, ReadyJob, Variant
from eventveil.pipeline.report.pulse import Pulse, State
from eventveil.pipeline.report.reporter import Reporter
from eventveil.pipeline.runners._pass import Passed, run_pass
from eventveil.pipeline.runners._standing import counts_of, gate_of, identity_of
from eventveil.pipeline.sinks.kinds import MessageSink
from eventveil.pipeline.sources.stream import Stream, Unreachable
from eventveil.pipeline.sources.watermark import Watermark
from eventveil.schemas.errors import EventveilError, LimitError, Problem, StorageError, remedy_for
from eventveil.transforms.batch import Clock
from eventveil.transforms.keys.keyring import load_keys

__all__ = ["Drain", "run", "run_bounded"]

_Carried = Mapping[str, Mapping[str, Sequence[int]]]
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 8.0


class Drain:
    """Asked to stop: the slice at hand is finished, and no further one begun."""

    def __init__(self) -> None:
        self._asked = threading.Event()

    def ask(self) -> None:
        self._asked.set()

    @property
    def is_asked(self) -> bool:
        return self._asked.is_set()

    def wait(self, seconds: float) -> None:
        """Sleep, unless asked."""
        self._asked.wait(max(0.0, seconds))


@dataclass
class _Held:
    """What the checkpoint holds. `carry`: by variant and window, as the carry's writer lists it: bytes first."""

    slice: int
    state: dict[str, Any]
    watermark: Watermark
    carry: _Carried = field(default_factory=dict)
    totals: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        return {
            "slice": self.slice,
            "state": self.state,
            "watermark": self.watermark.as_json(),
            "carry": self.carry,
            "totals": dict(self.totals),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> _Held:
        watermark = Watermark.from_json(document["watermark"])
        return cls(document["slice"], document["state"], watermark, document["carry"], Counter(document["totals"]))


@dataclass(frozen=True)
class _Intent:
    """What a slice will do. `after`: the stream's state behind it."""

    slice: int
    after: dict[str, Any]
    watermark: int | None
    now: int

    def as_json(self) -> dict[str, Any]:
        return {"slice": self.slice, "after": self.after, "watermark": self.watermark, "now": self.now}


def run(
    job: ReadyJob, workers: int, drain: Drain, reporter: Reporter, *, until_caught_up: bool = False, from_now: bool = False
) -> Mapping[str, int]:
    """Run a job on a stream until it is asked to stop, or has caught up; returns what this run counted, as Beam's counters.

    Args:
        until_caught_up: stop when nothing is left to read and no window is due. Windows that are open stay so, in the checkpoint.
        from_now: where the checkpoint is another job's, or events that it has to read are gone: set it aside, and begin anew from
            what comes now.

    Raises:
        EventveilError: what cannot be mended by waiting. The checkpoint is whole, and the next run goes on from it.
    """
    assert job.live is not None, "a job on files has no slices"
    loop = _Loop(job, job.live, workers, drain, reporter)
    try:
        loop.open(from_now)
        loop.run(until_caught_up)
    except Unreachable:
        # What is away cannot hold a job that was asked to stop: the intent stands, and the next run does the slice.
        if not drain.is_asked:
            raise
    finally:
        loop.close()
    loop.tell("stopped")
    return loop.counted


def run_bounded(job: ReadyJob, workers: int) -> Mapping[str, int]:
    """Run a job on files whose rows wait for their windows: read all, then publish all windows. Raises as `run_pass`."""
    place = tempfile.mkdtemp(prefix="eventveil-")
    keys = load_keys(job.sealing.keys)
    folder = CheckpointFolder(place, StateSeal.of(keys))
    try:
        folder.open({"job": job.name})
        writer = folder.writer(_seals(job))
        folder.write_intent({"slice": 0})
        read = run_pass(job, Work(job.ranges, carry=writer.begin_slice(0), spread=workers > 1), workers)
        carry = writer.flush_all()
        folder.commit({"slice": 0, "carry": carry})
        due = _due(job.variants, carry, 0, folder, everything=True)
        take_fates()
        if due:
            read.counts.update(run_pass(job, Work((), due=due, spread=workers > 1), workers).counts)
        fates = take_fates()
        read.counts.update(Counter(f"{fate.variant}|windows|{fate.what}" for fate in fates))
        _check_published(fates)
        return read.counts
    finally:
        folder.close()
        shutil.rmtree(place, ignore_errors=True)


def _check_published(fates: Sequence[Fate]) -> None:
    """Raises StorageError EV416, LimitError EV603 where a job on files has not published all windows: it keeps none for later."""

    def told(what: str, code: str, why: str, remedy: str) -> list[Problem]:
        found = Counter(fate.variant for fate in fates if fate.what == what)
        of = Counter(fate.variant for fate in fates)
        return [Problem("", 0, code, f"{name}: {n} of {of[name]} windows not published: {why}", remedy) for name, n in found.items()]

    remedy = "choose an empty folder: two versions of one window would show their difference"
    if conflicts := told("conflict", "EV416", "they stand there already, with another content", remedy):
        raise StorageError(conflicts)
    if withheld := told("withheld", "EV603", "they have more values to number than are decided on at once", remedy_for("EV603")):
        raise LimitError(withheld)


class _Loop:
    def __init__(self, job: ReadyJob, live: Live, workers: int, drain: Drain, reporter: Reporter) -> None:
        self._job = job
        self._live = live
        # What an engine alone can read is refused for this runner when the job is read.
        self._stream = cast(Stream, live.stream)
        self._workers = workers
        self._drain = drain
        self._reporter = reporter
        assert live.checkpoint is not None, "a local job on a stream without one is refused when it is read"
        self._folder = CheckpointFolder(live.checkpoint, StateSeal.of(load_keys(job.sealing.keys)))
        self._writer: CarryWriter | None = None
        self._held = _Held(0, {}, Watermark())
        self._gate = gate_of(job, live)
        self._began = time.monotonic()
        self._slice_s = 0.0
        self._heard: dict[str, int] = {}
        self._idle: frozenset[str] = frozenset()
        self._now = 0
        self.counted: Counter[str] = Counter()

    # -- beginning and end ------------------------------------------------------------------------------------------

    def open(self, from_now: bool) -> None:
        """Take the checkpoint over, or begin one."""
        found = self._folder.open(identity_of(self._job, self._stream), from_now)
        before, slice_ = None, 0
        if found is not None and from_now and self._has_gap(found["state"]):
            # What comes now goes on in the same folders: later events, under later numbers.
            before, slice_ = self._folder.series, found["slice"] + 1
            self._folder.set_aside()
            found = None
        if found is None and self._folder.intent() is not None:
            fact, remedy = "a slice has begun, and the checkpoint before it is gone", "restore the whole folder, or choose an empty one"
            raise StorageError.of("EV411", fact, remedy, file=self._folder.path)
        if found is not None:
            self._held = _Held.from_json(found)
            self._now = self._held.watermark.as_json()["now"] or 0
        else:
            latest = from_now or self._live.from_latest
            self._held = _Held(slice_, self._patiently(lambda: self._stream.begin(latest)), Watermark())
        self._writer = self._folder.writer(_seals(self._job))
        for variant in self._job.variants:
            if not isinstance(variant.sink, MessageSink):
                variant.sink.bind(self._folder.series, before)
        if found is None:
            self._folder.commit(self._held.as_json())
        self.tell("starting")

    def _has_gap(self, state: dict[str, Any]) -> bool:
        """Whether events that the checkpoint still has to read are gone. Only then does `from_now` leave it: a flag that was
        forgotten in a start script must not skip what came while the job was down."""
        noted = self._folder.intent()
        try:
            self._patiently(lambda: self._stream.next(state, self._live.max_slice_bytes))
            if noted is not None:
                self._stream.ranges(state, noted["after"])
        except EventveilError as error:
            if error.problems[0].code != "EV412":
                raise
            return True
        return False

    def close(self) -> None:
        self._stream.close()
        self._folder.close()

    # -- the loop ---------------------------------------------------------------------------------------------------

    def run(self, until_caught_up: bool) -> None:
        noted = self._folder.intent()
        if noted is not None:
            self._do(_Intent(noted["slice"], noted["after"], noted["watermark"], noted["now"]))
        while not self._drain.is_asked:
            began = time.monotonic()
            intent = self._patiently(self._look)
            if intent is not None:
                self._folder.write_intent(intent.as_json())
                self._do(intent)
            elif self._drain.is_asked or (until_caught_up and not self._stream.lag(self._held.state)):
                break
            else:
                self.tell("idle")
            if intent is None or not (until_caught_up or self._is_behind()):
                self._drain.wait(self._live.slice_us / 1e6 - (time.monotonic() - began))
        if self._drain.is_asked:
            self.tell("draining")

    def _look(self) -> _Intent | None:
        """What the next slice will do; None: nothing is new, and nothing due."""
        held = self._held
        after = self._stream.next(held.state, self._live.max_slice_bytes)
        now = self._clock()
        caught_up = self._stream.is_caught_up(after or held.state)
        lanes = self._stream.lanes(after or held.state)
        for lane in lanes:
            # One that is behind holds event time, whatever it has. One that is not, and of which nothing is accepted, is as good as
            # silent: its events are all filtered, or refused, and would hold every window for ever.
            if lane not in caught_up or lane not in self._heard:
                self._heard[lane] = now
        self._idle = frozenset(lane for lane in caught_up if now - self._heard.get(lane, now) >= self._live.idle_after_us)
        watermark = held.watermark.advance({}, now=now, lanes=lanes, idle=self._idle)
        if after is None and not self._due_at(watermark):
            return None
        return _Intent(held.slice + 1, after or held.state, watermark, now)

    def _do(self, intent: _Intent) -> None:
        """A slice, from its intent to its checkpoint."""
        began = time.monotonic()
        assert self._writer is not None, "opened before it runs"
        writer, held = self._writer, self._held
        due = self._due_at(intent.watermark, intent.slice)
        closing = [(file.variant, one.start_us) for one in due for file in one.files]
        ranges = self._stream.ranges(held.state, intent.after) if intent.after != held.state else ()

        def attempt() -> tuple[Passed, list[Fate]]:
            carry = writer.begin_slice(intent.slice, closing)
            closed = [replace(one, attempt=carry.attempt) for one in due]
            clock = Clock(intent.watermark, intent.now)
            work = Work(ranges, clock, carry, closed, self._folder.series, spread=self._workers > 1)
            passed = run_pass(self._job, work, self._workers)
            return passed, take_fates(carry.attempt)

        passed, fates = self._patiently(attempt)
        self._check_balance(passed.counts)
        carry = writer.flush_all()
        writer.sync()
        lanes = self._stream.lanes(intent.after)
        # Of a slice that is done again, the checkpoint before it does not know how far event time had come since by the clock alone.
        held.watermark.raise_to(intent.watermark)
        latest = self._latest(passed)
        self._heard.update(dict.fromkeys(latest, self._clock()))
        held.watermark.advance(latest, now=intent.now, lanes=lanes, idle=self._idle - set(latest))
        self._count(passed, fates)
        self._held = _Held(intent.slice, intent.after, held.watermark, carry, held.totals)
        unpublished = [(fate.variant, fate.start_us) for fate in fates if fate.what != "published"]
        self._folder.commit(self._held.as_json(), withheld=unpublished)
        self._stream.committed(intent.after)
        self._slice_s = time.monotonic() - began
        self.tell("running")
        if self._gate is not None:
            self._gate.check()

    def _is_behind(self) -> bool:
        """Whether the next slice has something to do at once: more than one slice may read, or windows that have just become due."""
        held = self._held
        return self._stream.lag(held.state) > 0 or bool(self._due_at(held.watermark.value))

    def _patiently(self, action: Any) -> Any:
        """The result of an action that is tried again while source, sink or registry are away. Asked to stop, it stops waiting.

        Raises:
            EventveilError: what waiting cannot mend; Unreachable too, once the job is asked to stop.
        """
        wait = _FIRST_WAIT_S
        while True:
            try:
                return action()
            except Unreachable as error:
                if self._drain.is_asked:
                    raise
                # Nobody could be heard: a lane is silent from when it could have spoken again.
                self._heard.clear()
                self.tell("waiting", error.problems[0])
                self._drain.wait(wait)
                wait = min(wait * 2, _LONGEST_WAIT_S)

    # -- what it knows ----------------------------------------------------------------------------------------------

    def _clock(self) -> int:
        """Microseconds since 1970; a clock that was set back stands still."""
        self._now = max(self._now, time.time_ns() // 1_000)
        return self._now

    def _due_at(self, watermark: int | None, pane: int = 0) -> list[Due]:
        return _due(self._job.variants, self._held.carry, pane, self._folder, watermark=watermark)

    def _latest(self, passed: Passed) -> dict[str, int]:
        """The highest accepted event time of each lane: the least of the policies that accepted something there."""
        highest: dict[str, dict[str, int]] = {}
        for (policy, origin), micros in passed.latest.items():
            of_lane = highest.setdefault(self._stream.lane_of(origin), {})
            of_lane[policy] = max(micros, of_lane.get(policy, micros))
        return {lane: min(of_lane.values()) for lane, of_lane in highest.items()}

    def _check_balance(self, counts: Mapping[str, int]) -> None:
        """Nothing may vanish: what went in came out, was refused or was filtered. Found out before the checkpoint says that it is done."""
        for variant in self._job.variants:
            name = variant.name
            refused = sum(number for what, number in counts.items() if what.startswith(f"{name}|refused|"))
            into, out, filtered = (counts.get(f"{name}|{what}", 0) for what in ("in", "out", "filtered"))
            if into != out + refused + filtered:
                raise EventveilError.of("EV901", f"{name}: {into} in, but {out} out, {refused} refused, {filtered} filtered")

    def _count(self, passed: Passed, fates: Sequence[Fate]) -> None:
        counts = Counter(passed.counts)
        for fate in fates:
            counts[f"{fate.variant}|windows|{fate.what}"] += 1
        self.counted.update(counts)
        self._held.totals.update(counts)
        if self._gate is not None:
            at = time.monotonic()
            for variant in self._job.variants:
                start = f"{variant.name}|refused|"
                refused = {what.removeprefix(start): number for what, number in counts.items() if what.startswith(start)}
                self._gate.add(at, variant.name, counts.get(f"{variant.name}|in", 0), refused)

    def tell(self, state: State, problem: Problem | None = None) -> None:
        held = self._held
        sizes = [sizes for windows in held.carry.values() for sizes in windows.values()]
        self._reporter.update(
            Pulse(
                job=self._job.name,
                state=state,
                policies=tuple(counts_of(variant.name, held.totals) for variant in self._job.variants),
                slice=held.slice,
                uptime_s=time.monotonic() - self._began,
                lag=self._stream.lag(held.state) if held.state else None,
                read=max((held.totals.get(f"{variant.name}|in", 0) for variant in self._job.variants), default=0),
                open_windows=len(sizes),
                carry_bytes=sum(size[0] for size in sizes),
                now=self._clock(),
                watermark=held.watermark.value,
                slice_s=self._slice_s,
                every_s=self._live.slice_us / 1e6,
                reason="" if problem is None else problem.code,
                problem=problem,
            )
        )


def _seals(job: ReadyJob) -> dict[str, WindowSeals]:
    """The seals of the variants that are gathered."""
    keys = load_keys(job.sealing.keys)
    gathered = [(variant, variant.gathering) for variant in job.variants if variant.gathering is not None]
    return {variant.name: WindowSeals(keys.domain(variant.plan.domain), gathering.rule) for variant, gathering in gathered}


def _due(
    variants: Sequence[Variant],
    carry: _Carried,
    pane: int,
    folder: CheckpointFolder,
    *,
    watermark: int | None = None,
    everything: bool = False,
) -> list[Due]:
    """The windows to be published, by their beginning. Those of one domain that a release model decides on are decided on together."""
    groups: dict[tuple[int, str, int], list[str]] = {}
    for variant in variants:
        gathering = variant.gathering
        for window in carry.get(variant.name, {}) if gathering is not None else ():
            start = int(window)
            if gathering is not None and (everything or gathering.is_due(start, watermark)):
                together = f"domain {variant.plan.domain} {gathering.rule}" if gathering.released else f"variant {variant.name}"
                # What is decided on as a whole has one pane, whatever the slices were: a second one would be noticed as a conflict.
                groups.setdefault((start, together, 0 if gathering.released else pane), []).append(variant.name)
    return [
        Due(start, one, tuple(folder.carry(name, start) for name in sorted(names))) for (start, _, one), names in sorted(groups.items())
    ]
