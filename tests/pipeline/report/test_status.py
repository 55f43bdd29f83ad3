"""The status line, on a real terminal: what a person sees, and that nothing of it stays."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TextIO

import pytest

from eventveil.pipeline.report.pulse import PolicyCounts, Pulse
from eventveil.pipeline.report.status import StatusLine, status_line

HOUR = 3_600_000_000


class Terminal:
    """A pseudo-terminal: `stream` to write to, `text` what came out at the other side."""

    def __init__(self, columns: int) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.stream: TextIO = os.fdopen(theirs, "w", encoding="utf-8")
        self._read = b""
        self._marks = 0
        self._thread = threading.Thread(target=self._pump, daemon=True)
        self._thread.start()

    def _pump(self) -> None:
        try:
            while got := os.read(self._ours, 4096):
                self._read += got
        except OSError:
            pass

    @property
    def text(self) -> str:
        """All that was written so far: what comes before a mark of ours has come."""
        self._marks += 1
        os.write(self.stream.fileno(), b"\0")
        end = time.monotonic() + 20
        while self._read.count(b"\0") < self._marks:
            assert time.monotonic() < end, "the terminal does not answer"
            time.sleep(0.005)
        return self._read.replace(b"\0", b"").decode()

    def wait_for(self, text: str) -> None:
        end = time.monotonic() + 20
        while text not in self.text:
            assert time.monotonic() < end, "it was not shown in time"
            time.sleep(0.05)

    def screen(self) -> list[str]:
        """The lines as they stand: a carriage return goes back to the first column, and the rest of the line can be erased."""
        lines: list[str] = [""]
        for part in self.text.split("\n"):
            shown = ""
            for piece in part.split("\r"):
                shown = piece.removeprefix("\033[K") if piece.startswith("\033[K") else piece + shown[len(piece) :]
            lines[-1] = shown
            lines.append("")
        return lines[:-1]

    def close(self) -> None:
        self.stream.close()
        self._thread.join()  # a read that is still under way would take what comes for the next one
        os.close(self._ours)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Terminal]]:
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    opened: list[Terminal] = []

    def open_terminal(columns: int = 100) -> Terminal:
        opened.append(Terminal(columns))
        return opened[-1]

    yield open_terminal
    for one in opened:
        one.close()


def pulse(state: str = "running", **fields: object) -> Pulse:
    policies = (PolicyCounts("orders", refused={"EV502": 1_000, "EV503": 5}), PolicyCounts("returns", refused={"EV502": 2}))
    given = {"lag": 12_345, "open_windows": 3, "watermark": 10 * HOUR, "policies": policies, **fields}
    return Pulse("live", state, **given)  # type: ignore[arg-type]


class TestWhatItSays:
    def test_lag_rate_windows_refused_and_delay(self) -> None:
        found = status_line(pulse(), 5_119.7, 10 * HOUR + 4_200_000)

        assert "running  lag 12,345  5,120/s  windows 3  refused 1,007  behind 4.2 s" == found

    def test_what_is_waited_for(self) -> None:
        assert status_line(pulse("waiting", reason="EV413"), 0, 10 * HOUR).startswith("waiting EV413  lag 12,345  0/s  ")

    def test_what_is_not_known(self) -> None:
        assert "running  lag ?  0/s  windows 3  refused 1,007  behind ?" == status_line(pulse(lag=None, watermark=None), 0, HOUR)

    @pytest.mark.parametrize(
        ("seconds", "expected"),
        [
            (0, "0.0 s"),
            (9.96, "10.0 s"),
            (119, "119 s"),
            (150, "2.5 min"),
            (7_100, "118 min"),
            (7_300, "2.0 h"),
            (900_000, "10 d"),
            (-3, "-3.0 s"),
            (-0.01, "0.0 s"),
            (1e9, "11574 d"),
        ],
    )
    def test_delays_in_units_that_can_be_read(self, seconds: float, expected: str) -> None:
        assert status_line(pulse(), 0, 10 * HOUR + int(seconds * 1e6)).endswith(f"  behind {expected}")


class TestOnATerminal:
    def test_stands_while_it_is_entered_and_is_gone_afterwards(self, terminal: Callable[..., Terminal]) -> None:
        screen = terminal()
        with StatusLine(lambda: "running  lag 5", stream=screen.stream):
            screen.wait_for("lag 5")
            during = screen.screen()

        assert (["running  lag 5"], [""]) == (during, screen.screen())

    def test_is_written_twice_a_second_at_most_and_only_when_it_has_changed(self, terminal: Callable[..., Terminal]) -> None:
        screen, asked = terminal(), []

        def line() -> str:
            asked.append(1)
            return f"running  lag {min(len(asked), 2)}"

        began = time.monotonic()
        with StatusLine(line, stream=screen.stream):
            while len(asked) < 3:
                time.sleep(0.01)

        assert time.monotonic() - began >= 0.5 * len(asked)
        assert 2 == screen.text.count("running")

    def test_is_cut_to_the_width(self, terminal: Callable[..., Terminal]) -> None:
        screen = terminal(20)
        with StatusLine(lambda: "running  lag 12,345  5,120/s  windows 3", stream=screen.stream):
            screen.wait_for("lag 12,345")
            during = screen.screen()

        assert ["running  lag 12,345"] == during

    def test_a_terminal_without_a_width_gets_a_common_one(self, terminal: Callable[..., Terminal]) -> None:
        screen = terminal(0)
        with StatusLine(lambda: "x" * 300, stream=screen.stream):
            screen.wait_for("x" * 79)
            during = screen.screen()

        assert ["x" * 79] == during

    def test_what_is_said_stays_above_it(self, terminal: Callable[..., Terminal]) -> None:
        screen = terminal()
        with StatusLine(lambda: "running  lag 5", stream=screen.stream) as status:
            screen.wait_for("lag 5")
            status.say("12:00:00 warning refused")
            status.say("12:00:01 warning waiting")
            during = screen.screen()

        assert ["12:00:00 warning refused", "12:00:01 warning waiting", "running  lag 5"] == during
        assert ["12:00:00 warning refused", "12:00:01 warning waiting", ""] == screen.screen()

    def test_waiting_is_yellow_whatever_the_width(self, terminal: Callable[..., Terminal]) -> None:
        for columns, expected in ((40, "waiting EV413\033[0m  lag 5"), (9, "waiting \033[0m")):
            screen = terminal(columns)
            with StatusLine(lambda: "waiting EV413  lag 5", stream=screen.stream):
                screen.wait_for("EV413" if columns == 40 else "waiting")

            assert f"\033[33m{expected}" in screen.text

    def test_no_color_is_honoured(self, terminal: Callable[..., Terminal], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NO_COLOR", "1")
        screen = terminal()
        with StatusLine(lambda: "waiting EV413  lag 5", stream=screen.stream):
            screen.wait_for("EV413")

        assert "\033[33m" not in screen.text
        assert "waiting EV413" in screen.text

    def test_names_cannot_steer_the_terminal(self, terminal: Callable[..., Terminal]) -> None:
        screen = terminal()
        with StatusLine(lambda: "run\033[2Jning", stream=screen.stream) as status:
            status.say("or\033]0;ders")
            screen.wait_for("ning")

        assert "\033[2J" not in screen.text
        assert "\033]" not in screen.text

    def test_a_terminal_that_goes_away_stops_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TERM", "xterm")
        ours, theirs = pty.openpty()
        stream = os.fdopen(theirs, "w", encoding="utf-8")
        with StatusLine(lambda: f"running  {time.monotonic()}", stream=stream) as status:
            time.sleep(0.6)
            shown = status.is_shown
            os.close(ours)
            end = time.monotonic() + 20
            while status.is_shown and time.monotonic() < end:
                time.sleep(0.05)
            status.say("nobody reads this")

        assert (True, False) == (shown, status.is_shown)
        with suppress(OSError):
            stream.close()


class TestWhereItWouldDisturb:
    @pytest.mark.parametrize("why", ["not_wanted", "dumb", "no_terminal"])
    def test_it_is_silent_and_still_lets_others_speak(
        self, terminal: Callable[..., Terminal], monkeypatch: pytest.MonkeyPatch, why: str
    ) -> None:
        if why == "dumb":
            monkeypatch.setenv("TERM", "dumb")
        screen = terminal()
        pipe = io.StringIO()
        with StatusLine(lambda: "running", why != "not_wanted", pipe if why == "no_terminal" else screen.stream) as status:
            time.sleep(0.7)
            status.say("a warning")

        assert "a warning\n" == (pipe.getvalue() if why == "no_terminal" else screen.text.replace("\r\n", "\n"))

    def test_it_ends_with_a_job_that_fails(self, terminal: Callable[..., Terminal]) -> None:
        screen, before = terminal(), set(threading.enumerate())

        def fail() -> None:
            with StatusLine(lambda: "running", stream=screen.stream):
                screen.wait_for("running")
                1 / 0  # noqa: B018

        with pytest.raises(ZeroDivisionError):
            fail()

        assert (set(), [""]) == (set(threading.enumerate()) - before, screen.screen())
