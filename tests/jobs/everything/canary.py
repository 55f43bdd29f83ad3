"""Values that stand nowhere else in the world, and a search for them in whatever form they could have taken."""

from __future__ import annotations

import base64
import binascii
import bz2
import io
import lzma
import random
import re
import string
import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import fastavro
import pyarrow as pa

RUN = 8
"""So many characters of a text in a row, or bytes of a key, are a find."""
HEX_RUN = 12
"""So many where they all are hexadecimal digits and more of those stand beside them, as in a random tag: eight meet there by chance."""
_HEX = frozenset(b"0123456789abcdefABCDEF")
_HEX_WORD = re.compile(rb"(?<![0-9A-Za-z])[0-9A-Fa-f]{%d,%d}(?![0-9A-Za-z])" % (RUN, HEX_RUN - 1))


class Canaries:
    """Plants values by name, and finds them."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._forms: dict[bytes, str] = {}
        self._words: dict[bytes, str] = {}

    def text(self, name: str) -> str:
        """A text of 24 letters and digits, always the same for a name. It is found by any run of eight characters (RUN, HEX_RUN)."""
        if name not in self._texts:
            self.add(name, "".join(random.Random(f"canary {name}").choices(string.ascii_lowercase + string.digits, k=24)))
        return self._texts[name]

    def whole(self, name: str) -> int:
        """A whole number of 14 or 15 digits, that is a double as well, and so is its eighth. It is found as a whole only."""
        value = random.Random(f"canary {name}").randrange(10**13, 2**50)
        self.add_number(name, value)
        self.add_number(name, value / 8)
        return value

    def add(self, name: str, text: str) -> str:
        """Plant a text of one's own: found as text by its runs, and encoded as a whole."""
        self._texts[name] = text
        data = text.encode()
        assert len(data) >= HEX_RUN or not _HEX.issuperset(data), "so short a text is found by chance"
        for one in {data, data.upper(), data.lower()}:
            for at in range(len(one) - RUN + 1):
                run = one[at : at + RUN]
                if not _HEX.issuperset(run):
                    self._forms.setdefault(run, name)
                    continue
                for end in range(at + RUN, min(at + HEX_RUN, len(one) + 1)):
                    self._words.setdefault(one[at:end], name)
                if at + HEX_RUN <= len(one):
                    self._forms.setdefault(one[at : at + HEX_RUN], name)
            for form in _encoded(one):
                self._forms.setdefault(form, name)
        return text

    def add_number(self, name: str, value: float) -> None:
        """Plant a number: as text and its encodings, as an integer and a float of 8 bytes, as Avro writes it."""
        forms = [repr(value).removesuffix(".0").encode(), struct.pack("<d", value), struct.pack(">d", value)]
        forms += [form for one in forms[:1] for form in _encoded(one)]
        if isinstance(value, int):
            forms += [struct.pack("<q", value), struct.pack(">q", value), _zigzag(value)]
        for form in forms:
            self._forms.setdefault(form, name)

    def add_bytes(self, name: str, value: bytes) -> None:
        """Plant bytes, as a key: found by any run of eight bytes, raw, in hex or in base64."""
        for at in range(len(value) - RUN + 1):
            run = value[at : at + RUN]
            for form in (run, *_encoded(run)):
                self._forms.setdefault(form, name)

    def found(self, *haystacks: bytes | str) -> set[str]:
        """The names of all that can be found, also in what is compressed or in base64."""
        # By their first bytes, so that one walk over the data is enough.
        starts: dict[bytes, list[bytes]] = {}
        for form in self._forms:
            starts.setdefault(form[:RUN], []).append(form)
        short = [form for form in self._forms if len(form) < RUN]
        names: set[str] = set()
        for haystack in haystacks:
            for data in peeled(haystack.encode("utf-8", "surrogateescape") if isinstance(haystack, str) else haystack):
                runs = {data[at : at + RUN] for at in range(len(data) - RUN + 1)}
                near = [form for start in runs & starts.keys() for form in starts[start]]
                names.update(self._forms[form] for form in (*near, *short) if form in data)
                names.update(self._words[word] for word in self._words.keys() & set(_HEX_WORD.findall(data)))
        return names


def _encoded(data: bytes) -> Iterator[bytes]:
    """The same bytes in hex, in base64 wherever they begin in what is encoded, and in UTF-16 where they are text."""
    yield data.hex().encode()
    yield data.hex().upper().encode()
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + data)
        # What depends on the neighbours is left out.
        core = encoded[(before * 8 + 5) // 6 : (before + len(data)) * 8 // 6]
        yield core
        yield core.translate(bytes.maketrans(b"+/", b"-_"))
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        return
    yield text.encode("utf-16-le")
    yield text.encode("utf-16-be")


def _zigzag(value: int) -> bytes:
    rest, out = (value << 1) ^ (value >> 63), bytearray()
    while rest > 127:
        out.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*out, rest])


_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{24,}={0,2}")


def peeled(data: bytes, depth: int = 3) -> Iterator[bytes]:
    """The bytes, and what is compressed or encoded within them: zlib, gzip, bzip2, xz, zstandard, base64, blocks of Avro."""
    yield data
    if not depth:
        return
    for inner in _inner(data):
        if len(inner) >= RUN:
            yield from peeled(inner, depth - 1)


def _inner(data: bytes) -> Iterator[bytes]:
    for found in _BASE64.finditer(data):
        text = found[0].translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
        try:
            yield base64.b64decode(text[: len(text) // 4 * 4])
        except binascii.Error:
            continue
    for magic, make in _PACKED:
        at = data.find(magic)
        while at >= 0:
            unpacked = make(data[at:])
            if unpacked:
                yield unpacked
            at = data.find(magic, at + 1)
    if data.startswith(b"Obj\x01"):
        for block in fastavro.block_reader(io.BytesIO(data)):
            yield block.bytes_.getvalue()


def _inflated(data: bytes) -> bytes:
    return _stepwise(zlib.decompressobj(47), data, zlib.error)


def _bunzipped(data: bytes) -> bytes:
    return _stepwise(bz2.BZ2Decompressor(), data, OSError)


def _unxzipped(data: bytes) -> bytes:
    return _stepwise(lzma.LZMADecompressor(), data, lzma.LZMAError)


def _stepwise(unpack: Any, data: bytes, error: type[Exception]) -> bytes:
    out = b""
    try:
        out = unpack.decompress(data)
    except (error, EOFError):
        return b""
    return out


def _unzstd(data: bytes) -> bytes:
    out = b""
    try:
        with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
            while more := stream.read(64):
                out += more
    except OSError:
        pass  # what follows the frame is no frame
    return out


_PACKED = (
    (b"\x78\x01", _inflated),
    (b"\x78\x9c", _inflated),
    (b"\x78\xda", _inflated),
    (b"\x1f\x8b\x08", _inflated),
    (b"BZh", _bunzipped),
    (b"\xfd7zXZ", _unxzipped),
    (b"\x28\xb5\x2f\xfd", _unzstd),
)


def buffers_of(array: Any) -> Iterator[bytes]:
    """All bytes that an Arrow column holds on to, whether a row shows them or not."""
    if isinstance(array, pa.DictionaryArray):
        yield from buffers_of(array.dictionary)
    for buffer in array.buffers():
        if buffer is not None:
            yield buffer.to_pybytes()


def everything_in(folder: Any, leave: Iterable[Any] = ()) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, by name; and the names themselves under a name that no file has."""
    left = set(leave)
    files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path not in left}
    return {**files, "/names": "\n".join(files).encode()}
