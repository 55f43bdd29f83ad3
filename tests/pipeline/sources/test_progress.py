from __future__ import annotations

import json

import pytest
from apache_beam.runners.sdf_utils import ThreadsafeRestrictionTracker

from eventveil.pipeline.sources._progress import Claim, Progress, ProgressCoder, ProgressTracker
from eventveil.pipeline.sources.watermark import Watermark
from eventveil.schemas.errors import EventveilError


def begun(**positions: int) -> ProgressTracker:
    return ProgressTracker(Progress(positions, {"orders": "id"}))


class TestTracker:
    def test_what_is_claimed_is_done_and_the_rest_is_handed_on(self) -> None:
        tracker = begun(a=5, b=0)
        watermark = Watermark()
        watermark.advance({"a": 17}, now=1, lanes=["a"])

        assert tracker.try_claim(Claim({"a": 9, "c": 3}))
        assert tracker.try_claim(Claim(watermark=watermark.as_json()))
        split = tracker.try_split(0)

        expected = Progress({"a": 9, "b": 0, "c": 3}, {"orders": "id"}, watermark.as_json())
        assert split is not None
        assert (True, expected) == (split[0].ended, split[1])

    def test_nothing_can_be_claimed_behind_a_split(self) -> None:
        tracker = begun(a=5)
        tracker.try_split(0)

        assert not tracker.try_claim(Claim({"a": 6}))
        assert tracker.try_split(0) is None
        assert {"a": 5} == tracker.current_restriction().positions
        tracker.check_done()

    def test_leaving_without_handing_on_is_a_defect(self) -> None:
        tracker = begun(a=5)
        tracker.try_claim(Claim({"a": 6}))

        with pytest.raises(ValueError, match="without handing on"):
            tracker.check_done()

    def test_never_goes_backwards(self) -> None:
        with pytest.raises(EventveilError, match="EV901"):
            begun(a=5).try_claim(Claim({"a": 4}))

    def test_is_never_cut_in_two(self) -> None:
        tracker = begun(a=5)

        assert tracker.try_split(0.5) is None
        assert tracker.try_claim(Claim({"a": 6}))
        assert not tracker.is_bounded()

    def test_beam_defers_what_is_left(self) -> None:
        tracker = ThreadsafeRestrictionTracker(begun(a=5))
        tracker.try_claim(Claim({"a": 7}))

        tracker.defer_remainder()
        status = tracker.deferred_status()

        assert status is not None
        assert {"a": 7} == status[0].positions
        tracker.check_done()


class TestCoder:
    def test_round_trip(self) -> None:
        watermark = Watermark()
        watermark.advance({"orders/0": 17}, now=5, lanes=["orders/0"])
        progress = Progress({"orders/0": 2**62, "orders/1": 0}, {"orders": "id"}, watermark.as_json(), ended=True)

        assert progress == ProgressCoder().decode(ProgressCoder().encode(progress))

    def test_is_json_that_names_its_version(self) -> None:
        told = json.loads(ProgressCoder().encode(Progress({"b": 1, "a": 2})))

        assert (1, {"a": 2, "b": 1}) == (told["version"], told["positions"])

    def test_the_same_progress_has_the_same_bytes(self) -> None:
        assert ProgressCoder().encode(Progress({"b": 1, "a": 2})) == ProgressCoder().encode(Progress({"a": 2, "b": 1}))

    def test_another_version_is_refused(self) -> None:
        encoded = ProgressCoder().encode(Progress({})).replace(b'"version":1', b'"version":2')

        with pytest.raises(EventveilError, match="EV901"):
            ProgressCoder().decode(encoded)
