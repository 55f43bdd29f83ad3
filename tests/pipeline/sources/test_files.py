"""Which files are read, and as what."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from eventveil.pipeline.sources.files import list_ranges, read_range
from eventveil.schemas.errors import StorageError


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("in/b.jsonl", "in/a.ndjson", "in/c.json", "in/d.jsonl.gz", "in/deep/er/e.jsonl", "in/.hidden.jsonl", "in/_eventveil.json",
                 "in/_gone/f.jsonl", "in/.git/g.jsonl", "in/notes.md", "in/part-00000", "other.jsonl"):  # fmt: skip
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"{}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listed(*patterns: str, format: str | None = None) -> list[str]:
    return [piece.path for piece in list_ranges(patterns, format)]


@pytest.mark.usefixtures("tree")
class TestWhatIsListed:
    def test_a_folder_with_all_below_it_and_nothing_hidden(self) -> None:
        assert ["in/a.ndjson", "in/b.jsonl", "in/c.json", "in/d.jsonl.gz", "in/deep/er/e.jsonl"] == listed("in")

    def test_a_folder_and_a_format_take_files_without_suffix_too(self) -> None:
        assert "in/part-00000" in listed("in", format="jsonl")
        assert "in/notes.md" not in listed("in", format="jsonl")

    def test_a_glob_in_sorted_order(self) -> None:
        assert ["in/b.jsonl"] == listed("in/*.jsonl")
        assert ["in/b.jsonl", "in/deep/er/e.jsonl"] == listed("in/**/*.jsonl")
        assert ["in/a.ndjson", "in/b.jsonl", "in/c.json", "in/d.jsonl.gz"] == listed("in/[a-d].*")
        assert "in/_eventveil.json" not in listed("in/*.json")

    def test_a_file_by_name_even_if_hidden_or_a_pattern(self, tree: Path) -> None:
        (tree / "in/a[1].jsonl").write_bytes(b"{}\n")

        assert ["in/.hidden.jsonl"] == listed("in/.hidden.jsonl")
        assert ["in/a[1].jsonl"] == listed("in/a[1].jsonl")

    def test_a_file_matched_twice_is_read_once(self, tree: Path) -> None:
        os.symlink(tree / "in/b.jsonl", tree / "in/link.jsonl")

        assert ["in/b.jsonl", "other.jsonl"] == listed("other.jsonl", "in/*.jsonl", "in/b.jsonl", "in/../in/b.jsonl")

    def test_a_file_uri(self, tree: Path) -> None:
        assert [f"{tree}/other.jsonl"] == listed(f"file://{tree}/other.jsonl")

    def test_ranges_survive_pickling(self) -> None:
        ranges = list_ranges(["in"])

        assert ranges == pickle.loads(pickle.dumps(ranges))


@pytest.mark.usefixtures("tree")
class TestWhatIsRefused:
    @pytest.mark.parametrize("pattern", ["nowhere/*.jsonl", "missing.jsonl", "gs://bucket/x.jsonl"])
    def test_nothing_matches(self, pattern: str) -> None:
        with pytest.raises(StorageError, match="EV401"):
            listed("in", pattern)

    def test_an_empty_folder(self, tree: Path) -> None:
        (tree / "empty").mkdir()

        with pytest.raises(StorageError, match="EV401"):
            listed("empty")

    def test_a_format_that_the_name_does_not_tell(self) -> None:
        with pytest.raises(StorageError, match=r"in/notes.md: EV406"):
            listed("in/notes.md")
        assert ["in/notes.md"] == listed("in/notes.md", format="jsonl")

    def test_an_unknown_format(self) -> None:
        with pytest.raises(StorageError, match="EV406 unknown format 'jsonn'\n  did you mean 'jsonl'"):
            listed("in", format="jsonn")

    def test_two_formats_at_once(self, tree: Path) -> None:
        (tree / "x.avro").write_bytes(b"Obj\x01")

        with pytest.raises(StorageError, match=r"EV406 'x\.avro' and 'other\.jsonl' have different formats"):
            listed("other.jsonl", "x.avro")

    @pytest.mark.parametrize("name", ["x.avro.gz", "x.parquet.zst"])
    def test_a_file_compressed_as_a_whole_that_cannot_be(self, tree: Path, name: str) -> None:
        (tree / name).write_bytes(b"")

        with pytest.raises(StorageError, match="EV406"):
            listed(name)

    def test_a_pipe(self, tree: Path) -> None:
        os.mkfifo(tree / "pipe.jsonl")

        with pytest.raises(StorageError, match="EV402 not a regular file"):
            listed("pipe.jsonl")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_a_file_that_may_not_be_read(self, tree: Path) -> None:
        (tree / "other.jsonl").chmod(0)

        with pytest.raises(StorageError, match="EV402 permission denied"):
            listed("other.jsonl")

    def test_a_link_to_nothing(self, tree: Path) -> None:
        os.symlink("nowhere", tree / "dangling.jsonl")

        with pytest.raises(StorageError, match="EV402 no such file"):
            listed("dangling.jsonl")


def test_an_error_while_reading_is_told_without_the_librarys_words(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 secret value PAR1")

    with pytest.raises(StorageError, match="EV403 not a Parquet file") as caught:
        list(read_range(*list_ranges([str(tmp_path / "x.parquet")])))
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__
