"""Calls of Google Cloud Pub/Sub: how a channel is made, and what its errors mean.

No text of the service is ever shown: it may quote what it was given. What is sent and received are plain protocol buffers: the client
library's own objects around each message cost more than all that is done with it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from eventveil.pipeline.sources.stream import Unreachable
from eventveil.schemas.errors import EventveilError, StorageError
from eventveil.schemas.references import fill_references
from eventveil.schemas.streams import Settings

__all__ = ["Connection", "Project", "connect", "disconnect", "message_types"]

_SETTINGS = {"api_endpoint", "credentials_file", "quota_project_id"}
_ENDPOINT = "pubsub.googleapis.com"
_CALL_S = 20.0
_PATIENCE_S = 10.0
# A message may have 10 MB, and an answer holds many.
_ANY_SIZE = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
# Said of a name, a right or a request: asking again does not help. The rest may be over by itself.
_FOR_GOOD = {
    "NOT_FOUND": "does not exist",
    "PERMISSION_DENIED": "may not be used by us",
    "UNAUTHENTICATED": "is refused to our credentials",
    "INVALID_ARGUMENT": "does not take the request",
    "FAILED_PRECONDITION": "is not in a state to be used so",
    "OUT_OF_RANGE": "does not take the request",
    "UNIMPLEMENTED": "does not know the request",
}


@dataclass(frozen=True)
class Project:
    """A project of Google Cloud, and how to speak with its Pub/Sub. Pickled to workers, so that no secret stands in it.

    The variable PUBSUB_EMULATOR_HOST, as ``host:port``, leads to an emulator, as it does with Google's own clients.

    Attributes:
        name: the project's id.
        settings: api_endpoint, credentials_file, quota_project_id. A secret is a reference, filled where the channel is made.
    """

    name: str
    settings: Settings = ()

    def subscription(self, name: str) -> str:
        """The full name, as the service knows it."""
        return f"projects/{self.name}/subscriptions/{name}"

    def topic(self, name: str) -> str:
        return f"projects/{self.name}/topics/{name}"


@lru_cache
def message_types() -> dict[str, Any]:
    """The classes of plain protocol buffers, by name."""
    from google.protobuf.empty_pb2 import Empty  # type: ignore[import-untyped]
    from google.pubsub_v1 import types

    names = (
        *("Subscription", "GetSubscriptionRequest", "PullRequest", "PullResponse", "AcknowledgeRequest", "ModifyAckDeadlineRequest"),
        *("SeekRequest", "SeekResponse", "Topic", "GetTopicRequest", "PubsubMessage", "PublishRequest", "PublishResponse"),
    )
    kinds = ((name, getattr(types, name)) for name in names)
    return {"Empty": Empty, **{name: type(kind.pb(kind())) for name, kind in kinds}}


_CALLS = {
    "GetSubscription": ("Subscriber", "GetSubscriptionRequest", "Subscription", "subscription"),
    "Pull": ("Subscriber", "PullRequest", "PullResponse", "subscription"),
    "Acknowledge": ("Subscriber", "AcknowledgeRequest", "Empty", "subscription"),
    "ModifyAckDeadline": ("Subscriber", "ModifyAckDeadlineRequest", "Empty", "subscription"),
    "Seek": ("Subscriber", "SeekRequest", "SeekResponse", "subscription"),
    "GetTopic": ("Publisher", "GetTopicRequest", "Topic", "topic"),
    "Publish": ("Publisher", "PublishRequest", "PublishResponse", "topic"),
}


class Connection:
    """A channel to Pub/Sub, for any number of threads. Refuses to be pickled, as it holds credentials.

    Args:
        code: of its errors: EV420 of who reads, EV421 of who writes.

    Raises:
        StorageError: the client is not installed, or finds no credentials, or does not take its settings.
        PolicyError: EV103 EV115 EV117, a reference in the settings cannot be filled.
    """

    def __init__(self, project: Project, code: str) -> None:
        self.project = project
        self._code = code
        place = f"pubsub://{project.name}"
        try:
            import grpc  # type: ignore[import-untyped]

            types = message_types()
        except ImportError:
            remedy = "pip install 'eventveil[gcp]'"
            raise StorageError.of(code, "the client for Pub/Sub is not installed", remedy) from None
        self._error: type[Exception] = grpc.RpcError
        if unknown := sorted({name for name, _ in project.settings} - _SETTINGS):
            fact = f"the client does not take the setting {', '.join(unknown)}"
            raise StorageError.of(code, fact, f"known: {', '.join(sorted(_SETTINGS))}", file=place)
        filled = {name: fill_references(value) for name, value in project.settings}
        self._channel = self._opened(grpc, filled, place)
        self._calls: dict[str, tuple[Callable[..., Any], Any, str]] = {}
        for name, (service, request, answer, resource) in _CALLS.items():
            call = self._channel.unary_unary(
                f"/google.pubsub.v1.{service}/{name}",
                request_serializer=types[request].SerializeToString,
                response_deserializer=types[answer].FromString,
            )
            self._calls[name] = call, types[request], resource

    def __reduce__(self) -> Any:
        raise TypeError("a connection is never pickled: make it where it is used")

    def _opened(self, grpc: Any, filled: dict[str, Any], place: str) -> Any:
        emulator = os.environ.get("PUBSUB_EMULATOR_HOST")
        if emulator:
            return grpc.insecure_channel(emulator, options=_ANY_SIZE)
        from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

        endpoint = filled.pop("api_endpoint", _ENDPOINT)
        try:
            return SubscriberGrpcTransport.create_channel(endpoint, options=_ANY_SIZE, **filled)
        except Exception:  # noqa: BLE001 - the library's own words may quote a setting's value
            remedy = "set GOOGLE_APPLICATION_CREDENTIALS, or the client's credentials_file, to a file of credentials"
            raise StorageError.of(
                self._code, "the client finds no credentials, or does not take its settings", remedy, file=place
            ) from None

    def future(self, name: str, /, seconds: float = _CALL_S, **given: Any) -> Any:
        """Begin a call; what it comes to is told by `result`."""
        call, request, resource = self._calls[name]
        # By it the service knows, without looking into the request, where to send it.
        routing = (("x-goog-request-params", f"{resource}={given[resource]}"),)
        try:
            return call.future(request(**given), timeout=seconds, metadata=routing)  # type: ignore[attr-defined]
        except ValueError:
            # Closed under our hands, because the job ends.
            raise self.explained("CANCELLED", given[resource]) from None

    def result(self, future: Any, place: str) -> Any:
        """The answer of a call. Raises Unreachable, StorageError."""
        try:
            return future.result()
        except self._error as error:
            name = _name_of(error)
        # Behind the handler, so that the library's text does not hang on ours as its context.
        raise self.explained(name, place)

    def ask(self, name: str, /, seconds: float = _CALL_S, **given: Any) -> Any:
        """Call, and wait for the answer. Raises Unreachable, StorageError."""
        return self.result(self.future(name, seconds, **given), given[self._calls[name][2]])

    def explained(self, name: str, place: str) -> EventveilError:
        """The error for what the service calls `name`, as ``PERMISSION_DENIED``."""
        if name in _FOR_GOOD:
            remedy = "check its name, the rights of our credentials, and the client's settings"
            return StorageError.of(self._code, f"{_FOR_GOOD[name]} ({name})", remedy, file=place)
        return Unreachable.of(
            self._code, f"Pub/Sub cannot be reached just now ({name})", "check the network, and whether the service runs", file=place
        )

    def acknowledge(self, subscription: str, ids: Iterable[str], patience_s: float = _PATIENCE_S) -> int:
        """Say that messages are done; returns how many of them the service has not heard of, and may send again.

        Raises StorageError.
        """
        return self._tell("Acknowledge", subscription, ids, patience_s)

    def extend(self, subscription: str, ids: Iterable[str], seconds: int) -> int:
        """Ask for so much more time before messages are sent again, or, with 0, for none; returns and raises as `acknowledge`."""
        return self._tell("ModifyAckDeadline", subscription, ids, 0, ack_deadline_seconds=seconds)

    def _tell(self, name: str, subscription: str, ids: Iterable[str], patience_s: float, **more: Any) -> int:
        left = list(_portions(ids))
        until = time.monotonic() + patience_s
        while left:
            begun = [(portion, self.future(name, subscription=subscription, ack_ids=portion, **more)) for portion in left[:_AT_ONCE]]
            failed = []
            for portion, future in begun:
                try:
                    self.result(future, subscription)
                except Unreachable:
                    failed.append(portion)
            left = left[_AT_ONCE:] + failed
            if failed:
                if time.monotonic() > until:
                    break
                time.sleep(0.2)
        return sum(map(len, left))

    def close(self) -> None:
        self._channel.close()


_AT_ONCE = 4
# A request may have 512 KB.
_MOST_IDS = 2000
_MOST_ID_BYTES = 400_000


def _portions(ids: Iterable[str]) -> Iterator[Sequence[str]]:
    portion: list[str] = []
    size = 0
    for one in ids:
        if portion and (len(portion) >= _MOST_IDS or size + len(one) > _MOST_ID_BYTES):
            yield portion
            portion, size = [], 0
        portion.append(one)
        size += len(one) + 4
    if portion:
        yield portion


def _name_of(error: Any) -> str:
    try:
        return str(error.code().name)
    except AttributeError:
        return "UNKNOWN"


_open: dict[tuple[int, Project, str, str], Connection] = {}
_lock = threading.Lock()


def connect(project: Project, code: str) -> Connection:
    """The connection of this process to a project: made once, and shared by all threads. Raises as `Connection`."""
    key = os.getpid(), project, code, os.environ.get("PUBSUB_EMULATOR_HOST", "")
    with _lock:
        found = _open.get(key)
        if found is None:
            found = _open[key] = Connection(project, code)
    return found


def disconnect(project: Project, code: str) -> None:
    """Close the connections of this process to a project; who needs one later is given a new one."""
    with _lock:
        found = [_open.pop(key) for key in list(_open) if key[:3] == (os.getpid(), project, code)]
    for connection in found:
        connection.close()
