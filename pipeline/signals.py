"""Being asked to stop: SIGTERM and SIGINT, answered wherever the main thread is."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["answered"]

_END = b"\0"  # no signal has this number


@contextmanager
def answered(answer: Callable[[], None]) -> Iterator[None]:
    """Call `answer` for each SIGTERM and SIGINT, in a thread of its own, until left. Does nothing outside of the main thread.

    Handlers in Python run in the main thread, once that is at Python code: of two signals that come together the kernel gives the second to
    another thread, and a main thread that sleeps or waits hears of it only when that is over. The interpreter's wakeup descriptor is
    written to by whichever thread has the signal, and one that reads from it answers.

    A signal that is ignored stays ignored, as `nohup` wants it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    numbers = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) is not signal.SIG_IGN]
    thread = threading.Thread(target=_answer, args=(reader, numbers, answer), name="signals", daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    # Only signals that have a handler are told.
    handlers = [(number, signal.signal(number, _nothing)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in handlers:
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        # Not by closing it: a child that was forked may hold it open.
        os.write(writer, _END)
        thread.join()
        os.close(writer)
        os.close(reader)


def _answer(reader: int, numbers: list[signal.Signals], answer: Callable[[], None]) -> None:
    while (told := os.read(reader, 1)) != _END:
        if told[0] in numbers:
            answer()


def _nothing(*_: object) -> None:
    """What is to be done is done by the thread."""
