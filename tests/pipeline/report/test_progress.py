"""Progress: on a terminal that can show it, and nowhere else."""

from __future__ import annotations

import io
import threading
import time
from contextlib import redirect_stderr

import pytest

from eventveil.pipeline.report.meter import METER, Meter
from eventveil.pipeline.report.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """To be entered in the test itself: pytest has a standard error of its own for every phase."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    return Terminal()


class TestProgress:
    def test_shows_counts_and_clears_its_line(self, terminal: Terminal) -> None:
        with redirect_stderr(terminal), Progress(8, shown=True):
            METER.add(read=12_345, refused=6, ranges=2)
            time.sleep(0.7)

        shown = terminal.getvalue().split("\r\x1b[K")
        assert shown[1].endswith(" refused 0  ranges 0/8") or shown[1].endswith(" refused 6  ranges 2/8")
        assert shown[2].startswith("12,345 events  ") and shown[2].endswith("/s  refused 6  ranges 2/8")
        assert "" == shown[-1]

    def test_never_wraps(self, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "20")
        with redirect_stderr(terminal), Progress(8, shown=True):
            pass

        assert 19 == max(map(len, terminal.getvalue().split("\r\x1b[K")))

    @pytest.mark.parametrize("why", ["not_wanted", "dumb", "no_terminal"])
    def test_is_silent_where_it_would_disturb(self, terminal: Terminal, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
        if why == "dumb":
            monkeypatch.setenv("TERM", "dumb")
        stream = io.StringIO() if why == "no_terminal" else terminal
        with redirect_stderr(stream), Progress(8, shown=why != "not_wanted"):
            METER.add(read=1)

        assert "" == stream.getvalue()

    def test_ends_when_the_job_fails(self, terminal: Terminal) -> None:
        before = set(threading.enumerate())
        with redirect_stderr(terminal), pytest.raises(ZeroDivisionError), Progress(8, shown=True):
            1 / 0  # noqa: B018

        assert not set(threading.enumerate()) - before
        assert terminal.getvalue().endswith("\r\x1b[K")

    def test_a_second_run_begins_at_nothing(self) -> None:
        METER.add(read=5, refused=5, ranges=5)
        with Progress(1, shown=False):
            assert (0, 0, 0) == (METER.read, METER.refused, METER.ranges)


def test_a_meter_loses_nothing_between_threads() -> None:
    meter = Meter()

    def count() -> None:
        for _ in range(10_000):
            meter.add(read=1, refused=2, ranges=3)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (40_000, 80_000, 120_000) == (meter.read, meter.refused, meter.ranges)
