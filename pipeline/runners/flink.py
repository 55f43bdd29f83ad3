"""flink: the whole graph as one job on a Flink cluster, submitted, watched and stopped from here.

Beam's runner for Flink has defaults with which nothing flows: what must be set is set here, and whoever knows better may override it. The
job is told by its name, which names its checkpoint: a launcher that was killed finds it again, and does not start it twice. How far it has
come is in Flink's own checkpoints and savepoints; the checkpoint folder says which of them to go on from.
"""

from __future__ import annotations

import io
import re
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import redirect_stderr
from typing import Any

from eventveil.pipeline.checkpoint.folder import CheckpointFolder
from eventveil.pipeline.checkpoint.seal import StateSeal
from eventveil.pipeline.prepare import Live, ReadyJob
from eventveil.pipeline.report.pulse import Pulse, State
from eventveil.pipeline.report.reporter import Reporter
from eventveil.pipeline.runners._flink_rest import ENDED, FlinkJob, FlinkRest
from eventveil.pipeline.runners._job_server import job_server
from eventveil.pipeline.runners._standing import counts_of, gate_of, identity_of
from eventveil.pipeline.runners.slices import Drain
from eventveil.pipeline.sinks.kinds import MessageSink
from eventveil.schemas.errors import EventveilError, PolicyError, Problem, StorageError, Unreachable
from eventveil.schemas.job import FlinkDoc
from eventveil.schemas.streams import is_secret
from eventveil.transforms.keys.keyring import load_keys

__all__ = ["flink_options", "run_on_flink"]

_POOL = "127.0.0.1:50000"
_VERSION = "1.19"
_SINGLE = 1_000
_CHECKPOINTING_MS = 10_000
_RESTARTS = 10
_RESTARTS_IN_ALL = 1_000
_RECENT_S = 600.0
_RESTART_DELAY_MS = 1_000
_LOOK_S = 1.0
_TO_APPEAR_S = 180.0
_TO_ANSWER_S = 60.0
_TO_SAVE_S = 60.0
_LONGEST_AWAY_S = 600.0
# Set by us, and dangerous in other hands: sessions and pickles of what ran here do not belong on a worker.
_REFUSED = ("runner", "job_endpoint", "save_main_session", "pickle_library", "shutdown_sources_after_idle_ms", "environment_type")


def flink_options(job: ReadyJob, doc: FlinkDoc, workers: int, endpoint: str, name: str, savepoint: str | None = None) -> list[str]:
    """Flags for Beam; those of the job come last, and win.

    Args:
        endpoint: of the job server. name: of the job on Flink. savepoint: or retained checkpoint, to go on from.

    Raises:
        PolicyError: EV103 an option that is not for a job to set. EV118 one that is a secret.
    """
    for option in doc.options:
        given = option.removeprefix("--").partition("=")[0]
        if given.removeprefix("no_") in _REFUSED:
            raise PolicyError(Problem("", 0, "EV103", f"flink.options: --{given} is not for a job to set", "remove it"))
        if is_secret(given):
            fact = f"flink.options: --{given} is a secret, and whoever sees the job sees its options"
            raise PolicyError(Problem("", 0, "EV118", fact, "give it to the cluster, by its own configuration"))
    interval = doc.checkpointing.fixed_us if doc.checkpointing is not None else None
    flags = {
        "runner": "PortableRunner",
        "job_endpoint": endpoint,
        "job_name": name,
        "environment_type": "EXTERNAL",
        "environment_config": doc.worker_pool or _POOL,
        "parallelism": workers,
        # One Python process for each slot; else all slots of a TaskManager share one.
        "sdk_worker_parallelism": 1,
        # An element is a batch of thousands of events. With a larger bundle and checkpoints nothing ever flows; with a longer one
        # event time stands still under load. Single messages make a batch of what one bundle holds: some thirty a second otherwise.
        "max_bundle_size": _SINGLE if job.live is not None and job.live.single else 1,
        "max_bundle_time_mills": 50,
        "pickle_library": "cloudpickle",
        # Over all its life, should nobody watch it: Flink does not count anew when a job gets on.
        "number_of_execution_retries": _RESTARTS_IN_ALL,
        "execution_retry_delay": _RESTART_DELAY_MS,
    }
    if job.live is not None:
        flags |= {
            # Without checkpoints no position is ever told, and nothing acknowledged.
            "checkpointing_interval": _CHECKPOINTING_MS if interval is None else interval // 1000,
        }
    if savepoint is not None:
        flags["savepoint_path"] = savepoint
    # A checkpoint outlives its job, so that one that has failed goes on from it.
    kept = ["--externalized_checkpoints_enabled", "--retain_externalized_checkpoints_on_cancellation"]
    # Else what a bundle gave out waits until the checkpoint is complete, while event time goes on: it would come late.
    whole = "--finish_bundle_before_checkpointing"
    streaming = ["--streaming", whole, *kept] if job.live is not None else []
    return [*(f"--{flag}={value}" for flag, value in flags.items()), *streaming, *doc.options]


