"""Logs: every line an object, and no value of an event in any of them, whatever a library says and however it fails."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
import warnings
from datetime import datetime, timezone
from typing import Any

import pytest

from eventveil.pipeline.report.logs import LOGGER, tell, written_logs

SECRET = "abdullin@example.org"
# Not Beam's own: a pass of a job in this process leaves Beam's loggers at another level.
LIBRARY = logging.getLogger("some_library.module")


def told(as_json: bool = True, **settings: Any) -> Any:
    """Run what is decorated under our logs; its lines."""

    def run(action: Any) -> list[Any]:
        stream = io.StringIO()
        with written_logs(as_json=as_json, level=settings.pop("level", logging.INFO), stream=stream, **settings):
            action()
        assert SECRET not in stream.getvalue()
        assert not stream.getvalue() or stream.getvalue().endswith("\n")
        lines = stream.getvalue().split("\n")[:-1]
        return [json.loads(line) for line in lines] if as_json else lines

    return run


def without_place(line: dict[str, Any]) -> dict[str, Any]:
    assert line.pop("time").endswith("Z")
    assert line.pop("at").startswith("test_logs.py:")
    return line


class TestOurEvents:
    def test_have_time_level_event_and_fields(self) -> None:
        before = datetime.now(timezone.utc).isoformat(timespec="milliseconds")[:23]
        (line,) = told()(lambda: tell(logging.WARNING, "refused", policy="orders", codes={"EV502": 3}, lag=None))

        at = line.pop("time")
        assert before <= at[:23]
        assert at.endswith("Z")
        assert {"level": "warning", "event": "refused", "policy": "orders", "codes": {"EV502": 3}} == line
        assert ["level", "event", "policy", "codes"] == list(line)

    def test_are_one_line_of_ascii_whatever_the_names_hold(self) -> None:
        name = "or\nders\u2028\x85\ud800é\033[2J"
        stream = io.StringIO()
        with written_logs(as_json=True, level=logging.INFO, stream=stream):
            tell(logging.INFO, "started", policies=[name])

        assert stream.getvalue().isascii()
        assert 1 == len(stream.getvalue().splitlines())
        assert [name] == json.loads(stream.getvalue())["policies"]

    def test_a_field_that_is_no_json_is_named_by_its_type(self) -> None:
        (line,) = told()(lambda: tell(logging.INFO, "started", lag=object(), policies={SECRET.encode()}))

        assert ("<object>", "<set>") == (line["lag"], line["policies"])

    def test_below_the_level_are_left_out(self) -> None:
        def both() -> None:
            tell(logging.INFO, "slice")
            tell(logging.ERROR, "failed")

        assert ["failed"] == [line["event"] for line in told(level=logging.ERROR)(both)]

    def test_for_a_person(self) -> None:
        (line,) = told(as_json=False)(lambda: tell(logging.WARNING, "refused", policy="or\nders\033[2J", codes={"EV502": 3}))

        assert line[8:].startswith(' warning refused policy=or ders�[2J codes={"EV502": 3}')


class TestLibraries:
    def test_are_told_with_place_and_message_without_its_arguments(self) -> None:
        (line,) = told()(lambda: LIBRARY.error("cannot parse %s of %d", SECRET, 5))

        expected = {"level": "error", "event": "library", "logger": LIBRARY.name, "message": "cannot parse %s of %d"}
        assert expected == without_place(line)

    def test_a_message_that_was_made_at_run_time_is_left_out(self) -> None:
        def speak() -> None:
            LIBRARY.error(f"cannot parse {SECRET}")
            LIBRARY.error("cannot parse {}".format(SECRET))  # noqa: UP032
            LIBRARY.error(SECRET)
            LIBRARY.error(ValueError(SECRET))
            LIBRARY.error("")

        assert [None] * 5 == [line.get("message") for line in told()(speak)]

    @pytest.mark.parametrize("debug", [False, True])
    def test_an_exception_is_cut_to_type_and_place(self, debug: bool) -> None:
        def fail() -> None:
            try:
                try:
                    {}[SECRET]  # type: ignore[index]
                except KeyError:
                    raise ValueError(SECRET) from None
            except ValueError:
                LIBRARY.exception("cannot")

        (line,) = told(debug=debug)(fail)

        assert line.pop("raised_at").startswith("test_logs.py:")
        expected = {"level": "error", "event": "library", "logger": LIBRARY.name, "message": "cannot", "error": "ValueError"}
        assert {**expected, "cause": "KeyError"} == without_place(line)

    @pytest.mark.parametrize(("debug", "expected"), [(False, ["error"]), (True, ["debug", "warning", "error"])])
    def test_only_errors_are_told_unless_one_debugs(self, debug: bool, expected: list[str]) -> None:
        def speak() -> None:
            LIBRARY.debug("one")
            LIBRARY.warning("two", stack_info=True)
            LIBRARY.error("three")

        assert expected == [line["level"] for line in told(debug=debug)(speak)]

    def test_a_record_whose_arguments_do_not_fit_its_format_does_no_harm(self, capfd: pytest.CaptureFixture[str]) -> None:
        (line,) = told()(lambda: LIBRARY.error("%d %d", SECRET))

        assert ("%d %d", ("", "")) == (line["message"], capfd.readouterr())

    def test_fields_of_others_are_not_taken_for_ours(self) -> None:
        (line,) = told()(lambda: LIBRARY.error("x", extra={"fields": {"event": SECRET}}))

        assert "library" == line["event"]

    def test_for_a_person_too(self) -> None:
        (line,) = told(as_json=False)(lambda: LIBRARY.error("cannot parse %s", SECRET, exc_info=ValueError(SECRET)))

        assert line[8:].startswith(" error library logger=some_library.module at=test_logs.py:")
        assert line.endswith(" message=cannot parse %s error=ValueError")

    def test_a_warning_goes_the_same_way(self) -> None:
        def warn() -> None:
            warnings.warn(SECRET, stacklevel=1)

        with warnings.catch_warnings():
            warnings.simplefilter("always")

            assert [] == told()(warn)
            assert ["py.warnings"] == [line["logger"] for line in told(debug=True)(warn)]


class TestWhatPythonPrintsByItself:
    def test_a_thread_that_dies_is_told_without_its_text(self, capfd: pytest.CaptureFixture[str]) -> None:
        def die() -> None:
            raise ValueError(SECRET)

        def run() -> None:
            thread = threading.Thread(target=die)
            thread.start()
            thread.join()

        (line,) = told()(run)

        assert ("thread died", "ValueError", ("", "")) == (line["event"], line["error"], capfd.readouterr())

    def test_an_error_that_cannot_be_raised_too(self, capfd: pytest.CaptureFixture[str]) -> None:
        class Hostile:
            def __del__(self) -> None:
                raise ValueError(SECRET)

        def drop() -> None:
            one = Hostile()
            del one

        (line,) = told()(drop)

        assert ("error ignored", "ValueError", ("", "")) == (line["event"], line["error"], capfd.readouterr())


class TestTheLogItself:
    @pytest.mark.parametrize("stream", ["closed", "full"])
    def test_that_cannot_be_written_stops_nothing_and_prints_nothing(self, stream: str, capfd: pytest.CaptureFixture[str]) -> None:
        with open("/dev/full", "w", encoding="utf-8") as file:
            if stream == "closed":
                file.close()
            with written_logs(as_json=True, level=logging.INFO, stream=file):
                tell(logging.INFO, "started")
                LIBRARY.error("x")
            if stream == "full":
                with pytest.raises(OSError, match="No space left"):
                    file.close()

        assert ("", "") == capfd.readouterr()

    def test_everything_is_as_it_was_afterwards(self) -> None:
        root = logging.getLogger()

        def state() -> tuple[Any, ...]:
            hooks = (threading.excepthook, sys.unraisablehook, warnings.showwarning)
            return root.handlers[:], root.level, LOGGER.level, logging.raiseExceptions, *hooks

        before = state()
        told(debug=True)(lambda: None)
        with pytest.raises(ZeroDivisionError), written_logs(as_json=True, level=logging.INFO):
            1 / 0  # noqa: B018

        assert before == state()
