"""Measure Pub/Sub as a source: pulled, sealed, spooled, acknowledged and read again, beside a bare loop of parallel pulls.

    python bench/pubsub.py --messages 100000

Starts a Pub/Sub of its own, or takes the one that PUBSUB_EMULATOR_HOST names. The loop is what one would write with Google's client: four
threads pull and acknowledge, and nothing is kept; killed behind the acknowledgement, it has lost its messages. Both take turns over
topics of the same messages, from the same process, and the best of --rounds counts.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from google.cloud import pubsub_v1
from google.pubsub_v1 import types

from eventveil.pipeline.sources.pubsub import PubsubStream, read_spool
from eventveil.schemas.streams import PubsubAddress
from eventveil.transforms.keys.providers.keyring_file import new_keyring

LOCAL = Path(__file__).parents[1] / "deploy" / "local"
PROJECT = "eventveil-bench"
PULLS = 4
BODY = b'{"id":%d,"ts":1795320931292,"user":"user@example.com","amount":12.5,"country":"FR","zip":"75001"}'
SLICE_BYTES = 64 << 20


@contextmanager
def server(work: Path) -> Iterator[None]:
    """A Pub/Sub in memory within the block, named in the environment."""
    if os.environ.get("PUBSUB_EMULATOR_HOST"):
        yield
        return
    home = work / "pubsub"
    try:
        subprocess.run([LOCAL / "up", "--home", home, "--while", str(os.getpid()), "--without", "kafka", "--with", "pubsub"], check=True)
        os.environ["PUBSUB_EMULATOR_HOST"] = (home / "pubsub.address").read_text().strip()
        yield
    finally:
        subprocess.run([LOCAL / "down", "--home", home, "--purge"], check=False)


def filled(name: str, messages: int) -> str:
    """The name of a subscription with so many messages."""
    publisher, subscriber = pubsub_v1.PublisherClient(), pubsub_v1.SubscriberClient()
    topic = publisher.topic_path(PROJECT, name)
    publisher.create_topic(name=topic)
    subscriber.create_subscription(
        request={"name": subscriber.subscription_path(PROJECT, name), "topic": topic, "ack_deadline_seconds": 60}
    )
    for start in range(0, messages, 1000):
        batch = [types.PubsubMessage(data=BODY % number) for number in range(start, min(start + 1000, messages))]
        # The client's own method takes one message at a time.
        publisher.transport.publish(types.PublishRequest(topic=topic, messages=batch))
    return name


def bare(name: str, messages: int, _: Path) -> float:
    """Seconds that four threads take to pull and acknowledge all."""
    client = pubsub_v1.SubscriberClient()
    path = client.subscription_path(PROJECT, name)

    def pull() -> int:
        received = client.pull(subscription=path, max_messages=1000, timeout=20).received_messages
        values = [(one.message.message_id, one.message.data) for one in received]
        client.acknowledge(subscription=path, ack_ids=[one.ack_id for one in received])
        return len(values)

    began, got = time.monotonic(), 0
    with ThreadPoolExecutor(PULLS) as threads:
        while got < messages:
            got += sum(threads.map(lambda _: pull(), range(min(PULLS, -(-(messages - got) // 1000)))))
    took = time.monotonic() - began
    client.close()
    return took


def spooled(name: str, messages: int, work: Path) -> float:
    """Seconds that the source takes for all, up to raw batches."""
    home = work / name
    home.mkdir()
    new_keyring(home / "keyring.json")
    stream = PubsubStream(PubsubAddress(PROJECT, name), (), str(home / "spool"), str(home / "keyring.json"))
    began, got = time.monotonic(), 0
    state = stream.begin(False)
    while got < messages:
        after = stream.next(state, SLICE_BYTES)
        if after is None:
            continue
        got += sum(batch.num_rows for piece in stream.ranges(state, after) for batch in read_spool(piece))
        state = after
        stream.committed(state)
    took = time.monotonic() - began
    stream.close()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="eventveil-bench-"))
    best: dict[str, float] = {}
    try:
        with server(work):
            for number in range(given.rounds):
                for what, measure in (("bare loop of pulls", bare), ("source with spool", spooled)):
                    name = filled(f"bench-{os.getpid()}-{number}-{measure.__name__}", given.messages)
                    rate = given.messages / measure(name, given.messages, work)
                    best[what] = max(rate, best.get(what, 0.0))
                    print(f"  {what}: {rate:,.0f} messages/s", flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    loop, source = best.values()
    print(f"\nsource {source:,.0f} messages/s, bare loop {loop:,.0f}: {source / loop:.2f} times")


if __name__ == "__main__":
    main()
