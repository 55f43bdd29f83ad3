"""JSON lines: the same events at the same positions, however the file is cut."""

from __future__ import annotations

import gzip
import random
import re
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventveil.pipeline.sources.files import Range, list_ranges, read_range
from eventveil.schemas.errors import StorageError
from eventveil.transforms.batch import Part, part_of

BOM = b"\xef\xbb\xbf"
WHITE = b" \t\r"


def plain(path: Path, data: bytes) -> str:
    file = path / "events.jsonl"
    file.write_bytes(data)
    return str(file)


def gzipped(path: Path, data: bytes, cut: int = 0) -> str:
    """Two members, cut anywhere."""
    file = path / "events.jsonl.gz"
    file.write_bytes(gzip.compress(data[:cut]) + gzip.compress(data[cut:]))
    return str(file)


def zstd(path: Path, data: bytes, cut: int = 0) -> str:
    """Two frames, cut anywhere."""
    file = path / "events.jsonl.zst"
    file.write_bytes(b"".join(pa.compress(piece, codec="zstd", asbytes=True) for piece in (data[:cut], data[cut:])))
    return str(file)


def rows_of(batch: pa.RecordBatch) -> list[tuple[int, bytes]]:
    batch.validate(full=True)
    return list(zip(batch.column("position").to_pylist(), batch.column("value").to_pylist()))


def read(path: str, part_bytes: int = 32 << 20, batch_bytes: int = 4 << 20, limit: int = 8 << 20) -> list[tuple[int, bytes]]:
    """Every event; on the way, that parts and their numbers are as promised, and that each event lies in its part."""
    found: list[tuple[int, bytes]] = []
    parts: list[Part] = []
    for piece in list_ranges([path], part_bytes=part_bytes):
        for batch in read_range(piece, batch_bytes, part_bytes, limit):
            part = part_of(batch)
            assert part is not None
            parts.append(part)
            rows = rows_of(batch)
            assert all(part.start <= position < part.start + part_bytes for position, _ in rows)
            found += rows
    starts = sorted({part.start for part in parts})
    assert starts == list(range(0, starts[-1] + 1, part_bytes))
    for start in starts:
        of_part = [(part.number, part.last) for part in parts if part.start == start]
        assert of_part == [(number, number == len(of_part) - 1) for number in range(len(of_part))]
    return found


def expected(data: bytes, limit: int = 8 << 20) -> list[tuple[int, bytes]]:
    """What the reader promises, line by line and without any blocks."""
    found = []
    at = 0
    for line in re.findall(rb"[^\n]*\n|[^\n]+", data):
        value = line.removeprefix(BOM) if at == 0 else line
        content = re.sub(rb"\r?\n\Z", b"", value)
        if len(content) > limit:
            cut = bytearray(content[: limit + 1])
            for end in (0, -1):
                cut[end] = 0 if cut[end] in WHITE else cut[end]
            found.append((at, bytes(cut)))
        elif value.strip(b" \t\r\n"):
            found.append((at, value))
        at += len(line)
    return found


pieces = st.lists(st.sampled_from([b"{}", b'{"a":"\xc3\xa9"}', b"x" * 25, b"\n", b"\r\n", b"\n\n", b" ", b" \t\n", b"\r"]), max_size=30)


class TestWhateverTheCuts:
    @settings(max_examples=300, deadline=None)
    @given(
        pieces=pieces,
        mark=st.booleans(),
        part_bytes=st.integers(1, 80),
        batch_bytes=st.integers(1, 80),
        limit=st.integers(1, 40),
        member=st.integers(0, 60),
        form=st.sampled_from(["plain", "gzip", "zstd"]),
    )
    def test_the_same_events_at_the_same_positions(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        pieces: list[bytes],
        mark: bool,
        part_bytes: int,
        batch_bytes: int,
        limit: int,
        member: int,
        form: str,
    ) -> None:
        data = BOM * mark + b"".join(pieces)
        folder = tmp_path_factory.mktemp("cuts")
        path = {
            "plain": lambda: plain(folder, data),
            "gzip": lambda: gzipped(folder, data, member),
            "zstd": lambda: zstd(folder, data, member),
        }[form]()

        assert expected(data, limit) == read(path, part_bytes, batch_bytes, limit)

    def test_a_line_across_every_boundary(self, tmp_path: Path) -> None:
        data = b'{"n":1}\n{"n":22}\r\n\n{"n":333}'
        want = [(0, b'{"n":1}\n'), (8, b'{"n":22}\r\n'), (19, b'{"n":333}')]
        path = plain(tmp_path, data)
        packed = gzipped(tmp_path, data, 11)
        for part_bytes in range(1, len(data) + 2):
            for batch_bytes in range(1, len(data) + 2):
                assert want == read(path, part_bytes, batch_bytes)
            assert want == read(packed, part_bytes, 3)

    def test_real_sizes(self, tmp_path: Path) -> None:
        random.seed(7)
        lines = [b'{"n":%d,"t":"%s"}\n' % (number, b"y" * random.randint(0, 900)) for number in range(4000)]
        data = b"".join(lines)
        want = expected(data)
        for batch_bytes in (1 << 16, 1 << 20):
            for part_bytes in (100_000, 1 << 20):
                assert want == read(plain(tmp_path, data), part_bytes, batch_bytes)
                assert want == read(gzipped(tmp_path, data, 70_000), part_bytes, batch_bytes)


