"""The text that Prometheus reads: to the letter of its format, whatever names hold."""

from __future__ import annotations

import os
import re
import time
from contextlib import ExitStack
from dataclasses import replace

import pytest

from eventveil.pipeline.report.health import Verdict
from eventveil.pipeline.report.metrics import METRICS, exposition
from eventveil.pipeline.report.process import process_figures
from eventveil.pipeline.report.pulse import PolicyCounts, Pulse

FINE = Verdict(True, True, "running", 0.5, 0.0, "")
ORDERS = PolicyCounts("orders", 100, 90, 3, 40, 5, {"EV503": 2, "EV502": 5}, {"shipping.?": 4, "?": 1}, {"published": 6, "withheld": 1})
PULSE = Pulse(
    job="live",
    state="running",
    policies=(ORDERS, PolicyCounts("returns")),
    slice=9,
    lag=123,
    read=100,
    open_windows=3,
    carry_bytes=4_096,
    now=1_700_000_000_000_000,
    watermark=1_699_999_995_250_000,
    slice_s=0.25,
)
SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-zA-Z_]\w*="(?:[^"\\\n]|\\\\|\\"|\\n)*",?)*)\})? (\S+)')
LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"')
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def unescaped(found: re.Match[str]) -> str:
    return {r"\\": "\\", r"\"": '"', r"\n": "\n"}[found[0]]


def parsed(text: bytes) -> Samples:
    """Read as the format is specified; anything else is an error of this test."""
    found: Samples = {}
    announced: dict[str, str] = {}
    current = ""
    lines = text.decode("utf-8").split("\n")
    assert "" == lines.pop()
    for line in lines:
        if line.startswith("# HELP "):
            current = line.split(" ")[2]
            assert current not in announced, "a metric stands in one place"
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert (name, kind) == (current, METRICS[name][0])
            announced[name] = kind
        else:
            match = SAMPLE.fullmatch(line)
            assert match is not None, line
            assert match[1] == current
            labels = tuple((name, re.sub(r"\\[\\\"n]", unescaped, value)) for name, value in LABEL.findall(match[2] or ""))
            assert (match[1], labels) not in found, "a sample stands once"
            found[match[1], labels] = float(match[3])
    return found


def of(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, tuple(labels.items())))


class TestWhatItTells:
    def test_events_by_policy_and_outcome(self) -> None:
        samples = parsed(exposition(PULSE, FINE, PULSE.now, {}))

        for outcome, number in {"read": 100, "out": 90, "filtered": 3, "refused": 7, "published": 40, "withheld": 5}.items():
            assert number == of(samples, "eventveil_events_total", job="live", policy="orders", outcome=outcome)
            assert 0 == of(samples, "eventveil_events_total", job="live", policy="returns", outcome=outcome)

    def test_refusals_drift_and_windows(self) -> None:
        samples = parsed(exposition(PULSE, FINE, PULSE.now, {}))

        orders = {"job": "live", "policy": "orders"}
        assert 5 == of(samples, "eventveil_refused_total", **orders, code="EV502")
        assert 4 == of(samples, "eventveil_drift_total", **orders, path="shipping.?")
        assert [6, 1, 0] == [of(samples, "eventveil_windows_total", **orders, outcome=one) for one in ("published", "withheld", "conflict")]

    def test_how_the_job_stands(self) -> None:
        verdict = Verdict(True, True, "waiting", 0.5, 30.0, "EV413")
        samples = parsed(exposition(PULSE, verdict, PULSE.now + 1_000_000, {}))

        expected = {
            "read_total": 100,
            "slices_total": 9,
            "lag_events": 123,
            "open_windows": 3,
            "carry_bytes": 4_096,
            # Of an event: no finer.
            "watermark_timestamp_seconds": 1_699_999_995,
            "event_time_delay_seconds": 5,
            "last_slice_seconds": 0.25,
            "silent_seconds": 0.5,
            "waiting_seconds": 30,
        }
        assert expected == {name: of(samples, f"eventveil_{name}", job="live") for name in expected}

    def test_exactly_one_state(self) -> None:
        samples = parsed(exposition(PULSE, replace(FINE, state="stuck"), PULSE.now, {}))
        states = {labels[1][1]: value for (name, labels), value in samples.items() if name == "eventveil_state"}

        assert {"stuck"} == {state for state, value in states.items() if value}
        assert {"starting", "running", "idle", "waiting", "draining", "stopped", "stuck", "failed"} == set(states)

    def test_what_is_not_known_is_absent(self) -> None:
        text = exposition(replace(PULSE, lag=None, watermark=None), FINE, PULSE.now, {})

        assert not re.search(rb"lag|watermark|delay", text)
        parsed(text)

    def test_counts_beyond_what_a_float_writes_in_full_stay_exact(self) -> None:
        text = exposition(replace(PULSE, read=12_345_678_901_234_567), FINE, PULSE.now, {})

        assert b'\neventveil_read_total{job="live"} 12345678901234567\n' in text

    def test_every_metric_is_told_by_a_job_in_full_swing(self) -> None:
        text = exposition(PULSE, FINE, PULSE.now, process_figures()).decode()

        assert list(METRICS) == re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)

    def test_the_process_as_the_system_has_it(self) -> None:
        before = process_figures()
        with ExitStack() as stack:
            for _ in range(200):
                stack.enter_context(open(os.devnull))
            figures = process_figures()

        # Other tests' threads may open or close one meanwhile.
        assert 190 < figures["process_open_fds"] - before["process_open_fds"] < 210
        assert 10 << 20 < figures["process_resident_memory_bytes"] < 10 << 30
        assert 0 < figures["process_cpu_seconds_total"] < 10_000
        assert time.time() - 10_000 < figures["process_start_time_seconds"] < time.time()


class TestNames:
    @pytest.mark.parametrize(
        "name",
        ['a"b', "a\\b", "a\nb", 'a\\"b', "\\n", "\\", 'x"} 1\neventveil_forged_total{a="', "Zürich 東京", "", "a,b={}", "a\r\tb\u2028"],
        ids=["quote", "backslash", "line", "both", "written_line", "one_backslash", "forged", "unicode", "empty", "syntax", "controls"],
    )
    def test_come_out_as_they_went_in(self, name: str) -> None:
        policy = replace(ORDERS, policy=name, drift={name: 7})
        samples = parsed(exposition(replace(PULSE, job=name, policies=(policy,)), FINE, PULSE.now, {}))

        assert 7 == of(samples, "eventveil_drift_total", job=name, policy=name, path=name)
        assert not any("forged" in metric for metric, _ in samples)

    def test_what_utf8_cannot_hold_is_replaced(self) -> None:
        samples = parsed(exposition(replace(PULSE, job="a\udcffb"), FINE, PULSE.now, {}))

        assert 9 == of(samples, "eventveil_slices_total", job="a?b")
