"""The search for planted values, on which the tests of leaks stand: it finds what is there, and nothing by chance."""

from __future__ import annotations

import base64
import bz2
import gzip
import runpy
import zlib
from collections.abc import Callable
from pathlib import Path

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

Canaries = runpy.run_path(str(Path(__file__).parent / "everything" / "canary.py"))["Canaries"]


class TestTheSearch:
    """A search that finds nothing proves nothing: it must find what is there."""

    @pytest.mark.parametrize(
        "hide",
        [
            pytest.param(lambda text: text, id="raw"),
            pytest.param(lambda text: text[5:13], id="a run of eight"),
            pytest.param(lambda text: text.upper(), id="upper case"),
            pytest.param(lambda text: text.hex().encode(), id="hex"),
            pytest.param(lambda text: base64.b64encode(text), id="base64"),
            pytest.param(lambda text: base64.b64encode(b"x" + text), id="base64, one off"),
            pytest.param(lambda text: base64.urlsafe_b64encode(b"\xff\xff" + text), id="base64, two off"),
            pytest.param(lambda text: text.decode().encode("utf-16"), id="UTF-16"),
            pytest.param(zlib.compress, id="zlib"),
            pytest.param(gzip.compress, id="gzip"),
            pytest.param(lambda text: base64.b64encode(bz2.compress(text)), id="bzip2 in base64, as Beam pickles"),
            pytest.param(lambda text: pa.compress(text, codec="zstd", asbytes=True) + b"and more", id="zstandard, with more behind it"),
        ],
    )
    def test_it_finds_a_text_however_it_is_written(self, hide: Callable[[bytes], bytes]) -> None:
        canaries = Canaries()
        text = canaries.text("here").encode()
        canaries.text("not here")

        assert {"here"} == canaries.found(b"before " + hide(b"around " * 9 + text if len(hide(text)) > 8 else text) + b" behind")

    @pytest.mark.parametrize("write", ["parquet", "dictionary", "avro"])
    def test_it_finds_values_in_the_files_of_a_sink(self, write: str, tmp_path: Path) -> None:
        canaries = Canaries()
        rows = [{"text": f"{canaries.text('text')} and more", "number": canaries.whole("number")}] * 3
        path = tmp_path / "file"
        if write == "avro":
            fields = [{"name": "text", "type": "string"}, {"name": "number", "type": "long"}]
            with path.open("wb") as file:
                fastavro.writer(file, fastavro.parse_schema({"type": "record", "name": "r", "fields": fields}), rows, codec="deflate")
        else:
            pq.write_table(
                pa.Table.from_pylist(rows), path, compression="zstd", use_dictionary=write == "dictionary", write_statistics=False
            )

        assert {"text", "number"} == canaries.found(path.read_bytes())

    def test_eight_digits_in_a_random_tag_are_no_find(self) -> None:
        """Tags, names and ids of every run are new: a search that takes chance for a leak would fail once in some thousand runs."""
        canaries = Canaries()
        canaries.add("phone", "394120892817")

        for tag in (b"d6981c98659d6f2d3941208928d55c01", b"39412089281d6981c98659d6f2d55c01", b"hex+Zz3941208928+", b"+3941208928zZ+"):
            assert set() == canaries.found(b'"mac":"' + tag + b'"')
        assert {"phone"} == canaries.found(b'"mac":"d6981c98659d6f2d394120892817d55c"}')
        with pytest.raises(AssertionError, match="found by chance"):
            canaries.add("short", "39412089")

    @pytest.mark.parametrize("digits", ["39412089", "20892817", "94120892817"])
    def test_digits_that_stand_alone_are_a_find(self, digits: str) -> None:
        canaries = Canaries()
        canaries.add("phone", "394120892817")

        assert {"phone"} == canaries.found(f'"phone":"+{digits}"'.encode())

    def test_it_finds_a_key_by_a_run_of_eight_bytes(self) -> None:
        canaries = Canaries()
        canaries.add_bytes("key", bytes(range(100, 132)))

        for form in (bytes(range(110, 118)), bytes(range(110, 118)).hex().encode(), base64.b64encode(b"." + bytes(range(110, 119)) + b".")):
            assert {"key"} == canaries.found(b"...." + form + b"....")