class TestLines:
    @pytest.mark.parametrize(
        ("data", "want"),
        [
            pytest.param(b"", [], id="empty"),
            pytest.param(b"\n\r\n \t\n\n", [], id="only blank lines"),
            pytest.param(b"{}", [(0, b"{}")], id="no final newline"),
            pytest.param(b"{}\r\n{}\r\n", [(0, b"{}\r\n"), (4, b"{}\r\n")], id="CRLF"),
            pytest.param(BOM + b"{}\n{}\n", [(0, b"{}\n"), (6, b"{}\n")], id="byte order mark"),
            pytest.param(BOM, [], id="nothing but a byte order mark"),
            pytest.param(b"{}\n" + BOM + b"{}\n", [(0, b"{}\n"), (3, BOM + b"{}\n")], id="byte order mark elsewhere"),
            pytest.param(b"\n\n{}\n\n{}\n\n", [(2, b"{}\n"), (6, b"{}\n")], id="blank lines between"),
            pytest.param(b" {}\n", [(0, b" {}\n")], id="indented"),
            pytest.param(b"\x00\xff\n", [(0, b"\x00\xff\n")], id="no text at all"),
        ],
    )
    def test_what_is_an_event(self, tmp_path: Path, data: bytes, want: list[tuple[int, bytes]]) -> None:
        assert want == read(plain(tmp_path, data))
        assert want == read(gzipped(tmp_path, data, 1))
        assert want == read(zstd(tmp_path, data, 1))

    def test_values_are_views_of_one_block(self, tmp_path: Path) -> None:
        (batch,) = read_range(*list_ranges([plain(tmp_path, b'{"a":1}\n' * 100)]))

        offsets, data = batch.column("value").buffers()[1:]
        assert b'{"a":1}\n' * 100 == data.to_pybytes()[:800]
        assert 101 * 4 == offsets.size

    def test_a_part_without_events_is_one_empty_batch(self, tmp_path: Path) -> None:
        path = plain(tmp_path, b"x" * 50 + b"\n")

        told = [(part_of(batch), batch.num_rows) for piece in list_ranges([path], part_bytes=20) for batch in read_range(piece, 8, 20)]

        assert told == [(Part(path, 0), 1), (Part(path, 20), 0), (Part(path, 40), 0)]


class TestLongLines:
    def test_ten_megabytes_are_cut_and_their_neighbours_are_whole(self, tmp_path: Path) -> None:
        data = b'{"a":1}\n' + b'{"b":"' + b"x" * (10 << 20) + b'"}\n{"c":3}\n'
        for path in (plain(tmp_path, data), gzipped(tmp_path, data, 5 << 20)):
            found = read(path, batch_bytes=1 << 20)

            assert [0, 8, len(data) - 8] == [position for position, _ in found]
            assert data[8 : 8 + (8 << 20) + 1] == found[1][1]
            assert b'{"c":3}\n' == found[2][1]

    def test_in_bounded_memory(self, tmp_path: Path) -> None:
        path = plain(tmp_path, b"x" * (24 << 20))
        tracemalloc.start()
        found = read(path, batch_bytes=256 << 10, limit=1 << 20)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

        assert [(0, (1 << 20) + 1)] == [(position, len(value)) for position, value in found]
        assert peak < 8 << 20

    @pytest.mark.parametrize("padding", [b"  ", b"\t", b"\r"])
    def test_what_is_cut_can_never_be_read_as_a_shorter_event(self, tmp_path: Path, padding: bytes) -> None:
        hidden = b"{}" + padding * 20 + b"garbage\n"

        ((_, value),) = read(plain(tmp_path, hidden), limit=10)

        assert 11 == len(value.strip(b" \t\r\n"))


