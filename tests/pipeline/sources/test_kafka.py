"""What the Kafka source decides without a broker; against a real one see tests/live/test_kafka_source.py."""

from __future__ import annotations

import pickle
from typing import Any

import pyarrow as pa
import pytest

from eventveil.pipeline.sources import kafka as source
from eventveil.pipeline.sources._kafka_client import Connection, explain
from eventveil.pipeline.sources._kafka_columns import _appended, columns_of
from eventveil.pipeline.sources._kafka_reader import gone, lane_named, name_of
from eventveil.pipeline.sources.kafka import Cluster, KafkaStream, TopicRange
from eventveil.pipeline.sources.stream import Unreachable
from eventveil.schemas.errors import EventveilError, PolicyError, StorageError


@pytest.fixture
def stream() -> Any:
    made = KafkaStream(Cluster("127.0.0.1:1"), ("b", "a"), "group", groups=2)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def unlearned() -> None:
    source._sizes.clear()


def state(**positions: int) -> dict[str, Any]:
    return {"positions": {name.replace("_", "/"): at for name, at in positions.items()}, "ids": {}}


class TestRanges:
    def test_hold_what_is_new_in_groups(self, stream: KafkaStream) -> None:
        before, after = state(a_0=5, a_1=0, b_0=2), state(a_0=7, a_1=3, a_2=4, b_0=2)

        first, second = stream.ranges(before, after)

        assert (0, (("a", 0, 5, 7), ("a", 2, 0, 4))) == (first.group, first.pieces)
        assert (1, (("a", 1, 0, 3),)) == (second.group, second.pieces)

    def test_survive_pickling_without_a_secret(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CANARY", "s3cret-canary")
        cluster = Cluster("127.0.0.1:1", (("sasl.password", "${CANARY}"),))
        piece = TopicRange(cluster.with_group("g"), 0, (("a", 0, 0, 1),))

        pickled = pickle.dumps(piece)

        assert piece == pickle.loads(pickled)
        assert b"s3cret-canary" not in pickled
        assert "s3cret-canary" == cluster.filled()["sasl.password"]


class TestStates:
    def test_are_of_the_same_stream_wherever_its_brokers_are(self, stream: KafkaStream) -> None:
        moved = KafkaStream(Cluster("other:9092"), ("a", "b"), "another")

        assert stream.identity() == moved.identity()
        assert stream.identity() != KafkaStream(Cluster("other:9092"), ("a",), "group").identity()

    def test_have_lanes_that_are_origins(self, stream: KafkaStream) -> None:
        assert ("a/0", "b/3") == stream.lanes(state(a_0=1, b_3=2))
        assert "a/0" == stream.lane_of("a/0")
        assert ("a.b-c", 12) == lane_named(name_of(("a.b-c", 12)))

    def test_are_caught_up_with_what_was_seen_only(self, stream: KafkaStream) -> None:
        assert frozenset() == stream.is_caught_up(state(a_0=0))
        stream._seen = {"a/0": 5, "a/1": 5}

        assert frozenset({"a/0"}) == stream.is_caught_up(state(a_0=5, a_1=4))
        assert 1 == stream.lag(state(a_0=5, a_1=4))


class TestTheShareOfALane:
    def test_is_small_until_sizes_are_known(self, stream: KafkaStream) -> None:
        taken = stream._share({"a/0": 10**9, "b/0": 10**9}, 1 << 40)

        assert {"a/0": 2048, "b/0": 2048} == taken

    def test_gives_short_lanes_all_and_the_others_the_same_bytes(self, stream: KafkaStream) -> None:
        source._sizes.update({("127.0.0.1:1", "a"): 100.0, ("127.0.0.1:1", "b"): 1000.0})

        taken = stream._share({"a/0": 10, "a/1": 10**6, "b/0": 10**6}, 1_001_000)

        assert {"a/0": 10, "a/1": 5000, "b/0": 500} == taken

    def test_is_never_nothing(self, stream: KafkaStream) -> None:
        assert {"a/0": 1, "b/0": 1} == stream._share({"a/0": 10, "b/0": 10}, 1)

    def test_is_learned_from_what_was_read(self) -> None:
        piece = TopicRange(Cluster("x"), 0, (("a", 0, 0, 10), ("a", 1, 0, 10)))

        source._learn(piece, {"a": 20_000})
        source._learn(piece, {"a": 60_000})
        source._learn(TopicRange(Cluster("x"), 0, (("b", 0, 0, 10),)), {})

        assert {("x", "a"): 2000.0, ("x", "b"): 32.0} == source._sizes


class TestErrors:
    @pytest.mark.parametrize("name", ["_TRANSPORT", "_TIMED_OUT", "_ALL_BROKERS_DOWN", "LEADER_NOT_AVAILABLE", "_UNKNOWN_PARTITION"])
    def test_what_may_be_over_soon_is_told_from_what_will_not(self, name: str) -> None:
        assert isinstance(explain(name, "place"), Unreachable)
        assert not isinstance(explain("TOPIC_AUTHORIZATION_FAILED", "place"), Unreachable)

    def test_survive_pickling(self) -> None:
        error = pickle.loads(pickle.dumps(explain("_TRANSPORT", "orders/1")))

        assert isinstance(error, Unreachable)
        assert "orders/1: EV413" in str(error)

    def test_name_the_place_of_a_gap(self) -> None:
        told = str(gone(("orders", 1), 17, 40))

        assert told.startswith("orders/1: EV412 offset 17 is not there any more; it begins at 40")

    def test_what_was_said_before_the_last_success_is_forgotten(self) -> None:
        connection = Connection(Cluster("127.0.0.1:1"))
        connection.note("_AUTHENTICATION")
        connection.note("_TRANSPORT")

        assert not isinstance(connection.failure("place"), Unreachable)
        connection.succeeded()
        assert isinstance(connection.failure("place"), Unreachable)

    @pytest.mark.parametrize(
        "settings",
        [
            pytest.param({"security.protocoll": "s3cret-canary"}, id="unknown"),
            pytest.param({"security.protocol": "s3cret-canary"}, id="value"),
            pytest.param({"ssl.ca.location": "/s3cret-canary", "security.protocol": "SSL"}, id="file"),
            pytest.param({"socket.timeout.ms": "s3cret-canary"}, id="number"),
        ],
    )
    def test_settings_that_do_not_fit_are_named_without_their_values(
        self, settings: dict[str, str], capfd: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(StorageError) as error:
            Connection(Cluster("127.0.0.1:1", tuple(settings.items()))).consumer()

        assert error.value.problems[0].code == "EV413"
        assert next(iter(settings)) in str(error.value)
        assert "s3cret-canary" not in "".join((str(error.value), repr(error.value.__context__), *capfd.readouterr()))

    def test_a_secret_that_is_not_set_is_named(self) -> None:
        with pytest.raises(PolicyError) as error:
            Connection(Cluster("127.0.0.1:1", (("sasl.password", "${NOT_SET}"),))).consumer()

        assert "EV117" == error.value.problems[0].code


class TestHeaders:
    def test_one_that_is_not_text_makes_them_all_unknown(self) -> None:
        class Message:
            def __init__(self, headers: Any) -> None:
                self._headers = headers

            def headers(self) -> Any:
                if isinstance(self._headers, Exception):
                    raise self._headers
                return self._headers

        told: list[Any] = [SystemError("returned a result with an exception set"), None, [("a", b"1"), ("b", None)]]

        batch = columns_of([Message(one) for one in told], ["headers"])  # type: ignore[misc]

        assert [None, [], [{"name": "a", "value": b"1"}, {"name": "b", "value": None}]] == batch["headers"].to_pylist()


class TestTimes:
    @pytest.mark.parametrize(
        ("told", "appended"),
        [
            ([(1, 7), (1, 8)], [None, None]),
            ([(2, 7), (1, 8), (0, 0)], [7_000, None, None]),
            ([], []),
        ],
    )
    def test_only_the_brokers_own_say_when_an_event_was_taken(self, told: list[tuple[int, int]], appended: list[int | None]) -> None:
        found = _appended(told)

        assert pa.timestamp("us", "UTC") == found.type
        assert appended == found.cast(pa.int64()).to_pylist()


def test_errors_of_ours_are_of_one_tree() -> None:
    assert issubclass(Unreachable, EventveilError)