def run_on_flink(job: ReadyJob, workers: int, drain: Drain, reporter: Reporter, *, from_now: bool = False) -> Mapping[str, int]:
    """Submit a job, or find it running, and stay with it until it ends or is asked to stop: then it leaves a savepoint.

    Args:
        workers: its parallelism. from_now: begin anew, from what comes now, where the checkpoint is another job's.

    Returns:
        What it has counted since it began.

    Raises:
        Unreachable: EV418 Flink is away for longer than ten minutes. StorageError: EV419 Flink refuses the job, or the job has failed.
        LimitError: EV602 too much is refused; the job has stopped at a savepoint.
    """
    assert job.flink is not None, "a job for Flink says where it is"
    launcher = _Launcher(job, job.flink, workers, drain, reporter)
    try:
        launcher.open(from_now)
        launcher.start()
        return launcher.watch()
    finally:
        launcher.close()


class _Launcher:
    def __init__(self, job: ReadyJob, doc: FlinkDoc, workers: int, drain: Drain, reporter: Reporter) -> None:
        self._job = job
        self._doc = doc
        self._workers = workers
        self._drain = drain
        self._reporter = reporter
        self._rest = FlinkRest(doc.master)
        self._folder: CheckpointFolder | None = None
        self._gate = None if job.live is None else gate_of(job, job.live)
        self._number = 0
        self._held: dict[str, Any] = {"id": None, "from": None}
        self._begins: dict[str, Any] = {}
        self._counted: Counter[str] = Counter()
        self._submitted: Any = None
        self._restarts = 0
        self._recent: list[float] = []
        self._why: Problem | None = None
        self._watermark: int | None = None
        self._began = time.monotonic()

    # -- beginning and end ------------------------------------------------------------------------------------------

    def open(self, from_now: bool) -> None:
        """Take the checkpoint folder, and find out from where the job goes on."""
        live = self._job.live
        if live is None:
            return
        assert live.checkpoint is not None, "a job on a stream without one is refused when it is read"
        self._folder = CheckpointFolder(live.checkpoint, StateSeal.of(load_keys(self._job.sealing.keys)))
        found = self._folder.open({**identity_of(self._job, live.stream), "runner": "flink"}, from_now)
        if found is not None:
            self._number, self._held = found["slice"], found["flink"]
        for variant in self._job.variants:
            if not isinstance(variant.sink, MessageSink):
                variant.sink.bind(self._folder.series)
        if found is None:
            # Where the stream begins is noted before the job is: one that is submitted again begins there too.
            self._held |= {"begins": live.stream.begin(from_now or live.from_latest)}
            self._note()
        self._begins = self._held["begins"]
        self._tell("starting")

    def close(self) -> None:
        if self._job.live is not None:
            self._job.live.stream.close()
        if self._folder is not None:
            self._folder.close()

    @property
    def _name(self) -> str:
        """Of the job on Flink: no two checkpoints have the same."""
        series = "" if self._folder is None else f"-{self._folder.series[:8]}"
        return f"eventveil-{self._job.name}{series}"

    def start(self) -> None:
        """Find the job where it runs already; else submit it."""
        jobs = self._rest.jobs()
        running = [job for job in jobs if job.name == self._name and job.state not in ENDED]
        if len(running) > 1:
            raise StorageError.of("EV419", f"{len(running)} jobs called {self._name} run", "cancel all but one", file=self._doc.master)
        if running and self._folder is not None:
            self._held["id"] = running[0].id
            # Of its whole life: they say nothing about whether it gets on now.
            self._restarts = self._rest.restarts(running[0].id)
            return
        known = {job.id for job in jobs}
        if self._held["id"] in known and (last := self._rest.last_checkpoint(self._held["id"])) is not None:
            # A launcher that was killed may not have noted it.
            self._held["from"] = last
        with job_server(self._doc.master, self._doc.job_server, self._doc.version or _VERSION) as endpoint:
            self._submit(endpoint)
            self._held["id"] = self._appeared(known)
        self._note()

    def _jobs(self) -> list[FlinkJob]:
        """Patiently: a master that is just taking in a job, with 160 MB of jars, may be slow to answer."""
        until = time.monotonic() + _TO_ANSWER_S
        while True:
            try:
                return self._rest.jobs()
            except Unreachable:
                if time.monotonic() > until or self._drain.is_asked:
                    raise
                self._drain.wait(_LOOK_S)

    def _submit(self, endpoint: str) -> None:
        # Beam is slow to import, and what can be wrong was found before.
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions

        from eventveil.pipeline.engine import build_on_engine

        flags = flink_options(self._job, self._doc, self._workers, endpoint, self._name, self._held["from"])
        pipeline = beam.Pipeline(options=PipelineOptions(flags))
        build_on_engine(pipeline, self._job, self._begins, "" if self._folder is None else self._folder.series)
        try:
            # What options there are only the job server knows; what is wrong with one, Beam says as a command line would.
            with redirect_stderr(io.StringIO()):
                self._submitted = pipeline.run()
        except SystemExit:
            fact, remedy = "flink.options: an option is not as Beam takes it", "see Beam's options for Flink, and write --name=value"
            raise PolicyError(Problem("", 0, "EV103", fact, remedy)) from None

    def _appeared(self, known: set[str]) -> str:
        """The job's id, once Flink has it. The job server needs no longer to live then: the job runs without it."""
        until = time.monotonic() + _TO_APPEAR_S
        while time.monotonic() < until:
            for job in self._jobs():
                if job.name == self._name and job.id not in known:
                    return job.id
            if self._submitted is not None and self._submitted.state in ("FAILED", "CANCELLED"):
                fact, remedy = "the job server could not submit the job", "see whether its version is the cluster's, and the cluster's logs"
                raise StorageError.of("EV419", fact, remedy, file=self._doc.master)
            time.sleep(0.5)
        fact = f"the job did not appear within {_TO_APPEAR_S:.0f} s"
        raise StorageError.of("EV419", fact, "look into the logs of the job server and of Flink", file=self._doc.master)

    # -- watching ---------------------------------------------------------------------------------------------------

    def watch(self) -> Mapping[str, int]:
        """Stay until the job ends, or is asked to stop."""
        away: float | None = None
        while not self._drain.is_asked:
            try:
                state = self._look()
                away = None
            except Unreachable as error:
                away = time.monotonic() if away is None else away
                if time.monotonic() - away > _LONGEST_AWAY_S:
                    raise
                self._tell("waiting", error.problems[0])
                state = ""
            if state == "FINISHED":
                self._tell("stopped")
                return self._counted
            if state in ENDED:
                raise self._failed(state)
            if self._gate is not None:
                try:
                    self._gate.check()
                except EventveilError:
                    self._stop()
                    raise
            self._drain.wait(_LOOK_S)
        self._stop()
        self._tell("stopped")
        return self._counted

    def _look(self) -> str:
        """How the job stands; notes what is worth it."""
        id_ = self._held["id"]
        state = self._rest.state(id_)
        if state in ENDED:
            if state == "FINISHED":
                self._count(self._rest.metrics(id_))
            return state
        restarts = self._rest.restarts(id_)
        if restarts > self._restarts:
            causes = self._rest.failures(id_)[: restarts - self._restarts]
            # While a TaskManager is gone Flink tries again each second: that says nothing about the job.
            own = restarts - self._restarts - sum(one.is_of_cluster for one in causes)
            self._recent += [time.monotonic()] * own
            self._restarts = restarts
            cause = next(iter(causes), None)
            times = f"the job has restarted {restarts} time{'s' * (restarts > 1)}"
            fact = f"{times}: {cause}" if cause else times
            self._why = Problem(self._doc.master, 0, "EV419", fact, "it reads on from its last checkpoint")
            self._tell("waiting", self._why)
        elif state == "RUNNING":
            self._tell("running")
        elif self._why is None:
            self._tell("starting")
        else:
            self._tell("waiting", self._why)
        self._count(self._rest.metrics(id_))
        watermark = self._rest.watermark(id_)
        self._watermark = self._watermark if watermark is None else watermark * 1000
        last = self._rest.last_checkpoint(id_)
        if last is not None and last != self._held["from"] and self._folder is not None:
            self._held["from"] = last
            self._note()
        self._recent = [at for at in self._recent if time.monotonic() - at < _RECENT_S]
        if len(self._recent) > (self._doc.restarts or _RESTARTS):
            # It says RUNNING all the while, makes checkpoints even, and gets nowhere.
            self._rest.cancel(id_)
            return "FAILED"
        return state

    def _stop(self) -> None:
        self._tell("draining")
        if self._job.live is None:
            self._rest.cancel(self._held["id"])
            # Half of the files are there: nobody may take it for done.
            raise KeyboardInterrupt
        self._held["from"] = self._savepoint(self._held["id"])
        self._note()

    def _savepoint(self, id_: str) -> str:
        """Patiently: a job that is just restarting cannot make one."""
        until = time.monotonic() + _TO_SAVE_S
        while True:
            try:
                return self._rest.stop_with_savepoint(id_)
            except StorageError:
                if time.monotonic() > until or self._rest.state(id_) in ENDED:
                    raise
                time.sleep(_LOOK_S)

    def _failed(self, state: str) -> EventveilError:
        cause = self._rest.failure(self._held["id"])
        if self._restarts:
            state = f"{state}, after {self._restarts} restart{'s' * (self._restarts > 1)}"
        remedy = "mend it and run again: the job goes on from its last checkpoint" if self._job.live else "mend it and run again"
        return StorageError.of("EV419", f"the job is {state}{f': {cause}' if cause else ''}", remedy, file=self._doc.master)

    # -- what it knows ----------------------------------------------------------------------------------------------

    def _note(self) -> None:
        if self._folder is not None:
            self._number += 1
            self._folder.commit({"slice": self._number, "carry": {}, "flink": self._held})

    def _count(self, counted: Mapping[str, int]) -> None:
        # Flink leaves some letters of a name out while a job runs.
        names = {re.sub("[ .:,]", "_", variant.name): variant.name for variant in self._job.variants}
        counted = {
            f"{names.get(policy, policy)}|{rest}": number for name, number in counted.items() for policy, _, rest in [name.partition("|")]
        }
        before, self._counted = self._counted, Counter(counted)
        if self._gate is not None:
            # A job that has restarted begins to count anew.
            grown = {what: max(0, number - before[what]) for what, number in counted.items()}
            for variant in self._job.variants:
                start = f"{variant.name}|refused|"
                refused = {what.removeprefix(start): number for what, number in grown.items() if what.startswith(start)}
                self._gate.add(time.monotonic(), variant.name, grown.get(f"{variant.name}|in", 0), refused)

    def _tell(self, state: State, problem: Problem | None = None) -> None:
        live: Live | None = self._job.live
        if live is None:
            return
        self._reporter.update(
            Pulse(
                job=self._job.name,
                state=state,
                policies=tuple(counts_of(variant.name, self._counted) for variant in self._job.variants),
                slice=self._number,
                uptime_s=time.monotonic() - self._began,
                read=max((self._counted.get(f"{variant.name}|in", 0) for variant in self._job.variants), default=0),
                now=time.time_ns() // 1000,
                watermark=self._watermark,
                every_s=_LOOK_S,
                reason="" if problem is None else problem.code,
                problem=problem,
            )
        )
