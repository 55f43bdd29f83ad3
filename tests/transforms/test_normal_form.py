from __future__ import annotations

import random
import time
import unicodedata

import pytest

from eventveil.transforms.normal_form import is_normal_form, normal_form

ALPHABET = "aeo\u00e9\u1e69\u0300\u0301\u0315\u0323\u0327\u0344\u0f71\u0f73\u0f81\uac00\u1100\u1161\u11a8\ufb01\uff11\u2126\u212b\U0001d15e"
MARKS = "\u0300\u0315\u0323\u0327\u0344\u0345\u05b0\u0f71\u0f72\u0f73\u3099"


@pytest.mark.parametrize("form", ["NFC", "NFKC"])
class TestNormalForm:
    @pytest.mark.parametrize("size", [0, 1, 999, 1_000, 1_001, 1_500])
    @pytest.mark.parametrize("alphabet", [ALPHABET, MARKS], ids=["mixed", "marks"])
    def test_it_is_that_of_the_standard_library(self, form: str, alphabet: str, size: int) -> None:
        text = "".join(random.Random(size).choices(alphabet, k=size))

        assert unicodedata.normalize(form, text) == normal_form(form, text)
        assert unicodedata.is_normalized(form, text) == is_normal_form(form, text)
        assert is_normal_form(form, normal_form(form, text))

    @pytest.mark.parametrize("marks", ["\u0315\u0300", "\u0f73"], ids=["marks", "starters that come apart into marks"])
    def test_a_long_run_of_marks_takes_no_longer_than_other_text(self, form: str, marks: str) -> None:
        began = time.process_time()
        found = normal_form(form, "e" + marks * 200_000)

        assert len(found) >= 200_000
        assert time.process_time() - began < 10
