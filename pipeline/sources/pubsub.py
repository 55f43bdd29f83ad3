"""Google Cloud Pub/Sub as a source of slices: pulled, spooled on this machine's disk, acknowledged, and read from the spool.

The service has no positions to come back to: what was acknowledged is gone. So every slice is written to a spool file before its
messages are acknowledged; killed at any moment, they are in the spool, or come again. A message that comes again, because the service
did not hear that it is done, has the same position and the same value.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

import pyarrow as pa

from eventveil.pipeline.checkpoint._disk import damaged
from eventveil.pipeline.checkpoint.seal import StateSeal
from eventveil.pipeline.sources._parts import PART_ROWS
from eventveil.pipeline.sources._pubsub_client import Project, connect, disconnect
from eventveil.pipeline.sources._pubsub_leases import Lease, Leases
from eventveil.pipeline.sources._pubsub_pulls import MOST_AT_ONCE, Puller, acks_of
from eventveil.pipeline.sources._spool import SpoolFolder, SpoolRange, read_spool
from eventveil.pipeline.sources.stream import EngineSource, State, Unreachable
from eventveil.schemas.errors import StorageError
from eventveil.schemas.streams import PubsubAddress, Settings
from eventveil.transforms.keys.keyring import load_keys

__all__ = ["Project", "PubsubStream", "SpoolRange", "read_spool", "topic_of"]

_CODE = "EV420"
_GATHER_S = 1.0
_GATHER_MUCH_S = 4.0
"""How long a slice is pulled where little comes, and where much waits: what a pass costs beside its events is shared by more of them."""
_MUCH = 8 * MOST_AT_ONCE // 10
_WAIT_S = 0.5


def topic_of(address: PubsubAddress, settings: Settings) -> str | None:
    """The full name of the topic that a subscription is of; None where the service does not tell us.

    Raises:
        Unreachable: EV420.
    """
    project = Project(address.project, settings)
    try:
        return str(connect(project, _CODE).ask("GetSubscription", subscription=project.subscription(address.name)).topic)
    except Unreachable:
        raise
    except StorageError:
        # Who may pull may not be allowed to look.
        return None


class PubsubStream:
    """A subscription as a `Stream`, of one lane: the service keeps no order.

    Nothing else should pull from the subscription: messages go to one or the other. A job that has caught up is one to which two pulls
    in a row, the second of them waiting, gave nothing.

    Args:
        address: of the subscription. settings: of the client, as for `Project`.
        folder: where messages are spooled: ``<checkpoint>/spool``; None where an engine reads, which needs none.
        keys: the keyring that they are sealed under, as `load_keys` takes it.
    """

    def __init__(self, address: PubsubAddress, settings: Settings, folder: str | None, keys: str) -> None:
        self._name = address.name
        self._project = Project(address.project, settings)
        self._subscription = self._project.subscription(address.name)
        self._keys = keys
        self._folder = None if folder is None else SpoolFolder(folder, self._subscription, StateSeal.of(load_keys(keys)))
        # Of the files that this process has pulled, or has found: their rows.
        self._rows: dict[int, int] = {}
        self._is_drained = True

    def identity(self) -> dict[str, Any]:
        return {"kind": "pubsub", "subscription": self._subscription}

    def begin(self, from_now: bool) -> State:
        """The state before the first slice. `from_now`: the service is told that all that was published until now is done.

        Raises:
            Unreachable: EV420, for now. StorageError: EV420 for good, EV411 a spool stands there whose checkpoint is gone.
        """
        if self._folder is not None and self._folder.numbers():
            fact, remedy = "holds messages, and the checkpoint before them is gone", "restore the whole folder, or choose an empty one"
            raise damaged(self._folder.path, fact, remedy)
        connection = connect(self._project, _CODE)
        try:
            connection.ask("GetSubscription", subscription=self._subscription)
        except Unreachable:
            raise
        except StorageError as error:
            # Who may pull need not be allowed to look at the subscription.
            if "PERMISSION_DENIED" not in error.problems[0].fact:
                raise
        if from_now:
            connection.ask("Seek", subscription=self._subscription, time={"seconds": int(time.time())})
        return {"spool": secrets.token_hex(8), "next": 0}

    def next(self, state: State, most_bytes: int) -> State | None:
        """Pull a slice into the spool; or take the one that a killed run has left there.

        Raises:
            Unreachable: EV420, for now. StorageError: EV420 for good, EV404 the spool cannot be written, EV411 it was changed.
        """
        series, number = state["spool"], state["next"]
        if not self._spool.holds(number):
            if not self._fill(series, number, most_bytes):
                return None
        elif number not in self._rows:
            acks = self._spool.acks(series, number)
            self._rows[number], self._is_drained = len(acks), False
            # Killed before they were acknowledged, they come again once more, unless it is not too late.
            self._leases().done([Lease(acks)])
        return {"spool": series, "next": number + 1}

    def ranges(self, before: State, after: State) -> tuple[SpoolRange, ...]:
        """Raises StorageError EV411 where a file is gone."""
        pieces = []
        for number in range(before["next"], after["next"]):
            path = self._spool.path_of(number)
            if not self._spool.holds(number):
                raise damaged(path, "is missing, and its messages are acknowledged")
            pieces.append(SpoolRange(path, self._subscription, after["spool"], number, self._keys))
        return tuple(pieces)

    def lanes(self, state: State) -> tuple[str, ...]:
        return (self._subscription,)

    def lane_of(self, origin: str) -> str:
        return self._subscription

    def is_caught_up(self, state: State) -> frozenset[str]:
        return frozenset() if self.lag(state) else frozenset({self._subscription})

    def lag(self, state: State) -> int:
        """At least so many: what is spooled, and one more where the last pull was not the end. What waits at the service is not told."""
        return sum(rows for number, rows in self._rows.items() if number >= state["next"]) + (not self._is_drained)

    def committed(self, state: State) -> None:
        self._spool.remove_before(state["next"])
        self._rows = {number: rows for number, rows in self._rows.items() if number >= state["next"]}

    def close(self) -> None:
        disconnect(self._project, _CODE)

    def on_engine(self, engine: str, wants: frozenset[str], batch_bytes: int, idle_after_us: int) -> EngineSource:
        if engine == "dataflow":
            from eventveil.pipeline.sources._pubsub_native import NativeSubscription

            return NativeSubscription(self._subscription, wants, batch_bytes)
        from eventveil.pipeline.sources.pubsub_stream import Subscription

        return Subscription(self._project, self._name, idle_after_us / 1e6, wants, batch_bytes)

    @property
    def _spool(self) -> SpoolFolder:
        assert self._folder is not None, "slices have a checkpoint, and a spool in it"
        return self._folder

    def _leases(self) -> Leases:
        return Leases(connect(self._project, _CODE), self._subscription)

    def _fill(self, series: str, number: int, most_bytes: int) -> bool:
        """Pull one file's messages: into the spool first, acknowledged then. False: there were none."""
        puller, leases = Puller(connect(self._project, _CODE), self._subscription), self._leases()
        held: list[Lease] = []
        try:
            batches = self._gather(puller, leases, held, most_bytes)
            if batches:
                self._spool.write(series, number, batches)
        except BaseException:
            leases.let_go(held)
            raise
        if batches:
            self._rows[number] = sum(batch.num_rows for batch in batches)
            leases.done(held)
        return bool(batches)

    def _gather(self, puller: Puller, leases: Leases, held: list[Lease], most_bytes: int) -> list[pa.RecordBatch]:
        batches: list[pa.RecordBatch] = []
        rows = size = 0
        began = time.monotonic()
        self._is_drained = False
        # A file is one part: beyond its bound it would be cut in two.
        while size < most_bytes and rows + MOST_AT_ONCE <= PART_ROWS:
            try:
                found = puller.pull(most_bytes - size) or ([] if batches else puller.wait(_WAIT_S))
            except Unreachable:
                if not batches:
                    raise
                # What came is good; the next look says that nobody answers.
                return batches
            if not found:
                self._is_drained = True
                break
            held += [leases.hold(acks_of(batch)) for batch in found]
            batches += found
            rows, size = rows + sum(batch.num_rows for batch in found), size + sum(batch.nbytes for batch in found)
            waited = time.monotonic() - began
            if waited > _GATHER_MUCH_S or (waited > _GATHER_S and rows < _MUCH * waited):
                break
        return batches
