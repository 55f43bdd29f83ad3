from __future__ import annotations

from collections.abc import Iterator
from types import FunctionType, MethodType
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.transforms.core import get_function_arguments
from apache_beam.transforms.userstate import get_dofn_specs

from eventveil.schemas.errors import EventveilError, StorageError
from eventveil.transforms.beam.guard import Step, guarded, take_failures


@guarded
def failing(number: int) -> Iterator[None]:
    yield None
    raise StorageError.of("EV404", f"cannot be written, attempt {number}")


class Ours(Step):
    def setup(self) -> None:
        pass

    def process(self, element: int, time: Any = beam.DoFn.TimestampParam) -> Iterator[int]:
        yield element

    @guarded
    def finish_bundle(self) -> Iterator[None]:
        yield from ()

    @staticmethod
    def aside(first: int, second: int = 2) -> int:
        return first + second


class Derived(Ours):
    def process(self, element: int, window: Any = beam.DoFn.WindowParam) -> Iterator[int]:  # type: ignore[override]
        yield element


@pytest.mark.parametrize("kind", [Ours, Derived])
def test_beam_is_told_of_each_method_what_it_would_find(kind: type[Step]) -> None:
    plain = type(kind.__name__, (beam.DoFn,), {name: vars(Ours)[name] for name in ("setup", "process", "finish_bundle", "aside")})
    plain.process = kind.process  # type: ignore[attr-defined]
    methods = [name for name in dir(plain) if isinstance(getattr(plain(), name, None), (FunctionType, MethodType))]

    found = {name: get_function_arguments(kind(), name) for name in methods}

    assert {name: get_function_arguments(plain(), name) for name in methods} == found
    assert "process" in found and found["process"][0][0] == "element"
    assert get_dofn_specs(plain()) == get_dofn_specs(kind())


class TestFailures:
    def test_are_taken_once_and_with_their_problems(self) -> None:
        take_failures()
        with pytest.raises(StorageError):
            list(failing(1))

        (found,) = take_failures()
        assert ["EV404"] == [problem.code for problem in found.problems]
        assert isinstance(found, StorageError)
        assert [] == take_failures()

    def test_that_nobody_takes_are_bounded_and_hold_no_frames(self) -> None:
        take_failures()
        for number in range(1000):
            with pytest.raises(EventveilError):
                list(failing(number))

        found = take_failures()
        assert "cannot be written, attempt 0" == found[0].problems[0].fact
        assert len(found) <= 100
        assert [None] * len(found) == [one.__traceback__ for one in found]
