"""A consumer group is told how far a job has come, for whoever watches it from outside. Nothing depends on it, and nothing waits for it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping

import confluent_kafka as ck

from eventveil.pipeline.sources._kafka_client import Cluster, Connection
from eventveil.pipeline.sources._kafka_reader import Lane
from eventveil.schemas.errors import EventveilError

__all__ = ["GroupTeller", "tell_group"]

_LOG = logging.getLogger(__name__)


class GroupTeller:
    """A consumer that reads nothing.

    Not the client for administrators: of a request for a group it ends the whole process when the broker is away.
    """

    def __init__(self, connection: Connection) -> None:
        self._telling = False
        self.consumer = connection.consumer(on_commit=self._was_told)

    def tell(self, positions: Mapping[Lane, int]) -> None:
        """Tell them, unless the last ones are still on their way: the next time says more."""
        self.consumer.poll(0)
        if self._telling or not positions:
            return
        try:
            self.consumer.commit(offsets=[ck.TopicPartition(*lane, at) for lane, at in positions.items()])
            self._telling = True
        except ck.KafkaException as error:
            _LOG.debug("the consumer group was not told (%s)", error.args[0].name())

    def close(self) -> None:
        """Give the last ones a second to arrive."""
        deadline = time.monotonic() + 1
        while self._telling and time.monotonic() < deadline:
            self.consumer.poll(0.05)
        self.consumer.close()

    def _was_told(self, error: ck.KafkaError | None, offsets: list[ck.TopicPartition]) -> None:
        self._telling = False


_tellers: dict[Cluster, GroupTeller] = {}
_lock = threading.Lock()


def tell_group(cluster: Cluster, positions: Mapping[Lane, int]) -> None:
    """Tell the group of `cluster` (see `Cluster.with_group`) through a client that this process keeps. Never raises."""
    try:
        with _lock:
            if cluster not in _tellers:
                _tellers[cluster] = GroupTeller(Connection(cluster))
            _tellers[cluster].tell(positions)
    except EventveilError as error:
        _LOG.debug("the consumer group was not told (%s)", error)