class TestDamage:
    def data(self) -> bytes:
        random.seed(3)
        return b"".join(b'{"n":%d}\n' % random.getrandbits(60) for _ in range(5000))

    @pytest.mark.parametrize("pack", [gzipped, zstd])
    @pytest.mark.parametrize("lost", [1, 4, 9, 1000])
    def test_a_truncated_stream_never_ends_a_part(self, tmp_path: Path, pack: object, lost: int) -> None:
        path = Path(pack(tmp_path, self.data(), 30_000))  # type: ignore[operator]
        path.write_bytes(path.read_bytes()[:-lost])
        (piece,) = list_ranges([str(path)])
        seen = []

        with pytest.raises(StorageError, match="EV403"):
            seen += [part_of(batch) for batch in read_range(piece, 10_000)]
        assert not any(part.last for part in seen if part)

    def test_changed_bytes_are_found(self, tmp_path: Path) -> None:
        path = Path(gzipped(tmp_path, self.data(), 30_000))
        whole = path.read_bytes()
        path.write_bytes(whole[:20_000] + bytes([whole[20_000] ^ 0x55]) + whole[20_001:])

        with pytest.raises(StorageError, match="EV403 the gzip data is damaged"):
            read(str(path))

    def test_a_frame_that_is_none(self, tmp_path: Path) -> None:
        path = Path(zstd(tmp_path, self.data(), 30_000))
        path.write_bytes(path.read_bytes() + b"garbage")

        with pytest.raises(StorageError, match="EV403 the zstd data is damaged or truncated"):
            read(str(path))

    @pytest.mark.parametrize("name", ["empty.jsonl.gz", "empty.jsonl.zst"])
    def test_an_empty_compressed_file_is_damaged(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(b"")

        with pytest.raises(StorageError, match="EV403 the file is empty"):
            read(str(tmp_path / name))

    @pytest.mark.parametrize("name", ["not.jsonl.gz", "not.jsonl.zst"])
    def test_what_is_not_compressed_is_damaged(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(b'{"a":"secret"}\n')

        with pytest.raises(StorageError, match="EV403") as caught:
            read(str(tmp_path / name))
        assert "secret" not in str(caught.value)

    def test_bytes_behind_the_last_gzip_member_are_damage_and_padding_is_not(self, tmp_path: Path) -> None:
        path = Path(gzipped(tmp_path, b"{}\n"))
        whole = path.read_bytes()
        path.write_bytes(whole + b"\0" * 700)
        assert [(0, b"{}\n")] == read(str(path))

        path.write_bytes(whole + b"garbage")
        with pytest.raises(StorageError, match="EV403"):
            read(str(path))


class TestChangeDuringTheRun:
    def ranges(self, tmp_path: Path) -> tuple[Path, list[Range]]:
        path = Path(plain(tmp_path, b'{"a":1}\n' * 1000))
        return path, list_ranges([str(path)], part_bytes=4000)

    def test_vanished(self, tmp_path: Path) -> None:
        path, ranges = self.ranges(tmp_path)
        path.unlink()

        with pytest.raises(StorageError, match="EV402 no such file"):
            list(read_range(ranges[0]))

    @pytest.mark.parametrize("change", ["shrunk", "grown", "replaced"])
    def test_changed_before_it_is_read(self, tmp_path: Path, change: str) -> None:
        path, ranges = self.ranges(tmp_path)
        data = path.read_bytes()
        if change == "replaced":
            (tmp_path / "other").write_bytes(data)
            (tmp_path / "other").replace(path)
        else:
            path.write_bytes(data[:-8] if change == "shrunk" else data + b"{}\n")

        with pytest.raises(StorageError, match="EV402 the file was changed or replaced"):
            list(read_range(ranges[1]))

    def test_shrunk_while_it_is_read_never_ends_the_part(self, tmp_path: Path) -> None:
        path, ranges = self.ranges(tmp_path)
        reading = read_range(ranges[0], batch_bytes=400)
        seen = [part_of(next(reading))]
        with open(path, "r+b") as file:
            file.truncate(2000)

        with pytest.raises(StorageError, match="EV402 the file was changed or replaced"):
            seen += [part_of(batch) for batch in reading]
        assert not any(part.last for part in seen if part)
