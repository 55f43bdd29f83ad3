from __future__ import annotations

from collections.abc import Iterator

import pytest

from eventveil.schemas.errors import EventveilError, StorageError
from eventveil.transforms.beam.guard import guarded, take_failures


@guarded
def failing(number: int) -> Iterator[None]:
    yield None
    raise StorageError.of("EV404", f"cannot be written, attempt {number}")


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
