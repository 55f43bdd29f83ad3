"""Documents with their positions: strict YAML 1.2 core, or JSON, which is a part of it.

Scalars are resolved by the YAML 1.2 core schema and by nothing else: ``yes``, ``no`` and ``on`` are text, and so is a date.
What can surprise is refused: a key that stands twice, anchors, aliases, tags, directives, a second document.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

from eventveil.schemas.errors import PolicyError, Problem

__all__ = [
    "LARGEST",
    "Hidden",
    "Mapping",
    "Sequence",
    "kind",
    "line_at",
    "load_document",
    "parse_document",
    "place",
    "read_document_text",
    "shorten",
    "shown",
]

LARGEST = 1 << 20
"""Bytes of the largest document."""

_DEEPEST = 64
_LONGEST_NUMBER = 64

_INT = re.compile(r"[-+]?[0-9]+\Z|0o[0-7]+\Z|0x[0-9a-fA-F]+\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)\Z|\.(nan|NaN|NAN)\Z")
# ruamel.yaml lets these escape on some texts, as OverflowError on "\\UFFFFFFFF"
_STUMBLES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_SURROGATE = re.compile("[\ud800-\udfff]")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


class Mapping(dict[str, Any]):
    """A mapping that knows where it stands: `line` of its first entry, `lines` of each key."""

    def __init__(self, entries: Any = (), line: int = 0, lines: dict[str, int] | None = None) -> None:
        super().__init__(entries)
        self.line = line
        self.lines: dict[str, int] = {} if lines is None else lines


class Sequence(list[Any]):
    """A list that knows where it stands: `line` of its start, `lines` of each item."""

    def __init__(self, items: Iterable[Any] = (), line: int = 0, lines: list[int] | None = None) -> None:
        super().__init__(items)
        self.line = line
        self.lines: list[int] = [] if lines is None else lines


class Hidden(str):
    """A text that no message may repeat, as it came from the environment."""

    __slots__ = ()


def load_document(path: str | Path) -> Mapping:
    """Read a document from a file. Raises PolicyError as `read_document_text` and `parse_document`."""
    return parse_document(read_document_text(path), str(path))


def read_document_text(path: str | Path) -> bytes:
    """The bytes of a document, up to one more than the largest may have. Raises PolicyError: EV115 where the file cannot be read."""
    try:
        with Path(path).open("rb") as stream:
            return stream.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or "not a path").lower()
        raise PolicyError(Problem(str(path), 0, "EV115", f"the document cannot be read: {reason}", "correct the path")) from None


def parse_document(text: str | bytes, file: str) -> Mapping:
    """Read a document from text; `file` is its name in messages.

    Raises PolicyError with all problems up to the first syntax error: EV103 EV105 EV106 EV107 EV108 EV116.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if len(data) > LARGEST:
        raise PolicyError(Problem(file, 0, "EV105", f"the document is larger than {LARGEST} bytes", "split it"))
    try:
        decoded = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PolicyError(Problem(file, line, "EV105", "not UTF-8 text", "save the document as UTF-8")) from None
    builder = _Builder(file)
    builder.read(decoded)
    if builder.problems:
        raise PolicyError(builder.problems)
    if builder.root is None:
        raise PolicyError(Problem(file, 0, "EV107", "the document is empty", "write `key: value` entries"))
    if not isinstance(builder.root, Mapping):
        raise PolicyError(
            Problem(file, 1, "EV103", f"the document must be a mapping, not {kind(builder.root)}", "write `key: value` entries")
        )
    return builder.root


def place(steps: Iterable[str | int], at: str = "") -> str:
    """The path of an entry as messages write it: ``fields.card[1].mask``. List items count from 0."""
    for step in steps:
        at += f"[{step}]" if isinstance(step, int) else f".{shorten(step)}" if at else shorten(step)
    return at


def line_at(document: Any, steps: Iterable[str | int], line: int = 0) -> int:
    """The line of the deepest entry on the way that exists; `line` if none does."""
    for step in steps:
        try:
            document, lines = document[step], getattr(document, "lines", ())
        except (LookupError, TypeError):
            break
        if isinstance(lines, dict):
            line = lines.get(step, line)
        elif isinstance(step, int) and step < len(lines):
            line = lines[step]
    return line


