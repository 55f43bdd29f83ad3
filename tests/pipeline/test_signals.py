"""Being asked to stop, wherever the main thread is and whichever thread the kernel chooses."""

from __future__ import annotations

import os
import signal
import threading
import time
from queue import Empty, SimpleQueue

import pytest

from eventveil.pipeline.signals import answered


class TestAnswered:
    def test_it_answers_while_the_main_thread_sleeps_and_another_has_the_signal(self) -> None:
        heard = SimpleQueue[float]()

        def ask() -> None:
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

        with answered(lambda: heard.put(time.monotonic())):
            asking = threading.Timer(0.2, ask)
            asking.start()
            time.sleep(3)
            ended = time.monotonic()
        assert heard.get_nowait() < ended - 1
        asking.join()

    def test_two_that_come_together_are_two(self) -> None:
        heard = SimpleQueue[None]()
        with answered(lambda: heard.put(None)):
            for _ in range(200):
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGINT)
                for _ in range(2):
                    heard.get(timeout=10)
        assert heard.empty()

    def test_what_was_there_before_is_there_again(self) -> None:
        heard = SimpleQueue[int]()
        before = signal.signal(signal.SIGTERM, lambda number, _: heard.put(number))
        try:
            with answered(lambda: None):
                pass
            os.kill(os.getpid(), signal.SIGTERM)
            assert heard.get(timeout=10) == signal.SIGTERM
            assert "signals" not in {thread.name for thread in threading.enumerate()}
            assert signal.set_wakeup_fd(-1) == -1
        finally:
            signal.signal(signal.SIGTERM, before)

    def test_what_is_ignored_stays_ignored(self) -> None:
        heard = SimpleQueue[None]()
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with answered(lambda: heard.put(None)):
                os.kill(os.getpid(), signal.SIGINT)
                with pytest.raises(Empty):
                    heard.get(timeout=0.2)
        finally:
            signal.signal(signal.SIGINT, before)

    def test_another_thread_may_use_it_and_hears_nothing(self) -> None:
        before = signal.getsignal(signal.SIGTERM)

        def use() -> None:
            with answered(lambda: None):
                found.put(signal.getsignal(signal.SIGTERM))

        found = SimpleQueue[object]()
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        assert found.get_nowait() == before