def shorten(text: str, longest: int = 40) -> str:
    """`text` on one line and no longer than a message bears."""
    line = "".join(letter if letter.isprintable() else "?" for letter in text[: longest + 1])
    return line if len(line) <= longest else line[: longest - 3] + "..."


def shown(value: Any) -> str:
    """A value of a document as a message may repeat it: short texts and numbers as they are, of the rest only the kind."""
    if isinstance(value, Hidden):
        return "the text given"
    if isinstance(value, str):
        return f"'{shorten(value)}'"
    if isinstance(value, (bool, int, float)):
        return shorten(str(value).lower())
    return kind(value)


def kind(value: Any) -> str:
    """What a value is, with its article."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    return "a mapping" if isinstance(value, dict) else "a list" if isinstance(value, list) else "nothing"


@dataclass
class _Open:
    """A mapping or list whose end has not come yet."""

    node: Mapping | Sequence
    key: str | None = None
    expects_key: bool = True
    is_key: bool = False


class _Builder:
    """Builds the document from parse events, without recursion: depth is the writer's choice, the stack is ours."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self.root: Any = None
        self._open: list[_Open] = []

    def read(self, text: str) -> None:
        documents = 0
        try:
            for event in YAML(typ="safe", pure=True).parse(text):
                if isinstance(event, DocumentStartEvent):
                    documents += 1
                    if documents > 1:
                        self._refuse(event, "EV116", "a second document begins", "put each document into a file of its own")
                        return
                    if event.tags or (event.version is not None and tuple(event.version) != (1, 2)):
                        self._refuse(event, "EV116", "a YAML directive", "remove it: documents are YAML 1.2")
                elif not self._take(event):
                    return
        except ReaderError as error:
            at = error.position if isinstance(error.position, int) else 0
            line = text.count("\n", 0, at) + 1
            self._add(line, "EV105", "a control character stands in the document", "remove it, or write it as an escape in double quotes")
        except MarkedYAMLError as error:
            self._add_syntax(error)
        except (YAMLError, *_STUMBLES):
            line = self._open[-1].node.line if self._open else 0
            self._add(line, "EV105", "not YAML 1.2", "look for an escape in double quotes that names no character")

    def _take(self, event: Event) -> bool:
        """False where reading on makes no sense."""
        line = event.start_mark.line + 1
        if isinstance(event, AliasEvent):
            self._refuse(event, "EV116", f"an alias, *{shorten(event.anchor)}{self._where()}", "write the value out")
            self._close_value(None, line)
        elif isinstance(event, ScalarEvent):
            self._check_properties(event)
            if self._awaits_key():
                self._set_key(event, line)
            else:
                self._close_value(self._resolve(event, line), line)
        elif isinstance(event, (MappingStartEvent, SequenceStartEvent)):
            self._check_properties(event)
            if len(self._open) == _DEEPEST:
                self._add(line, "EV105", f"nested more than {_DEEPEST} deep", "write it flatter")
                return False
            is_key = self._awaits_key()
            if is_key:
                self._add(line, "EV116", f"a key that is no text{self._where()}", "write keys as plain text")
            self._open.append(_Open(Mapping(line=line) if isinstance(event, MappingStartEvent) else Sequence(line=line), is_key=is_key))
        elif isinstance(event, (MappingEndEvent, SequenceEndEvent)):
            closed = self._open.pop()
            if closed.is_key:
                self._open[-1].key, self._open[-1].expects_key = None, False
            else:
                self._close_value(closed.node, closed.node.line)
        return True

    def _awaits_key(self) -> bool:
        return bool(self._open) and isinstance(self._open[-1].node, Mapping) and self._open[-1].expects_key

    def _set_key(self, event: ScalarEvent, line: int) -> None:
        top = self._open[-1]
        assert isinstance(top.node, Mapping)
        text = _text(event.value)
        top.expects_key, top.key = False, None
        if text is None:
            self._add(line, "EV105", f"a key is not Unicode text{self._where()}", "write surrogates in pairs")
        elif not text:
            self._add(line, "EV107", f"a key is empty{self._where()}", "name the entry")
        elif event.implicit[0] and (what := _not_text(text)):
            self._add(line, "EV108", f"the key {shorten(text)}{self._where()} is {what}", f'write "{shorten(text)}"')
        elif text in top.node.lines:
            first = top.node.lines[text]
            self._add(line, "EV106", f"key '{shorten(text)}' stands twice{self._where()}", f"it stands at line {first} already")
        else:
            top.key = text
            top.node.lines[text] = line

    def _close_value(self, value: Any, line: int) -> None:
        if not self._open:
            self.root = value
            return
        top = self._open[-1]
        if isinstance(top.node, Sequence):
            top.node.append(value)
            top.node.lines.append(line)
        elif top.expects_key:  # an alias as key
            top.key, top.expects_key = None, False
        else:
            if top.key is not None:
                top.node[top.key] = value
            top.key, top.expects_key = None, True

    def _resolve(self, event: ScalarEvent, line: int) -> Any:
        text = _text(event.value)
        if text is None:
            self._add(line, "EV105", f"a text is not Unicode{self._where()}", "write surrogates in pairs")
            return ""
        if not event.implicit[0]:
            return text
        if text in _WORDS:
            return _WORDS[text]
        is_int = _INT.match(text) is not None
        if not is_int and not _FLOAT.match(text):
            if _NOT_FINITE.match(text):
                self._add(line, "EV103", f"{text} is no finite number{self._where()}", "write a finite number, or quote the text")
            return text
        if len(text) > _LONGEST_NUMBER:
            fact = f"a number has more than {_LONGEST_NUMBER} digits{self._where()}"
            self._add(line, "EV103", fact, "write a shorter number, or quote the text")
            return 0
        if is_int:
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        number = float(text)
        if not math.isfinite(number):
            self._add(line, "EV103", f"a number is too large{self._where()}", "write a smaller number, or quote the text")
        return number

    def _check_properties(self, event: Any) -> None:
        if event.anchor is not None:
            self._refuse(event, "EV116", f"an anchor, &{shorten(event.anchor)}{self._where()}", "write the value out where it is needed")
        if event.tag is not None:
            self._refuse(event, "EV116", f"a tag, {shorten(str(event.tag))}{self._where()}", "remove it; put text in quotes")

    def _where(self) -> str:
        """Where reading stands, as `` in fields.card``."""
        steps: list[str | int] = []
        for frame in self._open:
            if isinstance(frame.node, Sequence):
                steps.append(len(frame.node))
            elif frame.key is not None:
                steps.append(frame.key)
        return f" in {place(steps)}" if steps else ""

    def _refuse(self, event: Event, code: str, fact: str, remedy: str) -> None:
        self._add(event.start_mark.line + 1, code, fact, remedy)

    def _add_syntax(self, error: MarkedYAMLError) -> None:
        mark, begun = error.problem_mark, error.context_mark
        line = mark.line + 1 if mark is not None else 0
        fact = f"not YAML 1.2: {shorten(error.problem or 'syntax', 80)}"
        if begun is not None and begun.line + 1 < line:
            fact += f" (in what begins at line {begun.line + 1})"
        remedy = "look at indentation, brackets and quotes here and in the line above; quote texts that hold ': ', ' #' or braces"
        self._add(line, "EV105", fact, remedy)

    def _add(self, line: int, code: str, fact: str, remedy: str) -> None:
        self.problems.append(Problem(self.file, line, code, fact, remedy))


def _not_text(key: str) -> str | None:
    """What an unquoted key is if not text. `null` passes: it is a parameter of operators, and nothing else could be meant."""
    if _WORDS.get(key) is not None:
        return "a boolean"
    return "a number" if _INT.match(key) or _FLOAT.match(key) or _NOT_FINITE.match(key) else None


def _text(value: str) -> str | None:
    """The text with its surrogate pairs joined, as JSON writes what lies beyond U+FFFF; None where one stands alone."""
    if not _SURROGATE.search(value):
        return value
    try:
        return value.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        return None
